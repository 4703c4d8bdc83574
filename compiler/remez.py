"""Minimax approximation by Remez' exchange algorithm, on a grid."""

from __future__ import annotations

import numpy as np
from numpy.polynomial import chebyshev

from compiler.graph import Array

MAX_EXCHANGES = 60
_CLOSE = 1e-6  # relative gap between the worst error and the levelled one at which the exchange has converged


def minimax(points: Array, values: Array, degree: int) -> Array | None:
    """Chebyshev coefficients [degree+1] of the polynomial with the least largest error on the grid; None if the exchange stalls.

    points: float64 ascending in [-1, 1], many more than degree + 2. values: float64, the function there.
    Source: Cheney 1966, "Introduction to Approximation Theory", chapter 3 (the exchange of all extrema at once).
    """
    wanted = np.cos(np.linspace(np.pi, 0, degree + 2))
    reference = np.unique(np.searchsorted(points, wanted).clip(0, len(points) - 1))
    basis = chebyshev.chebvander(points, degree)
    for _ in range(MAX_EXCHANGES):
        if len(reference) != degree + 2:
            return None
        signs = (-1.0) ** np.arange(degree + 2)
        system = np.column_stack([basis[reference], signs])
        try:
            solution = np.linalg.solve(system, values[reference])
        except np.linalg.LinAlgError:
            return None
        coefficients, levelled = solution[:-1], abs(solution[-1])
        error = values - basis @ coefficients
        worst = float(np.abs(error).max())
        if worst <= levelled * (1 + _CLOSE) + 1e-14 * float(np.abs(values).max()):
            result: Array = coefficients
            return result
        reference = _extrema(error, degree + 2)
    return None


def _extrema(error: Array, count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Indices of `count` alternating extrema: the largest of each run of one sign, the smaller end dropped while there are too many."""
    starts = np.flatnonzero(np.diff(np.sign(error), prepend=0.0))
    peaks = [
        start + int(np.abs(part).argmax())
        for start, part in zip(starts, np.split(error, starts[1:]), strict=True)
    ]
    while len(peaks) > count:
        peaks.pop(0 if abs(error[peaks[0]]) < abs(error[peaks[-1]]) else -1)
    return np.array(peaks, dtype=np.int64)
