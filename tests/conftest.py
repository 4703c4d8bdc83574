"""Settings and fixtures shared by all tests."""

from __future__ import annotations

from hypothesis import settings
from serving import keyed, models_folder, server, tiny

__all__ = ["keyed", "models_folder", "server", "tiny"]  # one server process for all tests that do not harm it

# Shared machines stall: a slow example is no failure, and every run tries the same examples.
settings.register_profile("default", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("default")
