"""Folding: every run of linear operators becomes one affine map, every element-wise run one polynomial per element.

A tensor is held symbolically as a Polynomial of a Base. Only bases (and the powers of them that polynomials need) are ever computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array, diags_array, eye_array

from ckks.errors import ModelError
from compiler.graph import MAX_NONZEROS, Array, Elementwise, Graph, Linear, Node, Product, Shape, Source, Sum

MAX_DEGREE = 32
MAX_SLOTS = 1 << 15
MAX_COEFFICIENTS = (
    1 << 30
)  # of all values, over the whole run: bounds the time; what is held at once is far less


@dataclass(frozen=True, eq=False)
class InputBase:
    """The encrypted input, flat."""

    name: str
    shape: Shape


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
    """Element i is sum_k coefficients[k][i] * base[i]**k; coefficients: float64 [degree+1][elements]."""

    base: Base
    coefficients: Array

    @property
    def degree(self) -> int:
        return len(self.coefficients) - 1


Base = InputBase | AffineBase | ProductBase


def fold(graph: Graph) -> AffineBase:
    """The model's output as an affine map of polynomials of bases, and so on down to the input. Raises ModelError."""
    values: dict[int, Polynomial] = {}
    last = graph.nodes[graph.output]
    last_use = {operand: i for i, node in enumerate(graph.nodes) for operand in _operands(node)}
    budget = MAX_COEFFICIENTS
    for i, node in enumerate(graph.nodes[: graph.output + 1]):
        if isinstance(node, Source):
            value = _plain(InputBase(node.name, node.shape))
        elif isinstance(node, Elementwise):
            x = values[node.x]
            value = _trimmed(x.base, x.coefficients * node.gain, node.offset)
        elif isinstance(node, Linear):
            value = _plain(affine(node.layer, [(values[node.x], node.matrix)], node.bias, node.shape))
        elif isinstance(node, Sum):
            value = _sum(node.layer, values[node.x], values[node.y], node.shape)
        else:
            value = _product(node.layer, values[node.x], values[node.y], node.shape)
        values[i] = value
        budget -= value.coefficients.size
        if budget < 0:
            raise ModelError(
                f"the network's polynomials have more than {MAX_COEFFICIENTS} coefficients; use fewer layers"
            )
        for operand in _operands(node):
            if last_use[operand] == i:
                values.pop(operand, None)
    result = values[graph.output]
    if isinstance(result.base, AffineBase) and _is_plain(result):
        return result.base
    layer = "" if isinstance(last, Source) else last.layer
    return affine(layer or "output", [(result, _identity(result.coefficients.shape[1]))], None, last.shape)


def _operands(node: Node) -> tuple[int, ...]:
    if isinstance(node, Source):
        return ()
    return (node.x, node.y) if isinstance(node, Sum | Product) else (node.x,)


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
    return Polynomial(base, np.stack([np.zeros(size), np.ones(size)]))


def _is_plain(p: Polynomial) -> bool:
    return p.degree == 1 and not p.coefficients[0].any() and bool((p.coefficients[1] == 1.0).all())


def _trimmed(base: Base, coefficients: Array, offset: Array | float = 0.0) -> Polynomial:
    """The polynomial plus `offset`, without leading powers whose coefficients are all zero."""
    coefficients = coefficients.copy()
    coefficients[0] += offset
    if not np.isfinite(coefficients).all():
        raise ModelError("the coefficients of a polynomial overflow; scale the weights down")
    degree = max((k for k in range(1, len(coefficients)) if coefficients[k].any()), default=0)
    return Polynomial(base, coefficients[: degree + 1])


def _sum(layer: str, x: Polynomial, y: Polynomial, shape: Shape) -> Polynomial:
    if x.base is y.base:
        small, large = sorted((x, y), key=lambda p: p.degree)
        coefficients = large.coefficients.copy()
        coefficients[: small.degree + 1] += small.coefficients
        return _trimmed(x.base, coefficients)
    eye = _identity(math.prod(shape))
    return _plain(affine(layer, [(x, eye), (y, eye)], None, shape))


def _product(layer: str, x: Polynomial, y: Polynomial, shape: Shape) -> Polynomial:
    if x.base is y.base or x.degree == 0 or y.degree == 0:
        if x.degree + y.degree > 1 and math.prod(shape) > MAX_SLOTS:
            raise ModelError(
                f"node {layer!r}: a polynomial of {math.prod(shape)} elements does not fit {MAX_SLOTS} slots; make it smaller"
            )
        if x.degree + y.degree > MAX_DEGREE:
            raise ModelError(
                f"node {layer!r}: a polynomial of degree {x.degree + y.degree}, above {MAX_DEGREE}; use a smaller degree"
            )
        coefficients = np.zeros((x.degree + y.degree + 1, x.coefficients.shape[1]))
        for i, c in enumerate(x.coefficients):
            coefficients[i : i + y.degree + 1] += c * y.coefficients
        return _trimmed(y.base if x.degree == 0 else x.base, coefficients)
    return _plain(ProductBase(layer, _computed(layer, x, shape), _computed(layer, y, shape), shape))


def _computed(layer: str, x: Polynomial, shape: Shape) -> Base:
    """A base that equals `x`: its own if there is nothing to compute."""
    return x.base if _is_plain(x) else affine(layer, [(x, _identity(math.prod(shape)))], None, shape)
