"""Weights that are the same in all slots: integers, nothing to encode. For stacks of ciphertexts (ckks/stacks.py)."""

from __future__ import annotations

import math

import numpy as np

from ckks.circuit import Circuit, Op, Weights
from ckks.encoder import reduce_floats
from ckks.errors import EvaluationError
from ckks.parameters import Parameters
from ckks.types import Residues, Slots


class IntegerWeights:
    """Rounds weights on first use; later requests read the same arrays. For one thread at a time. Methods raise EvaluationError."""

    def __init__(self, parameters: Parameters, weights: Weights) -> None:
        self.parameters = parameters
        self.weights = weights
        self._matrices: dict[tuple[str, int, float], Residues] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices so far."""
        return sum(array.nbytes for array in self._matrices.values())

    def prepare(self, circuit: Circuit) -> None:
        """Round all matrices that a circuit uses; constants are a few numbers."""
        for ins in circuit.instructions:
            if ins.op is Op.MATRIX:
                self.matrix(ins.weight, ins.level, ins.weight_scale)

    def constants(self, name: str, level: int, scale: float) -> Residues:
        """Weight `name` (float64 [members]), rounded at `scale`: residues [level+1][members]."""
        return self._rounded(name, self._weight(name, 1), level, scale)

    def matrix(self, name: str, level: int, scale: float) -> Residues:
        """The non-zero weights of `name` (float64 [outputs][inputs]): uint64 [2 + level+1][terms], as outputs, inputs, residues.

        For Backend.matrix.
        """
        key = name, level, scale
        if key not in self._matrices:
            weights = self._weight(name, 2)
            places = np.nonzero(weights)
            residues = self._rounded(name, weights[places], level, scale)
            self._matrices[key] = np.concatenate([np.stack(places).astype(np.uint64), residues])
        return self._matrices[key]

    def _rounded(self, name: str, values: Slots, level: int, scale: float) -> Residues:
        moduli = self.parameters.data_primes[: level + 1]
        integers = np.rint(values * scale)
        if not 2 * float(np.abs(integers).max(initial=0.0)) < math.prod(moduli):
            raise EvaluationError(
                f"weight {name!r} does not fit level {level} at scale {scale:.3g}; lower the scale"
            )
        return np.array([reduce_floats(integers, q) for q in moduli])

    def _weight(self, name: str, axes: int) -> Slots:
        values = self.weights.get(name)
        if values is None or values.ndim != axes:
            raise EvaluationError(
                f"weight {name!r} is missing or not of {axes} axes; compile the model again"
            )
        return values


def integer_bytes(circuit: Circuit) -> int:
    """Bytes of the rounded matrices of a circuit."""
    return sum(8 * (3 + ins.level) * ins.products for ins in circuit.instructions)
