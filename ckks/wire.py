"""The wire format: ciphertexts and evaluation keys as safetensors, loaded strictly.

One tensor [N] per limb, uint32 where the prime is below 2^32, else uint64. A ciphertext has tensors "POLY.ROW"; a seeded one only "0.ROW"
and the seed in its metadata. A key file has "KEY.DIGIT.ROW", KEY being "relinearisation" or "galois-ELEMENT", and a seed per key.
Every load checks the exact set of names, types and shapes, every residue < q, and the announced parameters, level and scale.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save as save_tensors

from ckks import seeds
from ckks.errors import FormatError
from ckks.parameters import Parameters
from ckks.types import (
    Ciphertext,
    KeyNeeds,
    Residues,
    SeededCiphertext,
    SeededKey,
    SeededKeys,
    SeededPublicKey,
    same_scale,
)

VERSION = "1"
_HEADER_BASE, _HEADER_PER_TENSOR = (
    1024,
    160,
)  # bytes of JSON: metadata, and one tensor's entry with room to spare
_U32, _U64 = np.dtype("<u4"), np.dtype("<u8")


def row_dtype(q: int) -> np.dtype[Any]:
    """How residues modulo q travel: uint32 below 2^32, else uint64, little-endian."""
    return _U32 if q < 1 << 32 else _U64


def _dtype_name(q: int) -> str:
    return "U32" if q < 1 << 32 else "U64"


def _limbs(
    parameters: Parameters, residues: Residues, prefix: str, rows: tuple[int, ...]
) -> dict[str, npt.NDArray[Any]]:
    return {f"{prefix}.{r}": residues[i].astype(row_dtype(parameters.moduli[r])) for i, r in enumerate(rows)}


def _payload(parameters: Parameters, rows: tuple[int, ...]) -> int:
    return sum(parameters.degree * row_dtype(parameters.moduli[r]).itemsize for r in rows)


# ---- ciphertexts ----


def dump_ciphertext(parameters: Parameters, ciphertext: Ciphertext | SeededCiphertext) -> bytes:
    """The wire bytes of a ciphertext of two polynomials, or of a fresh seeded one (half the size)."""
    rows = parameters.data_rows(ciphertext.level)
    metadata = {
        "kind": "ciphertext",
        "version": VERSION,
        "parameters": parameters.digest,
        "level": str(ciphertext.level),
        "scale": ciphertext.scale.hex(),
    }
    if isinstance(ciphertext, SeededCiphertext):
        metadata["seed"] = ciphertext.seed.hex()
        tensors = _limbs(parameters, ciphertext.b, "0", rows)
    else:
        tensors = {}
        for k, poly in enumerate(ciphertext.polys):
            tensors |= _limbs(parameters, poly, str(k), rows)
    data: bytes = save_tensors(tensors, metadata)
    return data


def ciphertext_limit(parameters: Parameters, level: int) -> int:
    """The most bytes that a conformant ciphertext at `level` takes: the cap to set before reading one."""
    return (
        2 * _payload(parameters, parameters.data_rows(level))
        + 8
        + _HEADER_BASE
        + 2 * (level + 1) * _HEADER_PER_TENSOR
    )


def load_ciphertext(data: bytes, parameters: Parameters, level: int, scale: float) -> Ciphertext:
    """A two-polynomial ciphertext from untrusted bytes, at exactly this level and scale; a seeded one is expanded. Raises FormatError."""
    if len(data) > ciphertext_limit(parameters, level):
        raise FormatError(
            f"ciphertext: {len(data)} bytes are more than level {level} of these parameters takes"
        )
    metadata = _bounded_metadata(
        data[: 8 + _HEADER_BASE + 2 * (level + 1) * _HEADER_PER_TENSOR], len(data), "ciphertext"
    )
    _check_metadata(metadata, "ciphertext", parameters)
    if metadata.get("level") != str(level) or not same_scale(scale, _float(metadata.get("scale"))):
        raise FormatError(
            f"ciphertext: not at level {level} and scale 2^{math.log2(scale):.3f} as this model expects"
        )
    seeded = "seed" in metadata
    if set(metadata) - {"seed"} != {"kind", "version", "parameters", "level", "scale"}:
        raise FormatError("ciphertext: unknown or missing metadata")
    rows = parameters.data_rows(level)
    polys = _read_polynomials(data, parameters, rows, 1 if seeded else 2, "ciphertext")
    if seeded:
        uniform = seeds.expand(parameters, _seed(metadata["seed"]), 0, rows)
        polys = np.concatenate([polys, uniform[None]])
    return Ciphertext(polys, level, scale)


# ---- public keys ----


def dump_public_key(key: SeededPublicKey) -> bytes:
    """The wire bytes of a public key: tensors "0.ROW" for all rows, and its seed."""
    p = key.parameters
    metadata = {"kind": "public key", "version": VERSION, "parameters": p.digest, "seed": key.seed.hex()}
    data: bytes = save_tensors(_limbs(p, key.b, "0", tuple(range(len(p.moduli)))), metadata)
    return data


def load_public_key(data: bytes, parameters: Parameters) -> SeededPublicKey:
    """A public key from untrusted bytes. Raises FormatError."""
    rows = tuple(range(len(parameters.moduli)))
    header = 8 + _HEADER_BASE + len(rows) * _HEADER_PER_TENSOR
    if len(data) > _payload(parameters, rows) + header:
        raise FormatError(f"public key: {len(data)} bytes are more than these parameters take")
    metadata = _bounded_metadata(data[:header], len(data), "public key")
    _check_metadata(metadata, "public key", parameters)
    if set(metadata) != {"kind", "version", "parameters", "seed"}:
        raise FormatError("public key: unknown or missing metadata")
    b = _read_polynomials(data, parameters, rows, 1, "public key")[0]
    return SeededPublicKey(parameters, b, _seed(metadata["seed"]))


# ---- evaluation keys ----


def key_names(parameters: Parameters, needs: KeyNeeds) -> dict[str, int]:
    """The keys that `needs` asks for, by their name in a key file, each with its level."""
    names = {} if needs.relinearisation is None else {"relinearisation": needs.relinearisation}
    return names | {
        f"galois-{parameters.galois_element(steps)}": level for steps, level in needs.rotations.items()
    }


def _key_rows(parameters: Parameters, names: dict[str, int]) -> list[tuple[str, str, int, int]]:
    """(tensor name, key, digit, row) of every limb of a key file."""
    return [
        (f"{key}.{j}.{r}", key, j, r)
        for key, level in names.items()
        for j in range(len(parameters.digits(level)))
        for r in parameters.extended_rows(level)
    ]


def key_file_size(parameters: Parameters, needs: KeyNeeds) -> tuple[int, int]:
    """The least and the most bytes of a conformant key file for `needs`: the payload is exact, the header bounded."""
    limbs = _key_rows(parameters, key_names(parameters, needs))
    payload = _payload(parameters, tuple(row for *_, row in limbs))
    return payload, payload + 8 + _HEADER_BASE + _HEADER_PER_TENSOR * (
        len(limbs) + len(key_names(parameters, needs))
    )


def dump_keys(path: Path, keys: SeededKeys) -> None:
    """Write a key file (public data: no secret in it)."""
    parameters = keys.parameters
    tensors: dict[str, npt.NDArray[Any]] = {}
    metadata = {"kind": "evaluation keys", "version": VERSION, "parameters": parameters.digest}
    named: list[tuple[str, SeededKey]] = [(f"galois-{g}", key) for g, key in keys.galois.items()]
    if keys.relinearisation is not None:
        named.append(("relinearisation", keys.relinearisation))
    for name, key in named:
        metadata[f"seed:{name}"] = key.seed.hex()
        for j, b in enumerate(key.b):
            tensors |= _limbs(parameters, b, f"{name}.{j}", parameters.extended_rows(key.level))
    path.write_bytes(save_tensors(tensors, metadata))


class KeyFile:
    """An uploaded key file, opened and checked but for its residues, which `read` checks key by key. Raises FormatError."""

    def __init__(self, path: Path, parameters: Parameters, needs: KeyNeeds) -> None:
        self.parameters = parameters
        self.names = key_names(parameters, needs)
        size, (least, most) = path.stat().st_size, key_file_size(parameters, needs)
        if not least < size <= most:
            raise FormatError(
                f"key file: {size} bytes cannot hold this model's keys ({least} to {most}); make keys from its bundle"
            )
        with path.open("rb") as file:
            metadata = _bounded_metadata(file.read(most - least), size, "key file")
        _check_metadata(metadata, "evaluation keys", parameters)
        if set(metadata) != {"kind", "version", "parameters"} | {f"seed:{name}" for name in self.names}:
            raise FormatError("key file: expected one seed for each key of this model")
        self.seeds = {name: _seed(metadata[f"seed:{name}"]) for name in self.names}
        try:
            self._file = safe_open(str(path), framework="np")
        except (SafetensorError, OSError):
            raise FormatError("key file: not a valid safetensors object") from None
        if set(self._file.keys()) != {name for name, *_ in _key_rows(parameters, self.names)}:
            raise FormatError("key file: expected exactly the limbs of this model's keys")
        if len(set(self.seeds.values())) != len(self.seeds):
            raise FormatError("key file: two keys share a seed")

    def read(self, name: str) -> Residues:
        """The key called `name`, its seed expanded: uint64 [digit][2][level+1+K][N], NTT domain, every residue checked."""
        p, level = self.parameters, self.names[name]
        rows = p.extended_rows(level)
        key = np.empty((len(p.digits(level)), 2, len(rows), p.degree), np.uint64)
        for j in range(key.shape[0]):
            for i, r in enumerate(rows):
                q, limb = p.moduli[r], f"{name}.{j}.{r}"
                view = self._file.get_slice(limb)
                if view.get_dtype() != _dtype_name(q) or view.get_shape() != [p.degree]:
                    raise FormatError(f"key file: limb {limb} has the wrong type or length")
                key[j, 0, i] = _checked(self._file.get_tensor(limb), q, f"key file: limb {limb}")
            key[j, 1] = seeds.expand(p, self.seeds[name], j, rows)
        return key


# ---- checks shared by both ----


def _read_polynomials(
    data: bytes, parameters: Parameters, rows: tuple[int, ...], count: int, what: str
) -> Residues:
    """Exactly the limbs "POLY.ROW" of `count` polynomials: uint64 [count][row][N], every residue checked."""
    try:
        tensors = dict(deserialize(data))
    except SafetensorError:
        raise FormatError(f"{what}: not a valid safetensors object") from None
    if set(tensors) != {f"{k}.{r}" for k in range(count) for r in rows}:
        raise FormatError(f"{what}: expected exactly {count} x {len(rows)} limbs")
    polys = np.empty((count, len(rows), parameters.degree), np.uint64)
    for name, tensor in tensors.items():
        poly, row = (int(x) for x in name.split("."))
        q = parameters.moduli[row]
        if tensor["dtype"] != _dtype_name(q) or tensor["shape"] != [parameters.degree]:
            raise FormatError(f"{what}: limb {name} has the wrong type or length")
        polys[poly, row] = _checked(np.frombuffer(tensor["data"], row_dtype(q)), q, f"{what}: limb {name}")
    return polys


def _bounded_metadata(head: bytes, size: int, what: str) -> dict[str, Any]:
    """The metadata of a safetensors object of `size` bytes, whose header must lie within `head`."""
    length = struct.unpack_from("<Q", head)[0] if len(head) >= 8 else size
    if length > len(head) - 8:
        raise FormatError(f"{what}: the header is truncated or too long")
    try:
        metadata = json.loads(head[8 : 8 + length])["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FormatError(f"{what}: the header is not that of a safetensors object of ours") from None
    if not isinstance(metadata, dict):
        raise FormatError(f"{what}: the metadata are not an object")
    return metadata


def _check_metadata(metadata: dict[str, Any], kind: str, parameters: Parameters) -> None:
    if metadata.get("kind") != kind or metadata.get("version") != VERSION:
        raise FormatError(f"expected {kind} of format version {VERSION}")
    if metadata.get("parameters") != parameters.digest:
        raise FormatError(f"{kind}: made for other parameters; fetch the model's bundle again")


def _checked(residues: npt.NDArray[Any], q: int, what: str) -> npt.NDArray[Any]:
    if residues.max(initial=0) >= q:
        raise FormatError(f"{what} has a residue that is not below its prime")
    return residues


def _seed(text: object) -> bytes:
    if (
        not isinstance(text, str)
        or len(text) != 2 * seeds.SEED_BYTES
        or not set(text) <= set("0123456789abcdef")
    ):
        raise FormatError("a seed must be 64 hexadecimal digits")
    return bytes.fromhex(text)


def _float(text: object) -> float:
    try:
        return float.fromhex(text) if isinstance(text, str) else math.nan
    except (ValueError, OverflowError):
        return math.nan
