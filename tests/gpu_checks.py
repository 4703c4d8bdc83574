"""What the CUDA kernels are held to, on the stand-in, on a device, and against mutants of their source."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from test_backends import assert_same, coefficients, elements, levels, near, residues

from ckks.backends import Backend
from ckks.backends.reference import ReferenceBackend
from ckks.packed import pack
from ckks.parameters import Parameters
from ckks.types import KeySwitchKey, Residues

KINDS = ("random", "largest", "alternating")


def check_transforms(b: Backend, p: Parameters) -> None:
    reference, rows = ReferenceBackend(p), p.extended_rows(p.max_level)
    for kind in KINDS:
        x = residues(p, rows, 2, kind=kind)
        values = b.forward(x, rows)
        assert_same(values, reference.forward(x, rows))
        assert_same(b.inverse(values, rows), x)
        assert_same(b.inverse(x, rows), reference.inverse(x, rows))
    some = rows[-1:] + rows[:1]  # rows are named, not counted
    x = residues(p, some, 3, kind="random", seed=5)
    assert_same(b.forward(x, some), reference.forward(x, some))
    assert_same(b.inverse(x, some), reference.inverse(x, some))


def check_element_wise(b: Backend, p: Parameters) -> None:
    reference, level = ReferenceBackend(p), p.max_level
    rows, data = p.extended_rows(level), p.data_rows(level)
    one = residues(p, rows, kind="one")
    for kind in KINDS:
        a = residues(p, rows, 3, kind=kind)
        for other in (a, residues(p, rows, 3, seed=2), one, residues(p, rows, kind="largest")):
            for function in ("add", "subtract", "multiply"):
                expected = getattr(reference, function)(a, other, rows)
                assert_same(getattr(b, function)(a, other, rows), expected)
        scalars = a[0, :, 1].copy()
        assert_same(b.multiply_scalars(a, scalars, rows), reference.multiply_scalars(a, scalars, rows))
        assert_same(b.add_scalars(a, scalars, rows), reference.add_scalars(a, scalars, rows))
        x, y = a[:2], residues(p, rows, 2, kind=kind, seed=3)
        assert_same(b.tensor(x, y, rows), reference.tensor(x, y, rows))
        x = residues(p, data, 3, kind=kind, seed=4)
        assert_same(b.times_p(x, level), reference.times_p(x, level))
    for element in elements(p):
        assert_same(b.automorphism(x, element), reference.automorphism(x, element))


def check_sums(b: Backend, p: Parameters) -> None:
    reference, rows = ReferenceBackend(p), p.extended_rows(p.max_level)
    for kind in ("random", "largest"):
        terms = [residues(p, rows, 2, kind=kind, seed=i) for i in range(3)]
        plains = [residues(p, rows, kind=kind, seed=100 + i) for i in range(9)]
        moduli = tuple(p.moduli[r] for r in rows)
        sums = [[(2, 0)], [(i % 3, i % 9) for i in range(18)], [(1, 1), (0, 2)]]
        for repeat in (1, 8, 128, p.degree):
            kept = pack(np.stack(plains)[:, :, ::repeat], moduli)
            assert_same(
                b.multiply_sums(terms, kept, sums, rows), reference.multiply_sums(terms, kept, sums, rows)
            )


def check_key_switching(b: Backend, p: Parameters, least: int = 0) -> None:
    """least: the lowest level to look at."""
    reference = ReferenceBackend(p)
    for level in (level for level in levels(p) if level >= least):
        data, rows = p.data_rows(level), p.extended_rows(level)
        for kind in ("random", "largest"):
            x = residues(p, data, kind=kind)
            digits = reference.decompose(x, level)
            assert_same(b.decompose(x, level), digits)
            for key_level in {level, p.max_level}:
                shape = (len(p.digits(key_level)), 2)
                values = residues(p, p.extended_rows(key_level), *shape, kind=kind, seed=3)
                key = KeySwitchKey.from_residues(p, values, key_level)
                for moved in (None, residues(p, data, 2, kind=kind, seed=4), residues(p, rows, 1, seed=5)):
                    element = 1 if moved is None else p.galois_element(5)
                    expected = reference.key_product(digits, key, level, element, moved)
                    assert_same(b.key_product(digits, key, level, element, moved), expected)
            assert_same(b.key_switch(x, key, level, element, moved), expected)
            divided = reference.mod_down(expected, level)
            assert_same(b.key_switch(x, key, level, element, moved, True), divided)
            assert_same(b.key_product(digits, key, level, element, moved, True), divided)


def check_division(b: Backend, p: Parameters, least: int = 0) -> None:
    reference = ReferenceBackend(p)
    for level in (level for level in levels(p) if level >= least):
        for kind in KINDS:
            x = residues(p, p.extended_rows(level), 2, kind=kind)
            assert_same(b.mod_down(x, level), reference.mod_down(x, level))
            if level:
                y = residues(p, p.data_rows(level), 3, kind=kind)
                assert_same(b.rescale(y, level), reference.rescale(y, level))


def check_ties(b: Backend, p: Parameters) -> None:
    """Digits, mod-down and rescale where a sum of fractions is as near to a half as it can be."""
    reference, level = ReferenceBackend(p), min(p.max_level, p.digit_limbs)
    offsets = [-(2**40), -1000, -3, -2, -1, 0, 1, 2, 3, 1000, 2**40]
    start, stop = p.digits(level)[0]
    data, rows = p.data_rows(level), p.extended_rows(level)
    values = [near(math.prod(p.data_primes[start:stop]), o) for o in offsets]
    x = reference.forward(coefficients(p, data, values), data)
    assert_same(b.decompose(x, level), reference.decompose(x, level))
    for divisor, wide, name in (
        (p.special_product, rows, "mod_down"),
        (p.data_primes[level], data, "rescale"),
    ):
        numbers = [7 * divisor + near(divisor, o) for o in offsets]
        y = reference.forward(coefficients(p, wide, numbers), wide)
        assert_same(getattr(b, name)(y, level), getattr(reference, name)(y, level))


def check_matrix(b: Backend, p: Parameters) -> None:
    """One stack and two; outputs without terms; more terms than a sum takes."""
    reference, rows = ReferenceBackend(p), p.data_rows(p.max_level)
    for kind in ("random", "largest"):
        x = residues(p, rows, 4, 2, kind=kind)
        for count in (1, 23):
            draw = np.random.default_rng(count)
            outputs = np.sort(draw.choice([0, 2], count))
            terms = np.stack([outputs, draw.integers(0, 4, count)]).astype(np.uint64)
            factors = np.ascontiguousarray(residues(p, rows, kind=kind, seed=7)[:, :count])
            expected = reference.matrix([x], terms, factors, 4, rows)
            assert_same(b.matrix([x[:1], x[1:]], terms, factors, 4, rows), expected)


def check_stacks(b: Backend, p: Parameters, count: int = 3) -> None:
    """Several ciphertexts in one call, as for each of them alone. b: on a device."""
    level = p.max_level
    data, rows = p.data_rows(level), p.extended_rows(level)

    def same(call: Callable[..., Residues], *stacks: Residues, axis: int = 0) -> None:
        expected = np.stack([call(*(x[i] for x in stacks)) for i in range(count)], axis)
        assert_same(call(*stacks), expected)

    c, d = (residues(p, data, count, 2, seed=seed) for seed in (1, 2))
    wide = residues(p, rows, count, 2, seed=3)
    same(lambda x, y: b.tensor(x, y, data), c, d)
    same(lambda x: b.decompose(x[..., 1, :, :], level), c)
    same(lambda x: b.mod_down(x, level), wide)
    key = KeySwitchKey.from_residues(p, residues(p, rows, len(p.digits(level)), 2, seed=4), level)
    element = p.galois_element(3)
    for moved in (c, c[:, :1], wide):
        same(lambda x, m: b.key_switch(x[..., 1, :, :], key, level, element, m), c, moved)
    digits = residues(p, rows, count, len(p.digits(level)), seed=5)
    same(lambda x: b.key_product(x, key, level), digits)
    plains = pack(residues(p, rows, 3, seed=6), tuple(p.moduli[r] for r in rows))
    sums = [[(0, 1), (1, 2)], [(1, 0)]]
    same(lambda x, y: b.multiply_sums([x, y], plains, sums, rows), wide, residues(p, rows, count, 2), axis=1)
