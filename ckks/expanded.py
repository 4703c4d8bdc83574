"""Expanded evaluation keys on the server's own disk: validated once, then mapped into every worker without a copy.

The file is safetensors too (one uint64 tensor [digit][2][row][N] per key, no seeds), but it is written and mapped here, not by the
library, because a key set need not fit in memory while it is written, and a mapping must not copy. Only this server writes such files.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ckks.errors import FormatError
from ckks.parameters import Parameters
from ckks.types import EvaluationKeys, KeyNeeds, KeySwitchKey
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
    header: dict[str, object] = {"__metadata__": {"kind": "expanded keys", "parameters": parameters.digest}}
    end = 0
    for name, level in uploaded.names.items():
        shape = [len(parameters.digits(level)), 2, len(parameters.extended_rows(level)), parameters.degree]
        start, end = end, end + 8 * int(np.prod(shape))
        header[name] = {"dtype": "U64", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)  # rows stay aligned for vector loads
    with target.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for i, name in enumerate(uploaded.names):
            file.write(uploaded.read(name).data)
            if progress is not None:
                progress(i + 1, len(uploaded.names))


def map_keys(path: Path, parameters: Parameters) -> EvaluationKeys:
    """Map an expanded key file, read-only: pages are shared by all processes that map it. Raises FormatError for another's file."""
    mapped = np.memmap(path, np.uint8, mode="r")
    base = 8 + int(mapped[:8].view("<u8")[0])
    header = json.loads(bytes(mapped[8:base]))
    if header.pop("__metadata__")["parameters"] != parameters.digest:
        raise FormatError(f"{path.name}: expanded for other parameters")
    keys: dict[str, KeySwitchKey] = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        residues = mapped[base + start : base + end].view(np.uint64).reshape(entry["shape"])
        level = entry["shape"][2] - len(parameters.special_primes) - 1
        keys[name] = KeySwitchKey(residues, level)
    galois = {
        int(name.removeprefix("galois-")): key for name, key in keys.items() if name.startswith("galois-")
    }
    return EvaluationKeys(parameters, keys.get("relinearisation"), galois)
