"""Folding: every run of linear operators becomes one affine map, every element-wise run one polynomial per element.

A tensor is held symbolically as a Polynomial of a Base. Only bases (and the powers of them that polynomials need) are ever computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.polynomial import chebyshev
from scipy.sparse import csr_array, diags_array, eye_array

from ckks.errors import ModelError
from compiler.graph import (
    MAX_NONZEROS,
    Array,
    Elementwise,
    Fitted,
    Graph,
    Linear,
    Node,
    Nonlinear,
    Shape,
    Source,
    Sum,
    operands,
)

MAX_DEGREE = 32
MAX_ACTIVATION = 1 << 18  # elements of a tensor that an activation is computed of
MAX_COEFFICIENTS = (
    1 << 30
)  # of all values, over the whole run: bounds the time; what is held at once is far less


@dataclass(frozen=True, eq=False)
class InputBase:
    """An encrypted input, flat. start: where it begins in a row of all inputs."""

    name: str
    shape: Shape
    start: int


@dataclass(frozen=True, eq=False)
class AffineBase:
    """bias + sum of matrix @ polynomial over the terms, flat; one term per source tensor."""

    layer: str
    terms: tuple[tuple[Polynomial, csr_array], ...]
    bias: Array
    shape: Shape


@dataclass(frozen=True, eq=False)
class ProductBase:
    """The element-wise product of two different bases."""

    layer: str
    left: Base
    right: Base
    shape: Shape


@dataclass(frozen=True, eq=False)
class Polynomial:
    """Element i is sum_k coefficients[k][i] * s**k for s = (base[i] - center[i]) / half[i].

    coefficients: float64 [degree+1][elements]. center, half: float64 [elements], 0 and 1 (powers of the base itself) but for fits of degree
    2 and more, whose intervals they are: about the middle of its interval a fit's powers lose few digits.
    """

    base: Base
    coefficients: Array
    center: Array
    half: Array

    @property
    def degree(self) -> int:
        return len(self.coefficients) - 1

    def __call__(self, x: Array) -> Array:
        """Values at base values x [..., elements]."""
        s = (x - self.center) / self.half
        result = np.zeros_like(s)
        for c in self.coefficients[::-1]:
            result = result * s + c
        return result

    def in_frame(self, center: Array, half: Array) -> Polynomial:
        """The same polynomial about another center and in another unit."""
        gain, shift = (
            half / self.half,
            (center - self.center) / self.half,
        )  # s = gain * (s in the new frame) + shift
        result = np.zeros_like(self.coefficients)
        for k, c in enumerate(self.coefficients):
            for i in range(k + 1):
                result[i] += c * math.comb(k, i) * shift ** (k - i) * gain**i
        return Polynomial(self.base, result, center, half)

    @property
    def plain(self) -> Polynomial:
        """In powers of the base itself."""
        zero = np.zeros(self.coefficients.shape[1])
        return self.in_frame(zero, zero + 1.0)


Base = InputBase | AffineBase | ProductBase


def fold(graph: Graph) -> tuple[AffineBase, ...]:
    """Every output as an affine map of polynomials of bases, and so on down to the inputs. Raises ModelError."""
    values: dict[int, Polynomial] = {}
    ends = set(graph.ends)
    last_use = {operand: i for i, node in enumerate(graph.nodes) for operand in operands(node)}
    budget = MAX_COEFFICIENTS
    for i, node in enumerate(graph.nodes[: max(ends) + 1]):
        if isinstance(node, Source):
            value = _plain(InputBase(node.name, node.shape, node.start))
        elif isinstance(node, Elementwise):
            x = values[node.x]
            value = _trimmed(x, x.coefficients * node.gain, node.offset)
        elif isinstance(node, Linear):
            value = _linear(node, values[node.x])
        elif isinstance(node, Sum):
            value = _sum(node.layer, values[node.x], values[node.y], node.shape)
        elif isinstance(node, Fitted):
            value = _fitted(node, values[node.x])
        elif isinstance(node, Nonlinear):
            raise AssertionError(node.layer)  # approximation has replaced them all
        else:
            value = _product(node.layer, values[node.x], values[node.y], node.shape)
        values[i] = value
        budget -= value.coefficients.size
        if budget < 0:
            raise ModelError(
                f"the network's polynomials have more than {MAX_COEFFICIENTS} coefficients; use fewer layers"
            )
        for operand in operands(node):
            if last_use[operand] == i and operand not in ends:
                values.pop(operand, None)
    return tuple(_output(graph.nodes[i], values[i]) for i in graph.ends)


def _linear(node: Linear, x: Polynomial) -> Polynomial:
    if x.degree:
        return _plain(affine(node.layer, [(x, node.matrix)], node.bias, node.shape))
    # A gate that saturates on all calibration rows, for one, is a constant: it costs nothing.
    still = np.zeros(len(node.bias))
    return Polynomial(x.base, (node.matrix @ x.coefficients[0] + node.bias)[None], still, still + 1.0)


def _output(node: Node, value: Polynomial) -> AffineBase:
    """A base of its own, which nothing else reads: an output is neither shifted nor scaled."""
    if isinstance(value.base, AffineBase) and _is_plain(value):
        base = value.base
        return AffineBase(base.layer, base.terms, base.bias, base.shape)
    layer = "" if isinstance(node, Source) else node.layer
    return affine(layer or "output", [(value, _identity(value.coefficients.shape[1]))], None, node.shape)


def affine(
    layer: str, terms: list[tuple[Polynomial, csr_array]], bias: Array | None, shape: Shape
) -> AffineBase:
    """An affine base over `terms`, composed with the affine maps below it wherever a term is linear in one."""
    total = np.zeros(math.prod(shape)) if bias is None else bias.copy()
    merged: dict[tuple[int, int], tuple[Polynomial, csr_array]] = {}
    work = list(reversed(terms))
    while work:
        polynomial, matrix = work.pop()
        base, c = polynomial.base, polynomial.coefficients
        if polynomial.degree <= 1:
            total = total + matrix @ c[0]
            if polynomial.degree == 0:
                continue
            matrix = csr_array(matrix @ diags_array(c[1]))
            if isinstance(base, AffineBase) and _composed_size(matrix, base) <= MAX_NONZEROS:
                total = total + matrix @ base.bias
                work += [(p, csr_array(matrix @ m)) for p, m in base.terms]
                continue
            polynomial = _plain(base)
        key = (id(base), 1 if polynomial.degree == 1 else id(polynomial))
        if key in merged:
            matrix = csr_array(merged[key][1] + matrix)
            polynomial = merged[key][0]
        merged[key] = (polynomial, matrix)
    for _, matrix in merged.values():
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
    kept = tuple((p, m) for p, m in merged.values() if m.nnz)
    if not kept:
        raise ModelError(f"layer {layer!r} does not depend on the input: all its weights are zero")
    if not np.isfinite(total).all() or any(not np.isfinite(m.data).all() for _, m in kept):
        raise ModelError(f"layer {layer!r}: folding its weights overflows; scale them down")
    return AffineBase(layer, kept, total, shape)


def _composed_size(matrix: csr_array, base: AffineBase) -> int:
    """An upper bound on the non-zeros (and the work) of composing `matrix` with the terms of `base`."""
    uses = np.bincount(matrix.indices, minlength=matrix.shape[1]).astype(np.int64)
    return sum(int(uses @ np.diff(m.indptr)) for _, m in base.terms)


def _identity(size: int) -> csr_array:
    return csr_array(eye_array(size))


def _plain(base: Base) -> Polynomial:
    size = math.prod(base.shape)
    zero, one = np.zeros(size), np.ones(size)
    return Polynomial(base, np.stack([zero, one]), zero, one)


def _is_plain(p: Polynomial) -> bool:
    # _trimmed leaves no other frame on a polynomial of degree 1.
    return p.degree == 1 and not p.coefficients[0].any() and bool((p.coefficients[1] == 1.0).all())


def _trimmed(like: Polynomial, coefficients: Array, offset: Array | float = 0.0) -> Polynomial:
    """The polynomial plus `offset`, in the frame of `like`, without leading powers whose coefficients are all zero."""
    coefficients = coefficients.copy()
    coefficients[0] += offset
    if not np.isfinite(coefficients).all():
        raise ModelError("the coefficients of a polynomial overflow; scale the weights down")
    degree = max((k for k in range(1, len(coefficients)) if coefficients[k].any()), default=0)
    result = Polynomial(like.base, coefficients[: degree + 1], like.center, like.half)
    return result if degree > 1 else result.plain


def _fitted(node: Fitted, x: Polynomial) -> Polynomial:
    """The fit as a polynomial of the base that x is linear in; a base that cannot be scaled to the interval gets an affine one after it."""
    size = math.prod(node.shape)
    _check_size(node.layer, node.shape)
    if x.degree > 1 or (x.degree == 1 and not isinstance(x.base, AffineBase)):
        x = _plain(affine(node.layer, [(x, _identity(size))], None, node.shape))
    to_powers = np.zeros((len(node.coefficients),) * 2)  # column k: T_k
    for k, unit in enumerate(np.eye(len(to_powers))):
        to_powers[: k + 1, k] = chebyshev.cheb2poly(unit)
    # What a fit leaves of higher terms where the function is a line there is float64 rounding.
    exact = np.where(
        np.abs(node.coefficients) > 1e-12 * np.abs(node.coefficients).max(), node.coefficients, 0.0
    )
    coefficients = np.broadcast_to(to_powers @ exact, (len(to_powers), size))
    offset, gain = x.coefficients if x.degree == 1 else (x.coefficients[0], np.zeros(size))
    still = gain == 0  # an element that does not vary has the fit's value there
    gain = np.where(still, 1.0, gain)
    result = Polynomial(x.base, coefficients, (node.center - offset) / gain, node.half / gain)
    if still.any():
        value = result(np.where(still, 0.0, result.center))  # base 0 gives x = offset
        fixed = np.zeros_like(coefficients)
        fixed[0] = value
        result = Polynomial(x.base, np.where(still, fixed, coefficients), result.center, result.half)
    return _trimmed(result, result.coefficients)


def _sum(layer: str, x: Polynomial, y: Polynomial, shape: Shape) -> Polynomial:
    if x.base is y.base or x.degree == 0 or y.degree == 0:
        small, large = sorted((x, y), key=lambda p: p.degree)
        coefficients = large.coefficients.copy()
        coefficients[: small.degree + 1] += small.in_frame(large.center, large.half).coefficients
        return _trimmed(large, coefficients)
    eye = _identity(math.prod(shape))
    return _plain(affine(layer, [(x, eye), (y, eye)], None, shape))


def _product(layer: str, x: Polynomial, y: Polynomial, shape: Shape) -> Polynomial:
    if x.base is y.base or x.degree == 0 or y.degree == 0:
        if x.degree + y.degree > 1:
            _check_size(layer, shape)
        if x.degree + y.degree > MAX_DEGREE:
            raise ModelError(
                f"node {layer!r}: a polynomial of degree {x.degree + y.degree}, above {MAX_DEGREE}; use a smaller degree"
            )
        small, large = sorted((x, y), key=lambda p: p.degree)
        factor = small.in_frame(large.center, large.half)
        coefficients = np.zeros((x.degree + y.degree + 1, x.coefficients.shape[1]))
        for i, c in enumerate(factor.coefficients):
            coefficients[i : i + large.degree + 1] += c * large.coefficients
        return _trimmed(large, coefficients)
    return _plain(ProductBase(layer, _computed(layer, x, shape), _computed(layer, y, shape), shape))


def _check_size(layer: str, shape: Shape) -> None:
    if math.prod(shape) > MAX_ACTIVATION:
        raise ModelError(
            f"node {layer!r}: a polynomial of {math.prod(shape)} elements, more than {MAX_ACTIVATION}; make the tensor smaller"
        )


def _computed(layer: str, x: Polynomial, shape: Shape) -> Base:
    """A base that equals `x`: its own if there is nothing to compute."""
    return x.base if _is_plain(x) else affine(layer, [(x, _identity(math.prod(shape)))], None, shape)
