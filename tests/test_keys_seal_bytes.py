"""SEAL's byte layouts: what we write SEAL reads (test_keys_seal.py); here, what we read back and what we refuse."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ckks.errors import FormatError
from keys import seal_bytes

VERSION = (4, 1)
PARMS_ID = [1, 2, 3, 1 << 63]
POLYS = np.arange(2 * 3 * 16, dtype=np.uint64).reshape(2, 3, 16)
WHOLE = seal_bytes.write_ciphertext(POLYS, PARMS_ID, 2.0**30, VERSION)
LIMIT = 1 << 12


@settings(deadline=None)
@given(
    hnp.arrays(np.uint64, st.tuples(st.integers(2, 3), st.integers(1, 4), st.just(8))),
    st.floats(1e-300, 1e300),
)
def test_ciphertext_round_trip(polys: np.ndarray, scale: float) -> None:
    data = seal_bytes.write_ciphertext(polys, PARMS_ID, scale, VERSION)
    read = seal_bytes.unwrap(data, LIMIT)
    got, got_scale, end = seal_bytes.read_ciphertext(read.members)
    assert (
        np.array_equal(got, polys)
        and got_scale == scale
        and end == len(read.members)
        and read.version == VERSION
    )


def test_secret_key_round_trip() -> None:
    read = seal_bytes.unwrap(seal_bytes.write_secret_key(POLYS[0], PARMS_ID, VERSION), LIMIT)
    assert np.array_equal(seal_bytes.read_secret_key(read.members, 3), POLYS[0])
    with pytest.raises(FormatError):
        seal_bytes.read_secret_key(read.members, 5)
    with pytest.raises(FormatError):
        seal_bytes.read_secret_key(read.members + b"\0", 3)


def compressed(body: bytes) -> bytes:
    packed = zstandard.ZstdCompressor(write_content_size=False).compress(body)
    return struct.pack("<HBBBBHQ", 0xA15E, 16, *VERSION, 2, 0, 16 + len(packed)) + packed


def test_zstd_is_bounded() -> None:
    assert seal_bytes.unwrap(compressed(WHOLE[16:]), LIMIT).members == WHOLE[16:]
    assert seal_bytes.unwrap(compressed(bytes(LIMIT)), LIMIT).members == bytes(LIMIT)
    for bad in (compressed(bytes(LIMIT + 1)), compressed(bytes(1 << 28)), WHOLE[:5] + b"\2" + WHOLE[6:]):
        with pytest.raises(FormatError):
            seal_bytes.unwrap(bad, LIMIT)
    with pytest.raises(FormatError):
        seal_bytes.unwrap(WHOLE, 100)


def test_every_truncation_is_refused() -> None:
    members = seal_bytes.unwrap(WHOLE, LIMIT).members
    for size in range(len(WHOLE)):
        with pytest.raises(FormatError):
            seal_bytes.unwrap(WHOLE[:size], LIMIT)
    for size in range(len(members)):
        with pytest.raises(FormatError):
            seal_bytes.read_ciphertext(members[:size])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 200))
def test_other_bytes_give_residues_or_our_error(data: bytes, start: int) -> None:
    mutated = WHOLE[:start] + data + WHOLE[start + len(data) :]
    try:
        polys, _, _ = seal_bytes.read_ciphertext(seal_bytes.unwrap(mutated, LIMIT).members)
    except FormatError:
        return
    assert polys.ndim == 3 and polys.nbytes <= len(mutated)
