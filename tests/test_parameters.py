"""Parameters: what is refused, the security table's edges, and the canonical JSON form."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import make_parameters

from ckks import security
from ckks.errors import ParameterError, SecurityError
from ckks.parameters import Parameters
from ckks.primes import ntt_primes

# log2(Q*P) at 128 bits, copied from the design and not from the module under test.
TABLE_128 = {4096: 106, 8192: 214, 16384: 430, 32768: 868, 65536: 1747}
GOOD = make_parameters(8192, (45, 35, 35), (48, 48), 2)


@pytest.mark.parametrize(("degree", "limit"), TABLE_128.items())
def test_security_limit_at_its_edge(degree: int, limit: int) -> None:
    assert security.max_log_qp(degree) == limit
    security.require(degree, 1 << limit)
    with pytest.raises(SecurityError, match=f"N={degree} allows log2\\(Q\\*P\\) <= {limit}"):
        security.require(degree, (1 << limit) + 1)
    assert security.security_bits(degree, 1 << limit) == 128
    assert security.security_bits(degree, (1 << limit) + 1) == 0


def test_stronger_rows() -> None:
    assert [security.security_bits(16384, 1 << b) for b in (230, 231, 297, 298, 430, 431)] == [
        256,
        192,
        192,
        128,
        128,
        0,
    ]
    assert (
        security.max_log_qp(2048) == 0
        and security.max_log_qp(6000) == 0
        and security.max_log_qp(8192, 80) == 0
    )


def test_special_primes_count_towards_the_modulus() -> None:
    primes = ntt_primes(4096, 36, 3)
    with pytest.raises(SecurityError):
        Parameters(4096, primes[:2], primes[2:])  # Q alone has 72 bits
    one, two = ntt_primes(4096, 36, 2)
    assert Parameters(4096, (one,), (two,)).security_bits == 192


def _changed(**changes: Any) -> dict[str, Any]:
    return GOOD.to_json() | changes


P30 = ntt_primes(8192, 30, 4)
BAD = [
    ("degree", _changed(degree=8191)),
    ("degree", _changed(degree=2048)),
    ("degree", _changed(degree=1 << 17)),
    ("not a prime", _changed(data_primes=[P30[0] * P30[1], P30[2]])),
    (
        "not a prime",
        _changed(
            data_primes=[
                ntt_primes(4096, 30, 40)[k] for k in range(40) if ntt_primes(4096, 30, 40)[k] % 16384 != 1
            ][:2]
        ),
    ),
    (
        "20 to 60 bits",
        _changed(
            special_primes=[next(q for q in range((1 << 60) + 1, 1 << 61, 16384) if pow(3, q - 1, q) == 1)]
        ),
    ),
    ("20 to 60 bits", _changed(data_primes=[65537, P30[0]])),
    ("distinct", _changed(data_primes=[P30[0], P30[0]])),
    ("distinct", _changed(data_primes=[P30[0], P30[1]], special_primes=[P30[1]], digit_limbs=1)),
    ("at least one", _changed(special_primes=[])),
    ("at least one", _changed(data_primes=[])),
    ("digit", _changed(digit_limbs=4)),
    ("too small", _changed(special_primes=[P30[0]], digit_limbs=1)),
    ("too small", _changed(digit_limbs=3)),
    ("object of", {**GOOD.to_json(), "extra": 1}),
    ("object of", {}),
    ("object of", [1]),
    ("object of", None),
    ("integers", _changed(data_primes=[1] * 65)),
    ("integers", _changed(data_primes="abc")),
    ("positive", _changed(degree=8192.0)),
    ("positive", _changed(degree=True)),
    ("positive", _changed(digit_limbs=0)),
    ("positive", _changed(data_primes=[-3])),
    ("positive", _changed(data_primes=[1 << 64])),
    ("positive", _changed(special_primes=["7"])),
]


@pytest.mark.parametrize(("text", "data"), BAD, ids=range(len(BAD)))
def test_malformed_parameters_are_refused(text: str, data: Any) -> None:
    with pytest.raises(ParameterError, match=text):
        Parameters.from_json(data)


def test_json_round_trip_and_digest() -> None:
    again = Parameters.from_json(json.loads(json.dumps(GOOD.to_json())))
    assert again == GOOD and again.digest == GOOD.digest and len(GOOD.digest) == 64
    assert GOOD.digest != make_parameters(8192, (45, 35, 35), (48, 48), 1).digest
    assert str(GOOD) == "n_8192_logq_45_2x35_logp_2x48_digit_2"


def test_rows_and_digits() -> None:
    p = make_parameters(16384, (50, 36, 36, 36, 36), (45, 45), 2)
    assert p.moduli == p.data_primes + p.special_primes and p.max_level == 4 and p.slots == 8192
    assert p.special_product == math.prod(p.special_primes)
    assert p.log_qp == pytest.approx(math.log2(math.prod(p.moduli)))
    assert p.data_rows(2) == (0, 1, 2) and p.extended_rows(2) == (0, 1, 2, 5, 6)
    assert (
        p.digits(4) == ((0, 2), (2, 4), (4, 5))
        and p.digits(3) == ((0, 2), (2, 4))
        and p.digits(0) == ((0, 1),)
    )


@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6))
def test_galois_elements_are_a_group(a: int, b: int) -> None:
    element = GOOD.galois_element(a)
    assert element % 2 == 1 and 0 < element < 2 * GOOD.degree
    assert element * GOOD.galois_element(b) % (2 * GOOD.degree) == GOOD.galois_element(a + b)
    assert GOOD.galois_element(a + GOOD.slots) == element
    assert (element == 1) == (a % GOOD.slots == 0)
