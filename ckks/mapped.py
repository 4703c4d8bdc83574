"""Large arrays of bytes in files that processes share: written piece by piece, mapped without a copy.

The files are safetensors. They are written and mapped here, not by the library, because a set of arrays need not fit in memory while it
is written, and a mapping must not copy. Only this server writes such files; foreign bytes never come here.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from ckks.packed import Bytes

_ALIGNMENT = 64  # bytes: arrays start where vector loads like it


def write_arrays(
    path: Path,
    metadata: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    make: Callable[[str], Iterable[Bytes]],
) -> None:
    """Write one uint8 array per entry of `shapes`, in that order; make(name) gives its parts along the first axis one by one.

    Every array holds a multiple of 64 bytes, so that all start where vector loads like it.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape)
        assert end % _ALIGNMENT == 0
        header[name] = {"dtype": "U8", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            written = 0
            for part in make(name):
                assert part.dtype == np.uint8 and part.shape[1:] == shape[1:]
                written += file.write(np.ascontiguousarray(part).data)
            assert written == math.prod(shape)


def map_arrays(path: Path) -> tuple[dict[str, str], dict[str, Bytes]]:
    """The metadata and the arrays, read-only: their pages are shared by all processes that map the file."""
    mapped = np.memmap(path, np.uint8, mode="r")
    base = 8 + int(mapped[:8].view("<u8")[0])
    header = json.loads(bytes(mapped[8:base]))
    metadata = header.pop("__metadata__")
    arrays = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        arrays[name] = np.asarray(mapped)[base + start : base + end].reshape(entry["shape"])
    return metadata, arrays
