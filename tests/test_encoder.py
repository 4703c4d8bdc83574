"""The encoder against its definition, p(zeta^(3^j)), and against Python integers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toy import centred, lift, make_parameters

from ckks.backends.reference import ReferenceBackend
from ckks.encoder import Encoder, _centred_floats, embed, reduce_floats, unembed
from ckks.errors import EvaluationError
from ckks.primes import ntt_primes
from ckks.types import CoefficientPolynomial, Plaintext

SMALL = make_parameters(4096, (36, 30), (37,))
LARGE = make_parameters(16384, (48, 36, 36, 36, 36, 36), (60,))
RNG = np.random.default_rng(5)


def encoder(parameters=SMALL) -> Encoder:
    return Encoder(parameters, ReferenceBackend(parameters))


def coefficients(e: Encoder, plain: Plaintext) -> CoefficientPolynomial:
    rows = plain.polynomial.rows
    return CoefficientPolynomial(e.backend.inverse(plain.polynomial.residues, rows), rows)


@pytest.mark.parametrize("size", [1, 2, 8, 64])
def test_embedding_is_its_definition(size: int) -> None:
    slots = RNG.normal(size=size) + 1j * RNG.normal(size=size)
    c = embed(slots)
    zeta = np.exp(1j * np.pi / (2 * size) * np.arange(4 * size))
    for j in range(size):
        at = pow(3, j, 4 * size)
        assert abs(sum(c[k] * zeta[at * k % (4 * size)] for k in range(2 * size)) - slots[j]) < 1e-12
    assert np.abs(unembed(c) - slots).max() < 1e-12


@pytest.mark.parametrize("parameters", [SMALL, LARGE], ids=str)
def test_encoded_polynomial_has_the_slots(parameters) -> None:
    e = encoder(parameters)
    values = RNG.uniform(-1, 1, parameters.slots)
    level, scale = parameters.max_level, 2.0**30
    integers = centred(coefficients(e, e.encode(values, level, scale)).residues, parameters.data_primes)
    for j in (0, 1, 2, 777, parameters.slots - 1):
        exponents = pow(3, j, 2 * parameters.degree) * np.arange(parameters.degree) % (2 * parameters.degree)
        value = np.dot(
            np.array(integers, dtype=np.float64), np.exp(1j * np.pi / parameters.degree * exponents)
        )
        assert abs(value / scale - values[j]) < 6 * math.sqrt(parameters.degree / 12) / scale


@pytest.mark.parametrize("level", range(6))
@pytest.mark.parametrize("period", [1, 4, 512, 8192])
def test_round_trip_at_every_level(level: int, period: int) -> None:
    e, scale = encoder(LARGE), 1.3 * 2.0**38
    values = RNG.uniform(-1, 1, period)
    plain = e.encode(values, level, scale, extended=True)
    assert (
        plain.polynomial.rows == LARGE.extended_rows(level) and plain.level == level and plain.scale == scale
    )
    data = coefficients(e, plain).residues[: level + 1]
    decoded = e.decode(CoefficientPolynomial(data, LARGE.data_rows(level)), level, scale)
    # Rounding moves each coefficient by up to a half, of which only 2*period are not zero.
    assert (
        np.abs(decoded - np.tile(values, LARGE.slots // period)).max() < 6 * math.sqrt(period / 6 + 1) / scale
    )
    assert all(
        row.max() < LARGE.moduli[r]
        for row, r in zip(plain.polynomial.residues, plain.polynomial.rows, strict=True)
    )


def test_extended_rows_hold_the_same_integers() -> None:
    e = encoder(LARGE)
    plain = e.encode(RNG.uniform(-1, 1, 256), 2, 2.0**36, extended=True)
    c = coefficients(e, plain).residues
    integers = centred(c[:3], LARGE.data_primes[:3])
    assert (c == lift(integers, tuple(LARGE.moduli[r] for r in plain.polynomial.rows))).all()


def test_complex_slots() -> None:
    e = encoder()
    values = RNG.uniform(-1, 1, 2048) + 1j * RNG.uniform(-1, 1, 2048)
    plain = e.encode(values, 1, 2.0**40)
    decoded = e.decode_complex(coefficients(e, plain), 1, 2.0**40)
    assert np.abs(decoded - values).max() < 2.0**-33
    assert np.abs(e.decode(coefficients(e, plain), 1, 2.0**40) - values.real).max() < 2.0**-33


def test_a_short_period_is_a_polynomial_in_a_power() -> None:
    e = encoder()
    values = RNG.uniform(-1, 1, 64)
    short, full = (coefficients(e, e.encode(v, 1, 2.0**30)).residues for v in (values, np.tile(values, 32)))
    assert not short.reshape(2, 128, 32)[:, :, 1:].any()
    difference = np.array(centred(short, SMALL.data_primes)) - np.array(centred(full, SMALL.data_primes))
    assert np.abs(difference).max() <= 1  # two ways of rounding in float64


@given(steps=st.integers(0, 2047))
@settings(max_examples=10, deadline=None)
def test_rotating_slots_is_the_automorphism(steps: int) -> None:
    e = encoder()
    values = np.random.default_rng(steps).uniform(-1, 1, 2048)
    plain = e.encode(values, 1, 2.0**30).polynomial
    moved = e.backend.automorphism(plain.residues, SMALL.galois_element(steps))
    decoded = e.decode(CoefficientPolynomial(e.backend.inverse(moved, plain.rows), plain.rows), 1, 2.0**30)
    assert np.abs(decoded - np.roll(values, -steps)).max() < 1e-6


@given(
    st.lists(st.floats(-(2.0**120), 2.0**120), min_size=1, max_size=20),
    st.sampled_from([ntt_primes(4096, b, 1)[0] for b in (20, 30, 49, 50, 51, 60)]),
)
@example(
    [2.0**53 - 1, 2.0**53, -(2.0**53), 2.0**53 + 2, 2.0**63, -(2.0**64), 2.0**120, -0.0, 1.0, -1.0],
    1152921504606830593,
)
def test_reduction_of_floats_is_exact(values: list[float], q: int) -> None:
    whole = np.rint(np.array(values))
    assert reduce_floats(whole, q).tolist() == [int(v) % q for v in whole]


MODULI = LARGE.data_primes
Q = math.prod(MODULI)


@given(st.lists(st.integers(-(Q - 1) // 2, (Q - 1) // 2), min_size=1, max_size=8))
@example([(Q - 1) // 2, -(Q - 1) // 2, 0, 1, -1, MODULI[0] // 2, MODULI[0] // 2 + 1, -(2**120), 2**120])
def test_centring_is_exact(values: list[int]) -> None:
    floats = _centred_floats(lift(values, MODULI), MODULI)
    assert all(abs(int(f) - v) <= abs(v) * 2.0**-47 for f, v in zip(floats.tolist(), values, strict=True))


BAD_ENCODE = [
    (np.array([1.0, np.nan]), 1, 2.0**30, "NaN"),
    (np.array([np.inf]), 1, 2.0**30, "infinity"),
    (np.array([2.0**36]), 1, 2.0**30, "do not fit"),
    (np.array([2.0**6]), 0, 2.0**30, "do not fit"),
    (np.array([1e308, -1e308]), 1, 2.0**1000, "do not fit"),
    (np.ones(3), 1, 2.0**30, "power of two"),
    (np.ones(4096), 1, 2.0**30, "power of two"),
    (np.ones((2, 2)), 1, 2.0**30, "power of two"),
    (np.ones(0), 1, 2.0**30, "power of two"),
    (np.ones(2), 2, 2.0**30, "level 2"),
    (np.ones(2), -1, 2.0**30, "level -1"),
    (np.ones(2), 1, 0.0, "scale"),
    (np.ones(2), 1, math.inf, "scale"),
    (np.ones(2), 1, math.nan, "scale"),
]


@pytest.mark.parametrize(("values", "level", "scale", "text"), BAD_ENCODE, ids=range(len(BAD_ENCODE)))
def test_what_cannot_be_encoded_is_refused(values, level: int, scale: float, text: str) -> None:
    with pytest.raises(EvaluationError, match=text):
        encoder().encode(values, level, scale)


def test_values_fit_up_to_half_the_modulus() -> None:
    e, q0 = encoder(), SMALL.data_primes[0]
    for value in (float(q0 // 2), -float(q0 // 2)):
        plain = e.encode(np.array([value]), 0, 1.0)
        assert np.abs(e.decode(coefficients(e, plain), 0, 1.0) - value).max() < 1.0
    with pytest.raises(EvaluationError, match="do not fit"):
        e.encode(np.array([float(q0 // 2 + 1)]), 0, 1.0)


def test_what_cannot_be_decoded_is_refused() -> None:
    e = encoder()
    polynomial = coefficients(e, e.encode(np.ones(1), 1, 2.0**30))
    for level, scale in ((0, 2.0**30), (1, 0.0), (1, math.inf), (1, 1e-320)):
        with pytest.raises(EvaluationError):
            e.decode(polynomial, level, scale)
