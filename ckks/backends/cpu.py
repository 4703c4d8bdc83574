"""The C++ backend, on a few threads. Agrees with `reference` bit for bit.

Primes below 2^49 run on AVX-512 or AVX2 lanes where the CPU has them, as doubles or, with AVX-512 IFMA and VBMI, as 52-bit integers; other
primes, and all elsewhere, as 64-bit integers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ckks import modular
from ckks.backends import Fetched, Rows, Run, Values, checks
from ckks.errors import EvaluationError, ParameterError
from ckks.kernels._cpu import Engine, empty, instruction_sets
from ckks.packed import Bytes, Packed
from ckks.parameters import Parameters
from ckks.primes import smallest_root
from ckks.types import EvaluationKeys, KeySwitchKey, Residues

MAX_THREADS = 256
UINT64 = np.dtype(np.uint64)


class CpuBackend:
    """Backend (see ckks.backends) on `threads` threads per call; calls release the GIL and may run at the same time.

    Every function raises EvaluationError for an array of the wrong type or shape, or a row, level or element that does not exist.
    Inputs may be read-only; those that are not C-contiguous are copied first.
    """

    name = "cpu"

    def __init__(self, parameters: Parameters, threads: int = 1, instructions: str | None = None) -> None:
        """instructions: one of ckks.kernels._cpu.instruction_sets(), the best of them if None. Raises ParameterError."""
        if not 1 <= threads <= MAX_THREADS:
            raise ParameterError(f"the number of threads must be 1..{MAX_THREADS}, got {threads}")
        available = instruction_sets()
        if instructions not in (None, *available):
            raise ParameterError(f"this machine has {', '.join(available)}; got {instructions!r}")
        self.parameters = parameters
        roots = [smallest_root(parameters.degree, q) for q in parameters.moduli]
        self._engine = Engine(
            parameters.degree,
            parameters.moduli,
            roots,
            len(parameters.data_primes),
            parameters.digit_limbs,
            threads,
            instructions or available[0],
        )

    def upload(self, x: Residues) -> Residues:
        return x

    def download(self, x: Residues) -> Residues:
        return x

    def empty_like(self, x: Residues, shape: tuple[int, ...]) -> Residues:
        return empty(shape)

    def fetch(self, x: Residues) -> Fetched[Residues]:
        return Fetched(lambda: x)

    def repeat(self, program: object, keys: EvaluationKeys, inputs: Values, run: Run) -> Values:
        return run(inputs)

    def forward(self, x: Residues, rows: Rows) -> Residues:
        try:  # takes what _polynomials would leave as it is, in a tenth of its time
            return self._engine.forward(x, rows)
        except (TypeError, ValueError):  # to be copied, or refused in our own words
            return self._engine.forward(self._polynomials(x, rows), rows)

    def inverse(self, x: Residues, rows: Rows) -> Residues:
        try:
            return self._engine.inverse(x, rows)
        except (TypeError, ValueError):
            return self._engine.inverse(self._polynomials(x, rows), rows)

    def add(self, a: Residues, b: Residues, rows: Rows) -> Residues:
        a, b = self._operands(a, b, rows)
        out = empty(a.shape)
        self._engine.add(a, b, out, rows)
        return out

    def subtract(self, a: Residues, b: Residues, rows: Rows) -> Residues:
        a, b = self._operands(a, b, rows)
        out = empty(a.shape)
        self._engine.subtract(a, b, out, rows)
        return out

    def multiply(self, a: Residues, b: Residues, rows: Rows) -> Residues:
        a, b = self._operands(a, b, rows)
        out = empty(a.shape)
        self._engine.multiply(a, b, out, rows)
        return out

    def multiply_scalars(self, a: Residues, scalars: Residues, rows: Rows) -> Residues:
        a = self._polynomials(a, rows)
        scalars = _array(scalars, (len(rows),))
        checks.require_scalars(self.parameters, scalars, rows)
        out = empty(a.shape)
        self._engine.multiply_scalars(a, scalars, out, rows)
        return out

    def add_scalars(self, a: Residues, scalars: Residues, rows: Rows) -> Residues:
        a = self._polynomials(a, rows)
        scalars = _array(scalars, (len(rows),))
        checks.require_scalars(self.parameters, scalars, rows)
        q = np.array([self.parameters.moduli[r] for r in rows], dtype=np.uint64)
        return modular.add(a, scalars[:, None], q[:, None])

    def times_p(self, x: Residues, level: int) -> Residues:
        p, rows = self.parameters, checks.extended_rows(self.parameters, level)
        factors = np.array([p.special_product % q for q in p.data_primes[: level + 1]], dtype=np.uint64)
        multiplied = self.multiply_scalars(x, factors, rows[: level + 1])
        zeros = np.zeros((*x.shape[:-2], len(p.special_primes), p.degree), dtype=np.uint64)
        return np.concatenate([multiplied, zeros], axis=-2)

    def multiply_sums(
        self, terms: list[Residues], plains: Packed, sums: Sequence[Sequence[tuple[int, int]]], rows: Rows
    ) -> Residues:
        checks.require_sums(self.parameters, len(terms), plains, sums, rows)
        n = self.parameters.degree
        shape = (2, len(rows), n)
        terms = [_array(t, shape) for t in terms]
        data = self._packed(plains, (len(plains.data),), rows)
        out = empty((len(sums), *shape))
        self._engine.multiply_sums(terms, data, sums, plains.length, out, rows)
        return out

    def matrix(
        self, stacks: Sequence[Residues], terms: Residues, factors: Residues, outputs: int, rows: Rows
    ) -> Residues:
        stacks = [self._polynomials(x, rows) for x in stacks]
        checks.require_matrix(self.parameters, [x.shape for x in stacks], terms, factors, outputs, rows)
        member, count = stacks[0].shape[1:], terms.shape[1]
        if count == 0:
            return np.zeros((outputs, *member), dtype=np.uint64)
        terms, factors = _array(terms, (2, count)), _array(factors, (len(rows), count))
        out = empty((outputs, *member))
        self._engine.matrix(stacks, terms, factors, out, member[0], rows)
        return out

    def tensor(self, a: Residues, b: Residues, rows: Rows) -> Residues:
        checks.require_rows(self.parameters, rows)
        shape = (len(rows), self.parameters.degree)
        out = empty((3, *shape))
        self._engine.tensor(_array(a, (2, *shape)), _array(b, (2, *shape)), out, rows)
        return out

    def automorphism(self, x: Residues, element: int) -> Residues:
        x = _array(x, (self.parameters.degree,), leading=True)
        out = empty(x.shape)
        self._engine.automorphism(x, out, checks.galois_element(self.parameters, element))
        return out

    def decompose(self, x: Residues, level: int) -> Residues:
        n, rows = self.parameters.degree, len(checks.extended_rows(self.parameters, level))
        x = _array(x, (level + 1, n))
        out = empty((len(self.parameters.digits(level)), rows, n))
        self._engine.decompose(x, out, level)
        return out

    def key_product(
        self,
        digits: Residues,
        key: KeySwitchKey,
        level: int,
        element: int = 1,
        moved: Residues | None = None,
        divided: bool = False,
    ) -> Residues:
        n, rows = self.parameters.degree, len(checks.extended_rows(self.parameters, level))
        digits = _array(digits, (len(self.parameters.digits(level)), rows, n))
        array, moved = self._key_operands(key, level, moved)
        out = empty((2, level + 1 if divided else rows, n))
        element = checks.galois_element(self.parameters, element)
        self._engine.key_product(digits, array, moved, out, level, key.level, element, divided)
        return out

    def key_switch(
        self,
        x: Residues,
        key: KeySwitchKey,
        level: int,
        element: int = 1,
        moved: Residues | None = None,
        divided: bool = False,
    ) -> Residues:
        n, rows = self.parameters.degree, len(checks.extended_rows(self.parameters, level))
        x = _array(x, (level + 1, n))
        array, moved = self._key_operands(key, level, moved)
        out = empty((2, level + 1 if divided else rows, n))
        element = checks.galois_element(self.parameters, element)
        self._engine.key_switch(x, array, moved, out, level, key.level, element, divided)
        return out

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
        p, rows = self.parameters, checks.extended_rows(self.parameters, level)
        checks.require_sums(p, len(keys) + len(terms), plains, sums, rows)
        digits = _array(digits, (len(p.digits(level)), len(rows), p.degree))
        shape = (2, len(rows), p.degree)
        terms = [_array(t, shape) for t in terms]
        products = []
        for key, element in keys:
            array, moved = self._key_operands(key, level, moved)
            products.append((array, key.level, checks.galois_element(p, element)))
        data = self._packed(plains, (len(plains.data),), rows)
        out = empty((len(sums), *shape))
        self._engine.multiply_product_sums(
            digits, products, moved, terms, data, sums, plains.length, out, level
        )
        return out

    def mod_down(self, x: Residues, level: int) -> Residues:
        n = self.parameters.degree
        x = _array(x, (len(checks.extended_rows(self.parameters, level)), n), leading=True)
        out = empty((*x.shape[:-2], level + 1, n))
        self._engine.mod_down(x, out, level)
        return out

    def rescale(self, x: Residues, level: int) -> Residues:
        n = self.parameters.degree
        checks.extended_rows(self.parameters, level)
        if level == 0:
            raise EvaluationError("a ciphertext at level 0 cannot be rescaled; compile with one more level")
        x = _array(x, (level + 1, n), leading=True)
        out = empty((*x.shape[:-2], level, n))
        self._engine.rescale(x, out, level)
        return out

    def _key_operands(
        self, key: KeySwitchKey, level: int, moved: Residues | None
    ) -> tuple[Bytes, Residues | None]:
        n, rows = self.parameters.degree, len(checks.extended_rows(self.parameters, level))
        key_rows = checks.extended_rows(self.parameters, key.level)
        if key.level < level or key.digits.length != n:
            raise EvaluationError(f"a key for level {key.level} cannot be used at level {level}")
        array = self._packed(key.digits, (len(self.parameters.digits(key.level)), 2), key_rows)
        if moved is not None:
            moved = _array(moved, (n,), leading=True)
            checks.require_moved(moved.shape, level, rows)
        return array, moved

    def _packed(self, x: Packed, leading: tuple[int, ...], rows: Rows) -> Bytes:
        checks.require_packed(self.parameters, x, leading, rows)
        return np.ascontiguousarray(x.data)

    def _polynomials(self, x: Residues, rows: Rows) -> Residues:
        checks.require_rows(self.parameters, rows)
        return _array(x, (len(rows), self.parameters.degree), leading=True)

    def _operands(self, a: Residues, b: Residues, rows: Rows) -> tuple[Residues, Residues]:
        a, b = self._polynomials(a, rows), self._polynomials(b, rows)
        if b.ndim > a.ndim or a.shape[a.ndim - b.ndim :] != b.shape:
            raise EvaluationError(f"the shape {b.shape} is not the end of the shape {a.shape}")
        return a, b


def _array(x: Residues, shape: tuple[int, ...], leading: bool = False) -> Residues:
    """x itself, C-contiguous, if it has this shape, after any leading axes if those are allowed."""
    if not isinstance(x, np.ndarray) or x.dtype != UINT64:  # which is of this machine's byte order
        raise EvaluationError(
            f"residues must be an array of uint64, got {getattr(x, 'dtype', type(x).__name__)}"
        )
    actual = x.shape
    if (actual[-len(shape) :] if leading else actual) != shape or x.size == 0:
        expected = ", ".join(map(str, (*(["..."] if leading else []), *shape)))
        raise EvaluationError(f"residues must have the shape [{expected}], got {list(actual)}")
    return np.ascontiguousarray(x)
