"""Expanded evaluation keys on the server's own disk: validated once, then mapped into every worker.

One uint64 array [digit][2][row][N] per key, no seeds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

from ckks.errors import FormatError
from ckks.mapped import map_arrays, write_arrays
from ckks.parameters import Parameters
from ckks.types import EvaluationKeys, KeyNeeds, KeySwitchKey, Residues
from ckks.wire import KeyFile


def expand_keys(
    source: Path,
    target: Path,
    parameters: Parameters,
    needs: KeyNeeds,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Check an uploaded key file completely and write its expanded form. Raises FormatError; `target` then holds nothing of use."""
    uploaded = KeyFile(source, parameters, needs)
    shapes = {
        name: (len(parameters.digits(level)), 2, len(parameters.extended_rows(level)), parameters.degree)
        for name, level in uploaded.names.items()
    }
    done = itertools.count(1)

    def make(name: str) -> Residues:
        key = uploaded.read(name)
        if progress is not None:
            progress(next(done), len(shapes))
        return key

    write_arrays(target, {"kind": "expanded keys", "parameters": parameters.digest}, shapes, make)


def map_keys(path: Path, parameters: Parameters) -> EvaluationKeys:
    """Map an expanded key file, read-only. Raises FormatError for another parameter set's file."""
    metadata, arrays = map_arrays(path)
    if metadata["parameters"] != parameters.digest:
        raise FormatError(f"{path.name}: expanded for other parameters")
    specials = len(parameters.special_primes)
    keys = {name: KeySwitchKey(a, a.shape[2] - specials - 1) for name, a in arrays.items()}
    galois = {
        int(name.removeprefix("galois-")): key for name, key in keys.items() if name.startswith("galois-")
    }
    return EvaluationKeys(parameters, keys.get("relinearisation"), galois)
