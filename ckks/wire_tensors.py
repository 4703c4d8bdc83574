"""What ciphertexts and keys have in common on the wire: limbs as safetensors, and the checks of untrusted ones.

One tensor [N] per limb, uint32 where the prime is below 2^32, else uint64. Every load checks the exact set of names, types and shapes,
every residue < q, and what the metadata announce.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize

from ckks import seeds
from ckks.errors import FormatError
from ckks.parameters import Parameters
from ckks.types import Residues

VERSION = "1"
HEADER_BASE, HEADER_PER_TENSOR = (
    1024,
    160,
)  # bytes of JSON: metadata, and one tensor's entry with room to spare
U32, U64 = np.dtype("<u4"), np.dtype("<u8")


def row_dtype(q: int) -> np.dtype[Any]:
    """How residues modulo q travel: uint32 below 2^32, else uint64, little-endian."""
    return U32 if q < 1 << 32 else U64


def dtype_name(q: int) -> str:
    """The name safetensors gives `row_dtype`."""
    return "U32" if q < 1 << 32 else "U64"


def limb_tensors(
    parameters: Parameters, residues: Residues, prefix: str, rows: tuple[int, ...]
) -> dict[str, npt.NDArray[Any]]:
    """Tensors "PREFIX.ROW" of residues [...][row][N]."""
    return {
        f"{prefix}.{r}": residues[..., i, :].astype(row_dtype(parameters.moduli[r]))
        for i, r in enumerate(rows)
    }


def payload_bytes(parameters: Parameters, rows: tuple[int, ...]) -> int:
    """Bytes of one polynomial of these rows on the wire."""
    return sum(parameters.degree * row_dtype(parameters.moduli[r]).itemsize for r in rows)


def read_polynomials(
    data: bytes, parameters: Parameters, groups: Mapping[str, tuple[tuple[int, ...], int]], what: str
) -> dict[str, Residues]:
    """groups: rows and number of polynomials by prefix.

    Exactly the limbs PREFIX"POLY.ROW": uint64 [count][row][N] by prefix, every residue checked.
    """
    try:
        tensors = dict(deserialize(data))
    except SafetensorError:
        raise FormatError(f"{what}: not a valid safetensors object") from None
    places = {
        f"{prefix}{k}.{r}": (prefix, k, i, r)
        for prefix, (rows, count) in groups.items()
        for k in range(count)
        for i, r in enumerate(rows)
    }
    if set(tensors) != set(places):
        raise FormatError(f"{what}: expected exactly {len(places)} limbs, those of its levels")
    for name, tensor in tensors.items():
        q = parameters.moduli[places[name][3]]
        if tensor["dtype"] != dtype_name(q) or tensor["shape"] != [parameters.degree]:
            raise FormatError(f"{what}: limb {name} has the wrong type or length")
    polys = {
        prefix: np.empty((count, len(rows), parameters.degree), np.uint64)
        for prefix, (rows, count) in groups.items()
    }
    for name, tensor in tensors.items():
        prefix, k, i, r = places[name]
        q = parameters.moduli[r]
        values = np.frombuffer(tensor["data"], row_dtype(q))
        polys[prefix][k, i] = checked(values, q, f"{what}: limb {name}")
    return polys


def bounded_metadata(head: bytes, size: int, what: str) -> dict[str, Any]:
    """The metadata of a safetensors object of `size` bytes, whose header must lie within `head`."""
    length = struct.unpack_from("<Q", head)[0] if len(head) >= 8 else size
    if length > len(head) - 8:
        raise FormatError(f"{what}: the header is truncated or too long")
    try:
        metadata = json.loads(head[8 : 8 + length], object_pairs_hook=_unique)["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FormatError(f"{what}: the header is not that of a safetensors object of ours") from None
    if not isinstance(metadata, dict):
        raise FormatError(f"{what}: the metadata are not an object")
    return metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise FormatError("a name is stated twice in the header")
    return found


def check_metadata(metadata: dict[str, Any], kind: str, parameters: Parameters) -> None:
    """Raise FormatError unless the metadata are of this kind, our version and these parameters."""
    if metadata.get("kind") != kind or metadata.get("version") != VERSION:
        raise FormatError(f"expected {kind} of format version {VERSION}")
    if metadata.get("parameters") != parameters.digest:
        raise FormatError(f"{kind}: made for other parameters; fetch the model's bundle again")


def checked(residues: npt.NDArray[Any], q: int, what: str) -> npt.NDArray[Any]:
    """The residues, all below q. Raises FormatError."""
    if residues.max(initial=0) >= q:
        raise FormatError(f"{what} has a residue that is not below its prime")
    return residues


def seed_of(text: object) -> bytes:
    """A seed as metadata state it. Raises FormatError."""
    if (
        not isinstance(text, str)
        or len(text) != 2 * seeds.SEED_BYTES
        or not set(text) <= set("0123456789abcdef")
    ):
        raise FormatError("a seed must be 64 hexadecimal digits")
    return bytes.fromhex(text)


def float_of(text: object) -> float:
    """A float as metadata state it, hexadecimal; NaN for anything else."""
    try:
        return float.fromhex(text) if isinstance(text, str) else math.nan
    except (ValueError, OverflowError):
        return math.nan
