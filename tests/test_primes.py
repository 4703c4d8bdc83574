"""Primes and roots of unity against independent, slower definitions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckks.errors import ParameterError
from ckks.primes import MAX_PRIME_BITS, is_prime, ntt_primes, smallest_root

# Strong pseudoprimes to the first 1, 2, 3, 4, 5, 6, 7, 9 prime bases, and Carmichael numbers.
COMPOSITES = [2047, 1373653, 25326001, 3215031751, 2152302898747, 3474749660383, 341550071728321]
COMPOSITES += [3825123056546413051, 561, 41041, 825265, 1, 0, -7]


def test_is_prime_agrees_with_a_sieve() -> None:
    limit = 30_000
    sieve = bytearray([1]) * limit
    sieve[:2] = b"\0\0"
    for n in range(2, int(limit**0.5) + 1):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(range(n * n, limit, n)))
    assert [n for n in range(limit) if is_prime(n)] == [n for n in range(limit) if sieve[n]]


@pytest.mark.parametrize("n", COMPOSITES)
def test_pseudoprimes_are_not_primes(n: int) -> None:
    assert not is_prime(n)


def test_large_primes_are_primes() -> None:
    assert is_prime(2**61 - 1) and is_prime(2**31 - 1) and is_prime(1152921504606846883)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([4096, 8192, 16384, 32768, 65536]), st.integers(26, 60), st.integers(1, 6))
def test_ntt_primes(degree: int, bits: int, count: int) -> None:
    primes = ntt_primes(degree, bits, count)
    assert len(set(primes)) == count
    assert all(is_prime(q) and q % (2 * degree) == 1 and q.bit_length() <= MAX_PRIME_BITS for q in primes)
    distances = [abs(q - 2**bits) for q in primes]
    assert distances == sorted(distances) and max(distances) < 2**bits // 2
    more = ntt_primes(degree, bits, 2, exclude=primes)
    assert not set(more) & set(primes) and abs(more[0] - 2**bits) >= distances[-1]


def test_ntt_primes_are_the_nearest_ones() -> None:
    nearby = [q for q in range(2**30 - 3_000_000, 2**30 + 3_000_000) if q % 16384 == 1 and is_prime(q)]
    nearby.sort(key=lambda q: abs(q - 2**30))
    assert ntt_primes(8192, 30, 8) == tuple(nearby[:8])


def test_too_many_primes_are_refused() -> None:
    with pytest.raises(ParameterError, match="larger primes"):
        ntt_primes(65536, 20, 10)


@pytest.mark.parametrize(("degree", "bits"), [(4096, 20), (4096, 26), (8192, 22), (16384, 24)])
def test_smallest_root_by_search(degree: int, bits: int) -> None:
    (q,) = ntt_primes(degree, bits, 1)
    assert smallest_root(degree, q) == next(r for r in range(2, q) if pow(r, degree, q) == q - 1)


@pytest.mark.parametrize("bits", [36, 49, 60])
def test_root_has_order_2n(bits: int) -> None:
    for q in ntt_primes(16384, bits, 3):
        psi = smallest_root(16384, q)
        assert pow(psi, 16384, q) == q - 1
        square = psi * psi % q  # no odd power is smaller
        assert all((psi * pow(square, k, q)) % q >= psi for k in range(1, 2000))


def test_no_primes_asked_for_is_no_search() -> None:
    assert ntt_primes(4096, 50, 0) == ()


def test_primes_beyond_the_limit_are_refused_at_once() -> None:
    with pytest.raises(ParameterError, match="at most 60 bits"):
        ntt_primes(4096, 61, 1)
