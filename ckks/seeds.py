"""Public seeds: the uniform half of keys and fresh ciphertexts, expanded the same way on both sides.

For digit j and row i (index into Parameters.moduli): SHAKE-256(seed || u32 j || u32 i), little-endian u64 words masked to the bit length of
q_i - 1, words >= q_i rejected, the first N kept, taken as NTT values. These values are public: nothing secret is drawn here.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np

from ckks.parameters import Parameters
from ckks.types import Residues

SEED_BYTES = 32


def expand(parameters: Parameters, seed: bytes, digit: int, rows: tuple[int, ...]) -> Residues:
    """The uniform polynomial [row][N], uint64, NTT domain, that `seed` names for `digit`."""
    return np.stack([_row(seed, digit, i, parameters.moduli[i], parameters.degree) for i in rows])


def _row(seed: bytes, digit: int, row: int, q: int, degree: int) -> Residues:
    stream = hashlib.shake_256(seed + struct.pack("<II", digit, row))
    mask = np.uint64((1 << (q - 1).bit_length()) - 1)
    # A word survives with probability q/2^bits > 1/2: start near the expected count, double while short (digest is a prefix function).
    words = int(degree / (q / (int(mask) + 1)) * 1.02) + 64
    while True:
        values = np.frombuffer(stream.digest(8 * words), dtype="<u8") & mask
        kept = values[values < np.uint64(q)]
        if kept.size >= degree:
            return kept[:degree].astype(np.uint64)
        words *= 2
