"""Packed residues: what goes in comes out, in the bytes that the primes need."""

from __future__ import annotations

import ctypes
import mmap
import sys
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_backends import primes_near, residues, some_key

from ckks.backends.cpu import CpuBackend
from ckks.backends.reference import ReferenceBackend
from ckks.kernels._cpu import instruction_sets
from ckks.packed import pack, packed_bytes, residue_bytes
from ckks.parameters import Parameters
from ckks.types import KeySwitchKey

# Bytes of a residue, at the first and the last moduli of every width; nothing here needs primes.
WIDTHS = {2**20 + 7: 4, 2**32 - 1: 4} | {
    q: width for width in (5, 6, 7, 8) for q in (2 ** (8 * width - 8) + 1, 2 ** min(8 * width, 60) - 1)
}


@given(
    st.lists(st.sampled_from(sorted(WIDTHS)), min_size=1, max_size=6),
    st.integers(0, 8).map(lambda k: 1 << k),
    st.integers(0, 3),
    st.integers(0, 2**32),
)
def test_residues_survive(moduli: list[int], length: int, count: int, seed: int) -> None:
    q = np.array(moduli, dtype=np.uint64)[:, None]
    rows = np.random.default_rng(seed).integers(0, q, size=(count, 2, len(moduli), length), dtype=np.uint64)
    rows[..., 0] = q[:, 0] - np.uint64(1)
    packed = pack(rows, tuple(moduli))
    assert packed.data.shape == (count, 2, packed_bytes(tuple(moduli), length))
    np.testing.assert_array_equal(packed.unpack(), rows)


def test_bytes_of_a_row() -> None:
    for q, width in WIDTHS.items():
        assert packed_bytes((q,), 1024) == 1024 * width
        assert packed_bytes((q,), 2) == packed_bytes((q,), 64) == 64 * width
    assert packed_bytes((2**30, 2**40, 2**50), 16384) == 16384 * (4 + 6 + 7)
    row = np.arange(100, dtype=np.uint64) << np.uint64(30)
    data = pack(row[None], (2**40 - 1,)).data
    assert data[:500].tobytes() == b"".join(int(x).to_bytes(5, "little") for x in row)
    assert data.shape == (128 * 5,) and not data[500:].any()


def between_guards(data: npt.NDArray[np.uint8], at_end: bool) -> npt.NDArray[np.uint8]:
    """A copy that ends, or begins, next to a page whose reading kills the process."""
    page = mmap.PAGESIZE
    size = -(-data.nbytes // page) * page
    memory = mmap.mmap(-1, size + 2 * page)
    whole = np.frombuffer(memory, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    for start in (0, page + size):
        address = ctypes.c_void_p(whole.ctypes.data + start)
        assert libc.mprotect(address, ctypes.c_size_t(page), 0) == 0
    start = page + (size - data.nbytes if at_end else 0)
    copy = whole[start : start + data.nbytes].reshape(data.shape)
    copy[...] = data
    return copy


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect of the C library")
@pytest.mark.parametrize("bits", [30, 34, 41, 49, 50])
def test_nothing_is_read_beside_packed_rows(bits: int) -> None:
    """One row of every width; each value for one position, for two, four, eight, and for all."""
    first = primes_near(1 << 12, bits, 2)
    p = Parameters(1 << 12, first[:1], first[1:], 1)
    assert residue_bytes(first[0]) == {30: 4, 34: 5, 41: 6, 49: 7, 50: 7}[bits]
    backends = [ReferenceBackend(p), *(CpuBackend(p, 1, name) for name in instruction_sets())]
    term, key = residues(p, (0,), 2), some_key(p, 0)
    digits = residues(p, p.extended_rows(0), 1)
    for at_end in (True, False):
        guarded = KeySwitchKey(replace(key.digits, data=between_guards(key.digits.data, at_end)), 0)
        for b in backends[1:]:
            for element in (1, 5):
                expected = backends[0].key_product(digits, key, 0, element)
                np.testing.assert_array_equal(b.key_product(digits, guarded, 0, element), expected)
        for repeat in (1, 2, 4, 8, 64, p.degree):
            plain = pack(residues(p, (0,), 1, seed=2)[..., ::repeat], p.moduli[:1])
            kept = replace(plain, data=between_guards(plain.data, at_end))
            expected = backends[0].multiply_sums([term], plain, [[(0, 0)]], (0,))
            for b in backends[1:]:
                np.testing.assert_array_equal(b.multiply_sums([term], kept, [[(0, 0)]], (0,)), expected)
