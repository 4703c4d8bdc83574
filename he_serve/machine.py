"""Where the figures of this machine are kept: `he-serve doctor` writes them, the compiler's cost model reads them."""

from __future__ import annotations

import os
from pathlib import Path

from ckks.machine import Machine, default_machine, load_machine


def machine_file() -> Path:
    """In the user's cache folder (XDG base directory specification)."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if cache else Path.home() / ".cache") / "he-serve" / "machine.json"


def find_machine(path: Path | None = None) -> Machine:
    """The figures in `path`; if None, this user's if `he-serve doctor` ever ran, else the committed ones. Raises FormatError."""
    if path is not None:
        return load_machine(path)
    own = machine_file()
    return load_machine(own) if own.exists() else default_machine()
