"""The exact definition of every backend function, in vectorised NumPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ckks import modular
from ckks.backends import Fetched, Rows, Run, Values
from ckks.packed import Packed
from ckks.parameters import Parameters
from ckks.types import EvaluationKeys, KeySwitchKey, Residues

# Above the error of a sum of up to 64 fractions: 64 * 3 * 2^-53 from the terms, 64 * 64 * 2^-53 from adding.
_TIE_MARGIN = 2.0**-40


class ReferenceBackend:
    """Backend (see ckks.backends) by one row at a time; every result is exact and in [0, q)."""

    name = "reference"

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    def upload(self, x: Residues) -> Residues:
        return x

    def download(self, x: Residues) -> Residues:
        return x

    def empty_like(self, x: Residues, shape: tuple[int, ...]) -> Residues:
        return np.empty(shape, dtype=np.uint64)

    def fetch(self, x: Residues) -> Fetched[Residues]:
        return Fetched(lambda: x)

    def repeat(self, program: object, keys: EvaluationKeys, inputs: Values, run: Run) -> Values:
        return run(inputs)

    def forward(self, x: Residues, rows: Rows) -> Residues:
        return _by_row([modular.forward_ntt(x[..., i, :], q) for i, q in self._moduli(rows)])

    def inverse(self, x: Residues, rows: Rows) -> Residues:
        return _by_row([modular.inverse_ntt(x[..., i, :], q) for i, q in self._moduli(rows)])

    def add(self, a: Residues, b: Residues, rows: Rows) -> Residues:
        return modular.add(a, b, self._column(rows))

    def subtract(self, a: Residues, b: Residues, rows: Rows) -> Residues:
        return modular.subtract(a, b, self._column(rows))

    def multiply(self, a: Residues, b: Residues, rows: Rows) -> Residues:
        return _by_row([modular.multiply(a[..., i, :], b[..., i, :], q) for i, q in self._moduli(rows)])

    def multiply_scalars(self, a: Residues, scalars: Residues, rows: Rows) -> Residues:
        return _by_row([modular.multiply(a[..., i, :], scalars[i], q) for i, q in self._moduli(rows)])

    def add_scalars(self, a: Residues, scalars: Residues, rows: Rows) -> Residues:
        return modular.add(a, scalars[:, None], self._column(rows))

    def times_p(self, x: Residues, level: int) -> Residues:
        p, data = self.parameters, self.parameters.data_rows(level)
        factors = np.array([p.special_product % p.moduli[r] for r in data], dtype=np.uint64)
        zeros = np.zeros((*x.shape[:-2], len(p.special_primes), p.degree), dtype=np.uint64)
        return np.concatenate([self.multiply_scalars(x, factors, data), zeros], axis=-2)

    def multiply_sums(
        self, terms: list[Residues], plains: Packed, sums: Sequence[Sequence[tuple[int, int]]], rows: Rows
    ) -> Residues:
        totals = np.zeros((len(sums), *terms[0].shape), dtype=np.uint64)
        whole = np.repeat(plains.unpack(), self.parameters.degree // plains.length, axis=-1)
        for k, products in enumerate(sums):
            for i, j in products:
                totals[k] = self.add(totals[k], self.multiply(terms[i], whole[j], rows), rows)
        return totals

    def matrix(
        self, stacks: Sequence[Residues], terms: Residues, factors: Residues, outputs: int, rows: Rows
    ) -> Residues:
        x = np.concatenate(stacks)
        result = np.zeros((outputs, *x.shape[1:]), dtype=np.uint64)
        for t, (output, input_) in enumerate(terms.T.tolist()):
            product = self.multiply_scalars(x[input_], factors[:, t], rows)
            result[output] = self.add(result[output], product, rows)
        return result

    def tensor(self, a: Residues, b: Residues, rows: Rows) -> Residues:
        cross = self.add(self.multiply(a[0], b[1], rows), self.multiply(a[1], b[0], rows), rows)
        return np.stack([self.multiply(a[0], b[0], rows), cross, self.multiply(a[1], b[1], rows)])

    def automorphism(self, x: Residues, element: int) -> Residues:
        return np.take(x, _permutation(self.parameters.degree, element), axis=-1)

    def decompose(self, x: Residues, level: int) -> Residues:
        rows = self.parameters.extended_rows(level)
        coefficients = self.inverse(x, self.parameters.data_rows(level))
        digits = []
        for start, stop in self.parameters.digits(level):
            own = tuple(range(start, stop))
            others = tuple(r for r in rows if r not in own)
            converted = self.forward(self._convert(coefficients[start:stop], own, others), others)
            digits.append(np.concatenate([converted[:start], x[start:stop], converted[start:]]))
        return np.stack(digits)

    def key_product(
        self,
        digits: Residues,
        key: KeySwitchKey,
        level: int,
        element: int = 1,
        moved: Residues | None = None,
        divided: bool = False,
    ) -> Residues:
        p, rows = self.parameters, self.parameters.extended_rows(level)
        specials = len(p.special_primes)
        # Where these rows lie in the key, which may reach higher; it may also have digits to spare.
        keep = [*range(level + 1), *range(key.level + 1, key.level + 1 + specials)]
        total = np.zeros((2, len(rows), p.degree), dtype=np.uint64)
        for digit, pair in zip(self.automorphism(digits, element), key.digits.unpack(), strict=False):
            total = self.add(total, self.multiply(pair[:, keep], digit, rows), rows)
        for half, polynomial in enumerate(() if moved is None else self.automorphism(moved, element)):
            part = rows[: len(polynomial)]
            if len(part) < len(rows):
                factors = np.array([p.special_product % p.moduli[r] for r in part], dtype=np.uint64)
                polynomial = self.multiply_scalars(polynomial, factors, part)
            total[half, : len(part)] = self.add(total[half, : len(part)], polynomial, part)
        return self.mod_down(total, level) if divided else total

    def key_switch(
        self,
        x: Residues,
        key: KeySwitchKey,
        level: int,
        element: int = 1,
        moved: Residues | None = None,
        divided: bool = False,
    ) -> Residues:
        return self.key_product(self.decompose(x, level), key, level, element, moved, divided)

    def multiply_product_sums(
        self,
        digits: Residues,
        keys: Sequence[tuple[KeySwitchKey, int]],
        moved: Residues | None,
        terms: list[Residues],
        plains: Packed,
        sums: Sequence[Sequence[tuple[int, int]]],
        level: int,
    ) -> Residues:
        products = [self.key_product(digits, key, level, element, moved) for key, element in keys]
        return self.multiply_sums([*products, *terms], plains, sums, self.parameters.extended_rows(level))

    def mod_down(self, x: Residues, level: int) -> Residues:
        return self._divide(x, self.parameters.data_rows(level), self.parameters.special_rows)

    def rescale(self, x: Residues, level: int) -> Residues:
        return self._divide(x, self.parameters.data_rows(level - 1), (level,))

    def _divide(self, x: Residues, keep: Rows, drop: Rows) -> Residues:
        """round(x / D), D the product of the primes in `drop`: (x - [x]_D) / D with [x]_D centred."""
        divisor = math.prod(self.parameters.moduli[r] for r in drop)
        rest = self._convert(self.inverse(x[..., len(keep) :, :], drop), drop, keep)
        inverses = np.array([pow(divisor, -1, self.parameters.moduli[r]) for r in keep], dtype=np.uint64)
        difference = self.subtract(x[..., : len(keep), :], self.forward(rest, keep), keep)
        return self.multiply_scalars(difference, inverses, keep)

    def _convert(self, x: Residues, source: Rows, target: Rows) -> Residues:
        """The representative in (-D/2, D/2], D the product of `source`, modulo each prime of `target`.

        Coefficient domain on both sides:
        x = sum_i y_i * (D/q_i) - u*D with y_i = x_i * (D/q_i)^-1 mod q_i and u = round(sum_i y_i/q_i)
        (Halevi, Polyakov and Shoup 2019, section 2.2); u is exact here.
        """
        moduli = [self.parameters.moduli[r] for r in source]
        product = math.prod(moduli)
        y = [
            modular.multiply(x[..., i, :], np.uint64(pow(product // q, -1, q)), q)
            for i, q in enumerate(moduli)
        ]
        overflow = _rounded_count(y, moduli)
        out = []
        for row in target:
            t = self.parameters.moduli[row]
            value = modular.multiply(overflow, np.uint64(-product % t), t)
            for part, q in zip(y, moduli, strict=True):
                term = modular.multiply(part % np.uint64(t), np.uint64(product // q % t), t)
                value = modular.add(value, term, t)
            out.append(value)
        return _by_row(out)

    def _moduli(self, rows: Rows) -> list[tuple[int, int]]:
        return [(i, self.parameters.moduli[r]) for i, r in enumerate(rows)]

    def _column(self, rows: Rows) -> Residues:
        return np.array([[self.parameters.moduli[r]] for r in rows], dtype=np.uint64)


def _by_row(rows: list[Residues]) -> Residues:
    return np.stack(rows, axis=-2)


def _rounded_count(y: list[Residues], moduli: list[int]) -> Residues:
    """round(sum_i y_i/q_i), exactly: in float64, and in Python integers where that is too near a tie to tell.

    The product of the moduli is odd, so no sum is a tie itself.
    """
    total = np.zeros(y[0].shape)
    for part, q in zip(y, moduli, strict=True):
        total += part / q
    count = np.rint(total)
    product = math.prod(moduli)
    for where in np.argwhere(np.abs(np.abs(total - count) - 0.5) < _TIE_MARGIN):
        at = tuple(where)
        numerator = sum(int(part[at]) * (product // q) for part, q in zip(y, moduli, strict=True))
        count[at] = (2 * numerator + product) // (2 * product)
    return count.astype(np.uint64)


@lru_cache(maxsize=512)
def _permutation(degree: int, element: int) -> npt.NDArray[np.int64]:
    """Positions to read from: p(X^element) at psi^e, e = 2*bitrev(i)+1, is p at psi^(e*element)."""
    order = modular.bit_reversal(degree)
    exponents = (2 * order + 1) * element % (2 * degree)
    return order[exponents // 2]
