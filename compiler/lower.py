"""Lowering: tensors in layouts become instructions with exact levels and scales, for given primes.

Every multiplication is followed by a rescale, but for those of outputs that stay as they are (compiler/levels.py). A linear transform's
weight scale is chosen so that its result has the base scale exactly; activations and products let the scale drift by q / scale, and the
next transform takes the drift back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ckks.circuit import Circuit, Instruction, Op, Weights, part_names
from ckks.parameters import Parameters
from compiler.condition import Activation, AffineTensor, Function, InputTensor, Program, Tensor
from compiler.graph import Array
from compiler.layouts import Layout
from compiler.levels import Levels
from compiler.matrices import Index
from compiler.pack import Packing

MAX_LAYER_NAME = 200  # the circuit format's limit
ACTIVATION = " (activation)"  # what the layer's name is followed by in instructions of its activation


@dataclass(frozen=True)
class Value:
    index: int
    level: int
    scale: float


@dataclass(frozen=True, eq=False)
class Scales:
    """base: of inputs and of most affine results. unscaled: of outputs that are not rescaled, in the order of the program's.

    last: of the affine results (levels.last) that give, squared or multiplied, what those outputs are computed of.
    """

    base: float
    unscaled: tuple[float, ...]
    last: float

    def of_products(self, program: Program, levels: Levels, parameters: Parameters, t: AffineTensor) -> float:
        """What the linear transforms of `t` give."""
        if id(t) in levels.unscaled:
            return self.unscaled[next(i for i, output in enumerate(program.outputs) if output is t)]
        scale = self.last if id(t) in levels.last else self.base
        return scale * parameters.data_primes[levels.operand(t)]


def lower(
    program: Program,
    packing: Packing,
    levels: Levels,
    parameters: Parameters,
    scales: Scales,
    names: tuple[str, ...],
) -> tuple[Circuit, Weights]:
    """The circuit and its weights. names: of the outputs."""
    emitter = Emitter(parameters)
    tensors: dict[int, _Parts] = {}
    activations: dict[int, _Parts] = {}
    for t in program.tensors:
        level = levels.tensors[id(t)]
        layout, parts = packing.layouts[id(t)], packing.parts[id(t)]
        if isinstance(t, InputTensor):
            value = {
                k: emitter.emit(Op.INPUT, (), level, scales.base, name=name)
                for k, name in enumerate(part_names(t.name, layout.parts))
            }
        else:
            emitter.layer = t.layer[:MAX_LAYER_NAME]
            if isinstance(t, AffineTensor):
                products = scales.of_products(program, levels, parameters, t)
                value = _affine(emitter, t, packing, levels, products, activations)
            else:
                left, right = tensors[id(t.left)], tensors[id(t.right)]
                value = {
                    k: emitter.multiply(*(emitter.drop(x[k], level + 1) for x in (left, right)))
                    for k in parts
                }
        tensors[id(t)] = value
        emitter.layer = f"{program.layer_of(t)[: MAX_LAYER_NAME - len(ACTIVATION)]}{ACTIVATION}"
        for activation in uses(program, t):
            after = levels.activations[id(activation)]
            activations[id(activation)] = {
                k: activate(emitter, activation, value[k], after, *layout.part(k)) for k in parts
            }
    emitter.layer = ""
    for name, t in zip(names, program.outputs, strict=True):
        value = tensors[id(t)]
        for k, part in enumerate(part_names(name, len(value))):
            emitter.emit(Op.OUTPUT, (value[k],), value[k].level, value[k].scale, name=part)
    return Circuit(parameters.slots, tuple(emitter.instructions)), emitter.weights


def uses(program: Program, tensor: Tensor) -> list[Activation]:
    found = {
        id(a): a
        for t in program.tensors
        if isinstance(t, AffineTensor)
        for a, _ in t.terms
        if a.tensor is tensor
    }
    return list(found.values())


_Parts = dict[int, Value]  # of a tensor or an activation, by part; those that nothing reads may be missing


class Emitter:
    """Appends instructions; computes their levels and scales from their operands."""

    def __init__(self, parameters: Parameters) -> None:
        self.primes = parameters.data_primes
        self.instructions: list[Instruction] = []
        self.weights: dict[str, Array] = {}
        self.layer = ""

    def emit(
        self, op: Op, operands: tuple[Value, ...], level: int, scale: float, *, name: str = "", steps: int = 0,
        weight: Array | None = None, weight_scale: float = 0.0, terms: tuple[tuple[int, int], ...] = (), members: int = 0,
        products: int = 0,
    ) -> Value:  # fmt: skip
        key = ""
        if weight is not None:
            key = f"w{len(self.weights)}"
            self.weights[key] = weight
        indices = tuple(o.index for o in operands)
        made = Instruction(op, indices, level, scale, self.layer, name, steps, key, weight_scale, terms)
        self.instructions.append(replace(made, members=members, products=products))
        return Value(len(self.instructions) - 1, level, scale)

    def drop(self, a: Value, level: int) -> Value:
        return a if a.level == level else self.emit(Op.DROP_LEVEL, (a,), level, a.scale)

    def rescale(self, a: Value) -> Value:
        return self.emit(Op.RESCALE, (a,), a.level - 1, a.scale / self.primes[a.level])

    def multiply(self, a: Value, b: Value) -> Value:
        """Product, relinearised and rescaled; operands of one level."""
        product = self.emit(Op.MULTIPLY, (a, b), a.level, a.scale * b.scale)
        return self.rescale(self.emit(Op.RELINEARISE, (product,), a.level, product.scale))

    def add(self, a: Value, b: Value) -> Value:
        return self.emit(Op.ADD, (a, b), a.level, a.scale)

    def add_plain(self, a: Value, weight: Array) -> Value:
        return self.emit(Op.ADD_PLAIN, (a,), a.level, a.scale, weight=weight) if weight.any() else a

    def multiply_plain(self, a: Value, weight: Array, level: int, scale: float) -> Value:
        """a * weight, rescaled to `level` and `scale`."""
        a = self.drop(a, level + 1)
        factor = scale * self.primes[a.level] / a.scale
        product = self.emit(
            Op.MULTIPLY_PLAIN, (a,), a.level, a.scale * factor, weight=weight, weight_scale=factor
        )
        return self.rescale(product)


def _affine(
    emitter: Emitter,
    t: AffineTensor,
    packing: Packing,
    levels: Levels,
    products: float,
    activations: dict[int, _Parts],
) -> _Parts:
    """products: the scale of what its transforms give."""
    late, unscaled = levels.tensors[id(t)] == 0, id(t) in levels.unscaled
    # By part and folds: transforms that fold alike are added first.
    sums: dict[tuple[int, tuple[int, ...]], Value] = {}
    for transform in packing.transforms[id(t)]:
        a = emitter.drop(activations[id(transform.activation)][transform.source], levels.operand(t))
        factor = products / a.scale
        y = emitter.emit(
            Op.LINEAR_TRANSFORM,
            (a,),
            a.level,
            a.scale * factor,
            weight=transform.diagonals,
            weight_scale=factor,
            terms=transform.terms,
        )
        key = transform.target, transform.folds
        sums[key] = emitter.add(sums[key], y) if key in sums else y
    totals: _Parts = {}
    for (k, folds), y in sums.items():
        # Folding adds up the rounding of a rescale before it. Rotations are cheaper after it: done so but in the output, where
        # they are cheap anyway and no later layer averages.
        y = y if late else emitter.rescale(y)
        for steps in folds:
            y = emitter.add(y, emitter.emit(Op.ROTATE, (y,), y.level, y.scale, steps=steps))
        y = emitter.rescale(y) if late and not unscaled else y
        totals[k] = emitter.add(totals[k], y) if k in totals else y
    layout = packing.layouts[id(t)]
    for k, total in totals.items():
        elements, place = layout.part(k)
        totals[k] = emitter.add_plain(total, place.spread(t.bias[elements]))
    return totals


def activate(
    emitter: Emitter, activation: Activation, u: Value, level: int, elements: Index, layout: Layout
) -> Value:
    """The activation of one part; elements: those in it, layout: where they lie in it."""
    if activation.function is Function.IDENTITY:
        return u
    u = emitter.drop(u, level + activation.depth)
    if activation.coefficients is None:
        return emitter.multiply(u, u)
    c = activation.coefficients[:, elements]
    powers = {1: u}  # C_1, C_2, C_4, ...
    while 2 * max(powers) < len(c):
        top = max(powers)
        square = emitter.multiply(powers[top], powers[top])
        powers[2 * top] = emitter.add_plain(square, layout.spread(np.full(c.shape[1], -2.0)))
    if activation.monic:
        leading = emitter.drop(powers[len(c) - 1], level)
        rest = _evaluate(emitter, c[:-1], powers, level, leading.scale, layout)
        return leading if rest is None else _sum(emitter, rest, leading)
    drifted = u.scale**2 / emitter.primes[level + 1]
    result = _evaluate(emitter, c, powers, level, drifted, layout)
    assert isinstance(result, Value)  # a polynomial that is constant is no activation
    return result


def _evaluate(
    emitter: Emitter,
    coefficients: Array,
    powers: dict[int, Value],
    level: int,
    scale: float,
    layout: Layout,
) -> Value | Array | None:
    """sum_k coefficients[k] C_k at `level` and `scale` in ceil(log2(degree+1)) levels: a high part times C_K and a low part.

    K is the largest power of two up to the degree; C_K C_i = C_{K+i} + C_{K-i} gives the parts.
    A constant is returned as its slots, zero as None.
    """
    while len(coefficients) and not coefficients[-1].any():
        coefficients = coefficients[:-1]
    if len(coefficients) < 2:
        return layout.spread(coefficients[0]) if len(coefficients) else None
    degree = len(coefficients) - 1
    k = 1 << (degree.bit_length() - 1)  # the largest power of two that is at most the degree
    low, high = coefficients[:k].copy(), coefficients[k:]
    for i in range(1, len(high)):
        low[k - i] -= high[i]
    factor_scale = scale * emitter.primes[level + 1] / powers[k].scale
    factor = _evaluate(emitter, high, powers, level + 1, factor_scale, layout)
    if isinstance(factor, Value):
        result = emitter.multiply(factor, emitter.drop(powers[k], level + 1))
    else:
        assert factor is not None  # its last coefficient is not zero
        result = emitter.multiply_plain(powers[k], factor, level, scale)
    rest = _evaluate(emitter, low, powers, level, scale, layout)
    return result if rest is None else _sum(emitter, rest, result)


def _sum(emitter: Emitter, rest: Value | Array, a: Value) -> Value:
    return emitter.add(a, rest) if isinstance(rest, Value) else emitter.add_plain(a, rest)
