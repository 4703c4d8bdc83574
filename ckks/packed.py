"""Residues as they are kept for long, in memory and on the server's disk: each row in the bytes that its prime needs.

Evaluation keys and encoded weights are read from memory once per use, and reading them is what limits the operations that use them.
A row is uint32 for a prime below 2^32; for one below 2^48 blocks of 64 uint32, each followed by 64 uint16 with bits 32..47; else
uint64. It is padded to a multiple of 64 residues. ckks/kernels/packed.h reads the same.
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
        start, count = 0, -(-self.length // BLOCK)
        out = np.empty((*shape, len(self.moduli), count, BLOCK), np.uint64)
        for i, q in enumerate(self.moduli):
            width, end = residue_bytes(q), start + packed_bytes((q,), self.length)
            blocks = self.data[..., start:end].reshape(*shape, count, width * BLOCK)
            if width == 8:
                out[..., i, :, :] = blocks.view("<u8")
            else:
                out[..., i, :, :] = blocks[..., : 4 * BLOCK].view("<u4")
            if width == 6:
                high = blocks[..., 4 * BLOCK :].view("<u2")
                out[..., i, :, :] |= np.left_shift(high, 32, dtype=np.uint64)
            start = end
        return out.reshape(*shape, len(self.moduli), count * BLOCK)[..., : self.length]


def pack(residues: npt.NDArray[np.uint64], moduli: tuple[int, ...]) -> Packed:
    """Residues uint64 [...][row][length], each below the modulus of its row, packed."""
    shape, length = residues.shape[:-2], residues.shape[-1]
    padding, count = -length % BLOCK, -(-length // BLOCK)
    data = np.empty((*shape, packed_bytes(moduli, length)), np.uint8)
    start = 0
    for i, q in enumerate(moduli):
        width, end = residue_bytes(q), start + packed_bytes((q,), length)
        row = residues[..., i, :]
        if padding:
            row = np.concatenate([row, np.zeros((*shape, padding), np.uint64)], axis=-1)
        row = row.reshape(*shape, count, BLOCK)
        blocks = data[..., start:end].reshape(*shape, count, width * BLOCK)
        if width == 8:
            blocks.view("<u8")[...] = row
        else:
            blocks[..., : 4 * BLOCK].view("<u4")[...] = row & np.uint64(0xFFFFFFFF)
        if width == 6:
            blocks[..., 4 * BLOCK :].view("<u2")[...] = row >> np.uint64(32)
        start = end
    return Packed(data, moduli, length)


def packed_bytes(moduli: tuple[int, ...], length: int) -> int:
    """Bytes of one polynomial of `length` residues a row."""
    return sum(residue_bytes(q) * BLOCK * -(-length // BLOCK) for q in moduli)


def residue_bytes(q: int) -> int:
    """Bytes of one residue modulo q: 4, 6 or 8."""
    return 4 if q < 1 << 32 else 6 if q < 1 << 48 else 8
