"""Key generation, encryption and decryption over SEAL."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seal_side import (
    SEAL_STD,
    centred_phase,
    encrypt,
    error_bound,
    expanded_keys,
    rounding_bound,
    switch_bound,
)
from toy import make_parameters

from ckks import seeds, wire_keys
from ckks.errors import EvaluationError, KeyFileError, SecurityError
from ckks.evaluator import CkksEvaluator
from ckks.parameters import Parameters
from ckks.types import Ciphertext, KeyNeeds
from keys import PublicKey, SecretKey

PARAMETERS = [
    make_parameters(4096, (40,), (41,)),
    make_parameters(8192, (40, 30, 30), (36, 36), 2),
    make_parameters(8192, (60, 50), (60,)),
    make_parameters(16384, (50, 36, 36, 36, 36, 36, 36), (42, 42, 42), 3),
]
KEYS = {p: SecretKey.generate(p) for p in PARAMETERS}
RNG = np.random.default_rng(5)


@pytest.mark.parametrize("p", PARAMETERS, ids=str)
def test_decrypts_at_every_level(p: Parameters) -> None:
    key = KEYS[p]
    values = RNG.uniform(-1, 1, 64)
    for level in range(p.max_level + 1):
        scale = 2.0**25 * 1.234
        got = key.decrypt(encrypt(key, values, level, scale))
        assert got.shape == (p.slots,) and got.dtype == np.float64
        assert np.abs(got - np.tile(values, p.slots // 64)).max() < error_bound(p) / scale


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 11), st.integers(0, 2), st.floats(2.0**20, 2.0**34), st.integers(0, 2**32))
def test_round_trip_of_any_length_level_and_scale(
    log_length: int, level: int, scale: float, seed: int
) -> None:
    p = PARAMETERS[1]
    values = np.random.default_rng(seed).uniform(-8, 8, 1 << log_length)
    c = encrypt(KEYS[p], values, level, scale)
    assert c.level == level and c.scale == scale
    got = KEYS[p].decrypt(c)
    assert np.abs(got - np.tile(values, p.slots >> log_length)).max() < error_bound(p) / scale


def test_decrypts_at_a_scale_above_the_modulus() -> None:
    """Small values under a large scale are legal: what counts is that scale * value fits."""
    p = PARAMETERS[0]
    key = KEYS[p]
    c = encrypt(key, np.array([0.5, -0.25]), 0, 2.0**36)
    got = key.decrypt(Ciphertext(c.polys, 0, 2.0**56))
    assert np.abs(got * 2.0**20 - np.tile([0.5, -0.25], p.slots // 2)).max() < error_bound(p) / 2.0**36


@pytest.mark.parametrize("p", PARAMETERS, ids=str)
def test_public_key_encrypts_for_the_secret_key(p: Parameters) -> None:
    """Through the wire and back; the error is at most that of a rounding by both halves."""
    key = KEYS[p]
    public = PublicKey(wire_keys.load_public_key(wire_keys.dump_public_key(key.public_key()), p))
    for level in {0, p.max_level}:
        values = RNG.uniform(-1, 1, p.slots)
        scale = 2.0 ** (p.data_primes[0].bit_length() - 4)
        c = public.encrypt(values, level, scale)
        assert c.polys.shape == (2, level + 1, p.degree)
        # Slot by slot: a rounding is multiplied by the secret, which is several times its mean in some slots.
        assert (np.abs(key.decrypt(c) - values) < (rounding_bound(key) + error_bound(p)) / scale).all()


def test_decrypts_three_polynomials() -> None:
    p = PARAMETERS[3]
    key = KEYS[p]
    x, y = RNG.uniform(-1, 1, (2, p.slots))
    a, b = encrypt(key, x, 6, 2.0**40), encrypt(key, y, 6, 2.0**40)
    product = Ciphertext(key._backend.tensor(a.polys, b.polys, p.data_rows(6)), 6, 2.0**80)
    assert np.abs(key.decrypt(product) - x * y).max() < 4 * error_bound(p) / 2.0**40


@pytest.mark.parametrize("p", PARAMETERS, ids=str)
def test_reseeding_leaves_seals_error(p: Parameters) -> None:
    """An encryption of zero under our seed: the same error in every row, with SEAL's distribution."""
    key = KEYS[p]
    errors = []
    for level in range(p.max_level + 1):
        c = encrypt(key, np.zeros(1), level, 2.0**20)
        phase = centred_phase(key, c.polys[0], c.polys[1], p.data_rows(level))
        assert (phase == phase[0]).all()
        errors.append(phase[0])
    deviation = np.concatenate(errors).std()
    assert np.abs(errors).max() <= 21
    assert abs(deviation / SEAL_STD - 1) < 6 / math.sqrt(2 * p.degree * len(errors))


