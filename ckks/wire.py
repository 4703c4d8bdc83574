"""The wire format: ciphertexts and evaluation keys as safetensors, loaded strictly.

One tensor [N] per limb, uint32 where the prime is below 2^32, else uint64. A ciphertext has tensors "POLY.ROW"; a seeded one only "0.ROW"
and the seed in its metadata; of several ciphertexts in one object, each has "NAME.POLY.ROW". A stack of ciphertexts has tensors
[members][N] and its size in the metadata. A key file has "KEY.DIGIT.ROW", KEY being
"relinearisation" or "galois-ELEMENT", and a seed per key.
Every load checks the exact set of names, types and shapes, every residue < q, and the announced parameters, level and scale.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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
    """residues [...][row][N]."""
    return {
        f"{prefix}.{r}": residues[..., i, :].astype(row_dtype(parameters.moduli[r]))
        for i, r in enumerate(rows)
    }


def _payload(parameters: Parameters, rows: tuple[int, ...]) -> int:
    return sum(parameters.degree * row_dtype(parameters.moduli[r]).itemsize for r in rows)


# ---- ciphertexts ----


def dump_ciphertext(parameters: Parameters, ciphertext: Ciphertext | SeededCiphertext) -> bytes:
    """The wire bytes of a ciphertext or stack of two polynomials, or of a fresh seeded one (half the size)."""
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
        first = ciphertext.b
        tensors = _limbs(parameters, first, "0", rows)
    else:
        first = ciphertext.polys[..., 0, :, :]
        tensors = {}
        for k in range(ciphertext.polys.shape[-3]):
            tensors |= _limbs(parameters, ciphertext.polys[..., k, :, :], str(k), rows)
    if first.ndim == 3:
        metadata["members"] = str(len(first))
    data: bytes = save_tensors(tensors, metadata)
    return data


def ciphertext_limit(parameters: Parameters, level: int, members: int = 0) -> int:
    """The most bytes that a conformant ciphertext at `level`, or a stack of `members`, takes: the cap to set before reading one."""
    return (
        2 * max(members, 1) * _payload(parameters, parameters.data_rows(level))
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
    polys = _read_polynomials(data, parameters, {"": (rows, 1 if seeded else 2)}, "ciphertext")[""]
    return _unseeded(parameters, polys, metadata.get("seed"), level, scale)


def _unseeded(
    parameters: Parameters, polys: Residues, seed: object | None, level: int, scale: float
) -> Ciphertext:
    if seed is not None:
        uniform = seeds.expand(parameters, _seed(seed), 0, parameters.data_rows(level))
        polys = np.concatenate([polys, uniform[None]])
    return Ciphertext(polys, level, scale)


def load_stack(
    data: bytes | Path, parameters: Parameters, level: int, scale: float, members: int
) -> Ciphertext:
    """A stack of exactly `members` ciphertexts from untrusted bytes, or a file of them; otherwise as `load_ciphertext`."""
    size = data.stat().st_size if isinstance(data, Path) else len(data)
    if size > ciphertext_limit(parameters, level, members):
        raise FormatError(f"stack: {size} bytes are more than {members} ciphertexts at level {level} take")
    metadata = _bounded_metadata(
        _head(data, 8 + _HEADER_BASE + 2 * (level + 1) * _HEADER_PER_TENSOR), size, "stack"
    )
    _check_metadata(metadata, "ciphertext", parameters)
    if metadata.get("level") != str(level) or not same_scale(scale, _float(metadata.get("scale"))):
        raise FormatError(
            f"stack: not at level {level} and scale 2^{math.log2(scale):.3f} as this model expects"
        )
    if set(metadata) - {"seed"} != {"kind", "version", "parameters", "level", "scale", "members"}:
        raise FormatError("stack: unknown or missing metadata")
    if metadata["members"] != str(members):
        raise FormatError(f"stack: expected {members} ciphertexts")
    seed = _seed(metadata["seed"]) if "seed" in metadata else None
    rows = parameters.data_rows(level)
    places = {f"{k}.{r}": (k, r) for k in range(1 if seed else 2) for r in rows}
    polys = np.empty((members, 2, len(rows), parameters.degree), np.uint64)
    try:
        limbs = _open_limbs(data)
        if set(limbs) != set(places):
            raise FormatError(f"stack: expected exactly {len(places)} limbs, those of its level")
        for name, (dtype, shape, read) in limbs.items():
            poly, row = places[name]
            q = parameters.moduli[row]
            if dtype != _dtype_name(q) or shape != [members, parameters.degree]:
                raise FormatError(f"stack: limb {name} has the wrong type or length")
            polys[:, poly, row] = _checked(read().reshape(members, -1), q, f"stack: limb {name}")
    except (SafetensorError, OSError):
        raise FormatError("stack: not a valid safetensors object") from None
    if seed is not None:

        def expand(member: int) -> None:
            polys[member, 1] = seeds.expand(parameters, seed, member, rows)

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(expand, range(members)))
    return Ciphertext(polys, level, scale)


_Limb = tuple[str, list[int], Callable[[], npt.NDArray[Any]]]  # type, shape, and how to read it


def _open_limbs(data: bytes | Path) -> dict[str, _Limb]:
    """Of a file, limb by limb as they are read."""
    if isinstance(data, Path):
        file = safe_open(str(data), framework="np")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  no mapping
        return {
            name: (s.get_dtype(), s.get_shape(), partial(file.get_tensor, name)) for name, s in slices.items()
        }
    types = {"U32": _U32, "U64": _U64}
    return {
        name: (t["dtype"], t["shape"], partial(np.frombuffer, t["data"], types.get(t["dtype"], _U64)))
        for name, t in deserialize(data)
    }


def _head(data: bytes | Path, count: int) -> bytes:
    if isinstance(data, bytes):
        return data[:count]
    with data.open("rb") as file:
        return file.read(count)


# ---- all ciphertexts of a request or an answer ----


def dump_ciphertexts(
    parameters: Parameters, ciphertexts: Mapping[str, Ciphertext | SeededCiphertext]
) -> bytes:
    """The wire bytes of ciphertexts by name: one object for all; a single one is that of `dump_ciphertext`, without its name."""
    if len(ciphertexts) == 1:
        return dump_ciphertext(parameters, next(iter(ciphertexts.values())))
    metadata = {"kind": "ciphertexts", "version": VERSION, "parameters": parameters.digest}
    tensors: dict[str, npt.NDArray[Any]] = {}
    for name, ciphertext in ciphertexts.items():
        rows = parameters.data_rows(ciphertext.level)
        metadata[f"level:{name}"] = str(ciphertext.level)
        metadata[f"scale:{name}"] = ciphertext.scale.hex()
        if isinstance(ciphertext, SeededCiphertext):
            metadata[f"seed:{name}"] = ciphertext.seed.hex()
            tensors |= _limbs(parameters, ciphertext.b, f"{name}.0", rows)
        else:
            for k, poly in enumerate(ciphertext.polys):
                tensors |= _limbs(parameters, poly, f"{name}.{k}", rows)
    data: bytes = save_tensors(tensors, metadata)
    return data


Expected = Mapping[str, tuple[int, float]]  # level and scale by name


def ciphertexts_limit(parameters: Parameters, expected: Expected, members: int = 0) -> int:
    """The most bytes that conformant ciphertexts of these names, levels and scales take: the cap to set before reading them.

    members: the size of the only one, if it is a stack.
    """
    if len(expected) == 1:
        return ciphertext_limit(parameters, next(iter(expected.values()))[0], members)
    payload = sum(2 * _payload(parameters, parameters.data_rows(level)) for level, _ in expected.values())
    return payload + 8 + _header_limit(expected)


def _header_limit(expected: Expected) -> int:
    return _HEADER_BASE + sum(
        (2 * (level + 1) + 3) * (_HEADER_PER_TENSOR + len(json.dumps(name)))  # limbs; level, scale, seed
        for name, (level, _) in expected.items()
    )


def load_ciphertexts(
    data: bytes | Path, parameters: Parameters, expected: Expected, members: int = 0
) -> dict[str, Ciphertext]:
    """Exactly the ciphertexts `expected` from untrusted bytes, as `load_ciphertext` each. Raises FormatError.

    members: the size of the only one, if it is a stack: that may come in a file.
    """
    if members:
        ((name, (level, scale)),) = expected.items()
        return {name: load_stack(data, parameters, level, scale, members)}
    data = data.read_bytes() if isinstance(data, Path) else data
    if len(expected) == 1:
        ((name, (level, scale)),) = expected.items()
        return {name: load_ciphertext(data, parameters, level, scale)}
    if len(data) > ciphertexts_limit(parameters, expected):
        raise FormatError(f"ciphertexts: {len(data)} bytes are more than those of this model take")
    metadata = _bounded_metadata(data[: 8 + _header_limit(expected)], len(data), "ciphertexts")
    _check_metadata(metadata, "ciphertexts", parameters)
    named = {key.partition(":")[2] for key in metadata if ":" in key}
    if missing := sorted(set(expected) - named):
        raise FormatError(f"ciphertexts: {missing[0]!r} is missing; this model takes {len(expected)}")
    if extra := sorted(named - set(expected)):
        raise FormatError(f"ciphertexts: this model knows no {extra[0][:100]!r}")
    seeded = {name for name in expected if f"seed:{name}" in metadata}
    wanted = {f"{key}:{name}" for name in expected for key in ("level", "scale")}
    if set(metadata) != {"kind", "version", "parameters"} | wanted | {f"seed:{name}" for name in seeded}:
        raise FormatError("ciphertexts: unknown or missing metadata")
    for name, (level, scale) in expected.items():
        stated = metadata[f"level:{name}"], _float(metadata[f"scale:{name}"])
        if stated[0] != str(level) or not same_scale(scale, stated[1]):
            raise FormatError(
                f"ciphertexts: {name!r} is not at level {level} and scale 2^{math.log2(scale):.3f} as this model expects"
            )
    # A second ciphertext under one seed gives away the difference of the two messages.
    if len({_seed(metadata[f"seed:{name}"]) for name in seeded}) != len(seeded):
        raise FormatError("ciphertexts: two of them share a seed; encrypt again")
    groups = {
        f"{name}.": (parameters.data_rows(level), 1 if name in seeded else 2)
        for name, (level, _) in expected.items()
    }
    polys = _read_polynomials(data, parameters, groups, "ciphertexts")
    return {
        name: _unseeded(parameters, polys[f"{name}."], metadata.get(f"seed:{name}"), level, scale)
        for name, (level, scale) in expected.items()
    }


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
    b = _read_polynomials(data, parameters, {"": (rows, 1)}, "public key")[""][0]
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
        if tensor["dtype"] != _dtype_name(q) or tensor["shape"] != [parameters.degree]:
            raise FormatError(f"{what}: limb {name} has the wrong type or length")
    polys = {
        prefix: np.empty((count, len(rows), parameters.degree), np.uint64)
        for prefix, (rows, count) in groups.items()
    }
    for name, tensor in tensors.items():
        prefix, k, i, r = places[name]
        q = parameters.moduli[r]
        values = np.frombuffer(tensor["data"], row_dtype(q))
        polys[prefix][k, i] = _checked(values, q, f"{what}: limb {name}")
    return polys


def _bounded_metadata(head: bytes, size: int, what: str) -> dict[str, Any]:
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
