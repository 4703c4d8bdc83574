"""Precision: the circuit run in the clear with the noise that encryption will add, on calibration rows."""

from __future__ import annotations

import numpy as np

from ckks.circuit import Circuit, Op, Weights
from ckks.cleartext import CleartextEvaluator
from ckks.interpreter import run
from ckks.parameters import Parameters
from compiler.graph import Array
from compiler.layouts import Layout

SAFETY = 6.0  # the promise over the worst simulated error: inputs and noise that were not simulated
FLOAT32 = 2.0**-20  # relative: what the float32 model that the result is compared with computes for itself
MAX_ROWS = 32


def evaluate(
    circuit: Circuit,
    weights: Weights,
    parameters: Parameters,
    rows: Array,
    layouts: tuple[Layout, Layout],
    seed: int | None = None,
) -> Array:
    """Outputs [rows][elements] of the circuit on cleartext rows [rows][elements], exact or (with a seed) with simulated noise."""
    evaluator = CleartextEvaluator(parameters, weights, None if seed is None else np.random.default_rng(seed))
    source = next(i for i in circuit.instructions if i.op is Op.INPUT)
    value = evaluator.encrypt(layouts[0].spread(rows), source.level, source.scale)
    result = run(circuit, {source.name: value}, evaluator)
    (last,) = result.values()
    out: Array = last.slots[:, layouts[1].slots]
    return out


def promised_error(
    circuit: Circuit, weights: Weights, parameters: Parameters, rows: Array, layouts: tuple[Layout, Layout]
) -> float:
    """The bound on the error of any output element that the compiler promises, in output units."""
    few = rows[:MAX_ROWS]
    exact = evaluate(circuit, weights, parameters, few, layouts)
    noisy = evaluate(circuit, weights, parameters, few, layouts, seed=1)
    return SAFETY * float(np.abs(noisy - exact).max()) + FLOAT32 * float(np.abs(exact).max())