@pytest.mark.parametrize("p", PARAMETERS, ids=str)
def test_keys_have_the_stated_phase(p: Parameters) -> None:
    """b_j + a_j*s = P*g_j*s' + e_j over exactly the rows of the key's level, |e_j| as SEAL draws it, for relinearisation and rotation."""
    key, backend = KEYS[p], KEYS[p]._backend
    for level in {0, p.max_level // 2, p.max_level}:
        keys = expanded_keys(key.evaluation_keys(KeyNeeds(level, {1: level, p.slots - 3: level})))
        rows = p.extended_rows(level)
        s = key._ntt[list(rows)]
        wanted = [(keys.relinearisation_at(level), backend.multiply(s, s, rows))]
        wanted += [
            (keys.rotation(r, level), backend.automorphism(s, p.galois_element(r))) for r in (1, p.slots - 3)
        ]
        for switch, source in wanted:
            digits = switch.digits.unpack()
            assert switch.level == level
            assert digits.shape == (len(p.digits(level)), 2, len(rows), p.degree)
            for (b, a), (start, stop) in zip(digits, p.digits(level), strict=True):
                gadget = [p.special_product % p.moduli[r] if start <= r < stop else 0 for r in rows]
                term = backend.multiply_scalars(source, np.array(gadget, dtype=np.uint64), rows)
                error = centred_phase(key, backend.subtract(b, term, rows), a, rows)
                assert (error == error[0]).all() and np.abs(error).max() <= 21
                assert abs(error[0].std() / SEAL_STD - 1) < 6 / math.sqrt(2 * p.degree)


@pytest.mark.parametrize("p", PARAMETERS, ids=str)
def test_keys_rotate_and_square(p: Parameters) -> None:
    key = KEYS[p]
    steps = (1, 7, p.slots - 2)
    level = p.max_level
    keys = expanded_keys(key.evaluation_keys(KeyNeeds(level, dict.fromkeys(steps, level))))
    evaluator = CkksEvaluator(key._backend, keys, {})
    values = RNG.uniform(-1, 1, p.slots)
    scale = 2.0 ** min(36, (math.log2(p.data_primes[0]) - 4) / 2) if level == 0 else 2.0**30
    c = encrypt(key, values, level, scale)
    bound = (error_bound(p) + switch_bound(key, level)) / scale
    for r in steps:
        assert (np.abs(key.decrypt(evaluator.rotate(c, r)) - np.roll(values, -r)) < bound).all()
    square = evaluator.relinearise(evaluator.multiply(c, c))
    assert (np.abs(key.decrypt(square) - values**2) < 3 * bound).all()


def test_only_needed_keys_are_made() -> None:
    p = PARAMETERS[1]
    calls: list[tuple[int, int]] = []
    made = KEYS[p].evaluation_keys(KeyNeeds(1, {3: 0, 5: 2}), lambda done, total: calls.append((done, total)))
    assert made.relinearisation is not None and made.relinearisation.b.shape == (1, 4, p.degree)
    assert {e: k.b.shape[:2] for e, k in made.galois.items()} == {
        p.galois_element(3): (1, 3),
        p.galois_element(5): (2, 5),
    }
    assert calls == [(1, 3), (2, 3), (3, 3)]
    none = KEYS[p].evaluation_keys(KeyNeeds(None))
    assert none.relinearisation is None and not none.galois


def test_every_object_has_its_own_seed() -> None:
    p = PARAMETERS[1]
    key = KEYS[p]
    keys = key.evaluation_keys(KeyNeeds(1, {1: 1, 2: 1}))
    assert keys.relinearisation is not None
    found = [keys.relinearisation.seed, *(k.seed for k in keys.galois.values())]
    found += [key.encrypt(np.zeros(1), 0, 2.0**20).seed for _ in range(5)]
    assert len(set(found)) == 8 and {len(s) for s in found} == {seeds.SEED_BYTES}


def test_two_secret_keys_differ_and_do_not_decrypt_each_other() -> None:
    p = PARAMETERS[0]
    one, other = KEYS[p], SecretKey.generate(p)
    assert one.key_id != other.key_id and not np.array_equal(one.coefficients(), other.coefficients())
    wrong = other.decrypt(encrypt(one, np.ones(1), 0, 2.0**30))
    assert np.median(np.abs(wrong)) > 100


@pytest.mark.parametrize("p", PARAMETERS, ids=str)
def test_the_secret_is_ternary_and_uniform(p: Parameters) -> None:
    counts = np.bincount(KEYS[p].coefficients().astype(np.int64) + 1, minlength=3)
    assert counts.sum() == p.degree
    assert np.abs(counts - p.degree / 3).max() < 6 * math.sqrt(p.degree * 2 / 9)


BAD_VALUES = [
    np.zeros(3),
    np.zeros(0),
    np.zeros((2, 2, 2)),
    np.zeros((0, 4)),
    np.zeros((2, 3)),
    np.zeros(8192),
    np.array([np.nan]),
    np.array([np.inf]),
    np.array([1e9]),
]


@pytest.mark.parametrize("values", BAD_VALUES, ids=lambda v: str(v.shape))
def test_bad_values_are_refused(values: np.ndarray) -> None:
    with pytest.raises(EvaluationError):
        KEYS[PARAMETERS[1]].encrypt(values, 0, 2.0**30)


@pytest.mark.parametrize(
    ("level", "scale"),
    [(-1, 2.0**20), (3, 2.0**20), (0, 0.0), (0, -1.0), (0, math.inf), (0, math.nan), (0, 2.0**80)],
)
def test_bad_level_or_scale_is_refused(level: int, scale: float) -> None:
    with pytest.raises(EvaluationError):
        KEYS[PARAMETERS[1]].encrypt(np.ones(1), level, scale)


def test_bad_ciphertexts_are_refused() -> None:
    p = PARAMETERS[1]
    key = KEYS[p]
    c = encrypt(key, np.ones(1), 1, 2.0**30)
    broken = c.polys.copy()
    broken[1, 1, 5] = p.moduli[1]
    for bad in (
        Ciphertext(c.polys, 2, c.scale),
        Ciphertext(c.polys, 7, c.scale),
        Ciphertext(c.polys[:1], 1, c.scale),
        Ciphertext(c.polys[:, :, :100], 1, c.scale),
        Ciphertext(broken, 1, c.scale),
        Ciphertext(c.polys, 1, math.nan),
        Ciphertext(c.polys, 1, 0.0),
        Ciphertext(c.polys.astype(np.float64), 1, c.scale),
    ):
        with pytest.raises(EvaluationError):
            key.decrypt(bad)


@pytest.mark.parametrize(
    "needs",
    [KeyNeeds(3), KeyNeeds(-1), KeyNeeds(None, {1: 3}), KeyNeeds(None, {0: 1}), KeyNeeds(None, {4096: 1})],
)
def test_impossible_keys_are_refused(needs: KeyNeeds) -> None:
    with pytest.raises(EvaluationError):
        KEYS[PARAMETERS[1]].evaluation_keys(needs)


def test_a_key_for_weak_parameters_cannot_be_made() -> None:
    """SEAL's own check is off, so ours must be in force: SEAL's table would allow these 109 bits."""
    with pytest.raises(SecurityError):
        SecretKey.generate(make_parameters(4096, (36, 36), (37,)))


def test_coefficients_must_be_ternary() -> None:
    p = PARAMETERS[0]
    for bad in (np.full(p.degree, 2, np.int8), np.full(p.degree, -128, np.int8), np.zeros(7, np.int8)):
        with pytest.raises(KeyFileError):
            SecretKey(p, bad, "0" * 32, "")


def test_nothing_shows_the_secret(
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No text form, output, log or file; and no pickle or copy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    caplog.set_level(0)
    p = PARAMETERS[0]
    key = SecretKey.generate(p)
    key.decrypt(encrypt(key, np.ones(1), 0, 2.0**20))
    key.evaluation_keys(KeyNeeds(0, {1: 0}))
    assert repr(key) == str(key) == f"{key}" == f"SecretKey(key_id={key.key_id!r}, parameters={p})"
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="never pickled or copied"):
            attempt(key)
    assert capfd.readouterr() == ("", "") and not caplog.records and not list(tmp_path.iterdir())


def test_errors_do_not_show_what_was_encrypted() -> None:
    with pytest.raises(EvaluationError) as caught:
        KEYS[PARAMETERS[0]].encrypt(np.array([123456789.125]), 0, 2.0**38)
    assert "1234" not in str(caught.value) and caught.value.__suppress_context__
