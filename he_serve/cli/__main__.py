"""`python -m he_serve.cli`."""

from __future__ import annotations

from he_serve.cli import main

main()
