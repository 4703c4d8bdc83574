"""A toy client for tests only: key generation, encryption and decryption in NumPy, with no claim to security.

The product never samples anything under a secret; tests may, and so check the scheme without a crypto library.
"""

from __future__ import annotations

import math

import numpy as np

from ckks.backends.reference import ReferenceBackend
from ckks.encoder import Encoder
from ckks.parameters import Parameters
from ckks.primes import ntt_primes
from ckks.types import (
    Ciphertext,
    CoefficientPolynomial,
    EvaluationKeys,
    KeyNeeds,
    KeySwitchKey,
    Residues,
    Slots,
)


def make_parameters(
    degree: int, bits: tuple[int, ...], special_bits: tuple[int, ...], digit_limbs: int = 1
) -> Parameters:
    """Parameters with one prime near 2^b per entry b."""
    primes: list[int] = []
    for b in bits + special_bits:
        primes += ntt_primes(degree, b, 1, tuple(primes))
    return Parameters(degree, tuple(primes[: len(bits)]), tuple(primes[len(bits) :]), digit_limbs)


class ToyClient:
    """A ternary secret key and everything made from it."""

    def __init__(self, parameters: Parameters, seed: int = 1) -> None:
        self.parameters = parameters
        self.backend = ReferenceBackend(parameters)
        self.encoder = Encoder(parameters, self.backend)
        self.rng = np.random.default_rng(seed)
        self.all_rows = tuple(range(len(parameters.moduli)))
        self.secret = self._small(self.rng.integers(-1, 2, parameters.degree), self.all_rows)

    def keys(self, needs: KeyNeeds) -> EvaluationKeys:
        b, p = self.backend, self.parameters
        square = b.multiply(self.secret, self.secret, self.all_rows)
        relinearisation = (
            None if needs.relinearisation is None else self.switch_key(square, needs.relinearisation)
        )
        galois = {}
        for steps, level in needs.rotations.items():
            element = p.galois_element(steps)
            galois[element] = self.switch_key(b.automorphism(self.secret, element), level)
        return EvaluationKeys(p, relinearisation, galois)

    def switch_key(self, source: Residues, level: int) -> KeySwitchKey:
        """source -> secret, source over all rows."""
        p, b = self.parameters, self.backend
        rows = p.extended_rows(level)
        digits = []
        for start, stop in p.digits(level):
            mask, body = self._zero(rows)
            gadget = [p.special_product % p.moduli[r] if start <= r < stop else 0 for r in rows]
            term = b.multiply_scalars(source[list(rows)], np.array(gadget, dtype=np.uint64), rows)
            digits.append(np.stack([b.add(body, term, rows), mask]))
        return KeySwitchKey.from_residues(p, np.stack(digits), level)

    def encrypt(self, values: Slots, level: int, scale: float) -> Ciphertext:
        plain = self.encoder.encode(values, level, scale).polynomial
        mask, body = self._zero(plain.rows)
        return Ciphertext(np.stack([self.backend.add(body, plain.residues, plain.rows), mask]), level, scale)

    def decrypt_residues(self, c: Ciphertext) -> CoefficientPolynomial:
        rows = self.parameters.data_rows(c.level)
        secret = self.secret[: c.level + 1]
        value = c.polys[-1]
        for poly in c.polys[-2::-1]:
            value = self.backend.add(poly, self.backend.multiply(value, secret, rows), rows)
        return CoefficientPolynomial(self.backend.inverse(value, rows), rows)

    def decrypt(self, c: Ciphertext) -> Slots:
        return self.encoder.decode(self.decrypt_residues(c), c.level, c.scale)

    def _zero(self, rows: tuple[int, ...]) -> tuple[Residues, Residues]:
        """(a, e - a*s) over `rows`."""
        p = self.parameters
        mask = np.stack([self.rng.integers(0, p.moduli[r], p.degree, dtype=np.uint64) for r in rows])
        error = self._small(np.rint(self.rng.normal(0, 3.2, p.degree)).astype(np.int64), rows)
        return mask, self.backend.subtract(
            error, self.backend.multiply(mask, self.secret[list(rows)], rows), rows
        )

    def _small(self, coefficients: np.ndarray, rows: tuple[int, ...]) -> Residues:
        p = self.parameters
        return self.backend.forward(
            np.stack([np.mod(coefficients, p.moduli[r]).astype(np.uint64) for r in rows]), rows
        )


def centred(residues: Residues, moduli: tuple[int, ...]) -> list[int]:
    """The centred integers that residues [row][N] stand for, by Python integers."""
    product = math.prod(moduli)
    basis = [product // q * pow(product // q, -1, q) for q in moduli]
    values = [sum(int(v) * e for v, e in zip(column, basis, strict=True)) % product for column in residues.T]
    return [v - product if 2 * v > product else v for v in values]


def lift(values: list[int], moduli: tuple[int, ...]) -> Residues:
    """Python integers -> residues [row][len(values)]."""
    return np.array([[v % q for v in values] for q in moduli], dtype=np.uint64)
