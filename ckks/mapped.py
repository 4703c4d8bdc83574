"""Large uint64 arrays in files that processes share: written piece by piece, mapped without a copy.

The files are safetensors. They are written and mapped here, not by the library, because a set of arrays need not fit in memory while it
is written, and a mapping must not copy. Only this server writes such files; foreign bytes never come here.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ckks.types import Residues

_ALIGNMENT = 64  # bytes: arrays start where vector loads like it


def write_arrays(
    path: Path,
    metadata: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    make: Callable[[str], Residues],
) -> None:
    """Write one uint64 array per entry of `shapes`, in that order; make(name) is called for each in turn."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 8 * math.prod(shape)
        header[name] = {"dtype": "U64", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            array = make(name)
            assert array.shape == shape and array.dtype == np.uint64
            file.write(np.ascontiguousarray(array).data)


def map_arrays(path: Path) -> tuple[dict[str, str], dict[str, Residues]]:
    """The metadata and the arrays, read-only: their pages are shared by all processes that map the file."""
    mapped = np.memmap(path, np.uint8, mode="r")
    base = 8 + int(mapped[:8].view("<u8")[0])
    header = json.loads(bytes(mapped[8:base]))
    metadata = header.pop("__metadata__")
    arrays = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        arrays[name] = mapped[base + start : base + end].view(np.uint64).reshape(entry["shape"])
    return metadata, arrays
