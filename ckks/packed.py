"""Residues as they are kept for long, in memory and on the server's disk: each row in the bytes that its prime needs.

Evaluation keys and encoded weights are read from memory once per use, and reading them is what limits the operations that use them.
A row holds its residues one behind the other, little-endian, each in the whole bytes that the prime's bits take, at least four. It is
padded with zeros to a multiple of 64 residues, so that rows behind each other stay on cache lines. ckks/kernels/packed.h reads the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BLOCK = 64  # residues

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Packed:
    """Polynomials in packed rows: data uint8 [...][bytes], one row of `length` residues for each of `moduli`, in that order."""

    data: Bytes
    moduli: tuple[int, ...]
    length: int

    def unpack(self) -> npt.NDArray[np.uint64]:
        """The residues as uint64 [...][row][length]."""
        shape = self.data.shape[:-1]
        out = np.zeros((*shape, len(self.moduli), self.length), np.uint64)
        start = 0
        for i, q in enumerate(self.moduli):
            width, end = residue_bytes(q), start + packed_bytes((q,), self.length)
            row = self.data[..., start:end].reshape(*shape, (end - start) // width, width)
            _copy_bytes(row[..., : self.length, :], _bytes(out[..., i, :]), width)
            start = end
        return out


def pack(residues: npt.NDArray[np.uint64], moduli: tuple[int, ...]) -> Packed:
    """Residues uint64 [...][row][length], each below the modulus of its row, packed."""
    shape, length = residues.shape[:-2], residues.shape[-1]
    residues = np.ascontiguousarray(residues)
    data = np.zeros((*shape, packed_bytes(moduli, length)), np.uint8)
    start = 0
    for i, q in enumerate(moduli):
        width, end = residue_bytes(q), start + packed_bytes((q,), length)
        row = data[..., start:end].reshape(*shape, (end - start) // width, width)
        _copy_bytes(_bytes(residues[..., i, :]), row[..., :length, :], width)
        start = end
    return Packed(data, moduli, length)


def packed_bytes(moduli: tuple[int, ...], length: int) -> int:
    """Bytes of one polynomial of `length` residues a row."""
    return sum(residue_bytes(q) * BLOCK * -(-length // BLOCK) for q in moduli)


def residue_bytes(q: int) -> int:
    """Bytes of one residue modulo q: 4 to 8."""
    return max(4, -(-q.bit_length() // 8))


def _bytes(row: npt.NDArray[np.uint64]) -> Bytes:
    """uint8 [...][length][8] over residues [...][length]."""
    return row[..., None].view(np.uint8)


def _copy_bytes(source: Bytes, target: Bytes, width: int) -> None:
    """The first `width` bytes of every residue: one place after the other, a quarter of the time of copying whole residues."""
    for place in range(width):
        target[..., place] = source[..., place]
