"""Expanded evaluation keys on the server's own disk: validated once, then mapped into every worker.

One array per key, packed [digit][2][row][N], no seeds; it is named by the key and its level.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

from ckks.errors import FormatError
from ckks.mapped import map_arrays, write_arrays
from ckks.packed import Bytes, Packed, pack, packed_bytes
from ckks.parameters import Parameters
from ckks.types import EvaluationKeys, KeyNeeds, KeySwitchKey, Residues
from ckks.wire_keys import KeyFile, key_names

_KIND = "expanded keys 4"


def expand_keys(
    source: Path,
    target: Path,
    parameters: Parameters,
    needs: KeyNeeds,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Check an uploaded key file completely and write its expanded form. Raises FormatError; `target` then holds nothing of use."""
    uploaded = KeyFile(source, parameters, needs)
    done = itertools.count(1)

    def read(name: str, level: int) -> Residues:
        key = uploaded.read(name)
        if progress is not None:
            progress(next(done), len(uploaded.names))
        return key

    write_keys(target, parameters, needs, read)


def write_keys(
    target: Path, parameters: Parameters, needs: KeyNeeds, read: Callable[[str, int], Residues]
) -> None:
    """Write the expanded form of keys; read(name, level) gives each as uint64 [digit][2][row][N]."""
    names = key_names(parameters, needs)
    shapes = {f"{name} {level}": _shape(parameters, level) for name, level in names.items()}

    def make(name_and_level: str) -> Iterator[Bytes]:
        name, level = name_and_level.split()
        yield pack(read(name, int(level)), _moduli(parameters, int(level))).data

    write_arrays(target, {"kind": _KIND, "parameters": parameters.digest}, shapes, make)


def map_keys(path: Path, parameters: Parameters) -> EvaluationKeys:
    """Map an expanded key file, read-only. Raises FormatError for another parameter set's file."""
    metadata, arrays = map_arrays(path)
    if metadata["kind"] != _KIND or metadata["parameters"] != parameters.digest:
        raise FormatError(f"{path.name}: expanded for other parameters, or by another version")
    keys = {}
    for name_and_level, data in arrays.items():
        name, level = name_and_level.split()
        packed = Packed(data, _moduli(parameters, int(level)), parameters.degree)
        keys[name] = KeySwitchKey(packed, int(level))
    galois = {
        int(name.removeprefix("galois-")): key for name, key in keys.items() if name.startswith("galois-")
    }
    return EvaluationKeys(parameters, keys.get("relinearisation"), galois)


def expanded_bytes(parameters: Parameters, needs: KeyNeeds) -> int:
    """Bytes of the keys once they are expanded (without the file's header)."""
    return sum(math.prod(_shape(parameters, level)) for level in key_names(parameters, needs).values())


def _shape(parameters: Parameters, level: int) -> tuple[int, int, int]:
    size = packed_bytes(_moduli(parameters, level), parameters.degree)
    return len(parameters.digits(level)), 2, size


def _moduli(parameters: Parameters, level: int) -> tuple[int, ...]:
    return tuple(parameters.moduli[r] for r in parameters.extended_rows(level))
