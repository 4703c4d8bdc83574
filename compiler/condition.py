"""Conditioning: ranges from calibration data, completed squares, and values scaled to one size before they are encrypted numbers.

Every base x is computed as u = gain * (x + shift), gain and shift per element and folded into the affine maps around it:
- a quadratic a x^2 + b x + c is a (x + b/2a)^2 + const, so with shift = b/2a it costs one squaring and one level;
- noise is the same in every slot, so elements of equal size lose the least precision;
- higher degrees are evaluated in C_k(u) = 2 T_k(u / 2), T_k Chebyshev's, with |u| <= 2 over the range: no coefficient is then much larger
  than the values, and C_{m+n} = C_m C_n - C_|m-n| needs no factor 2 (Abramowitz and Stegun, table 22.2 and formula 22.7.24).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.polynomial import chebyshev
from scipy.sparse import csr_array, diags_array

from ckks.errors import ModelError
from compiler.fold import AffineBase, Base, InputBase, Polynomial
from compiler.graph import Array, Shape

MAX_VALUE = 2.0**100  # larger values fit no modulus, and their squares leave float64's range
MAX_SHIFT = 16.0  # in units of the calibrated range: a larger vertex would drown the values in the square of the shift
MIN_SPREAD = 1 / 4  # elements that hardly vary are scaled up to this fraction of the largest at most
# Larger values make the rounding noise of ciphertexts weigh less and that of the weights they meet more; they balance about here.
SQUARE_SIZE = 6.0
FIT_SIZE = 2.0  # C_k stays within 2 while its argument does
LEADING_SHARE = 1 / 64  # a smaller leading coefficient would make the polynomial divided by it too large


class Function(str, Enum):
    """What is computed of a tensor before a linear transform."""

    IDENTITY = "identity"
    SQUARE = "square"
    POLYNOMIAL = "polynomial"


@dataclass(frozen=True, eq=False)
class InputTensor:
    """start: where it begins in a flat row of all inputs."""

    name: str
    shape: Shape
    start: int


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
    """function(tensor). For POLYNOMIAL only: coefficients [degree+1][elements] of 1, C_1(u), C_2(u), ..."""

    tensor: Tensor
    function: Function
    coefficients: Array | None = None

    @property
    def monic(self) -> bool:
        """Whether it is C_K, K a power of two, plus lower terms: the leading term then costs no level for its coefficient."""
        c = self.coefficients
        return c is not None and len(c) > 1 and not (len(c) - 1) & (len(c) - 2) and bool((c[-1] == 1.0).all())

    @property
    def depth(self) -> int:
        """Levels it consumes."""
        if self.coefficients is None:
            return 1 if self.function is Function.SQUARE else 0
        return (
            len(self.coefficients) - 1
        ).bit_length() - self.monic  # ceil(log2(degree + 1)), or log2(degree)


def can_be_monic(coefficients: Array) -> bool:
    """Whether a polynomial in the C_k (or T_k), [degree+1][elements], has a degree of a power of two and leading terms to divide by."""
    degree = len(coefficients) - 1
    size = np.abs(coefficients[1:]).max(axis=0)
    return (
        degree > 1
        and not degree & (degree - 1)
        and bool((np.abs(coefficients[-1]) >= LEADING_SHARE * size).all())
    )


Tensor = InputTensor | AffineTensor | ProductTensor


@dataclass(frozen=True, eq=False)
class Program:
    """Tensors in topological order. largest: bound on |value| of any square, product or output calibrated.

    largest_outputs: the largest |value| calibrated of each output.
    """

    tensors: tuple[Tensor, ...]
    outputs: tuple[AffineTensor, ...]
    largest: float
    largest_outputs: tuple[float, ...]

    @property
    def inputs(self) -> list[InputTensor]:
        return [t for t in self.tensors if isinstance(t, InputTensor)]

    def layer_of(self, tensor: Tensor) -> str:
        return tensor.name if isinstance(tensor, InputTensor) else tensor.layer


def bases_in_order(outputs: Sequence[Base]) -> list[Base]:
    """All bases that `outputs` depend on, operands first."""
    order: list[Base] = []
    seen = set[int]()
    work: list[tuple[Base, bool]] = [(output, False) for output in reversed(outputs)]
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


def forward(order: list[Base], rows: Array) -> Mapping[int, Array]:
    """Values float64 [rows][elements] of every base, by id, for input rows [rows][elements]. Raises ModelError on overflow."""
    values: dict[int, Array] = {}
    for base in order:
        if isinstance(base, InputBase):
            value = rows[:, base.start : base.start + math.prod(base.shape)]
        elif isinstance(base, AffineBase):
            parts = (p(values[id(p.base)]) @ m.T for p, m in base.terms)
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


def condition(outputs: tuple[AffineBase, ...], rows: Array) -> Program:
    """The program for `outputs`, with ranges taken from calibration rows [rows][input elements]. Raises ModelError."""
    order = bases_in_order(outputs)
    ends = {id(output) for output in outputs}
    values = forward(order, rows)
    largest_outputs = tuple(float(np.abs(values[id(output)]).max()) for output in outputs)
    largest = max(1.0, *largest_outputs)
    framed: dict[int, _Framed] = {}
    activations: dict[tuple[int, str], Activation] = {}
    for base in order:
        size = math.prod(base.shape)
        gain, shift = np.ones(size), np.zeros(size)
        tensor: Tensor
        if isinstance(base, InputBase):
            tensor = InputTensor(base.name, base.shape, base.start)
        elif isinstance(base, AffineBase):
            if id(base) not in ends:
                gain, shift = _frame(base, order, values[id(base)])
            tensor = _affine(base, gain, shift, framed, activations)
        else:
            left, right = framed[id(base.left)], framed[id(base.right)]
            gain = left.gain * right.gain
            tensor = ProductTensor(base.layer, left.tensor, right.tensor, base.shape)
        framed[id(base)] = _Framed(tensor, gain, shift, gain * (values[id(base)] + shift))
        if id(base) not in ends:
            largest = max(largest, float(np.abs(framed[id(base)].value).max()) ** 2)
    for a in activations.values():
        if a.coefficients is not None:
            # Of any partial sum: splitting a polynomial moves a coefficient to one more place at most, and |C_k| <= 2.
            largest = max(largest, 4 * float(np.abs(a.coefficients).sum(axis=0).max()))
    made = {id(b): framed[id(b)].tensor for b in order}
    results = tuple(t for t in (made[id(output)] for output in outputs) if isinstance(t, AffineTensor))
    return Program(tuple(made.values()), results, largest, largest_outputs)


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
    high, low = value.max(axis=0), value.min(axis=0)
    size = SQUARE_SIZE
    if any(p.degree > 2 for p in uses):
        size = FIT_SIZE
        for p in uses:  # a fit is good over its interval, which is wider than the calibrated values
            varies = (p.half != 1.0) & p.coefficients[1:].any(axis=0)
            high = np.where(varies, np.maximum(high, p.center + np.abs(p.half)), high)
            low = np.where(varies, np.minimum(low, p.center - np.abs(p.half)), low)
    if uses and not multiplied:
        # High powers lose the least of |u| <= 2 about the middle of the range.
        shift = next((s for p in uses if (s := _vertex(p, value)) is not None), -(high + low) / 2)
    spread = np.maximum(high + shift, -(low + shift))
    largest = float(spread.max())
    spread = np.maximum(spread, largest * MIN_SPREAD if largest > 0 else 1.0)
    return size / spread, shift


def _vertex(p: Polynomial, value: Array) -> Array | None:
    """b/2a of a quadratic a x^2 + b x + c; None if it is no quadratic or some vertex lies too far out."""
    if p.degree != 2:
        return None
    _, b, a = p.plain.coefficients
    if ((a == 0) & (b != 0)).any():
        return None
    shift: Array = np.divide(b, 2 * a, out=np.zeros_like(a), where=a != 0)
    return shift if np.abs(shift).max() <= MAX_SHIFT * max(float(np.abs(value).max()), 1e-30) else None


def _activation(
    p: Polynomial, source: _Framed, known: dict[tuple[int, str], Activation]
) -> tuple[Activation, Array, Array]:
    """An activation v with p(x) = factor * v(u) + constant, and factor and constant [elements]."""
    tensor, gain = source.tensor, source.gain
    if p.degree > 2:
        return _polynomial(p, source, known)
    linear = p.plain.coefficients[1]
    q = p.in_frame(-source.shift, 1.0 / gain).coefficients  # x = u / gain - shift
    if p.degree == 1:
        activation = known.setdefault((id(tensor), "identity"), Activation(tensor, Function.IDENTITY))
        return activation, q[1], q[0]
    # What is left of a completed square's linear coefficient is float64 rounding.
    if (np.abs(q[1]) <= 1e-12 * (np.abs(linear / gain) + np.abs(q[2]))).all():
        activation = known.setdefault((id(tensor), "square"), Activation(tensor, Function.SQUARE))
        return activation, q[2], q[0]
    return _polynomial(p, source, known)


def _polynomial(
    p: Polynomial, source: _Framed, known: dict[tuple[int, str], Activation]
) -> tuple[Activation, Array, Array]:
    """As _activation, in the C_k: interpolated at their nodes, which is exact, and to rounding the same as p wherever |u| <= 2."""
    count = p.degree + 1
    nodes = np.cos(np.pi * (np.arange(count) + 0.5) / count)
    values = p(2 * nodes[:, None] / source.gain - source.shift)
    c = chebyshev.chebvander(nodes, p.degree).T @ values * (2 / count)
    c[0] /= 2
    c[np.abs(c) < 1e-13 * np.abs(c).max(axis=0)] = (
        0.0  # rounding, of which an element that does not vary would be made
    )
    constant, c[0] = c[0].copy(), 0.0
    c[1:] /= 2
    c = c[: max((k for k in range(2, count) if c[k].any()), default=1) + 1]
    still = ~c.any(axis=0)
    c[-1, still] = 1.0  # whatever is computed of an element that does not vary, its factor is zero
    if can_be_monic(c):
        factor = c[-1].copy()
        c /= factor
        c[-1] = 1.0
    else:
        u = source.value
        size = max(float(np.abs(chebyshev.chebval(u / 2, 2 * c[:, None, :], tensor=False)).max()), 1e-30)
        factor = np.full(len(source.gain), size)
        c /= size
    factor[still] = 0.0
    key = id(source.tensor), f"polynomial {id(p)}"
    activation = known.setdefault(key, Activation(source.tensor, Function.POLYNOMIAL, c))
    return activation, factor, constant
