"""The weights of a circuit as plaintext polynomials, each encoded once and kept across requests."""

from __future__ import annotations

import numpy as np

from ckks.backends import Backend
from ckks.circuit import Circuit, Op, Weights
from ckks.encoder import Encoder
from ckks.errors import EvaluationError
from ckks.types import Residues, Slots


class EncodedWeights:
    """Encodes weights on first use; later requests read the same arrays. For one thread at a time.

    A vector of period k is a polynomial in X^s, s = slots/k, whose NTT holds every value s times in a row (the
    low bits of a position do not enter): one of each s is kept.
    """

    def __init__(self, backend: Backend, weights: Weights) -> None:
        self.backend = backend
        self.weights = weights
        self.encoder = Encoder(backend.parameters, backend)
        self._vectors: dict[tuple[str, int, float], Residues] = {}
        self._diagonals: dict[tuple[str, int, float, tuple[int, ...]], list[Residues]] = {}

    def prepare(self, circuit: Circuit) -> None:
        """Encode all that a circuit uses, so that its first run is no slower than the others. Raises EvaluationError."""
        for ins in circuit.instructions:
            if ins.op is Op.ADD_PLAIN:
                self.vector(ins.weight, ins.level, ins.scale)
            elif ins.op is Op.MULTIPLY_PLAIN:
                self.vector(ins.weight, ins.level, ins.weight_scale)
            elif ins.op is Op.LINEAR_TRANSFORM:
                self.diagonals(
                    ins.weight, ins.level, ins.weight_scale, tuple(giant for giant, _ in ins.terms)
                )

    def vector(self, name: str, level: int, scale: float) -> Residues:
        """Weight `name` (float64 [period]) in NTT domain, uint64 [level+1][N]. Raises EvaluationError."""
        key = (name, level, scale)
        if key not in self._vectors:
            self._vectors[key] = self._encode(self._weight(name, 1), level, scale, extended=False)
        kept = self._vectors[key]
        return np.repeat(kept, self.backend.parameters.degree // kept.shape[1], axis=1)

    def diagonals(self, name: str, level: int, scale: float, giants: tuple[int, ...]) -> list[Residues]:
        """Weight `name` (float64 [diagonals][period]), diagonal i rotated right by giants[i].

        NTT domain over the extended rows of `level`, [row][N/s], for Backend.multiply_sum. Raises EvaluationError.
        """
        key = (name, level, scale, giants)
        if key not in self._diagonals:
            rows = self._weight(name, 2)
            if len(rows) != len(giants):
                raise EvaluationError(
                    f"weight {name!r} has {len(rows)} diagonals, the circuit uses {len(giants)}"
                )
            rotated = [np.roll(row, giant) for row, giant in zip(rows, giants, strict=True)]
            self._diagonals[key] = [self._encode(row, level, scale, extended=True) for row in rotated]
        return self._diagonals[key]

    def _encode(self, values: Slots, level: int, scale: float, extended: bool) -> Residues:
        residues = self.encoder.encode(values, level, scale, extended).polynomial.residues
        return np.ascontiguousarray(residues[:, :: self.backend.parameters.slots // len(values)])

    def _weight(self, name: str, axes: int) -> Slots:
        values = self.weights.get(name)
        if values is None or values.ndim != axes:
            raise EvaluationError(
                f"weight {name!r} is missing or not of {axes} axes; compile the model again"
            )
        return values
