"""Evaluation keys and seeded ciphertexts out of a library's encryptions of zero: what SEAL's and OpenFHE's secret sides share.

The library draws every random value; what is added here is deterministic linear algebra. A key-switching key s' -> s is an encryption of
zero over all primes plus the gadget term P*g_j*s' (hybrid key switching: Han and Ki 2020, section 3). Every uniform half a is replaced
by a' = expand(seed) and b by b + (a - a')*s: the phase, hence the library's error, stays the same.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ckks.backends import Backend
from ckks.errors import EvaluationError
from ckks.parameters import Parameters
from ckks.seeds import SEED_BYTES, expand
from ckks.types import (
    Ciphertext,
    KeyNeeds,
    Residues,
    SeededCiphertext,
    SeededKey,
    SeededKeys,
    SeededPublicKey,
    Slots,
)

Progress = Callable[[int, int], None]
Rows = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Switching:
    """secret: s over all rows, uint64 [row][N], NTT. zero(): a fresh (b, a) over all rows with b + a*s = e, uint64 [2][row][N], NTT."""

    backend: Backend
    secret: Residues
    zero: Callable[[], Residues]

    def evaluation_keys(self, needs: KeyNeeds, progress: Progress | None = None) -> SeededKeys:
        """Exactly the needed keys, each over the rows of its level; progress(done, all) follows each key.

        Raises EvaluationError for a level or rotation that these parameters do not have.
        """
        p = self.backend.parameters
        for level in [
            *needs.rotations.values(),
            *([] if needs.relinearisation is None else [needs.relinearisation]),
        ]:
            check_level(p, level)
        if any(not 0 < steps < p.slots for steps in needs.rotations):
            raise EvaluationError(f"rotation steps must be 1..{p.slots - 1}")
        total, done = len(needs.rotations) + (needs.relinearisation is not None), 0
        relinearisation: SeededKey | None = None
        galois: dict[int, SeededKey] = {}
        if needs.relinearisation is not None:
            rows = p.data_rows(needs.relinearisation)
            s = self.secret[: len(rows)]
            relinearisation = self._key(self.backend.multiply(s, s, rows), needs.relinearisation)
            done += 1
            if progress is not None:
                progress(done, total)
        for steps, level in needs.rotations.items():
            element = p.galois_element(steps)
            galois[element] = self._key(self.backend.automorphism(self.secret[: level + 1], element), level)
            done += 1
            if progress is not None:
                progress(done, total)
        return SeededKeys(p, relinearisation, galois)

    def public_key(self) -> SeededPublicKey:
        """An encryption of zero over all rows, reseeded: what `keys.PublicKey` encrypts with, anywhere."""
        p, seed = self.backend.parameters, secrets.token_bytes(SEED_BYTES)
        return SeededPublicKey(p, self.reseed(self.zero(), seed, 0, tuple(range(len(p.moduli)))), seed)

    def ciphertext(
        self, encrypt: Callable[[Slots], Residues], values: Slots, level: int, scale: float
    ) -> SeededCiphertext:
        """What `encrypt` makes of float64 [k], (b, a) as uint64 [2][level+1][N], reseeded; of [members][k] a stack under one seed."""
        seed, rows = secrets.token_bytes(SEED_BYTES), self.backend.parameters.data_rows(level)
        stack = values.ndim == 2 and len(values) > 0
        halves = [
            self.reseed(encrypt(row), seed, i, rows) for i, row in enumerate(values if stack else [values])
        ]
        return SeededCiphertext(np.stack(halves) if stack else halves[0], seed, level, float(scale))

    def reseed(self, polys: Residues, seed: bytes, digit: int, rows: Rows) -> Residues:
        """(b, a) over `rows` as b + (a - a')*s with a' = expand(seed, digit)."""
        b, a = polys
        difference = self.backend.subtract(a, expand(self.backend.parameters, seed, digit, rows), rows)
        return self.backend.add(b, self.backend.multiply(difference, self.secret[list(rows)], rows), rows)

    def _key(self, source: Residues, level: int) -> SeededKey:
        """The key s' -> s good up to `level`; `source` is s' over the data rows, NTT domain."""
        p, seed = self.backend.parameters, secrets.token_bytes(SEED_BYTES)
        rows, data_rows = p.extended_rows(level), p.data_rows(level)
        special = np.array([p.special_product % p.moduli[i] for i in data_rows], dtype=np.uint64)
        gadget = self.backend.multiply_scalars(source, special, data_rows)
        digits = []
        for j, (start, stop) in enumerate(p.digits(level)):
            b = self.reseed(np.take(self.zero(), rows, axis=1), seed, j, rows)
            b[start:stop] = self.backend.add(b[start:stop], gadget[start:stop], data_rows[start:stop])
            digits.append(b)
        return SeededKey(np.stack(digits), seed, level)


def ternary(backend: Backend, row: Residues) -> npt.NDArray[np.int8]:
    """The coefficients of a secret key, int8 [N], from its first row, uint64 [1][N], NTT."""
    first = backend.inverse(np.ascontiguousarray(row), (0,))[0]
    minus_one = np.uint64(backend.parameters.moduli[0] - 1)
    return np.where(first == minus_one, -1, np.minimum(first, 2).astype(np.int64)).astype(np.int8)


def secret_rows(backend: Backend, coefficients: npt.NDArray[np.int8]) -> Residues:
    """A secret key over all rows, uint64 [row][N], NTT, from its ternary coefficients."""
    moduli = np.array(backend.parameters.moduli, dtype=np.uint64)[:, None]
    residues = np.where(coefficients < 0, moduli - np.uint64(1), np.abs(coefficients).astype(np.uint64))
    return backend.forward(residues, tuple(range(len(backend.parameters.moduli))))


def each_member(stack: Ciphertext, decrypt: Callable[[Ciphertext], Slots]) -> Slots:
    """float64 [members][N/2] of a stack of ciphertexts, uint64 [members][polynomials][row][N]."""
    return np.stack([decrypt(Ciphertext(polys, stack.level, stack.scale)) for polys in stack.polys])


def check_level(p: Parameters, level: int) -> None:
    """Raise EvaluationError for a level that does not exist."""
    if not 0 <= level <= p.max_level:
        raise EvaluationError(f"level {level} does not exist; these parameters have levels 0..{p.max_level}")


def full_slots(p: Parameters, values: Slots, level: int, scale: float) -> Slots:
    """Values to encrypt, float64 [k], repeated to fill the slots. Raises EvaluationError; its text holds no value."""
    check_level(p, level)
    if values.ndim != 1 or values.size == 0 or p.slots % values.size:
        raise EvaluationError(
            f"the number of values must be a power of two up to {p.slots}, got shape {values.shape}"
        )
    if not np.isfinite(values).all() or not 0.0 < scale < float("inf"):
        raise EvaluationError("values and scale must be finite, and the scale positive")
    return np.tile(np.asarray(values, dtype=np.float64), p.slots // values.size)


def check_ciphertext(p: Parameters, polys: Residues, level: int, scale: float) -> None:
    """Raise EvaluationError unless these are two or three polynomials at a level of `p`, at a usable scale."""
    check_level(p, level)
    shapes = [(count, level + 1, p.degree) for count in (2, 3)]
    if polys.shape not in shapes or polys.dtype != np.uint64:
        raise EvaluationError(f"a ciphertext at level {level} cannot be {polys.dtype} of shape {polys.shape}")
    if not 0.0 < scale < float("inf"):
        raise EvaluationError("the scale must be finite and positive")


def does_not_fit(level: int, scale: float) -> EvaluationError:
    """For values that are too large to encrypt."""
    return EvaluationError(f"the values do not fit at level {level} and scale {scale:.6g}; lower the scale")
