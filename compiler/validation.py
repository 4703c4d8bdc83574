"""What a model gets right on labelled rows: the original network, with polynomials for activations, and with simulated noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from ckks.circuit import Circuit, Weights
from ckks.errors import ModelError
from ckks.parameters import Parameters
from compiler.approximate import Flags, forward
from compiler.graph import Array, Graph
from compiler.precision import Ends, evaluate
from compiler.rows import Rows as Inputs
from compiler.rows import flat_rows, spread

MAX_ROWS = 2000
NOISY_ROWS = (
    128  # simulating noise runs every slot of the circuit, a thousand times the work of the network itself
)
CHUNK = 32
CONFIDENCE = 0.95
NOISE_SEED = 2  # not the one that the promise was made with

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rows:
    """Validation data. x: float64 [rows][elements]; y: int64 [rows]."""

    x: Array
    y: Labels


def labelled_rows(x: Inputs, y: npt.NDArray[Any], graph: Graph) -> Rows:
    """Up to MAX_ROWS validation rows, checked. x: as compiler.rows.flat_rows; y: class indices [rows]. Raises ModelError."""
    if len(graph.outputs) > 1:
        raise ModelError("validation compares one set of classes; this model has several outputs")
    y = np.asarray(y)
    rows = flat_rows(graph, x, "validation", max(len(y) if y.ndim else 0, 1) + 1)
    classes = max(int(np.prod(graph.nodes[graph.ends[0]].shape)), 2)
    if y.dtype.kind not in "iu" or y.ndim != 1 or len(y) != len(rows) or not len(y):
        raise ModelError(
            f"validation labels must be one whole number a row, got {y.dtype} {y.shape} for {len(rows)} rows"
        )
    if y.min() < 0 or y.max() >= classes:
        raise ModelError(f"validation labels must lie in 0..{classes - 1}, got {y.min()}..{y.max()}")
    chosen = spread(len(rows), MAX_ROWS)
    return Rows(rows[chosen], y[chosen].astype(np.int64))


def classes_of(outputs: Array) -> Labels:
    """The class of every row of outputs [rows][elements]: the largest, or the sign of a single one."""
    if outputs.shape[1] == 1:
        return np.asarray(outputs[:, 0] > 0, np.int64)
    return np.asarray(outputs.argmax(axis=1), np.int64)


def validate(
    original: Graph,
    polynomial: Graph,
    circuit: Circuit,
    weights: Weights,
    parameters: Parameters,
    ends: Ends,
    rows: Rows,
    calibration: Array,
    untouched: Array | None,
) -> dict[str, Any]:
    """JSON: accuracies, agreement with the original, largest differences, confusion matrix [label][answer] of the polynomial network.

    untouched: outputs [rows][elements] of the ONNX file where `original` is not that, because its max pooling was replaced.
    calibration: the rows [rows][elements] that gave the intervals; only others can say how many inputs leave them.
    """
    exact, clear, outside = [], [], []
    for chunk in _chunks(rows.x, CHUNK * 4):
        exact.append(forward(original, chunk))
        beyond: list[Flags] = []
        clear.append(forward(polynomial, chunk, beyond))
        outside.append(np.any(beyond, axis=0) if beyond else np.zeros(len(chunk), bool))
    few = rows.x[:NOISY_ROWS]
    noisy = np.concatenate(
        [
            evaluate(circuit, weights, parameters, c, ends, NOISE_SEED + i)
            for i, c in enumerate(_chunks(few, CHUNK))
        ]
    )
    plain, twin = np.concatenate(exact), np.concatenate(clear)
    a, b, c = classes_of(plain), classes_of(twin), classes_of(noisy)
    count = max(int(rows.y.max()) + 1, plain.shape[1])
    confusion = np.zeros((count, count), np.int64)
    np.add.at(confusion, (rows.y, b), 1)
    before = a if untouched is None else classes_of(untouched)
    averaged = None
    if untouched is not None:
        averaged = {
            "accuracy": float((a == rows.y).mean()),
            "agreement": float((before == a).mean()),
            "largest_difference": float(np.abs(untouched - plain).max()),
        }
    return {
        "rows": len(rows.y),
        "accuracy": float((before == rows.y).mean()),
        "averaged": averaged,
        "polynomial": {
            "accuracy": float((b == rows.y).mean()),
            "agreement": float((a == b).mean()),
            "largest_difference": float(np.abs(plain - twin).max()),
        },
        "noisy": {
            "rows": len(few),
            "accuracy": float((c == rows.y[: len(few)]).mean()),
            "agreement": float((c == b[: len(few)]).mean()),
            "largest_difference": float(np.abs(noisy - twin[: len(few)]).max()),
        },
        "outside": _outside(np.concatenate(outside), rows.x, calibration),
        "confusion": confusion.tolist(),
    }


def _outside(outside: Flags, rows: Array, calibration: Array) -> dict[str, Any]:
    """How many rows bring a value outside a fitted interval. bound: on the share of all inputs that do, with CONFIDENCE; None without
    rows that did not calibrate (Clopper and Pearson 1934, "The use of confidence or fiducial limits illustrated in the case of the
    binomial", one-sided)."""
    known = {row.tobytes() for row in calibration}
    fresh = np.array([row.tobytes() not in known for row in rows])
    count, beyond = int(fresh.sum()), int((outside & fresh).sum())
    bound = float(betaincinv(beyond + 1, count - beyond, CONFIDENCE)) if beyond < count else 1.0
    return {"rows": count, "outside": beyond, "bound": bound if count else None}


def _chunks(x: Array, size: int) -> list[Array]:
    return [x[i : i + size] for i in range(0, len(x), size)]
