"""The cleartext evaluator: a circuit on plain slot vectors, exactly or with simulated noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ckks.circuit import Hops, Weights, rotation_path
from ckks.errors import EvaluationError
from ckks.noise import NoiseModel
from ckks.parameters import Parameters
from ckks.types import Slots, same_scale


@dataclass(frozen=True, eq=False)
class ClearValue:
    """What a ciphertext would hold: float64 [..., slots], with the level and scale it would have. Leading axes are independent runs.

    stacked: a stack, [member][images], with as many slots as there are images.
    """

    slots: Slots
    level: int
    scale: float
    stacked: bool = False


class CleartextEvaluator:
    """Evaluator[ClearValue]. Without `rng` it is exact (float64); with one, every operation adds the noise that ckks.noise predicts."""

    def __init__(
        self, parameters: Parameters, weights: Weights, rng: np.random.Generator | None = None
    ) -> None:
        self.parameters = parameters
        self.weights = weights
        self._rng = rng
        self._noise = NoiseModel(parameters)

    def encrypt(self, values: Slots, level: int, scale: float) -> ClearValue:
        """A fresh input: float64 [..., period], repeated to fill the slots."""
        repeats = self.parameters.slots // values.shape[-1]
        return self._value(np.tile(values, repeats), level, scale, self._noise.fresh(scale))

    def encrypt_stack(self, values: Slots, level: int, scale: float) -> ClearValue:
        """A fresh stack: float64 [member][images]."""
        return self._value(values, level, scale, self._noise.fresh(scale), stacked=True)

    def _value(
        self, slots: Slots, level: int, scale: float, std: float | Slots = 0.0, stacked: bool = False
    ) -> ClearValue:
        if self._rng is not None:
            slots = slots + self._rng.standard_normal(slots.shape) * std
        return ClearValue(slots, level, scale, stacked)

    def _rounded(self, weight: str, scale: float) -> Slots:
        """A weight that is one integer for all slots: its rounding is known, and done where noise is simulated."""
        w = self.weights[weight]
        return w if self._rng is None else np.rint(w * scale) / scale

    def _weight(self, weight: str) -> Slots:
        w = self.weights[weight]
        return np.tile(w, self.parameters.slots // w.shape[-1])

    def add(self, a: ClearValue, b: ClearValue) -> ClearValue:
        self._require_same(a, b)
        return ClearValue(a.slots + b.slots, a.level, a.scale, a.stacked)

    def subtract(self, a: ClearValue, b: ClearValue) -> ClearValue:
        self._require_same(a, b)
        return ClearValue(a.slots - b.slots, a.level, a.scale, a.stacked)

    def add_plain(self, a: ClearValue, weight: str) -> ClearValue:
        if a.stacked:
            return ClearValue(a.slots + self._rounded(weight, a.scale)[:, None], a.level, a.scale, True)
        return self._value(
            a.slots + self._weight(weight),
            a.level,
            a.scale,
            self._noise.encoding(a.scale, self.weights[weight].shape[-1]),
        )

    def multiply_plain(self, a: ClearValue, weight: str, weight_scale: float) -> ClearValue:
        if a.stacked:
            slots = a.slots * self._rounded(weight, weight_scale)[:, None]
            return ClearValue(slots, a.level, a.scale * weight_scale, True)
        std = np.abs(a.slots) * self._noise.encoding(weight_scale, self.weights[weight].shape[-1])
        return self._value(a.slots * self._weight(weight), a.level, a.scale * weight_scale, std)

    def multiply(self, a: ClearValue, b: ClearValue) -> ClearValue:
        if a.level != b.level:
            raise EvaluationError(f"operands differ: level {a.level} and {b.level}")
        return ClearValue(a.slots * b.slots, a.level, a.scale * b.scale, a.stacked)

    def relinearise(self, a: ClearValue) -> ClearValue:
        return self._value(a.slots, a.level, a.scale, self._switch(a), a.stacked)

    def rescale(self, a: ClearValue) -> ClearValue:
        scale = a.scale / self.parameters.data_primes[a.level]
        return self._value(a.slots, a.level - 1, scale, self._noise.rounding(scale), a.stacked)

    def drop_level(self, a: ClearValue, level: int) -> ClearValue:
        return ClearValue(a.slots, level, a.scale, a.stacked)

    def matrix(
        self, stacks: Sequence[ClearValue], weight: str, weight_scale: float, members: int, products: int
    ) -> ClearValue:
        """Exact but for the rounding of the weights: no noise is added, what is there is added up."""
        a = stacks[0]
        for x in stacks[1:]:
            self._require_same(a, x)
        slots = self._rounded(weight, weight_scale) @ np.concatenate([x.slots for x in stacks])
        return ClearValue(slots, a.level, a.scale * weight_scale, True)

    def rotate(self, a: ClearValue, steps: int) -> ClearValue:
        return self._value(np.roll(a.slots, -steps, axis=-1), a.level, a.scale, self._switch(a))

    def linear_transform(
        self,
        a: ClearValue,
        weight: str,
        weight_scale: float,
        terms: tuple[tuple[int, int], ...],
        baby_hops: Hops = (),
        giant_hops: Hops = (),
    ) -> ClearValue:
        """Noise: each baby step's key switch passes through its diagonals, each giant step adds a key switch and two roundings
        (mod-down before and after it); the encoding error of a diagonal multiplies the message. A hop adds a key switch and a rounding;
        what babies share of it meets a diagonal in different slots, so that variances add."""
        diagonals, slots = self.weights[weight], self.parameters.slots
        scale = a.scale * weight_scale
        result = np.zeros_like(a.slots)
        variance = np.zeros_like(a.slots)
        first = self._noise.key_switch(a.level, a.scale) ** 2
        baby_variance = {0: 0.0}
        for step, parent, _ in rotation_path({b for _, b in terms}, baby_hops, slots):
            more = first + (self._noise.rounding(a.scale) ** 2 if parent else 0.0)
            baby_variance[step] = baby_variance[parent] + more
        encoding_variance = self._noise.encoding(weight_scale, diagonals.shape[-1]) ** 2
        for diagonal, (giant, baby) in zip(diagonals, terms, strict=True):
            d = np.tile(diagonal, slots // diagonal.shape[-1])
            shifted = np.roll(a.slots, -(giant + baby), axis=-1)
            result += d * shifted
            if self._rng is not None:
                variance += d * d * baby_variance[baby % slots] + shifted * shifted * encoding_variance
        giants = len(rotation_path({giant for giant, _ in terms}, giant_hops, slots))
        rounding, switch = self._noise.rounding(scale) ** 2, self._noise.key_switch(a.level, scale) ** 2
        return self._value(
            result, a.level, scale, np.sqrt(variance + giants * (switch + rounding) + rounding)
        )

    def _switch(self, a: ClearValue) -> float:
        return float(np.hypot(self._noise.key_switch(a.level, a.scale), self._noise.rounding(a.scale)))

    @staticmethod
    def _require_same(a: ClearValue, b: ClearValue) -> None:
        if a.level != b.level or not same_scale(a.scale, b.scale):
            raise EvaluationError(
                f"operands differ: level {a.level} and {b.level}, scale {a.scale:.6g} and {b.scale:.6g}"
            )
