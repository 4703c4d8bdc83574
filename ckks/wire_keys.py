"""Keys on the wire: safetensors objects, loaded strictly (ckks/wire_tensors.py).

A file of evaluation keys has tensors "KEY.DIGIT.ROW", KEY being "relinearisation" or "galois-ELEMENT", and a seed per key; a public key
has "0.ROW" and one seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_tensors

from ckks import seeds
from ckks.errors import FormatError
from ckks.parameters import Parameters
from ckks.types import KeyNeeds, Residues, SeededKey, SeededKeys, SeededPublicKey
from ckks.wire_tensors import (
    HEADER_BASE,
    HEADER_PER_TENSOR,
    VERSION,
    bounded_metadata,
    check_metadata,
    checked,
    dtype_name,
    limb_tensors,
    payload_bytes,
    read_polynomials,
    seed_of,
)


def dump_public_key(key: SeededPublicKey) -> bytes:
    """The wire bytes of a public key: tensors "0.ROW" for all rows, and its seed."""
    p = key.parameters
    metadata = {"kind": "public key", "version": VERSION, "parameters": p.digest, "seed": key.seed.hex()}
    data: bytes = save_tensors(limb_tensors(p, key.b, "0", tuple(range(len(p.moduli)))), metadata)
    return data


def load_public_key(data: bytes, parameters: Parameters) -> SeededPublicKey:
    """A public key from untrusted bytes. Raises FormatError."""
    rows = tuple(range(len(parameters.moduli)))
    header = 8 + HEADER_BASE + len(rows) * HEADER_PER_TENSOR
    if len(data) > payload_bytes(parameters, rows) + header:
        raise FormatError(f"public key: {len(data)} bytes are more than these parameters take")
    metadata = bounded_metadata(data[:header], len(data), "public key")
    check_metadata(metadata, "public key", parameters)
    if set(metadata) != {"kind", "version", "parameters", "seed"}:
        raise FormatError("public key: unknown or missing metadata")
    b = read_polynomials(data, parameters, {"": (rows, 1)}, "public key")[""][0]
    return SeededPublicKey(parameters, b, seed_of(metadata["seed"]))


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
    payload = payload_bytes(parameters, tuple(row for *_, row in limbs))
    return payload, payload + 8 + HEADER_BASE + HEADER_PER_TENSOR * (
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
            tensors |= limb_tensors(parameters, b, f"{name}.{j}", parameters.extended_rows(key.level))
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
            metadata = bounded_metadata(file.read(most - least), size, "key file")
        check_metadata(metadata, "evaluation keys", parameters)
        if set(metadata) != {"kind", "version", "parameters"} | {f"seed:{name}" for name in self.names}:
            raise FormatError("key file: expected one seed for each key of this model")
        self.seeds = {name: seed_of(metadata[f"seed:{name}"]) for name in self.names}
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
                if view.get_dtype() != dtype_name(q) or view.get_shape() != [p.degree]:
                    raise FormatError(f"key file: limb {limb} has the wrong type or length")
                key[j, 0, i] = checked(self._file.get_tensor(limb), q, f"key file: limb {limb}")
            key[j, 1] = seeds.expand(p, self.seeds[name], j, rows)
        return key
