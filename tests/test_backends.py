"""The backends agree bit for bit with the reference, and both with definitions in Python integers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckks.backends import Backend
from ckks.backends.cpu import CpuBackend
from ckks.backends.reference import ReferenceBackend
from ckks.kernels._cpu import instruction_sets
from ckks.packed import pack
from ckks.parameters import Parameters
from ckks.primes import is_prime, ntt_primes, smallest_root
from ckks.types import KeySwitchKey, Residues

# name: log2 N, bits of a data prime, of a special prime, data limbs, special primes, limbs per digit. 49 bits: the last primes below 2^49,
# where the bounds of the vector kernels lie; 50 and more run on integers.
SETS = {
    "30_bits": (12, 30, 30, 2, 1, 1),
    "40_bits": (13, 40, 40, 4, 1, 1),
    "60_bits": (13, 60, 60, 2, 1, 1),
    "30_bits_pairs": (13, 30, 30, 5, 2, 2),
    "49_bits": (13, 49, 49, 3, 1, 1),
    "49_bits_triples": (14, 49, 49, 5, 3, 3),
    "50_bits_pairs": (14, 50, 50, 4, 2, 2),
    "60_bits_triples": (14, 60, 60, 4, 3, 3),
    "40_bits_triples_short_end": (14, 40, 40, 7, 3, 3),
    "30_bits_quadruples": (14, 30, 30, 9, 4, 4),
    # more products in a sum than the integer kernels add up before they reduce
    "24_bits_nine_products": (14, 24, 24, 8, 8, 8),
    # both families in one set, as with keys from elsewhere
    "40_and_60_bits": (14, 40, 60, 4, 2, 2),
    "20_and_49_bits": (12, 20, 49, 2, 1, 2),
    # primes on both sides of 2^32 and of 2^48: every packing of keys and plaintexts
    "32_and_48_bits": (14, 32, 48, 6, 3, 1),
    "large_ring": (15, 45, 49, 3, 2, 2),
}
SMALL = ("30_bits", "60_bits", "30_bits_pairs", "49_bits", "20_and_49_bits", "32_and_48_bits")
CPUS = tuple(instruction_sets())


def primes_near(degree: int, bits: int, count: int, exclude: tuple[int, ...] = ()) -> tuple[int, ...]:
    if bits != 49:
        return ntt_primes(degree, bits, count, exclude)
    near = ntt_primes(degree, bits, 6 * count + 12, exclude)
    return tuple(sorted(q for q in near if q < 2**49)[-count:])


@lru_cache(maxsize=32)
def parameters(name: str) -> Parameters:
    log_degree, bits, special_bits, data, special, digit = SETS[name]
    degree = 1 << log_degree
    if bits == special_bits:  # the largest are special, so that P covers every digit
        primes = sorted(primes_near(degree, bits, data + special))
        return Parameters(degree, tuple(primes[:data]), tuple(primes[data:]), digit)
    return Parameters(
        degree, primes_near(degree, bits, data), primes_near(degree, special_bits, special), digit
    )


@lru_cache(maxsize=64)
def backend(name: str, kind: str, threads: int = 1) -> Backend:
    """`kind`: "reference", "cpu" or one of CPUS."""
    if kind == "reference":
        return ReferenceBackend(parameters(name))
    return CpuBackend(parameters(name), threads, None if kind == "cpu" else kind)


def everywhere(name: str, function: str, *arguments: object) -> Residues:
    """What `function` gives on the reference, after checking that every kind of CPU kernel gives the same."""
    expected: Residues = getattr(backend(name, "reference"), function)(*arguments)
    for kind in CPUS:
        assert_same(getattr(backend(name, kind), function)(*arguments), expected)
    return expected


def residues(
    p: Parameters, rows: tuple[int, ...], *leading: int, kind: str = "random", seed: int = 1
) -> Residues:
    """[leading..., row, N] of random residues, or all 0, 1 or q-1, or 0 and q-1 in turn."""
    q = np.array([p.moduli[r] for r in rows], dtype=np.uint64)[:, None]
    shape = (*leading, len(rows), p.degree)
    if kind == "random":
        return np.random.default_rng(seed).integers(0, q, size=shape, dtype=np.uint64)
    patterns = {"zero": [0, 0], "one": [1, 1], "largest": [-1, -1], "alternating": [0, -1]}
    pattern = np.resize(np.array(patterns[kind], dtype=np.int64), p.degree)
    return np.broadcast_to(np.where(pattern < 0, q - np.uint64(1), pattern.astype(np.uint64)), shape).copy()


def moduli(p: Parameters, rows: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(p.moduli[r] for r in rows)


def some_key(p: Parameters, level: int, kind: str = "random") -> KeySwitchKey:
    digits = residues(p, p.extended_rows(level), len(p.digits(level)), 2, kind=kind, seed=3)
    return KeySwitchKey.from_residues(p, digits, level)


KINDS = ("random", "zero", "one", "largest", "alternating")


def levels(p: Parameters) -> Iterator[int]:
    yield from sorted(
        {0, 1, p.digit_limbs - 1, p.digit_limbs, p.max_level // 2, p.max_level} & set(range(p.max_level + 1))
    )


def assert_same(a: Residues, b: Residues) -> None:
    assert a.dtype == b.dtype == np.uint64
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SETS)
def test_transforms(name: str, kind: str) -> None:
    p = parameters(name)
    rows = p.extended_rows(p.max_level)
    x = residues(p, rows, 2, kind=kind)
    values = everywhere(name, "forward", x, rows)
    assert_same(everywhere(name, "inverse", values, rows), x)
    everywhere(name, "inverse", x, rows)


def around(degree: int, limit: int) -> tuple[int, int]:
    """The last prime for rings of this degree up to `limit` and the first beyond."""
    below = limit // (2 * degree) * 2 * degree + 1
    below = next(q for q in range(below, 0, -2 * degree) if q <= limit and is_prime(q))
    return below, next(q for q in range(below + 2 * degree, 2 * limit, 2 * degree) if is_prime(q))


def primes_at_the_limits(degree: int) -> tuple[int, ...]:
    """Primes on both sides of the sizes where the vector kernels change how they reduce, and the last below 2^49.

    The sizes are 2^45 on doubles, 2^52/70 and 2^48 on integers.
    """
    limits = (2**45, 2**52 // 70, 2**48)
    return (*(q for limit in limits for q in around(degree, limit)), around(degree, 2**49)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_transforms_of_the_largest_ring(kind: str) -> None:
    """Most passes, at the primes where bounds are tightest."""
    primes = primes_at_the_limits(1 << 16)
    p = Parameters(1 << 16, primes, primes_near(1 << 16, 50, 1), 1)
    rows = p.data_rows(len(primes) - 1)
    x = residues(p, rows, kind=kind)
    values, back = ReferenceBackend(p).forward(x, rows), ReferenceBackend(p).inverse(x, rows)
    for name in CPUS:
        cpu = CpuBackend(p, 1, name)
        assert_same(cpu.forward(x, rows), values)
        assert_same(cpu.inverse(x, rows), back)


@pytest.mark.parametrize("kind", ["random", "largest", "alternating"])
@pytest.mark.parametrize("digit_limbs", [1, 4])
def test_conversions_at_the_limits(kind: str, digit_limbs: int) -> None:
    """Conversions into, and divisions at, each of the primes where bounds are tightest, from small and from large ones."""
    degree = 1 << 15
    primes = primes_at_the_limits(degree)
    small, special = (
        ntt_primes(degree, 24, 4),
        tuple(q for q in primes_near(degree, 49, 6) if q not in primes)[-4:],
    )
    p = Parameters(degree, (*small, *primes), special, digit_limbs)
    level, reference = p.max_level, ReferenceBackend(p)
    x = residues(p, p.data_rows(level), 2, kind=kind)
    wide = residues(p, p.extended_rows(level), 2, kind=kind)
    expected = (
        reference.decompose(x[0], level),
        reference.rescale(x, level),
        reference.mod_down(wide, level),
    )
    for name in CPUS:
        cpu = CpuBackend(p, 1, name)
        for got, want in zip(
            (cpu.decompose(x[0], level), cpu.rescale(x, level), cpu.mod_down(wide, level)),
            expected,
            strict=True,
        ):
            assert_same(got, want)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SETS)
def test_element_wise(name: str, kind: str) -> None:
    p = parameters(name)
    rows = p.extended_rows(p.max_level // 2)
    a, other = residues(p, rows, 3, kind=kind), residues(p, rows, 3, seed=2)
    for b in (a, other, other[0], residues(p, rows, kind="largest")):
        for function in ("add", "subtract", "multiply"):
            everywhere(name, function, a, b, rows)
    scalars = a[0, :, 1].copy()
    everywhere(name, "multiply_scalars", a, scalars, rows)
    level = p.max_level // 2
    data = residues(p, p.data_rows(level), 3, kind=kind)
    everywhere(name, "times_p", data, level)
    assert_same(everywhere(name, "download", everywhere(name, "upload", data)), data)
    everywhere(name, "tensor", a[:2], a[1:], rows)
    everywhere(name, "tensor", a[:2], other[:2], rows)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 20])
@pytest.mark.parametrize("name", SMALL)
def test_multiply_sums(name: str, count: int) -> None:
    p = parameters(name)
    rows = p.extended_rows(p.max_level)
    for kind in ("random", "largest"):
        terms = [residues(p, rows, 2, kind=kind, seed=i) for i in range(count)]
        plains = residues(p, rows, count, kind=kind, seed=100)
        sums = [[(i, i) for i in range(count)], [(count // 2, 0)], [(0, i) for i in range(count)]]
        for repeat in (1, 2, 4, 8, 16, p.degree):
            kept = pack(plains[..., ::repeat], moduli(p, rows))
            result = everywhere(name, "multiply_sums", terms, kept, sums, rows)
        product = everywhere(name, "multiply_scalars", terms[count // 2], plains[0, :, 0].copy(), rows)
        assert_same(result[1], product)


@pytest.mark.parametrize("kind", ["random", "largest"])
@pytest.mark.parametrize("name", SMALL)
def test_sums_of_products_that_are_made_on_the_way(name: str, kind: str) -> None:
    p = parameters(name)
    level = p.max_level - 1
    rows = p.extended_rows(level)
    digits = residues(p, rows, len(p.digits(level)), kind=kind)
    keys = [(some_key(p, at, kind), element) for at, element in ((level, 1), (level + 1, 5), (level, 3))]
    moved, wide = residues(p, p.data_rows(level), 1, kind=kind, seed=6), residues(p, rows, 2, 2, kind=kind)
    for repeat in (1, 4, p.degree):
        plains = pack(residues(p, rows, 7, kind=kind, seed=9)[..., ::repeat], moduli(p, rows))
        sums = [[(i, 6 - i) for i in range(5)], [(1, 0)], [(i % 5, i) for i in range(7)]]
        everywhere(name, "multiply_product_sums", digits, keys, moved, list(wide), plains, sums, level)
    everywhere(name, "multiply_product_sums", digits, keys[:1], None, [], plains, [[(0, 1)]], level)


def elements(p: Parameters) -> tuple[int, ...]:
    return (1, 3, 5, p.galois_element(7), p.galois_element(-1), p.degree + 1, 2 * p.degree - 1)


@pytest.mark.parametrize("name", SMALL)
def test_automorphism(name: str) -> None:
    p = parameters(name)
    x = residues(p, p.data_rows(1), 2)
    for element in elements(p):
        everywhere(name, "automorphism", x, element)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SETS)
def test_key_switching(name: str, kind: str) -> None:
    p = parameters(name)
    for level in levels(p):
        rows = p.extended_rows(level)
        x = residues(p, p.data_rows(level), kind=kind)
        digits = everywhere(name, "decompose", x, level)
        for key_level in {level, p.max_level}:
            key = some_key(p, key_level, kind)
            product = everywhere(name, "key_product", digits, key, level)
        everywhere(name, "mod_down", product, level)
        wide = residues(p, rows, 1, 2, kind=kind, seed=4)
        everywhere(name, "mod_down", wide, level)


@pytest.mark.parametrize("kind", ["random", "largest"])
@pytest.mark.parametrize("name", SETS)
def test_key_product_with_an_automorphism(name: str, kind: str) -> None:
    """The fused forms are what their parts give one after the other."""
    p, b = parameters(name), backend(name, "reference")
    level = p.max_level - 1
    data, rows = p.data_rows(level), p.extended_rows(level)
    digits = residues(p, rows, len(p.digits(level)), kind=kind)
    key = some_key(p, level + 1, kind)
    factors = np.array([p.special_product % p.moduli[r] for r in data], dtype=np.uint64)
    wide, narrow = residues(p, rows, 2, kind=kind, seed=5), residues(p, data, 2, kind=kind, seed=6)
    for element in (1, 5, p.galois_element(-3)):
        plain = b.key_product(b.automorphism(digits, element), key, level)
        for moved, scaled in ((wide, wide), (narrow, b.multiply_scalars(narrow, factors, data))):
            expected, count = plain.copy(), moved.shape[1]
            for halves in (1, 2):
                turned = b.automorphism(scaled[halves - 1], element)
                expected[halves - 1, :count] = b.add(
                    plain[halves - 1, :count], turned, data if count <= level + 1 else rows
                )
                got = everywhere(name, "key_product", digits, key, level, element, moved[:halves])
                assert_same(got, expected)
            divided = everywhere(name, "key_product", digits, key, level, element, moved, True)
            assert_same(divided, b.mod_down(expected, level))
        for divide in (False, True):
            everywhere(name, "key_switch", narrow[0], key, level, element, wide[:1], divide)


@pytest.mark.parametrize("kind", ["random", "largest"])
def test_key_products_of_more_digits_than_are_summed_at_a_time(kind: str) -> None:
    """Ten digits of 49 bits: sums are interrupted after every few, and reduced after every eighth product."""
    degree = 1 << 15
    primes = sorted(primes_near(degree, 49, 11))
    p = Parameters(degree, tuple(primes[:10]), (primes[10],), 1)
    rows = p.extended_rows(p.max_level)
    digits, wide = residues(p, rows, 10, kind=kind), residues(p, rows, 2, kind=kind, seed=2)
    key = KeySwitchKey.from_residues(p, residues(p, rows, 10, 2, kind=kind, seed=3), p.max_level)
    for element, moved in ((1, None), (5, wide)):
        expected = ReferenceBackend(p).key_product(digits, key, p.max_level, element, moved)
        for name in CPUS:
            assert_same(
                CpuBackend(p, 2, name).key_product(digits, key, p.max_level, element, moved), expected
            )


def test_the_widest_conversion_at_the_largest_primes() -> None:
    """Eleven sources of 49 bits are the most that the vector kernels take; a digit of twelve runs on integers."""
    degree = 1 << 16
    for limbs in (11, 12):
        primes = sorted(primes_near(degree, 49, 2 * limbs))
        p = Parameters(degree, tuple(primes[:limbs]), tuple(primes[limbs:]), limbs)
        level, reference = p.max_level, ReferenceBackend(p)
        for kind in ("random", "largest"):
            x = residues(p, p.data_rows(level), kind=kind)
            expected = reference.decompose(x, level)
            for name in CPUS if limbs == 11 else CPUS[:1]:
                assert_same(CpuBackend(p, 2, name).decompose(x, level), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SETS)
def test_rescale(name: str, kind: str) -> None:
    p = parameters(name)
    for level in set(levels(p)) - {0}:
        x = residues(p, p.data_rows(level), 3, kind=kind)
        everywhere(name, "rescale", x, level)


def near(modulus: int, offset: int) -> int:
    """A representative `offset` from the centring tie: floor(modulus/2) + offset."""
    return (modulus // 2 + offset) % modulus


def coefficients(p: Parameters, rows: tuple[int, ...], values: list[int]) -> Residues:
    """The polynomial with these integer coefficients, repeated to length N."""
    row = [[v % p.moduli[r] for v in values] for r in rows]
    return np.array([np.resize(np.array(r, dtype=np.uint64), p.degree) for r in row])


OFFSETS = st.lists(st.integers(-(2**40), 2**40) | st.integers(-3, 3), min_size=1, max_size=64)


@pytest.mark.parametrize("kind", ["reference", *CPUS])
@pytest.mark.parametrize("name", SETS)
@settings(max_examples=6)  # each is a list of up to 64 values
@given(offsets=OFFSETS)
def test_centring_is_exact_at_the_tie(name: str, kind: str, offsets: list[int]) -> None:
    """Digits, mod-down and rescale against Python integers, for values around half the modulus where an estimate cannot tell."""
    p, b = parameters(name), backend(name, kind)
    level = min(p.max_level, p.digit_limbs)  # a whole digit and the start of the next
    start, stop = p.digits(level)[0]
    modulus = math.prod(p.data_primes[start:stop])
    values = [near(modulus, o) for o in offsets]
    rows = p.extended_rows(level)
    x = b.forward(coefficients(p, p.data_rows(level), values), p.data_rows(level))
    centred = [v - modulus if 2 * v > modulus else v for v in values]
    assert_same(b.inverse(b.decompose(x, level)[0], rows), coefficients(p, rows, centred))

    for divisor, divide, kept in (
        (p.special_product, b.mod_down, level),
        (p.data_primes[level], b.rescale, level - 1),
    ):
        wide = rows if divide == b.mod_down else p.data_rows(level)
        numbers = [7 * divisor + near(divisor, o) for o in offsets]
        rounded = [7 + (2 * near(divisor, o) > divisor) for o in offsets]
        result = divide(b.forward(coefficients(p, wide, numbers), wide), level)
        assert_same(b.inverse(result, p.data_rows(kept)), coefficients(p, p.data_rows(kept), rounded))


@pytest.mark.parametrize("kind", ["reference", *CPUS])
@pytest.mark.parametrize("name", SMALL)
def test_decompose_against_integers(name: str, kind: str) -> None:
    p, b = parameters(name), backend(name, kind)
    level = p.max_level
    x = residues(p, p.data_rows(level), seed=9)
    digits = b.decompose(b.forward(x, p.data_rows(level)), level)
    rows = p.extended_rows(level)
    for j, (start, stop) in enumerate(p.digits(level)):
        product = math.prod(p.data_primes[start:stop])
        weights = [product // q * pow(product // q, -1, q) for q in p.data_primes[start:stop]]
        whole = [
            sum(int(x[start + i, k]) * w for i, w in enumerate(weights)) % product for k in range(p.degree)
        ]
        centred = [v - product if 2 * v > product else v for v in whole]
        assert_same(b.inverse(digits[j], rows), coefficients(p, rows, centred))


@pytest.mark.parametrize("kind", ["reference", *CPUS])
@pytest.mark.parametrize("name", SMALL)
def test_order_and_product_of_the_transform(name: str, kind: str) -> None:
    """Position i holds a(psi^(2*bitrev(i)+1)), and the element-wise product is the product modulo X^N + 1."""
    p, b = parameters(name), backend(name, kind)
    rows, bits = p.extended_rows(0), p.degree.bit_length() - 1
    x = np.zeros((len(rows), p.degree), dtype=np.uint64)
    x[:, 1] = 1
    values = b.forward(x, rows)
    for i in (0, 1, 2, 5, p.degree // 2, p.degree - 1):
        exponent = 2 * int(f"{i:0{bits}b}"[::-1], 2) + 1
        expected = [pow(smallest_root(p.degree, p.moduli[r]), exponent, p.moduli[r]) for r in rows]
        assert values[:, i].tolist() == expected
    top = np.zeros_like(x)
    top[:, -1] = 2
    product = b.inverse(b.multiply(values, b.forward(top, rows), rows), rows)
    assert product[:, 0].tolist() == [p.moduli[r] - 2 for r in rows]  # X * 2X^(N-1) = -2
    assert not product[:, 1:].any()
