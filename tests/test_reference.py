"""The reference backend, the definition of all others, against Python integers and schoolbook arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toy import centred, lift, make_parameters

from ckks import modular
from ckks.backends.reference import ReferenceBackend
from ckks.packed import pack
from ckks.parameters import Parameters
from ckks.primes import ntt_primes, smallest_root
from ckks.types import KeySwitchKey, Residues

N = 4096
SETS = [
    make_parameters(4096, (36, 30), (38,)),
    make_parameters(8192, (60, 50, 35), (60,)),
    make_parameters(8192, (45, 33, 20), (40, 40), 2),
    make_parameters(16384, (40, 36, 36, 36, 36, 36, 36), (60, 55), 3),
]
PRIMES = [ntt_primes(N, b, 1)[0] for b in (20, 31, 32, 36, 49, 51, 60)]
PRIMES += [
    max(q for q in ntt_primes(N, 50, 20) if q < 2**50),
    min(q for q in ntt_primes(N, 50, 20) if q > 2**50),
]
LARGEST = max(ntt_primes(N, 60, 4))  # below 2^60
IDS = {"ids": str}


def bitrev(i: int, bits: int) -> int:
    return int(format(i, f"0{bits}b")[::-1], 2)


def random(parameters: Parameters, rows: tuple[int, ...], *lead: int, seed: int = 0) -> Residues:
    rng = np.random.default_rng(seed)
    moduli = np.array([[parameters.moduli[r]] for r in rows], dtype=np.uint64)
    return rng.integers(0, moduli, (*lead, len(rows), parameters.degree), dtype=np.uint64)


@pytest.mark.parametrize("q", [*PRIMES, LARGEST])
def test_products_at_the_edges(q: int) -> None:
    edges = {
        0,
        1,
        2,
        q - 1,
        q - 2,
        q // 2,
        q // 2 + 1,
        2**30 - 1,
        2**30,
        2**30 + 1,
        2**31,
        math.isqrt(q),
        math.isqrt(q) + 1,
    }
    edges |= {q - 2**30, q - 2**29, (q >> 30) << 30, q * 2 // 3}
    values = np.array(sorted(e for e in edges if 0 <= e < q), dtype=np.uint64)
    a, b = values[:, None] + 0 * values, values[None, :] + 0 * values[:, None]
    exact = [[int(x) * int(y) % q for y in values] for x in values]
    assert modular.multiply(a, b, q).tolist() == exact
    assert modular.multiply(a, np.uint64(q - 1), q).tolist() == [
        [int(x) * (q - 1) % q for _ in values] for x in values
    ]
    assert modular.add(a, b, q).tolist() == [[(int(x) + int(y)) % q for y in values] for x in values]
    assert modular.subtract(a, b, q).tolist() == [[(int(x) - int(y)) % q for y in values] for x in values]


@given(
    st.sampled_from([*PRIMES, LARGEST]),
    st.lists(st.tuples(st.integers(0, 2**60), st.integers(0, 2**60)), min_size=1),
)
def test_products_are_exact(q: int, pairs: list[tuple[int, int]]) -> None:
    a = np.array([x % q for x, _ in pairs], dtype=np.uint64)
    b = np.array([y % q for _, y in pairs], dtype=np.uint64)
    assert modular.multiply(a, b, q).tolist() == [x * y % q for x, y in pairs]


@pytest.mark.parametrize("q", [*PRIMES, LARGEST])
def test_a_hundred_thousand_products_near_multiples_of_q(q: int) -> None:
    """Pairs whose product lies just beside a multiple of q are where a quotient estimate errs."""
    rng = np.random.default_rng(q % 1000)
    a = rng.integers(1, q, 1000, dtype=np.uint64)
    for offset in (-1, 0, 1, 2):
        b = [pow(int(x), -1, q) * offset % q for x in a]
        assert modular.multiply(a, np.array(b, dtype=np.uint64), q).tolist() == [offset % q] * 1000


@pytest.mark.parametrize("q", [PRIMES[0], PRIMES[3], LARGEST])
def test_ntt_is_its_definition(q: int) -> None:
    terms = {0: 5, 1: q - 1, 17: 123456 % q, N - 1: q // 2}
    x = np.zeros(N, dtype=np.uint64)
    x[list(terms)] = list(terms.values())
    y, psi = modular.forward_ntt(x, q), smallest_root(N, q)
    for i in (0, 1, 2, 3, 1000, 2048, N - 1):
        exponent = 2 * bitrev(i, 12) + 1
        assert int(y[i]) == sum(c * pow(psi, exponent * k, q) for k, c in terms.items()) % q


@pytest.mark.parametrize("parameters", SETS, **IDS)
def test_ntt_round_trip(parameters: Parameters) -> None:
    b, rows = ReferenceBackend(parameters), tuple(range(len(parameters.moduli)))
    x = random(parameters, rows, 2)
    x[0, :, 0] = np.array(parameters.moduli, dtype=np.uint64) - np.uint64(1)
    before = x.copy()
    assert (b.inverse(b.forward(x, rows), rows) == x).all()
    assert (b.forward(b.inverse(x, rows), rows) == x).all()
    assert (x == before).all()
    assert (b.forward(x, rows)[1] == b.forward(x[1], rows)).all()
    some = rows[-1:] + rows[:1]
    assert (b.forward(x[:, list(some)], some) == b.forward(x, rows)[:, list(some)]).all()


Terms = st.dictionaries(st.integers(0, N - 1), st.integers(0, 2**60), min_size=1, max_size=6)


@given(Terms, Terms, st.sampled_from([PRIMES[0], PRIMES[3], PRIMES[7], LARGEST]))
@settings(max_examples=40, deadline=None)
@example({N - 1: 1}, {1: 1, N - 1: 2**60}, LARGEST)
def test_ntt_product_is_the_negacyclic_convolution(a: dict[int, int], b: dict[int, int], q: int) -> None:
    expected = [0] * N
    for i, x in a.items():
        for j, y in b.items():
            expected[(i + j) % N] += x * y if i + j < N else -x * y
    dense = np.zeros((2, N), dtype=np.uint64)
    for row, terms in zip(dense, (a, b), strict=True):
        row[list(terms)] = [c % q for c in terms.values()]
    f, g = modular.forward_ntt(dense, q)
    product = modular.inverse_ntt(modular.multiply(f, g, q), q)
    assert product.tolist() == [v % q for v in expected]


@given(st.integers(0, N - 1).map(lambda k: 2 * k + 1))
@settings(max_examples=20, deadline=None)
@example(1)
@example(2 * N - 1)
def test_automorphism_on_coefficients(element: int) -> None:
    p = SETS[0]
    b, rows, q = ReferenceBackend(p), (0, 2), (p.moduli[0], p.moduli[2])
    c = random(p, rows, seed=element)
    expected = np.zeros_like(c)
    for k in range(N):
        place, turns = k * element % N, k * element // N
        for r in range(2):
            expected[r, place] = c[r, k] if turns % 2 == 0 else (q[r] - int(c[r, k])) % q[r]
    out = b.automorphism(b.forward(c, rows), element)
    assert out.flags.c_contiguous and (b.inverse(out, rows) == expected).all()


@pytest.mark.parametrize("parameters", SETS, **IDS)
def test_element_wise_functions(parameters: Parameters) -> None:
    b, rows = ReferenceBackend(parameters), parameters.extended_rows(parameters.max_level - 1)
    x, y, z = (random(parameters, rows, 2, seed=s) for s in (1, 2, 3))
    q = np.array([[parameters.moduli[r]] for r in rows], dtype=object)
    X, Y, Z = (v[..., :50].astype(object) for v in (x, y, z))
    scalars = np.array([parameters.moduli[r] - 3 for r in rows], dtype=np.uint64)

    def same(got: Residues, exact: np.ndarray) -> bool:
        return bool((got[..., :50] == exact % q).all())

    assert same(b.add(x, y, rows), X + Y) and same(b.add(x, y[0], rows), X + Y[0])
    assert same(b.subtract(x, y, rows), X - Y) and same(b.subtract(x, y[0], rows), X - Y[0])
    assert same(b.multiply(x, y, rows), X * Y) and same(b.multiply(x, y[0], rows), X * Y[0])
    assert same(b.multiply_scalars(x, scalars, rows), X * scalars[:, None].astype(object))
    assert same(b.tensor(x, y, rows), np.stack([X[0] * Y[0], X[0] * Y[1] + X[1] * Y[0], X[1] * Y[1]]))
    plains = pack(np.stack([y[1], z[0], x[0], x[1]]), tuple(parameters.moduli[r] for r in rows))
    sums = b.multiply_sums([x, y, z], plains, [[(0, 0), (1, 1), (2, 2)], [(2, 3)]], rows)
    assert same(sums, np.stack([X * Y[1] + Y * Z[0] + Z * X[0], Z * X[1]]))


def with_ties(values: Residues, source: tuple[int, ...], parameters: Parameters) -> list[int]:
    """Overwrite the first coefficients of coefficient-domain `values` on `source` with integers at and beside every edge."""
    moduli = tuple(parameters.moduli[r] for r in source)
    product = math.prod(moduli)
    half = product // 2
    edges = [half, half + 1, half - 1, half + 2, 0, 1, product - 1, product // 3, product // 4]
    values[..., : len(edges)] = lift(edges, moduli)
    return edges


@pytest.mark.parametrize("parameters", SETS, **IDS)
def test_decompose_is_exactly_centred(parameters: Parameters) -> None:
    b = ReferenceBackend(parameters)
    for level in range(parameters.max_level + 1):
        data, rows = parameters.data_rows(level), parameters.extended_rows(level)
        x = random(parameters, data, seed=level)
        for start, stop in parameters.digits(level):
            with_ties(x[start:stop], tuple(range(start, stop)), parameters)
        ntt = b.forward(x, data)
        digits = b.decompose(ntt, level)
        assert digits.shape == (len(parameters.digits(level)), len(rows), parameters.degree)
        for digit, (start, stop) in zip(digits, parameters.digits(level), strict=True):
            exact = centred(x[start:stop, :300], parameters.data_primes[start:stop])
            expected = lift(exact, tuple(parameters.moduli[r] for r in rows))
            assert (b.inverse(digit, rows)[:, :300] == expected).all()
            assert (digit[start:stop] == ntt[start:stop]).all()


@pytest.mark.parametrize("parameters", SETS, **IDS)
def test_mod_down_and_rescale_round_exactly(parameters: Parameters) -> None:
    b = ReferenceBackend(parameters)
    for level in range(parameters.max_level + 1):
        rows, data = parameters.extended_rows(level), parameters.data_rows(level)
        x = random(parameters, rows, 2, seed=level)
        with_ties(x[:, level + 1 :], parameters.special_rows, parameters)
        got = b.inverse(b.mod_down(b.forward(x, rows), level), data)
        check_division(x, got, rows, level + 1, parameters)
        if level:
            x = random(parameters, data, 3, seed=level)
            with_ties(x[:, level:], (level,), parameters)
            got = b.inverse(b.rescale(b.forward(x, data), level), data[:-1])
            check_division(x, got, data, level, parameters)


def check_division(
    x: Residues, got: Residues, rows: tuple[int, ...], keep: int, parameters: Parameters
) -> None:
    """got = (x - [x]_D)/D on the first `keep` rows, D the product of the others, by Python integers on 200 coefficients."""
    moduli = tuple(parameters.moduli[r] for r in rows)
    divisor = math.prod(moduli[keep:])
    for poly, out in zip(x[..., :200], got[..., :200], strict=True):
        values = centred(poly, moduli)
        rounded = [(2 * v + divisor) // (2 * divisor) for v in values]  # the divisor is odd: no ties
        assert (out == lift(rounded, moduli[:keep])).all()


def test_ties_of_many_limbs_use_the_exact_path() -> None:
    """With 40 limbs the float sum cannot tell which side of a tie (Q-1)/2 and (Q+1)/2 are on."""
    p = make_parameters(65536, (36,) * 43, (60,))
    rows = p.data_rows(42)
    product = math.prod(p.data_primes)
    values = [
        product // 2,
        product // 2 + 1,
        product // 2 + 2,
        product // 2 - 1,
        0,
        1,
        product - 1,
        product // 2 + 2**900,
    ]
    moduli = p.moduli
    # _convert works on any number of columns: no need for 65536 of them.
    out = ReferenceBackend(p)._convert(lift(values, p.data_primes), rows, (43,))
    exact = [v - product if 2 * v > product else v for v in values]
    assert out.tolist() == [[v % moduli[43] for v in exact]]


@pytest.mark.parametrize("parameters", SETS, **IDS)
def test_key_product_skips_rows_above_the_level(parameters: Parameters) -> None:
    b, top = ReferenceBackend(parameters), parameters.max_level
    key_rows = parameters.extended_rows(top)
    residues = random(parameters, key_rows, len(parameters.digits(top)), 2, seed=9)
    key = KeySwitchKey.from_residues(parameters, residues, top)
    for level in range(top + 1):
        rows = parameters.extended_rows(level)
        count = len(parameters.digits(level))
        digits = random(parameters, rows, count, seed=level)
        got = b.key_product(digits, key, level)
        assert got.shape == (2, len(rows), parameters.degree)
        for i, r in enumerate(rows):
            for half in range(2):
                row = residues[:count, half, key_rows.index(r), :40].astype(object)
                exact = (row * digits[:, i, :40].astype(object)).sum(axis=0) % parameters.moduli[r]
                assert (got[half, i, :40] == exact).all()


@given(st.integers(0, N // 2 - 1))
@settings(max_examples=10, deadline=None)
def test_automorphism_commutes_with_decomposition(steps: int) -> None:
    p = SETS[0]
    b, element = ReferenceBackend(p), p.galois_element(steps)
    x = random(p, (0, 1), seed=steps)
    assert (b.decompose(b.automorphism(x, element), 1) == b.automorphism(b.decompose(x, 1), element)).all()
