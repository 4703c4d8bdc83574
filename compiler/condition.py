"""Conditioning: ranges from calibration data, completed squares, and values scaled to one size before they are encrypted numbers.

Every base x is computed as u = gain * (x + shift), gain and shift per element and folded into the affine maps around it:
- a quadratic a x^2 + b x + c is a (x + b/2a)^2 + const, so with shift = b/2a it costs one squaring and one level;
- noise is the same in every slot, so elements of equal size lose the least precision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np
from scipy.sparse import csr_array, diags_array

from ckks.errors import ModelError
from compiler.fold import AffineBase, Base, InputBase, Polynomial
from compiler.graph import Array, Shape

MAX_VALUE = 2.0**100  # larger values fit no modulus, and their squares leave float64's range
MAX_SHIFT = 16.0  # in units of the calibrated range: a larger vertex would drown the values in the square of the shift
MIN_SPREAD = 1 / 4  # elements that hardly vary are scaled up to this fraction of the largest at most
# Larger values make the rounding noise of ciphertexts weigh less and that of the weights they meet more; they balance about here.
SQUARE_SIZE = 6.0


class Function(str, Enum):
    """What is computed of a tensor before a linear transform."""

    IDENTITY = "identity"
    SQUARE = "square"
    POLYNOMIAL = "polynomial"


@dataclass(frozen=True, eq=False)
class InputTensor:
    name: str
    shape: Shape


@dataclass(frozen=True, eq=False)
class AffineTensor:
    """bias + sum of matrix @ activation."""

    layer: str
    terms: tuple[tuple[Activation, csr_array], ...]
    bias: Array
    shape: Shape


@dataclass(frozen=True, eq=False)
class ProductTensor:
    layer: str
    left: Tensor
    right: Tensor
    shape: Shape


@dataclass(frozen=True, eq=False)
class Activation:
    """function(tensor); coefficients [degree+1][elements] for POLYNOMIAL only."""

    tensor: Tensor
    function: Function
    coefficients: Array | None = None

    @property
    def depth(self) -> int:
        """Levels it consumes."""
        if self.coefficients is None:
            return 1 if self.function is Function.SQUARE else 0
        return (len(self.coefficients) - 1).bit_length()  # ceil(log2(degree + 1))


Tensor = InputTensor | AffineTensor | ProductTensor


@dataclass(frozen=True, eq=False)
class Program:
    """Tensors in topological order, input first, output last. largest: bound on |value| of any square, product or output calibrated."""

    tensors: tuple[Tensor, ...]
    largest: float
    largest_output: float

    def layer_of(self, tensor: Tensor) -> str:
        return tensor.name if isinstance(tensor, InputTensor) else tensor.layer


def bases_in_order(output: Base) -> list[Base]:
    """All bases that `output` depends on, operands first, `output` last."""
    order: list[Base] = []
    seen = set[int]()
    work: list[tuple[Base, bool]] = [(output, False)]
    while work:
        base, ready = work.pop()
        if ready:
            order.append(base)
        elif id(base) not in seen:
            seen.add(id(base))
            work.append((base, True))
            work += [(operand, False) for operand in _operands(base)]
    return order


def _operands(base: Base) -> list[Base]:
    if isinstance(base, InputBase):
        return []
    return [p.base for p, _ in base.terms] if isinstance(base, AffineBase) else [base.left, base.right]


def _apply(p: Polynomial, x: Array) -> Array:
    result = np.zeros_like(x)
    for c in p.coefficients[::-1]:
        result = result * x + c
    return result


def forward(order: list[Base], rows: Array) -> Mapping[int, Array]:
    """Values float64 [rows][elements] of every base, by id, for input rows [rows][elements]. Raises ModelError on overflow."""
    values: dict[int, Array] = {}
    for base in order:
        if isinstance(base, InputBase):
            value = rows
        elif isinstance(base, AffineBase):
            parts = (_apply(p, values[id(p.base)]) @ m.T for p, m in base.terms)
            value = sum(parts, np.zeros(1)) + base.bias
        else:
            value = values[id(base.left)] * values[id(base.right)]
        if not np.abs(value).max() < MAX_VALUE:
            where = "the input" if isinstance(base, InputBase) else f"layer {base.layer!r}"
            raise ModelError(
                f"{where}: values overflow on the calibration data; check its range and the model's weights"
            )
        values[id(base)] = value
    return values


def condition(output: AffineBase, rows: Array) -> Program:
    """The program for `output`, with ranges taken from calibration rows [rows][input elements]. Raises ModelError."""
    order = bases_in_order(output)
    values = forward(order, rows)
    largest_output = float(np.abs(values[id(output)]).max())
    largest = max(1.0, largest_output)
    framed: dict[int, _Framed] = {}
    activations: dict[tuple[int, str], Activation] = {}
    for base in order:
        size = math.prod(base.shape)
        gain, shift = np.ones(size), np.zeros(size)
        tensor: Tensor
        if isinstance(base, InputBase):
            tensor = InputTensor(base.name, base.shape)
        elif isinstance(base, AffineBase):
            if base is not output:
                gain, shift = _frame(base, order, values[id(base)])
            tensor = _affine(base, gain, shift, framed, activations)
        else:
            left, right = framed[id(base.left)], framed[id(base.right)]
            gain = left.gain * right.gain
            tensor = ProductTensor(base.layer, left.tensor, right.tensor, base.shape)
        framed[id(base)] = _Framed(tensor, gain, shift, gain * (values[id(base)] + shift))
        if base is not output:
            largest = max(largest, float(np.abs(framed[id(base)].value).max()) ** 2)
    by_tensor = {id(f.tensor): f.value for f in framed.values()}
    for a in activations.values():
        if a.coefficients is not None:
            sizes = _apply(Polynomial(output, np.abs(a.coefficients)), np.abs(by_tensor[id(a.tensor)]))
            largest = max(largest, float(sizes.max()))  # of any partial sum
    return Program(tuple(framed[id(b)].tensor for b in order), largest, largest_output)


@dataclass(frozen=True, eq=False)
class _Framed:
    """A conditioned base; value: u on the calibration rows."""

    tensor: Tensor
    gain: Array
    shift: Array
    value: Array


def _affine(
    base: AffineBase,
    gain: Array,
    shift: Array,
    framed: dict[int, _Framed],
    known: dict[tuple[int, str], Activation],
) -> AffineTensor:
    """gain * (base + shift) in terms of the conditioned operands."""
    terms: dict[int, tuple[Activation, csr_array]] = {}
    bias = base.bias + shift
    for p, matrix in base.terms:
        activation, factor, constant = _activation(p, framed[id(p.base)], known)
        bias = bias + matrix @ constant
        scaled = csr_array(diags_array(gain) @ matrix @ diags_array(factor))
        if id(activation) in terms:
            scaled = csr_array(terms[id(activation)][1] + scaled)
        terms[id(activation)] = activation, scaled
    bias = gain * bias
    if not np.isfinite(bias).all() or any(not np.isfinite(m.data).all() for _, m in terms.values()):
        raise ModelError(f"layer {base.layer!r}: its weights overflow; scale them down")
    return AffineTensor(base.layer, tuple(terms.values()), bias, base.shape)


def _frame(base: AffineBase, order: list[Base], value: Array) -> tuple[Array, Array]:
    """gain and shift of an affine base that is not the output."""
    uses = [
        p
        for user in order
        if isinstance(user, AffineBase)
        for p, _ in user.terms
        if p.base is base and p.degree > 1
    ]
    multiplied = any(
        base is operand for user in order if not isinstance(user, AffineBase) for operand in _operands(user)
    )
    shift = np.zeros(value.shape[1])
    if uses and not multiplied:
        # High powers lose the least of |u| <= 1 about the middle of the range.
        middle = -(value.max(axis=0) + value.min(axis=0)) / 2
        shift = next((s for p in uses if (s := _vertex(p, value)) is not None), middle)
    spread = np.abs(value + shift).max(axis=0)
    largest = float(spread.max())
    spread = np.maximum(spread, largest * MIN_SPREAD if largest > 0 else 1.0)
    size = SQUARE_SIZE if all(p.degree == 2 for p in uses) else 1.0  # high powers need |u| <= 1
    return size / spread, shift


def _vertex(p: Polynomial, value: Array) -> Array | None:
    """b/2a of a quadratic a x^2 + b x + c; None if it is no quadratic or some vertex lies too far out."""
    if p.degree != 2:
        return None
    _, b, a = p.coefficients
    if ((a == 0) & (b != 0)).any():
        return None
    shift: Array = np.divide(b, 2 * a, out=np.zeros_like(a), where=a != 0)
    return shift if np.abs(shift).max() <= MAX_SHIFT * max(float(np.abs(value).max()), 1e-30) else None


def _activation(
    p: Polynomial, source: _Framed, known: dict[tuple[int, str], Activation]
) -> tuple[Activation, Array, Array]:
    """An activation v with p(x) = factor * v(u) + constant, and factor and constant [elements]."""
    tensor, gain = source.tensor, source.gain
    q = _reframed(p.coefficients, gain, source.shift)
    if p.degree == 1:
        key, function, factor, coefficients = (id(tensor), "identity"), Function.IDENTITY, q[1], None
    # What is left of a completed square's linear coefficient is float64 rounding.
    elif p.degree == 2 and (np.abs(q[1]) <= 1e-12 * (np.abs(p.coefficients[1] / gain) + np.abs(q[2]))).all():
        key, function, factor, coefficients = (id(tensor), "square"), Function.SQUARE, q[2], None
    else:
        q0, q[0] = q[0].copy(), 0.0
        size = max(float(np.abs(_apply(Polynomial(p.base, q), source.value)).max()), 1e-30)
        key, function = (id(tensor), f"polynomial {id(p)}"), Function.POLYNOMIAL
        factor, coefficients = np.full(len(gain), size), q / size
        q[0] = q0
    activation = known.setdefault(key, Activation(tensor, function, coefficients))
    return activation, factor, q[0]


def _reframed(coefficients: Array, gain: Array, shift: Array) -> Array:
    """Coefficients in u of a polynomial in x = u / gain - shift."""
    result = np.zeros_like(coefficients)
    for k, c in enumerate(coefficients):
        for i in range(k + 1):
            result[i] += c * math.comb(k, i) * (-shift) ** (k - i) * gain ** -float(i)
    return result
