"""The matrix product over stacks: all backends agree bit for bit, and the reference with Python integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_backends import CPUS, SMALL, assert_same, parameters, primes_near, residues

from ckks.backends.cpu import CpuBackend
from ckks.backends.reference import ReferenceBackend
from ckks.errors import EvaluationError
from ckks.parameters import Parameters
from ckks.types import Residues


def everywhere(
    p: Parameters, x: Residues, terms: Residues, factors: Residues, outputs: int, rows: tuple[int, ...]
) -> Residues:
    """x as one stack, and cut into two."""
    expected = ReferenceBackend(p).matrix([x], terms, factors, outputs, rows)
    stacks = [part for part in (x[: len(x) // 3], x[len(x) // 3 :]) if len(part)]
    for kind in CPUS:
        for threads in (1, 2):
            assert_same(CpuBackend(p, threads, kind).matrix([x], terms, factors, outputs, rows), expected)
        assert_same(CpuBackend(p, 1, kind).matrix(stacks, terms, factors, outputs, rows), expected)
    return expected


def random_terms(count: int, outputs: int, inputs: int, seed: int = 1) -> Residues:
    draw = np.random.default_rng(seed)
    terms = np.stack([np.sort(draw.integers(0, outputs, count)), draw.integers(0, inputs, count)])
    return terms.astype(np.uint64)


@pytest.mark.parametrize("name", SMALL)
def test_random_matrices(name: str) -> None:
    p = parameters(name)
    rows = p.data_rows(p.max_level)
    for inputs, outputs, polys, count in ((1, 1, 2, 1), (3, 5, 2, 11), (5, 2, 3, 40)):
        x = residues(p, rows, inputs, polys)
        terms = random_terms(count, outputs, inputs)
        factors = np.ascontiguousarray(residues(p, rows, seed=5)[:, :count])
        y = everywhere(p, x, terms, factors, outputs, rows)
        for o, i, k in ((0, 0, 0), (outputs - 1, polys - 1, p.degree - 1)):
            for r, row in enumerate(rows):
                of = [t for t in range(count) if terms[0, t] == o]
                total = sum(int(x[terms[1, t], i, r, k]) * int(factors[r, t]) for t in of)
                assert int(y[o, i, r, k]) == total % p.moduli[row]


@pytest.mark.parametrize("bits", [20, 26, 31, 32, 33, 36, 48, 49, 50, 60])
@pytest.mark.parametrize("factor", ["one", "half", "above half", "largest"])
def test_the_largest_sums(bits: int, factor: str) -> None:
    """The largest residues times the largest balanced weights, more of them than a sum of the vector kernels takes before a flush.

    32 bits is the largest prime whose weights are split, 49 the largest on lanes.
    """
    primes = primes_near(8192, bits, 1)
    p = Parameters(8192, primes, primes_near(8192, max(bits, 30), 1, primes), 1)
    q = primes[0]
    split = (1 << (54 - bits - (bits + 1) // 2)) if bits <= 32 else 1 << max(52 - bits, 3)
    count = min(3 * split + 5, 2500)
    weight = {"one": 1, "half": q // 2, "above half": q // 2 + 1, "largest": q - 1}[factor]
    x = residues(p, (0,), 2, 2, kind="largest")
    x[1] = residues(p, (0,), 2)
    terms = np.zeros((2, count), dtype=np.uint64)
    terms[1, count // 2] = 1
    y = everywhere(p, x, terms, np.full((1, count), weight, dtype=np.uint64), 1, (0,))
    expected = ((count - 1) * (q - 1) + int(x[1, 1, 0, 7])) * weight % q
    assert int(y[0, 1, 0, 7]) == expected


@given(inputs=st.integers(1, 9), outputs=st.integers(1, 9), count=st.integers(0, 30), seed=st.integers(0, 99))
def test_shapes(inputs: int, outputs: int, count: int, seed: int) -> None:
    """Outputs without terms are zero; terms may repeat."""
    p = parameters("30_bits")
    x = residues(p, (1,), inputs, 2, seed=seed)
    terms = random_terms(count, outputs, inputs, seed)
    factors = np.ascontiguousarray(residues(p, (1,), seed=seed + 1)[:, :count])
    everywhere(p, x, terms, factors, outputs, (1,))


def test_what_does_not_fit_is_refused() -> None:
    p = parameters("30_bits")
    x, one = residues(p, (0,), 2, 2), np.ones((1, 1), dtype=np.uint64)
    for kind in CPUS:
        backend = CpuBackend(p, 1, kind)
        for terms, factors, outputs in (
            (np.array([[1], [0]]), one, 1),
            (np.array([[0], [2]]), one, 1),
            (np.array([[1, 0], [0, 0]]), np.ones((1, 2), dtype=np.uint64), 2),
            (np.array([[0], [0]]), one * np.uint64(p.moduli[0]), 1),
            (np.array([[0], [0]]), np.ones((2, 1), dtype=np.uint64), 1),
            (np.array([[0], [0]]), one, 0),
        ):
            with pytest.raises(EvaluationError):
                backend.matrix([x], terms.astype(np.uint64), factors, outputs, (0,))
        for stacks in ([], [x[0]], [x, x[:, :1]]):
            with pytest.raises(EvaluationError):
                backend.matrix(stacks, np.zeros((2, 1), dtype=np.uint64), one, 1, (0,))


@pytest.mark.parametrize("bits", [26, 32, 36, 49, 60])
@pytest.mark.parametrize("outputs", [1, 2, 5])
def test_rows_with_the_same_columns(bits: int, outputs: int) -> None:
    """What the vector kernels take two at a time, beyond a flush; the last row has other columns."""
    primes = primes_near(8192, bits, 1)
    p = Parameters(8192, primes, primes_near(8192, max(bits, 30), 1, primes), 1)
    count, x = 70, residues(p, (0,), 3, 2, kind="largest")
    rows = np.repeat(np.arange(outputs), count)
    terms = np.stack([rows, np.tile(np.arange(count) % 3, outputs)]).astype(np.uint64)
    terms[1, -count:] = np.random.default_rng(1).integers(0, 3, count)
    factors = np.random.default_rng(2).integers(0, primes[0], (1, len(rows)), np.uint64)
    everywhere(p, x, terms, factors, outputs, (0,))
