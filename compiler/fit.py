"""Polynomials for one activation function over one interval, of every depth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.polynomial import chebyshev

from compiler.condition import can_be_monic
from compiler.graph import Array
from compiler.remez import minimax

BINS = 64
POINTS = 1537  # of the fit; a multiple of the bins and one, so that a kink at the middle of the interval is a point
MAX_DEPTH = 4
# Of the weight of a fit, spread over the whole interval: values that calibration did not meet must not be far off.
FLOOR = 0.02
LINEAR = 1e-9  # a function this near a line, as Relu is where it never cuts, needs no level
MINIMAX_LOSS = 1.25  # minimax is taken where it costs no more than this factor in the typical (rms) error


@dataclass(frozen=True, eq=False)
class Polynomial:
    """sum_k coefficients[k] T_k on [-1, 1], [degree+1][elements or 1].

    worst: the largest error over the interval. rms: the root mean square error over the calibrated values; relative: rms over the standard
    deviation of the function's values.
    """

    coefficients: Array
    depth: int
    method: str
    worst: float
    rms: float
    relative: float


def density(values: Array, low: float, high: float) -> Array:
    """The share of calibrated values in each of BINS equal bins of [low, high], float64 [BINS]; what lies outside counts at the ends."""
    counts = np.histogram(np.clip(values, low, high), BINS, (low, high))[0].astype(np.float64)
    share: Array = counts / max(counts.sum(), 1.0)
    return share


def grid() -> Array:
    """The points of a fit in [-1, 1], ascending."""
    return np.linspace(-1, 1, POINTS)


def fit(values: Array, weights: Array, depth: int, degree: int | None = None) -> Polynomial | None:
    """The best polynomial of `depth` levels (or of `degree`); None where that depth allows none but a line.

    values: the function on `grid()`, float64 [POINTS][elements or 1]. weights: of `density`.
    A degree of a power of two takes no level for its leading coefficient if that is large enough (compiler/condition.py).
    """
    if degree is not None:
        return _best(values, weights, degree)
    full = _best(values, weights, 1 << depth)
    if full.depth == depth or full.relative < LINEAR:
        return full
    return _best(values, weights, (1 << depth) - 1) if depth > 1 else None


def _best(values: Array, weights: Array, degree: int) -> Polynomial:
    points = grid()
    bins = np.minimum((np.arange(POINTS) * BINS) // (POINTS - 1), BINS - 1)
    inside = weights[bins] / np.bincount(bins, minlength=BINS)[bins]
    weighted = (1 - FLOOR) * inside + FLOOR / POINTS
    basis: Array = np.asarray(chebyshev.chebvander(points, degree), np.float64)
    root = np.sqrt(weighted)[:, None]
    coefficients: Array = np.asarray(np.linalg.lstsq(basis * root, values * root, rcond=None)[0], np.float64)
    found = _measured(coefficients, "least squares", basis, values, inside)
    if values.shape[1] == 1:
        levelled = minimax(points, values[:, 0], degree)
        if levelled is not None:
            other = _measured(levelled[:, None], "minimax", basis, values, inside)
            if other.rms <= MINIMAX_LOSS * found.rms and other.depth <= found.depth:
                return other
    return found


def _measured(coefficients: Array, method: str, basis: Array, values: Array, inside: Array) -> Polynomial:
    size = np.abs(coefficients).max()
    degree = max(
        (k for k in range(len(coefficients)) if (np.abs(coefficients[k]) > 1e-13 * size).any()), default=0
    )
    coefficients, basis = coefficients[: degree + 1], basis[:, : degree + 1]
    depth = degree.bit_length() - can_be_monic(coefficients) if degree > 1 else 0
    error = basis @ coefficients - values
    total = max(float(inside.sum()), 1e-300)
    share = inside[:, None] / total
    mean = (share * values).sum(axis=0)
    # Over elements, means of squares are added, so that an element that hardly varies does not count for more than others.
    rms = float(np.sqrt((share * error**2).sum(axis=0).mean()))
    spread = float(np.sqrt((share * (values - mean) ** 2).sum(axis=0).mean()))
    return Polynomial(coefficients, depth, method, float(np.abs(error).max()), rms, rms / max(spread, 1e-12))
