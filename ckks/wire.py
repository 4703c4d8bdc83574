"""Ciphertexts on the wire: safetensors objects, loaded strictly (ckks/wire_tensors.py).

A ciphertext has tensors "POLY.ROW"; a seeded one only "0.ROW" and the seed in its metadata; of several ciphertexts in one object, each
has "NAME.POLY.ROW". A stack of ciphertexts has tensors [members][N] and its size in the metadata.
"""

from __future__ import annotations

import json
import math
import os
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
from ckks.types import Ciphertext, Residues, SeededCiphertext, same_scale
from ckks.wire_tensors import (
    HEADER_BASE,
    HEADER_PER_TENSOR,
    U32,
    U64,
    VERSION,
    bounded_metadata,
    check_metadata,
    checked,
    dtype_name,
    float_of,
    limb_tensors,
    payload_bytes,
    read_polynomials,
    seed_of,
)


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
        tensors = limb_tensors(parameters, first, "0", rows)
    else:
        first = ciphertext.polys[..., 0, :, :]
        tensors = {}
        for k in range(ciphertext.polys.shape[-3]):
            tensors |= limb_tensors(parameters, ciphertext.polys[..., k, :, :], str(k), rows)
    if first.ndim == 3:
        metadata["members"] = str(len(first))
    data: bytes = save_tensors(tensors, metadata)
    return data


def ciphertext_limit(parameters: Parameters, level: int, members: int = 0) -> int:
    """The most bytes that a conformant ciphertext at `level`, or a stack of `members`, takes: the cap to set before reading one."""
    return (
        2 * max(members, 1) * payload_bytes(parameters, parameters.data_rows(level))
        + 8
        + HEADER_BASE
        + 2 * (level + 1) * HEADER_PER_TENSOR
    )


def load_ciphertext(data: bytes, parameters: Parameters, level: int, scale: float) -> Ciphertext:
    """A two-polynomial ciphertext from untrusted bytes, at exactly this level and scale; a seeded one is expanded. Raises FormatError."""
    if len(data) > ciphertext_limit(parameters, level):
        raise FormatError(
            f"ciphertext: {len(data)} bytes are more than level {level} of these parameters takes"
        )
    metadata = bounded_metadata(
        data[: 8 + HEADER_BASE + 2 * (level + 1) * HEADER_PER_TENSOR], len(data), "ciphertext"
    )
    check_metadata(metadata, "ciphertext", parameters)
    if metadata.get("level") != str(level) or not same_scale(scale, float_of(metadata.get("scale"))):
        raise FormatError(
            f"ciphertext: not at level {level} and scale 2^{math.log2(scale):.3f} as this model expects"
        )
    seeded = "seed" in metadata
    if set(metadata) - {"seed"} != {"kind", "version", "parameters", "level", "scale"}:
        raise FormatError("ciphertext: unknown or missing metadata")
    rows = parameters.data_rows(level)
    polys = read_polynomials(data, parameters, {"": (rows, 1 if seeded else 2)}, "ciphertext")[""]
    return _unseeded(parameters, polys, metadata.get("seed"), level, scale)


def _unseeded(
    parameters: Parameters, polys: Residues, seed: object | None, level: int, scale: float
) -> Ciphertext:
    if seed is not None:
        uniform = seeds.expand(parameters, seed_of(seed), 0, parameters.data_rows(level))
        polys = np.concatenate([polys, uniform[None]])
    return Ciphertext(polys, level, scale)


def load_stack(
    data: bytes | Path, parameters: Parameters, level: int, scale: float, members: int
) -> Ciphertext:
    """A stack of exactly `members` ciphertexts from untrusted bytes, or a file of them; otherwise as `load_ciphertext`."""
    size = data.stat().st_size if isinstance(data, Path) else len(data)
    if size > ciphertext_limit(parameters, level, members):
        raise FormatError(f"stack: {size} bytes are more than {members} ciphertexts at level {level} take")
    metadata = bounded_metadata(
        _head(data, 8 + HEADER_BASE + 2 * (level + 1) * HEADER_PER_TENSOR), size, "stack"
    )
    check_metadata(metadata, "ciphertext", parameters)
    if metadata.get("level") != str(level) or not same_scale(scale, float_of(metadata.get("scale"))):
        raise FormatError(
            f"stack: not at level {level} and scale 2^{math.log2(scale):.3f} as this model expects"
        )
    if set(metadata) - {"seed"} != {"kind", "version", "parameters", "level", "scale", "members"}:
        raise FormatError("stack: unknown or missing metadata")
    if metadata["members"] != str(members):
        raise FormatError(f"stack: expected {members} ciphertexts")
    seed = seed_of(metadata["seed"]) if "seed" in metadata else None
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
            if dtype != dtype_name(q) or shape != [members, parameters.degree]:
                raise FormatError(f"stack: limb {name} has the wrong type or length")
            polys[:, poly, row] = checked(read().reshape(members, -1), q, f"stack: limb {name}")
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
    types = {"U32": U32, "U64": U64}
    return {
        name: (t["dtype"], t["shape"], partial(np.frombuffer, t["data"], types.get(t["dtype"], U64)))
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
            tensors |= limb_tensors(parameters, ciphertext.b, f"{name}.0", rows)
        else:
            for k, poly in enumerate(ciphertext.polys):
                tensors |= limb_tensors(parameters, poly, f"{name}.{k}", rows)
    data: bytes = save_tensors(tensors, metadata)
    return data


Expected = Mapping[str, tuple[int, float]]  # level and scale by name


def ciphertexts_limit(parameters: Parameters, expected: Expected, members: int = 0) -> int:
    """The most bytes that conformant ciphertexts of these names, levels and scales take: the cap to set before reading them.

    members: the size of the only one, if it is a stack.
    """
    if len(expected) == 1:
        return ciphertext_limit(parameters, next(iter(expected.values()))[0], members)
    payload = sum(
        2 * payload_bytes(parameters, parameters.data_rows(level)) for level, _ in expected.values()
    )
    return payload + 8 + _header_limit(expected)


def _header_limit(expected: Expected) -> int:
    return HEADER_BASE + sum(
        (2 * (level + 1) + 3) * (HEADER_PER_TENSOR + len(json.dumps(name)))  # limbs; level, scale, seed
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
    metadata = bounded_metadata(data[: 8 + _header_limit(expected)], len(data), "ciphertexts")
    check_metadata(metadata, "ciphertexts", parameters)
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
        stated = metadata[f"level:{name}"], float_of(metadata[f"scale:{name}"])
        if stated[0] != str(level) or not same_scale(scale, stated[1]):
            raise FormatError(
                f"ciphertexts: {name!r} is not at level {level} and scale 2^{math.log2(scale):.3f} as this model expects"
            )
    # A second ciphertext under one seed gives away the difference of the two messages.
    if len({seed_of(metadata[f"seed:{name}"]) for name in seeded}) != len(seeded):
        raise FormatError("ciphertexts: two of them share a seed; encrypt again")
    groups = {
        f"{name}.": (parameters.data_rows(level), 1 if name in seeded else 2)
        for name, (level, _) in expected.items()
    }
    polys = read_polynomials(data, parameters, groups, "ciphertexts")
    return {
        name: _unseeded(parameters, polys[f"{name}."], metadata.get(f"seed:{name}"), level, scale)
        for name, (level, scale) in expected.items()
    }
