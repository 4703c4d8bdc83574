"""Packed residues: what goes in comes out, in the bytes that the primes need."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ckks.packed import pack, packed_bytes

# Bytes of a residue, at the first and the last moduli of every width; nothing here needs primes.
WIDTHS = {2**20 + 7: 4, 2**32 - 1: 4, 2**32 + 1: 6, 2**48 - 1: 6, 2**48 + 1: 8, 2**60 - 1: 8}


@given(
    st.lists(st.sampled_from(sorted(WIDTHS)), min_size=1, max_size=6),
    st.integers(0, 8).map(lambda k: 1 << k),
    st.integers(0, 3),
    st.integers(0, 2**32),
)
def test_residues_survive(moduli: list[int], length: int, count: int, seed: int) -> None:
    q = np.array(moduli, dtype=np.uint64)[:, None]
    residues = np.random.default_rng(seed).integers(
        0, q, size=(count, 2, len(moduli), length), dtype=np.uint64
    )
    residues[..., 0] = q[:, 0] - np.uint64(1)
    packed = pack(residues, tuple(moduli))
    assert packed.data.shape == (count, 2, packed_bytes(tuple(moduli), length))
    np.testing.assert_array_equal(packed.unpack(), residues)


def test_bytes_of_a_row() -> None:
    for q, width in WIDTHS.items():
        assert packed_bytes((q,), 1024) == 1024 * width
        assert packed_bytes((q,), 2) == packed_bytes((q,), 64) == 64 * width
    assert packed_bytes((2**30, 2**40, 2**50), 16384) == 16384 * 18
    packed = pack(np.arange(100, dtype=np.uint64)[None] << np.uint64(30), (2**48 - 1,))
    low, high = packed.data[384:640].view("<u4"), packed.data[640:].view("<u2")
    assert low[:36].tolist() == [(k << 30) % 2**32 for k in range(64, 100)] and not low[36:].any()
    assert high[:36].tolist() == [k >> 2 for k in range(64, 100)] and not high[36:].any()
