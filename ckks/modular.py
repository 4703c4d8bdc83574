"""Exact arithmetic modulo a prime below 2^60 on uint64 arrays, in portable NumPy (no long double)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ckks.primes import smallest_root
from ckks.types import Residues

_SINGLE_STEP = 1 << 50  # below it one float64 quotient estimate suffices; see _reduce
_HALF_BITS = 30
_HALF = np.uint64(1 << _HALF_BITS)


def add(a: Residues, b: Residues, q: int | Residues) -> Residues:
    """a + b mod q for residues in [0, q); q may be an array that broadcasts."""
    total = a + b
    reduced: Residues = np.minimum(total, total - q)  # total - q wraps to a huge value exactly when total < q
    return reduced


def subtract(a: Residues, b: Residues, q: int | Residues) -> Residues:
    """a - b mod q for residues in [0, q); q may be an array that broadcasts."""
    difference = a - b
    reduced: Residues = np.minimum(difference, difference + q)  # a negative one wraps to a huge value
    return reduced


def multiply(a: Residues, b: Residues | np.uint64, q: int) -> Residues:
    """a * b mod q, exact for residues in [0, q) and any q < 2^60.

    From 2^50 up, b is split into 30-bit halves, a*b = (a*b1 mod q)*2^30 + a*b0: every quotient is below 2^30.
    """
    if q < _SINGLE_STEP:
        return _reduce(a, b, q)
    high = _reduce(_reduce(a, b >> np.uint64(_HALF_BITS), q), _HALF, q)
    return add(high, _reduce(a, b & (_HALF - np.uint64(1)), q), q)


def _reduce(a: Residues, b: Residues | np.uint64, q: int) -> Residues:
    """a * b mod q where the quotient a*b/q is below 2^50.

    The estimate goes through six roundings of 2^-53 each, so it is within 6 * 2^-3 < 1 of a*b/q and its floor
    is off by at most one; a*b - estimate*q, computed modulo 2^64, then lies in [-q, 2q).
    """
    quotient = a.view(np.int64).astype(np.float64) * b.view(np.int64).astype(np.float64) * (1.0 / q)
    rest = a * b - quotient.astype(np.int64).view(np.uint64) * np.uint64(q)
    rest = np.minimum(rest, rest + q)
    reduced: Residues = np.minimum(rest, rest - q)
    return reduced


@lru_cache(maxsize=8)
def bit_reversal(degree: int) -> npt.NDArray[np.int64]:
    """The bit reversal of 0..degree-1, degree a power of two."""
    bits = degree.bit_length() - 1
    index = np.arange(degree)
    return np.asarray(sum(((index >> i) & 1) << (bits - 1 - i) for i in range(bits)), dtype=np.int64)


@lru_cache(maxsize=256)
def stage_roots(degree: int, q: int) -> tuple[Residues, Residues]:
    """psi^bitrev(i) and psi^-bitrev(i), i = 0..degree-1: the twiddle factors in the order of the stages."""
    psi = smallest_root(degree, q)
    powers = [1]
    for _ in range(degree - 1):
        powers.append(powers[-1] * psi % q)
    forward = np.array(powers, dtype=np.uint64)
    backward = np.concatenate([forward[:1], np.uint64(q) - forward[:0:-1]])  # psi^-i = -psi^(degree-i)
    order = bit_reversal(degree)
    return forward[order], backward[order]


def forward_ntt(x: Residues, q: int) -> Residues:
    """Coefficients [...][N] -> values at psi^(2*bitrev(i)+1).

    Cooley-Tukey butterflies with the negacyclic twist merged in (Longa and Naehrig 2016, algorithm 1).
    """
    degree = x.shape[-1]
    roots, _ = stage_roots(degree, q)
    x = np.array(x, dtype=np.uint64, order="C")
    groups, half = 1, degree // 2
    while groups < degree:
        pairs = x.reshape(*x.shape[:-1], groups, 2, half)
        low = pairs[..., 0, :].copy()
        high = multiply(pairs[..., 1, :], roots[groups : 2 * groups, None], q)
        pairs[..., 0, :] = add(low, high, q)
        pairs[..., 1, :] = subtract(low, high, q)
        groups, half = 2 * groups, half // 2
    return x


def inverse_ntt(x: Residues, q: int) -> Residues:
    """The inverse of `forward_ntt`: Gentleman-Sande butterflies (algorithm 2 there), then division by N."""
    degree = x.shape[-1]
    _, roots = stage_roots(degree, q)
    x = np.array(x, dtype=np.uint64, order="C")
    groups, half = degree // 2, 1
    while groups >= 1:
        pairs = x.reshape(*x.shape[:-1], groups, 2, half)
        low, high = pairs[..., 0, :].copy(), pairs[..., 1, :].copy()
        pairs[..., 0, :] = add(low, high, q)
        pairs[..., 1, :] = multiply(subtract(low, high, q), roots[groups : 2 * groups, None], q)
        groups, half = groups // 2, 2 * half
    return multiply(x, np.uint64(pow(degree, -1, q)), q)
