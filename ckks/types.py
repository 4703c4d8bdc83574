"""The values of the scheme: polynomials with their domain as a type, plaintexts, ciphertexts, key-switching keys.

All residues are uint64 in [0, q) of their row, those of keys packed (ckks.packed). NTT order: position i holds
a(psi^(2*bitrev(i)+1)), psi the smallest primitive 2N-th root of unity of that prime.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ckks.errors import EvaluationError, MissingKeyError
from ckks.packed import Packed, pack
from ckks.parameters import Parameters

Residues = npt.NDArray[np.uint64]
Slots = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CoefficientPolynomial:
    """A polynomial by its coefficients: residues [row][N], one row per entry of `rows`."""

    residues: Residues
    rows: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class NttPolynomial:
    """A polynomial by its values at the odd powers of psi: residues [row][N] in NTT order."""

    residues: Residues
    rows: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Plaintext:
    """An encoded slot vector: an NTT polynomial over the data rows of `level` (and special rows, if extended)."""

    polynomial: NttPolynomial
    level: int
    scale: float


@dataclass(frozen=True, eq=False)
class Ciphertext:
    """polys: uint64 [2 or 3][level+1][N], NTT domain; decrypts as polys[0] + polys[1]*s (+ polys[2]*s^2) = scale * message.

    A stack of ciphertexts (ckks/stacks.py) has an axis of members in front, all at one level and scale.
    Three polynomials exist only between a multiplication and its relinearisation.
    """

    polys: Residues
    level: int
    scale: float


@dataclass(frozen=True, eq=False)
class KeySwitchKey:
    """A key-switching key s' -> s, good up to `level`.

    digits: packed [digit][2][level+1+K][N], NTT domain, rows as Parameters.extended_rows(level); entry (j, 0) = b_j and (j, 1) = a_j
    with b_j + a_j*s = P*g_j*s' + e_j, g_j = 1 on the digit's own limbs and 0 elsewhere (Han and Ki 2020, section 3).
    """

    digits: Packed
    level: int

    @staticmethod
    def from_residues(parameters: Parameters, digits: Residues, level: int) -> KeySwitchKey:
        """A key from uint64 [digit][2][level+1+K][N]."""
        moduli = tuple(parameters.moduli[r] for r in parameters.extended_rows(level))
        return KeySwitchKey(pack(digits, moduli), level)


@dataclass(frozen=True)
class KeyNeeds:
    """The evaluation keys that a circuit needs, each with the highest level it is used at.

    relinearisation: level, or None if nothing is multiplied. rotations: steps (1..N/2-1, to the left) -> level.
    """

    relinearisation: int | None
    rotations: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class EvaluationKeys:
    """All evaluation keys of one client for one circuit. galois: Galois element 3^steps mod 2N -> key for s(X^element) -> s."""

    parameters: Parameters
    relinearisation: KeySwitchKey | None
    galois: Mapping[int, KeySwitchKey]

    def rotation(self, steps: int, level: int) -> KeySwitchKey:
        """The key for a left rotation by `steps` at `level`. Raises MissingKeyError."""
        key = self.galois.get(self.parameters.galois_element(steps))
        if key is None or key.level < level:
            raise MissingKeyError(
                f"no key for a rotation by {steps % self.parameters.slots} slots at level {level}; make keys from this model's bundle"
            )
        return key

    def relinearisation_at(self, level: int) -> KeySwitchKey:
        """The relinearisation key, good at `level`. Raises MissingKeyError."""
        if self.relinearisation is None or self.relinearisation.level < level:
            raise MissingKeyError(
                f"no relinearisation key at level {level}; make keys from this model's bundle"
            )
        return self.relinearisation


def same_scale(a: float, b: float) -> bool:
    """Whether two scales are equal up to float rounding: 2^-40 relative is below any error the scheme resolves."""
    return abs(a - b) <= 2.0**-40 * abs(a)


def require_same(a: Ciphertext, b: Ciphertext) -> None:
    """Raise EvaluationError unless two operands agree in level and scale."""
    if a.level != b.level or not same_scale(a.scale, b.scale):
        raise EvaluationError(
            f"operands differ: level {a.level} and {b.level}, scale {a.scale:.6g} and {b.scale:.6g}; drop levels or rescale first"
        )


@dataclass(frozen=True, eq=False)
class SeededCiphertext:
    """A fresh symmetric ciphertext whose second polynomial is ckks.seeds.expand(seed, digit 0, row): b uint64 [level+1][N], NTT.

    A stack has an axis of members in front, and the second polynomial of member i is that of digit i.
    """

    b: Residues
    seed: bytes
    level: int
    scale: float


@dataclass(frozen=True, eq=False)
class SeededKey:
    """A key-switching key as it travels: b uint64 [digit][level+1+K][N], NTT; a_j at row r is ckks.seeds.expand(seed, j, r)."""

    b: Residues
    seed: bytes
    level: int


@dataclass(frozen=True, eq=False)
class SeededKeys:
    """What a client uploads. galois: Galois element -> key."""

    parameters: Parameters
    relinearisation: SeededKey | None
    galois: Mapping[int, SeededKey]


@dataclass(frozen=True, eq=False)
class SeededPublicKey:
    """An encryption of zero over all rows, for encrypting without the secret: b uint64 [row][N], NTT; a = ckks.seeds.expand(seed, 0)."""

    parameters: Parameters
    b: Residues
    seed: bytes
