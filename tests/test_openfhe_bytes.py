"""OpenFHE's serialised objects: read, written back, and refused when they are anything else. test_openfhe.py runs this file."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("openfhe", reason="needs the openfhe wheel (Python 3.10); see test_openfhe.py")

import openfhe
from openfhe_side import make_context

from ckks.errors import FormatError
from ckks.primes import ntt_primes, smallest_root
from keys import openfhe_bytes as formats

pytestmark = pytest.mark.openfhe
DEGREE, LIMBS = 16, 3  # a toy ring: small objects, so that mutations meet every field


CONTEXT = make_context(DEGREE, LIMBS - 1, 40, 30, 2)
KEY = CONTEXT.KeyGen().secretKey
VALUES = np.linspace(-1, 1, DEGREE // 2)
CIPHERTEXT = openfhe.Serialize(CONTEXT.Encrypt(KEY, CONTEXT.MakeCKKSPackedPlaintext(VALUES)), openfhe.BINARY)
SECRET = openfhe.Serialize(KEY, openfhe.BINARY)
SWITCHES = openfhe.Serialize(CONTEXT.EvalAutomorphismKeyGen(KEY, [3, 9]), openfhe.BINARY)
CONTEXT.EvalMultKeyGen(KEY)
SWITCH = openfhe.Serialize(CONTEXT.GetEvalMultKeyVector(KEY.GetKeyTag())[0], openfhe.BINARY)
OBJECTS: list[tuple[bytes, Callable[[bytes], object]]] = [
    (CIPHERTEXT, formats.read_ciphertext),
    (SECRET, formats.read_secret_key),
    (SWITCHES, formats.read_switch_keys),
    (SWITCH, formats.read_switch_key),
]
IDS = ["ciphertext", "secret key", "rotation keys", "relinearisation key"]


def test_what_is_read() -> None:
    c = formats.read_ciphertext(CIPHERTEXT)
    assert c.residues.shape == (2, LIMBS, DEGREE) and (c.context.scale_bits, c.context.digits) == (30, 2)
    assert [limb.prime.bit_length() for limb in c.rows] == [40, 30, 31] and c.rows == c.context.limbs
    keys = formats.read_switch_keys(SWITCHES)
    assert set(keys) == {3, 9} and keys[3].a.shape == keys[9].b.shape == (2, LIMBS + 2, DEGREE)
    assert formats.read_switch_key(SWITCH).rows == keys[3].rows


@pytest.mark.parametrize("rows", range(1, LIMBS + 1))
@pytest.mark.parametrize("polys", [2, 3])
def test_ciphertexts_written_are_openfhes(rows: int, polys: int) -> None:
    template = formats.read_ciphertext(CIPHERTEXT)
    residues = np.zeros((polys, rows, DEGREE), dtype=np.uint64)
    residues[:2] = template.residues[:, :rows]
    data = formats.write_ciphertext(template, residues)
    assert np.array_equal(formats.read_ciphertext(data).residues, residues)
    plain = CONTEXT.Decrypt(KEY, openfhe.DeserializeCiphertextString(data, openfhe.BINARY))
    assert np.abs(np.array(plain.GetRealPackedValue())[: DEGREE // 2] - VALUES).max() < 1e-5


def test_secret_keys_written_are_openfhes() -> None:
    template = formats.read_secret_key(SECRET)
    other = openfhe.Serialize(CONTEXT.KeyGen().secretKey, openfhe.BINARY)
    data = formats.write_secret_key(formats.read_secret_key(other), template.residues[0])
    key = openfhe.DeserializePrivateKeyString(data, openfhe.BINARY)
    plain = CONTEXT.Decrypt(key, openfhe.DeserializeCiphertextString(CIPHERTEXT, openfhe.BINARY))
    assert np.abs(np.array(plain.GetRealPackedValue())[: DEGREE // 2] - VALUES).max() < 1e-5


def test_a_context_over_other_primes() -> None:
    primes = ntt_primes(4096, 50, 1) + ntt_primes(4096, 27, 2)  # a product of fewer words, too
    roots = tuple(pow(smallest_root(4096, q), 4096 // DEGREE, q) for q in primes)
    template = formats.over(formats.read_secret_key(SECRET), primes, roots)
    ones = np.ones((LIMBS, DEGREE), dtype=np.uint64)  # the key 1: what it encrypts is the sum of the halves
    key = openfhe.DeserializePrivateKeyString(formats.write_secret_key(template, ones), openfhe.BINARY)
    context = key.GetCryptoContext()
    data = openfhe.Serialize(
        context.Encrypt(key, context.MakeCKKSPackedPlaintext(VALUES, 1, 1)), openfhe.BINARY
    )
    found = formats.read_ciphertext(data)
    assert [limb.prime for limb in found.context.limbs] == list(primes) and len(found.rows) == LIMBS - 1
    both = formats.over(formats.read_ciphertext(CIPHERTEXT), primes, roots)
    again = openfhe.DeserializeCiphertextString(
        formats.write_ciphertext(both, found.residues), openfhe.BINARY
    )
    assert np.abs(np.array(context.Decrypt(key, again).GetRealPackedValue()) - VALUES).max() < 1e-5


@pytest.mark.parametrize(("whole", "read"), OBJECTS, ids=IDS)
def test_every_truncation_and_extension_is_refused(whole: bytes, read: Callable[[bytes], object]) -> None:
    for size in range(len(whole)):
        with pytest.raises(FormatError):
            read(whole[:size])
    with pytest.raises(FormatError):
        read(whole + b"\0")


@pytest.mark.parametrize(("whole", "read"), OBJECTS, ids=IDS)
def test_objects_of_another_kind_are_refused(whole: bytes, read: Callable[[bytes], object]) -> None:
    for other, _ in OBJECTS:
        if other is not whole:
            with pytest.raises(FormatError):
                read(other)


def attempt(whole: bytes, read: Callable[[bytes], object], data: bytes) -> None:
    """Read `data`: an object or our error, in memory of the order of the input."""
    tracemalloc.start()
    try:
        read(data)
    except FormatError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 16 * len(whole) + (1 << 20)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.sampled_from(OBJECTS), st.integers(0, 1 << 20), st.binary(max_size=12))
def test_mutated_bytes_give_an_object_or_our_error(
    item: tuple[bytes, Callable[[bytes], object]], place: int, patch: bytes
) -> None:
    whole, read = item
    start = place % len(whole)
    attempt(whole, read, whole[:start] + patch + whole[start + len(patch) :])


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.sampled_from(OBJECTS),
    st.integers(0, 1 << 20),
    st.sampled_from([0, 1, 2, 1 << 30, 1 << 31, (1 << 31) + 1, (1 << 32) - 1]),
    st.sampled_from(["<I", "<Q"]),
)
def test_hostile_numbers_give_an_object_or_our_error(
    item: tuple[bytes, Callable[[bytes], object]], place: int, number: int, form: str
) -> None:
    """Counts beyond all bounds, references to parts that are not there or not finished, nulls."""
    whole, read = item
    start = place % (len(whole) - 8)
    patch = struct.pack(form, number << 32 | number if form == "<Q" else number)
    attempt(whole, read, whole[:start] + patch + whole[start + len(patch) :])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(OBJECTS), st.integers(0, 1 << 20), st.integers(1, 200))
def test_missing_and_doubled_parts_give_an_object_or_our_error(
    item: tuple[bytes, Callable[[bytes], object]], place: int, size: int
) -> None:
    whole, read = item
    start = place % len(whole)
    attempt(whole, read, whole[:start] + whole[start + size :])
    attempt(whole, read, whole[: start + size] + whole[start:])


def test_residues_beyond_their_prime_are_refused() -> None:
    first = formats.read_ciphertext(CIPHERTEXT).residues[0, 0].tobytes()
    data = CIPHERTEXT.replace(first, b"\xff" * len(first))
    assert data != CIPHERTEXT
    with pytest.raises(FormatError, match="limb"):
        formats.read_ciphertext(data)
