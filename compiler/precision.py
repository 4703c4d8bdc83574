"""Precision: the circuit run in the clear with the noise that encryption will add, on calibration rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ckks.circuit import Circuit, Op, Weights, part_names
from ckks.cleartext import CleartextEvaluator
from ckks.interpreter import run
from ckks.parameters import Parameters
from compiler.graph import Array
from compiler.layouts import Layout

SAFETY = 6.0  # the promise over the worst simulated error: inputs and noise that were not simulated
FLOAT32 = 2.0**-20  # relative: what the float32 model that the result is compared with computes for itself
MAX_ROWS = 32


@dataclass(frozen=True, eq=False)
class Ends:
    """Where inputs and outputs lie: name and layout of each, in the order of a row's elements."""

    inputs: tuple[tuple[str, Layout], ...]
    outputs: tuple[tuple[str, Layout], ...]

    def split(self, outputs: Array) -> list[Array]:
        """Every output's elements of rows that hold all of them one after the other."""
        sizes = [len(layout.slots) for _, layout in self.outputs]
        return np.split(outputs, np.cumsum(sizes)[:-1], axis=1)


def evaluate(
    circuit: Circuit,
    weights: Weights,
    parameters: Parameters,
    rows: Array,
    ends: Ends,
    seed: int | None = None,
) -> Array:
    """Outputs [rows][elements] of the circuit on cleartext rows [rows][elements], exact or (with a seed) with simulated noise."""
    evaluator = CleartextEvaluator(parameters, weights, None if seed is None else np.random.default_rng(seed))
    levels = {i.name: (i.level, i.scale) for i in circuit.instructions if i.op is Op.INPUT}
    values = {}
    start = 0
    for name, layout in ends.inputs:
        slots = layout.spread(rows[:, start : start + len(layout.slots)])
        start += len(layout.slots)
        for k, part in enumerate(part_names(name, layout.parts)):
            place = slots[:, k * layout.period : (k + 1) * layout.period]
            values[part] = evaluator.encrypt(place, *levels[part])
    results = run(circuit, values, evaluator)
    found = []
    for name, layout in ends.outputs:
        parts = [
            results[part].slots[:, : layout.period]  # the first copy
            for part in part_names(name, layout.parts)
        ]
        found.append(np.concatenate(parts, axis=1)[:, layout.slots])
    return np.concatenate(found, axis=1)


def promised_errors(
    circuit: Circuit, weights: Weights, parameters: Parameters, rows: Array, ends: Ends
) -> tuple[float, ...]:
    """The bound on the error of any element that the compiler promises, for each output, in its units."""
    few = rows[:MAX_ROWS]
    exact = evaluate(circuit, weights, parameters, few, ends)
    noisy = evaluate(circuit, weights, parameters, few, ends, seed=1)
    return tuple(
        SAFETY * float(np.abs(b - a).max()) + FLOAT32 * float(np.abs(a).max())
        for a, b in zip(ends.split(exact), ends.split(noisy), strict=True)
    )
