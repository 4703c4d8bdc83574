"""Residues as they are kept for long, in memory and on the server's disk: each row in the bytes that its prime needs.

Evaluation keys and encoded weights are read from memory once per use, and reading them is what limits the operations that use them.
A row of n residues is n uint32 for a prime below 2^32; n uint32 and behind them n uint16 with bits 32..47 for one below
2^48; else n uint64. Every row is padded to a multiple of 64 bytes. ckks/kernels/packed.h reads the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_ROW_ALIGNMENT = 64

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Packed:
    """Polynomials in packed rows: data uint8 [...][bytes], one row of `length` residues for each of `moduli`, in that order."""

    data: Bytes
    moduli: tuple[int, ...]
    length: int

    def unpack(self) -> npt.NDArray[np.uint64]:
        """The residues as uint64 [...][row][length]."""
        n = self.length
        out = np.empty((*self.data.shape[:-1], len(self.moduli), n), np.uint64)
        start = 0
        for i, q in enumerate(self.moduli):
            row = self.data[..., start : start + packed_bytes((q,), n)]
            if residue_bytes(q) == 8:
                out[..., i, :] = row[..., : 8 * n].view("<u8")
            else:
                out[..., i, :] = row[..., : 4 * n].view("<u4")
            if residue_bytes(q) == 6:
                out[..., i, :] |= row[..., 4 * n : 6 * n].view("<u2").astype(np.uint64) << np.uint64(32)
            start += row.shape[-1]
        return out


def pack(residues: npt.NDArray[np.uint64], moduli: tuple[int, ...]) -> Packed:
    """Residues uint64 [...][row][length], each below the modulus of its row, packed."""
    n = residues.shape[-1]
    data = np.zeros((*residues.shape[:-2], packed_bytes(moduli, n)), np.uint8)
    start = 0
    for i, q in enumerate(moduli):
        row, x = data[..., start : start + packed_bytes((q,), n)], residues[..., i, :]
        if residue_bytes(q) == 8:
            row[..., : 8 * n].view("<u8")[...] = x
        else:
            row[..., : 4 * n].view("<u4")[...] = x & np.uint64(0xFFFFFFFF)
        if residue_bytes(q) == 6:
            row[..., 4 * n : 6 * n].view("<u2")[...] = x >> np.uint64(32)
        start += row.shape[-1]
    return Packed(data, moduli, n)


def packed_bytes(moduli: tuple[int, ...], length: int) -> int:
    """Bytes of one polynomial of `length` residues a row."""
    return sum(-(-residue_bytes(q) * length // _ROW_ALIGNMENT) * _ROW_ALIGNMENT for q in moduli)


def residue_bytes(q: int) -> int:
    """Bytes of one residue modulo q: 4, 6 or 8."""
    return 4 if q < 1 << 32 else 6 if q < 1 << 48 else 8
