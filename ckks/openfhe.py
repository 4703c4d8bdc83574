"""OpenFHE's own operations on its own ciphertexts as an Evaluator: for development, as oracle for ours and as what to beat.

Nothing here imports OpenFHE: the objects come from whoever makes context and keys (bench/_openfhe_circuit.py), on Python 3.10. It is used
as its experts do: FIXEDMANUAL rescaling, HYBRID key switching, baby steps hoisted and kept in basis QP, giant steps summed there, every
plaintext encoded once, in advance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckks.circuit import Circuit, Hops, Op, Weights
from ckks.errors import EvaluationError
from ckks.parameters import Parameters


@dataclass(frozen=True, eq=False)
class OpenFheValue:
    """An OpenFHE ciphertext with its level and scale by our count: OpenFHE takes every scale for a power of its one."""

    ciphertext: Any
    level: int
    scale: float


class OpenFheEvaluator:
    """Implements ckks.interpreter.Evaluator. Weights, levels and scales are the circuit's, the data primes those of `parameters`.

    context: over these data primes, with a relinearisation key and all of `rotations(circuit)` loaded; one scale of 2^scale_bits.
    extended(level): OpenFHE's ring over the data primes of a level and its special primes, for plaintexts in basis QP.
    Hops are not followed: every rotation has its key.
    """

    def __init__(
        self,
        context: Any,
        scale_bits: int,
        parameters: Parameters,
        weights: Weights,
        extended: Callable[[int], Any],
    ) -> None:
        self.context, self.parameters, self.weights = context, parameters, weights
        self._scale, self._extended = 2.0**scale_bits, extended
        self._plain: dict[tuple[object, ...], Any] = {}

    def prepare(self, circuit: Circuit) -> None:
        """Encode all that a circuit uses."""
        for ins in circuit.instructions:
            if ins.op is Op.ADD_PLAIN:
                self._vector(ins.weight, ins.level, ins.scale)
            elif ins.op is Op.MULTIPLY_PLAIN:
                self._vector(ins.weight, ins.level, ins.weight_scale)
            elif ins.op is Op.LINEAR_TRANSFORM:
                self._diagonals(ins.weight, ins.level, ins.weight_scale, ins.terms)

    def add(self, a: OpenFheValue, b: OpenFheValue) -> OpenFheValue:
        return self._value(self.context.EvalAdd(a.ciphertext, b.ciphertext), a.level, a.scale)

    def subtract(self, a: OpenFheValue, b: OpenFheValue) -> OpenFheValue:
        return self._value(self.context.EvalSub(a.ciphertext, b.ciphertext), a.level, a.scale)

    def add_plain(self, a: OpenFheValue, weight: str) -> OpenFheValue:
        plain = self._vector(weight, a.level, a.scale)
        return self._value(self.context.EvalAdd(a.ciphertext, plain), a.level, a.scale)

    def multiply_plain(self, a: OpenFheValue, weight: str, weight_scale: float) -> OpenFheValue:
        plain = self._vector(weight, a.level, weight_scale)
        return self._value(self.context.EvalMult(a.ciphertext, plain), a.level, a.scale * weight_scale)

    def multiply(self, a: OpenFheValue, b: OpenFheValue) -> OpenFheValue:
        product = self.context.EvalMultNoRelin(a.ciphertext, b.ciphertext)
        return self._value(product, a.level, a.scale * b.scale)

    def relinearise(self, a: OpenFheValue) -> OpenFheValue:
        return self._value(self.context.Relinearize(a.ciphertext), a.level, a.scale)

    def rescale(self, a: OpenFheValue) -> OpenFheValue:
        scale = a.scale / self.parameters.data_primes[a.level]
        return self._value(self.context.Rescale(a.ciphertext), a.level - 1, scale)

    def drop_level(self, a: OpenFheValue, level: int) -> OpenFheValue:
        if level == a.level:
            return a
        dropped = self.context.LevelReduce(a.ciphertext, None, a.level - level)
        return self._value(dropped, level, a.scale)

    def rotate(self, a: OpenFheValue, steps: int) -> OpenFheValue:
        return self._value(
            self.context.EvalRotate(a.ciphertext, steps % self.parameters.slots), a.level, a.scale
        )

    def linear_transform(
        self,
        a: OpenFheValue,
        weight: str,
        weight_scale: float,
        terms: tuple[tuple[int, int], ...],
        baby_hops: Hops = (),
        giant_hops: Hops = (),
    ) -> OpenFheValue:
        c = self.context
        diagonals = self._diagonals(weight, a.level, weight_scale, terms)
        digits = c.EvalFastRotationPrecompute(a.ciphertext)
        babies = {
            step: c.EvalFastRotationExt(a.ciphertext, step, digits, True)
            if step
            else c.KeySwitchExt(a.ciphertext, True)
            for step in {baby for _, baby in terms}
        }
        inner: dict[int, Any] = {}
        for (giant, baby), diagonal in zip(terms, diagonals, strict=True):
            product = c.EvalMult(babies[baby], diagonal)
            if giant in inner:
                c.EvalAddInPlace(inner[giant], product)
            else:
                inner[giant] = product
        total: Any = None
        for giant, summed in inner.items():
            if giant:
                down = c.KeySwitchDown(summed)
                summed = c.EvalFastRotationExt(down, giant, c.EvalFastRotationPrecompute(down), True)
            if total is None:
                total = summed
            else:
                c.EvalAddInPlace(total, summed)
        return self._value(c.KeySwitchDown(total), a.level, a.scale * weight_scale)

    def matrix(
        self, stacks: Sequence[OpenFheValue], weight: str, weight_scale: float, members: int, products: int
    ) -> OpenFheValue:
        """Not here: circuits of the throughput layout have no rotations, which is what this evaluator is a measure of."""
        raise EvaluationError("OpenFHE's evaluator runs circuits of the latency layout only")

    @staticmethod
    def _value(ciphertext: Any, level: int, scale: float) -> OpenFheValue:
        """A result. The power of its scale that OpenFHE counts is set back to 1: else sums of two counts would be adjusted."""
        ciphertext.SetNoiseScaleDeg(1)
        return OpenFheValue(ciphertext, level, scale)

    def _vector(self, weight: str, level: int, scale: float) -> Any:
        """A plaintext at `level` and `scale`, encoded once."""
        key = (weight, level, scale)
        if key not in self._plain:
            values = self.weights[weight]
            slots = np.tile(values, self.parameters.slots // len(values)) * (scale / self._scale)
            self._plain[key] = self.context.MakeCKKSPackedPlaintext(
                slots, 1, self.parameters.max_level - level
            )
        return self._plain[key]

    def _diagonals(
        self, weight: str, level: int, scale: float, terms: tuple[tuple[int, int], ...]
    ) -> list[Any]:
        """Diagonals in basis QP, each rotated back by its giant step, encoded once."""
        key = (weight, level, scale, terms)
        if key not in self._plain:
            ring, factor = self._extended(level), scale / self._scale
            self._plain[key] = [
                self.context.MakeCKKSPackedPlaintext(
                    np.tile(np.roll(row, giant), self.parameters.slots // len(row)) * factor, 1, 0, ring
                )
                for row, (giant, _) in zip(self.weights[weight], terms, strict=True)
            ]
        return list(self._plain[key])


def rotations(circuit: Circuit) -> list[int]:
    """Every rotation of a circuit, in 1..slots-1, none composed of others."""
    steps: set[int] = set()
    for ins in circuit.instructions:
        if ins.op is Op.ROTATE:
            steps.add(ins.steps % circuit.slots)
        elif ins.op is Op.LINEAR_TRANSFORM:
            steps |= {step % circuit.slots for term in ins.terms for step in term}
    return sorted(steps - {0})
