"""Slot vectors <-> polynomials: the canonical embedding with generator 3, in float64 throughout.

Slot j of a polynomial p is p(zeta^(3^j)), zeta = exp(i*pi/N) (Cheon, Kim, Kim and Song 2017, section 3.2).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ckks import modular
from ckks.backends import Backend
from ckks.errors import EvaluationError
from ckks.parameters import Parameters
from ckks.types import CoefficientPolynomial, NttPolynomial, Plaintext, Residues, Slots

ComplexSlots = npt.NDArray[np.complex128]
Floats = npt.NDArray[np.float64]

_MANTISSA_BITS = 53


class Encoder:
    """Encodes and decodes slot vectors for one parameter set; holds no secret."""

    def __init__(self, parameters: Parameters, backend: Backend) -> None:
        self.parameters = parameters
        self.backend = backend

    def encode(
        self, values: Slots | ComplexSlots, level: int, scale: float, extended: bool = False
    ) -> Plaintext:
        """round(scale * embedding(values)), NTT domain, over the rows of `level` (the extended rows if `extended`).

        values: float64 or complex128 [k], k a power of two that divides the slot count; they repeat to fill it.
        Raises EvaluationError for another size, for NaN and infinity, and for values that do not fit the modulus.
        """
        p = self.parameters
        if not 0 <= level <= p.max_level or not 0.0 < scale < math.inf:
            raise EvaluationError(
                f"cannot encode at level {level} and scale {scale}; levels are 0..{p.max_level}"
            )
        size = values.shape[0] if values.ndim == 1 else 0
        if size == 0 or p.slots % size:
            raise EvaluationError(
                f"a slot vector has a power of two of entries up to {p.slots}, got shape {values.shape}"
            )
        if not np.isfinite(values).all():
            raise EvaluationError("cannot encode NaN or infinity; check the values")
        with np.errstate(over="ignore", invalid="ignore"):  # overflow is refused as too large, just below
            coefficients = np.rint(embed(values.astype(np.complex128)) * scale)
        modulus = math.prod(p.data_primes[: level + 1])
        if not 2 * float(np.abs(coefficients).max()) < modulus:
            raise EvaluationError(
                f"values up to {np.abs(values).max():.3g} at scale 2^{math.log2(scale):.1f} do not "
                f"fit the {modulus.bit_length()}-bit modulus of level {level}; lower the scale or raise the level"
            )
        rows = p.extended_rows(level) if extended else p.data_rows(level)
        residues = np.zeros((len(rows), p.degree), dtype=np.uint64)
        stride = p.slots // size  # a vector of period k is a polynomial in X^(slots/k)
        residues[:, ::stride] = [reduce_floats(coefficients, p.moduli[r]) for r in rows]
        return Plaintext(NttPolynomial(self.backend.forward(residues, rows), rows), level, scale)

    def decode(self, polynomial: CoefficientPolynomial, level: int, scale: float) -> Slots:
        """The real parts of the slots, float64 [N/2]; as `decode_complex`."""
        return np.ascontiguousarray(self.decode_complex(polynomial, level, scale).real)

    def decode_complex(self, polynomial: CoefficientPolynomial, level: int, scale: float) -> ComplexSlots:
        """The slots, complex128 [N/2], of the centred representative of `polynomial` divided by `scale`.

        Raises EvaluationError if the rows are not the data rows of `level`, or if the value is beyond float64, as
        under a wrong key.
        """
        if polynomial.rows != self.parameters.data_rows(level) or not 0.0 < scale < math.inf:
            raise EvaluationError(f"cannot decode rows {polynomial.rows} at level {level} and scale {scale}")
        primes = self.parameters.data_primes[: level + 1]
        with np.errstate(over="ignore", invalid="ignore"):
            coefficients = _centred_floats(polynomial.residues, primes) / scale
        if not np.isfinite(coefficients).all():
            raise EvaluationError(
                "the decrypted value is out of range; check that key and ciphertext belong together"
            )
        return unembed(coefficients)


def embed(slots: ComplexSlots) -> Floats:
    """Slots, complex128 [k], k a power of two -> the 2k coefficients of the real polynomial that has them."""
    size = slots.shape[0]
    values = np.empty(2 * size, dtype=np.complex128)  # at zeta^(2m+1), m = 0..2k-1
    index = _slot_positions(size)
    values[index] = slots
    values[2 * size - 1 - index] = slots.conj()
    return np.asarray((np.fft.fft(values, norm="forward") * _twist(2 * size).conj()).real)


def unembed(coefficients: Floats) -> ComplexSlots:
    """The inverse of `embed`: real coefficients [2k] -> complex128 slots [k]."""
    degree = coefficients.shape[0]
    values = np.fft.ifft(coefficients * _twist(degree), norm="forward")
    return np.asarray(values[_slot_positions(degree // 2)])


@lru_cache(maxsize=32)
def _slot_positions(slots: int) -> npt.NDArray[np.int64]:
    """m with 2m+1 = 3^j mod 4*slots, for each slot j."""
    powers = [1]
    for _ in range(slots - 1):
        powers.append(powers[-1] * 3 % (4 * slots))
    return np.array(powers, dtype=np.int64) // 2


@lru_cache(maxsize=32)
def _twist(degree: int) -> ComplexSlots:
    """zeta^k, k = 0..degree-1: turns a cyclic transform into one at the odd powers of zeta."""
    return np.asarray(np.exp(1j * np.pi / degree * np.arange(degree)), dtype=np.complex128)


def reduce_floats(values: Floats, q: int) -> Residues:
    """Integer-valued float64 of any magnitude -> residues mod q in [0, q), exactly: value = integer * 2^shift."""
    _, exponent = np.frexp(values)
    large = np.maximum(exponent - _MANTISSA_BITS, 0)
    integers = np.ldexp(values, -large).astype(np.int64)  # still whole: a float has 53 bits
    residues: Residues = np.mod(integers, q).view(np.uint64)
    if not large.any():
        return residues
    powers = np.array([pow(2, shift, q) for shift in range(int(large.max()) + 1)], dtype=np.uint64)
    return modular.multiply(residues, powers[large], q)


def _centred_floats(residues: Residues, moduli: tuple[int, ...]) -> Floats:
    """Residues [row][N] -> the centred integers they stand for, in float64 (relative error below 2^-50 per row).

    Mixed radix (Garner) with digits in (-q/2, q/2]: as all radices are odd this is exactly the centred
    representative; high digits of small values are zero, so little cancels when digits are added from the top.
    """
    digits: list[npt.NDArray[np.int64]] = []
    for row, q in zip(residues, moduli, strict=True):
        rest = row
        for digit, p in zip(digits, moduli, strict=False):
            reduced = np.mod(digit, q).view(np.uint64)
            rest = modular.multiply(modular.subtract(rest, reduced, q), np.uint64(pow(p, -1, q)), q)
        signed = rest.view(np.int64)
        digits.append(np.where(signed > q // 2, signed - q, signed))
    value = np.zeros(residues.shape[1])
    for digit, q in zip(reversed(digits), reversed(moduli), strict=True):
        value = value * q + digit
    return value
