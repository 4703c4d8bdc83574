"""The lazy kernels where their bounds are tight: on inputs that make intermediate values, and rests of roundings, as large as they get.

Every instruction set is held to the portable integer kernels, which test_backends.py holds to the reference, or to Python integers.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import numpy as np
import pytest

from ckks.backends.cpu import CpuBackend
from ckks.kernels._cpu import instruction_sets
from ckks.packed import pack
from ckks.parameters import Parameters
from ckks.primes import is_prime, smallest_root
from ckks.types import KeySwitchKey, Residues

CPUS = instruction_sets()


# Where the kernels change how they keep values small: 2^45 on doubles, 2^52/70, 2^48 and 2^49 on 52-bit integers.
LIMITS = pytest.mark.parametrize("limit", [2**30, 2**45, 2**52 // 70, 2**48, 2**49])


def below(degree: int, limit: int, count: int) -> list[int]:
    """The largest primes below a limit."""
    primes = (
        q for q in range(limit // (2 * degree) * 2 * degree + 1, 0, -2 * degree) if q < limit and is_prime(q)
    )
    return sorted(itertools.islice(primes, count))


@lru_cache(maxsize=8)
def parameters(degree: int, limit: int, data: int, special: int, digit: int) -> Parameters:
    primes = below(degree, limit, data + special)
    return Parameters(degree, tuple(primes[:data]), tuple(primes[data:]), digit)


def on_all(p: Parameters, function: str, *arguments: object) -> Residues:
    """What the portable kernels give, after checking that the others give the same."""
    results = {name: getattr(CpuBackend(p, 1, name), function)(*arguments) for name in CPUS}
    expected: Residues = results["portable"]
    for result in results.values():
        np.testing.assert_array_equal(result, expected)
    return expected


def towards(leaf: int, degree: int, q: int, rising: bool) -> Residues:
    """A polynomial whose transform adds q/2 in every one of its stages on the way to position `leaf`, with one sign.

    After s stages the first coefficient c_0 of a block meets coefficient N/2^(s+1), which is still that of the input if all but these
    are zero: it is set so that twiddle times coefficient is (q-1)/2 or (q+1)/2, the ends of the balanced range.
    """
    psi, bits = smallest_root(degree, q), degree.bit_length() - 1
    x = np.zeros(degree, np.uint64)
    half = (q - 1) // 2 if rising else (q + 1) // 2
    x[0] = half
    for s in range(bits):
        block, lower = leaf >> (bits - s), leaf >> (bits - s - 1) & 1
        exponent = int(f"{(1 << s) + block:0{bits}b}"[::-1], 2)
        term = q - half if lower else half  # the lower half of a block gets c_0 - twiddle * coefficient
        x[degree >> (s + 1)] = pow(psi, -exponent, q) * term % q
    return x


@LIMITS
@pytest.mark.parametrize("degree", [1 << 12, 1 << 13, 1 << 16])
def test_transforms_where_every_stage_adds_as_much_as_it_can(degree: int, limit: int) -> None:
    p = parameters(degree, limit, 1, 1, 1)
    q = p.data_primes[0]
    leaves = [0, 1, 5, 15, 16, 31, degree // 2, degree - 17, degree - 1]
    for rising in (True, False):
        x = np.array([[towards(leaf, degree, q, rising)] for leaf in leaves])
        values = on_all(p, "forward", x, (0,))
        half = (q - 1) // 2 if rising else (q + 1) // 2
        stages = degree.bit_length()
        assert [int(values[i, 0, leaf]) for i, leaf in enumerate(leaves)] == [stages * half % q] * len(leaves)


@LIMITS
@pytest.mark.parametrize("degree", [1 << 12, 1 << 13, 1 << 16])
def test_transforms_of_walsh_patterns(degree: int, limit: int) -> None:
    """The ends of the range and of the balanced range in patterns that double, or cancel, in chosen stages."""
    p = parameters(degree, limit, 1, 1, 1)
    q, places, rng = p.data_primes[0], np.arange(degree), np.random.default_rng(7)
    masks = [0, 1, degree - 1, degree // 2, *rng.integers(0, degree, 4).tolist()]
    ends = [((q - 1) // 2, (q + 1) // 2), (0, q - 1), ((q - 1) // 2, q - 1)]
    rows = []
    for mask, (low, high) in itertools.product(masks, ends):
        odd = np.array([bin(k & mask).count("1") & 1 for k in places], dtype=bool)
        rows.append(np.where(odd, np.uint64(low), np.uint64(high)))
    x = np.array(rows)[:, None]
    np.testing.assert_array_equal(on_all(p, "inverse", on_all(p, "forward", x, (0,)), (0,)), x)
    on_all(p, "inverse", x, (0,))


def excess(q: int) -> int:
    """By how much q times its reciprocal, rounded up to 52 bits, exceeds a power of two: what makes quotients too large."""
    power = 1 << (51 + q.bit_length())
    return (power // q + 1) * q - power


# Quotients of the last reduction on 52-bit integers are right for all primes below 2^44.9 and most below 2^45.9; for all from there to
# 2^47.5 and half below 2^48.
@pytest.mark.parametrize(
    "limit", [2**30, 2**44, 2**45, int(2**45.5), 2**52 // 70, 2**47, int(2**47.6), 2**48, 2**49]
)
@pytest.mark.parametrize("degree", [1 << 12, 1 << 16])
def test_one_less_than_multiples_of_the_prime_is_reduced(degree: int, limit: int) -> None:
    candidates = below(degree, limit, 60)
    q = max(candidates, key=lambda q: excess(q) / q)
    p = Parameters(degree, (q,), (next(other for other in candidates if other != q),), 1)
    bits, psi = degree.bit_length() - 1, smallest_root(degree, q)
    # Kept rows grow most on the way to the first position (every product q - 1) and to the last (no product but one).
    x = np.zeros((3, 1, degree), np.uint64)
    x[0, 0, 0] = bits - 1
    for s in range(bits):
        x[0, 0, degree >> (s + 1)] = pow(psi, -int(f"{1 << s:0{bits}b}"[::-1], 2), q) * (q - 1) % q
    x[1, 0, 0] = q - 1
    values = on_all(p, "forward", x, (0,))
    assert values[0, 0, 0] == q - 1 and (values[1] == q - 1).all() and not values[2].any()
    ends = np.random.default_rng(9).choice(np.array([0, 1, q - 2, q - 1], np.uint64), (4, 1, degree))
    np.testing.assert_array_equal(on_all(p, "forward", on_all(p, "inverse", ends, (0,)), (0,)), ends)


def hard_factors(q: int) -> tuple[int, int]:
    """x, y in the upper half of [0, q) whose product lies just below an odd multiple of 2^49: adding it in doubles on the grid 2^50 that
    49-bit primes use leaves the largest rest, always of one sign."""
    x = q - 2
    inverse = pow(x, -1, 1 << 50)
    for short in itertools.count(1):
        y = ((1 << 49) - short) * inverse % (1 << 50)
        if q // 2 < y < q:
            return x, y
    raise AssertionError


@pytest.mark.parametrize("count", [7, 8, 9, 16, 17, 40, 97])
def test_sums_of_products_whose_rests_add_up(count: int) -> None:
    """Eight products of 49 bits fit before a flush; q-1 everywhere makes the largest sums, hard factors the largest rests."""
    p = parameters(1 << 12, 2**49, 1, 1, 1)
    q = p.data_primes[0]
    x, y = hard_factors(q)
    for a, b in ((x, y), (q - 1, q - 1), (q - 1, 1), ((q - 1) // 2, q - 1)):
        term = np.full((2, 1, p.degree), a, np.uint64)
        for length in (p.degree, p.degree // 2, 2):
            plain = pack(np.full((1, 1, length), b, np.uint64), (q,))
            sums = on_all(p, "multiply_sums", [term], plain, [[(0, 0)] * count], (0,))
            assert (sums == a * b * count % q).all()


@pytest.mark.parametrize("bits", [32, 40, 48, 49])
def test_products_with_keys_whose_rests_add_up(bits: int) -> None:
    """Up to 16 digits, and one more product for what moves along; every packing of a key."""
    p = parameters(1 << 15, 2**bits, 16, 1, 1)
    for level in {6, 7, 8, p.max_level}:
        rows = p.extended_rows(level)
        moduli = [p.moduli[r] for r in rows]
        for kind in ("hard", "largest"):
            factors = [hard_factors(q) if kind == "hard" and bits == 49 else (q - 1, q - 1) for q in moduli]
            a, b = (np.array([f[i] for f in factors], np.uint64)[:, None] for i in (0, 1))
            shape = (level + 1, 2, len(rows), p.degree)
            key = KeySwitchKey.from_residues(p, np.broadcast_to(b, shape), level)
            x = np.ascontiguousarray(np.broadcast_to(a, (level + 1, len(rows), p.degree)))
            moved = np.ascontiguousarray(np.broadcast_to(a, (2, len(rows), p.degree)))
            got = on_all(p, "key_product", x, key, level, 5, moved)
            for i, q in enumerate(moduli):
                assert (got[:, i] == (factors[i][0] * factors[i][1] * (level + 1) + factors[i][0]) % q).all()


@pytest.mark.parametrize(
    ("limbs", "bits"),
    [(1, 49), (2, 49), (3, 49), (4, 49), (5, 49), (7, 49), (8, 49), (11, 49), (9, 48), (11, 48)],
)
def test_conversions_of_digits_at_the_ends(limbs: int, bits: int) -> None:
    """All y_i = x_i * (D/q_i)^-1 at the ends of their balanced range, of one sign or of both: the largest sums a conversion can meet.

    At 49 bits 7 sources are the most on 52-bit integers, 8 on doubles; at 48 bits both go on to 11.
    """
    degree = 1 << 16 if limbs > 4 else 1 << 14
    p = parameters(degree, 2**bits, limbs, limbs, limbs)
    level, cpu = p.max_level, CpuBackend(p, 1, "portable")
    for source, function in ((p.data_rows(level), "decompose"), (p.special_rows, "mod_down")):
        moduli = [p.moduli[r] for r in source]
        product = math.prod(moduli)
        row = []
        for i, q in enumerate(moduli):
            low, high = (q - 1) // 2, (q + 1) // 2
            patterns = [low, high, low if i % 2 else high, 0, q - 1, low - 1]
            row.append(np.resize(np.array([v * (product // q) % q for v in patterns], np.uint64), degree))
        x = cpu.forward(np.array(row), source)
        if function == "mod_down":
            rest = np.array([np.full(degree, p.moduli[r] - 1, np.uint64) for r in p.data_rows(level)])
            x = np.concatenate([rest, x])
        on_all(p, function, x, level)


@LIMITS
def test_key_switches_of_digits_as_large_as_they_get(limit: int) -> None:
    """Sixteen digits that are not reduced before they meet a key of q-1 throughout."""
    p = parameters(1 << 15, limit, 16, 1, 1)
    level = p.max_level
    rows, moduli = p.extended_rows(level), np.array(p.moduli, np.uint64)
    shape = (level + 1, 2, len(rows), p.degree)
    key = KeySwitchKey.from_residues(
        p, np.broadcast_to(moduli[list(rows), None] - np.uint64(1), shape), level
    )
    data = moduli[: level + 1, None]
    x = np.random.default_rng(3).integers(0, data, (level + 1, p.degree), dtype=np.uint64)
    for value in (x, np.broadcast_to(data - np.uint64(1), x.shape).copy()):
        for divided in (False, True):
            on_all(p, "key_switch", value, key, level, 5, None, divided)
