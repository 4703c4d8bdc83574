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
DEVIATIONS = 5.0  # of the worst output in the prediction: one logit in 1.7 million is further off
SEEDS, PREDICTION_ROWS = 4, 16
FLOAT32 = 2.0**-20  # relative: what the float32 model that the result is compared with computes for itself
SIMULATED_ROWS = 32  # fewer rows are simulated several times: the worst of a handful of errors may be no more than a third of a deviation


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
    """Outputs [rows][elements] of the circuit on cleartext rows [rows][elements], exact or (with a seed) with simulated noise.

    As many rows share a run as there are lanes, and all of them in a stack.
    """
    evaluator = CleartextEvaluator(parameters, weights, None if seed is None else np.random.default_rng(seed))
    sources = {i.name: i for i in circuit.instructions if i.op is Op.INPUT}
    if (source := sources.get(ends.inputs[0][0])) is not None and source.members:
        fresh = evaluator.encrypt_stack(rows.T, source.level, source.scale)
        (stack,) = run(circuit, {source.name: fresh}, evaluator).values()
        return np.ascontiguousarray(stack.slots.T)
    lanes = ends.inputs[0][1].lanes
    runs = -(-len(rows) // lanes)
    values = {}
    start = 0
    for name, layout in ends.inputs:
        mine = rows[:, start : start + len(layout.slots)]
        start += len(layout.slots)
        slots = layout.spread(np.resize(mine, (runs, lanes, len(layout.slots)))).transpose(0, 2, 1)
        for k, part in enumerate(part_names(name, layout.parts)):
            place = slots[:, k * layout.period : (k + 1) * layout.period].reshape(runs, -1)
            values[part] = evaluator.encrypt(place, sources[part].level, sources[part].scale)
    results = run(circuit, values, evaluator)
    found = []
    for name, layout in ends.outputs:
        parts = [
            results[part].slots[:, : layout.period * lanes].reshape(runs, -1, lanes)  # the first copy
            for part in part_names(name, layout.parts)
        ]
        elements = np.concatenate(parts, axis=1)[:, layout.slots].transpose(0, 2, 1)
        found.append(elements.reshape(runs * lanes, -1)[: len(rows)])
    return np.concatenate(found, axis=1)


def promised_errors(
    circuit: Circuit, weights: Weights, parameters: Parameters, rows: Array, ends: Ends
) -> tuple[float, ...]:
    """The bound on the error of any element that the compiler promises, for each output, in its units."""
    few = np.resize(rows, (SIMULATED_ROWS, rows.shape[1]))
    exact = evaluate(circuit, weights, parameters, few, ends)
    noisy = evaluate(circuit, weights, parameters, few, ends, seed=1)
    return tuple(
        SAFETY * float(np.abs(b - a).max()) + FLOAT32 * float(np.abs(a).max())
        for a, b in zip(ends.split(exact), ends.split(noisy), strict=True)
    )


def predicted_error(
    circuit: Circuit, weights: Weights, parameters: Parameters, rows: Array, ends: Ends
) -> float:
    """The error to expect of encryption in the worst element of all outputs: DEVIATIONS of the largest standard deviation.

    Noise depends on the message, so the deviation is taken of every element over the rows and, where an output has enough elements
    for an estimate, of every row over them.
    """
    few = np.resize(rows, (PREDICTION_ROWS, rows.shape[1]))
    exact = evaluate(circuit, weights, parameters, few, ends)
    noise = np.stack(
        [evaluate(circuit, weights, parameters, few, ends, seed=2 + i) - exact for i in range(SEEDS)]
    )
    worst = np.sqrt((noise**2).mean(axis=(0, 1))).max()
    for variances in ends.split((noise**2).mean(axis=0)):
        if variances.shape[1] >= 5:
            worst = max(worst, np.sqrt(variances.mean(axis=1)).max())
    return DEVIATIONS * float(worst)
