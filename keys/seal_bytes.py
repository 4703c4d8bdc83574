"""SEAL 4's byte layouts, as far as the secret side needs them: ciphertexts and secret keys.

All integers are little-endian. Every object starts with a 16-byte header; at top level everything after it
may be one zstd frame, nested objects are not compressed. SEAL's data order [poly][row][N] and its NTT order
are ours.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import zstandard

from ckks.errors import FormatError
from ckks.types import Residues

_HEADER = struct.Struct(
    "<HBBBBHQ"
)  # magic, header size, major, minor, compression, reserved, size with header
_CIPHERTEXT = struct.Struct("<32sBQQQdQ")  # parms_id, is NTT, polynomials, N, rows, scale, correction factor
_SECRET_KEY = struct.Struct("<32sQd")  # parms_id, residues, scale
_COUNT = struct.Struct("<Q")
_MAGIC, _NO_COMPRESSION, _ZSTD = 0xA15E, 0, 2

Version = tuple[int, int]


@dataclass(frozen=True)
class SealObject:
    """The members of a top-level SEAL object and the version of the SEAL that wrote it."""

    members: bytes
    version: Version


def unwrap(data: bytes, limit: int) -> SealObject:
    """A top-level object without header and compression, at most `limit` bytes. Raises FormatError."""
    compression, version, size = _header(data, 0)
    if size != len(data):
        raise FormatError(f"a SEAL object states {size} bytes and has {len(data)}")
    body = data[_HEADER.size :]
    if compression == _ZSTD:
        try:
            with zstandard.ZstdDecompressor().stream_reader(body) as stream:
                body = stream.read(limit + 1)
        except zstandard.ZstdError:
            raise FormatError("a SEAL object is not one zstd frame") from None
    elif compression != _NO_COMPRESSION:
        raise FormatError("a SEAL object must be uncompressed or zstd")
    if len(body) > limit:
        raise FormatError(f"a SEAL object inflates to more than {limit} bytes")
    return SealObject(body, version)


def read_ciphertext(members: bytes, offset: int = 0) -> tuple[Residues, float, int]:
    """Members at `offset` -> residues [poly][row][N], scale, offset of the end. Raises FormatError."""
    try:
        _, is_ntt, polys, degree, rows, scale, _ = _CIPHERTEXT.unpack_from(members, offset)
    except struct.error:
        raise FormatError("a SEAL ciphertext is cut short") from None
    words, end = _read_words(members, offset + _CIPHERTEXT.size)
    if not is_ntt or words.size != polys * rows * degree:
        raise FormatError("a SEAL ciphertext must be in NTT form and unseeded")
    return words.reshape(polys, rows, degree), scale, end


def write_ciphertext(polys: Residues, parms_id: list[int], scale: float, version: Version) -> bytes:
    """An uncompressed top-level ciphertext from residues [poly][row][N], NTT domain."""
    count, rows, degree = polys.shape
    members = _CIPHERTEXT.pack(struct.pack("<4Q", *parms_id), 1, count, degree, rows, scale, 1)
    return _wrap(members + _write_words(polys, version), version)


def read_secret_key(members: bytes, rows: int) -> Residues:
    """Secret key members -> its residues [row][N], NTT domain. Raises FormatError."""
    words, end = _read_words(members, _SECRET_KEY.size)
    if end != len(members) or words.size == 0 or words.size % rows:
        raise FormatError("a SEAL secret key has the wrong size")
    return words.reshape(rows, -1)


def write_secret_key(residues: Residues, parms_id: list[int], version: Version) -> bytes:
    """An uncompressed top-level secret key from its residues [row][N] over all primes, NTT domain."""
    members = _SECRET_KEY.pack(struct.pack("<4Q", *parms_id), residues.size, 1.0)
    return _wrap(members + _write_words(residues, version), version)


def _header(data: bytes, offset: int) -> tuple[int, Version, int]:
    if len(data) < offset + _HEADER.size:
        raise FormatError("a SEAL object is cut short")
    magic, header_size, major, minor, compression, reserved, size = _HEADER.unpack_from(data, offset)
    if magic != _MAGIC or header_size != _HEADER.size or major != 4 or reserved:
        raise FormatError("not an object of SEAL 4")
    return compression, (major, minor), size


def _wrap(body: bytes, version: Version) -> bytes:
    return _HEADER.pack(_MAGIC, _HEADER.size, *version, _NO_COMPRESSION, 0, _HEADER.size + len(body)) + body


def _read_words(data: bytes, offset: int) -> tuple[Residues, int]:
    """A nested DynArray at `offset` -> its words (a read-only view) and the offset of its end."""
    compression, _, size = _header(data, offset)
    start, end = offset + _HEADER.size + _COUNT.size, offset + size
    if compression != _NO_COMPRESSION or end > len(data) or start > end:
        raise FormatError("a SEAL array is cut short")
    (count,) = _COUNT.unpack_from(data, start - _COUNT.size)
    if start + 8 * count != end:
        raise FormatError("a SEAL array has the wrong size")
    return np.frombuffer(data, dtype="<u8", count=count, offset=start), end


def _write_words(words: Residues, version: Version) -> bytes:
    return _wrap(_COUNT.pack(words.size) + np.ascontiguousarray(words, dtype="<u8").tobytes(), version)
