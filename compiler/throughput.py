"""The throughput layout: one slot per image, one ciphertext per tensor element, matrix products in place of linear layers.

Nothing is packed, rotated or encoded. Tensors are computed in chunks of members, each with all that follows it up to the next layer, so
that memory holds what layers hand on and little more.

A square is relinearised late where that is cheaper: the matrix that follows is applied to its three polynomials, and relinearisation to
the fewer results. Its chunks are then added up as they come, and never held together.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from scipy.sparse import csr_array, hstack

from ckks.bundle import MAX_MEMBERS
from ckks.circuit import Circuit, Op, Weights
from ckks.counting import CountedValue, CountingEvaluator
from ckks.errors import ModelError
from ckks.machine import default_machine
from ckks.parameters import Parameters
from compiler.condition import Activation, AffineTensor, Function, InputTensor, ProductTensor, Program, Tensor
from compiler.layouts import Layout
from compiler.levels import Levels
from compiler.lower import ACTIVATION, MAX_LAYER_NAME, Emitter, Scales, Value, activate, uses
from compiler.pack import MAX_DIAGONAL_VALUES, Packing

CHUNK = 256  # members: a value of N=2^14 and 8 limbs then takes 0.5 GB

Range = tuple[int, int]
Pieces = dict[Range, Value]  # by members


def stack(program: Program) -> Packing:
    """Every tensor one member per element. Raises ModelError for tensors or matrices that are too large, and several inputs or outputs."""
    if len(program.inputs) > 1 or len(program.outputs) > 1:
        raise ModelError("the batch layout takes models of one input and one output; compile for latency")
    total = 0
    for t in program.tensors:
        size = math.prod(t.shape)
        if size > MAX_MEMBERS:
            raise ModelError(
                f"{program.layer_of(t)!r}: {size} elements would be as many ciphertexts, above {MAX_MEMBERS}; compile for latency"
            )
        total += sum(math.prod(m.shape) for _, m in t.terms) if isinstance(t, AffineTensor) else 0
    if total > MAX_DIAGONAL_VALUES:
        raise ModelError("the matrices would take more than 1 GiB; make the layers or the picture smaller")
    return Packing({id(t): _layout(math.prod(t.shape)) for t in program.tensors}, {}, {}, stacked=True)


def _layout(size: int) -> Layout:
    return Layout("one slot an image", np.arange(size), size)


def lower_stacks(
    program: Program,
    packing: Packing,
    levels: Levels,
    parameters: Parameters,
    scales: Scales,
    names: tuple[str, ...],
) -> tuple[Circuit, Weights]:
    """The circuit and its weights. names: the output's."""
    lowering = _Lowering(program, levels, scales, parameters)
    emitter = lowering.emitter
    for t in program.tensors:
        lowering.tensor(t)
    (last,) = lowering.tensors[id(program.outputs[0])].values()
    emitter.layer = ""
    emitter.emit(Op.OUTPUT, (last,), last.level, last.scale, name=names[0])
    return _without_unused(Circuit(parameters.slots, tuple(emitter.instructions)), emitter.weights)


def _without_unused(circuit: Circuit, weights: Weights) -> tuple[Circuit, Weights]:
    """Chunks that no output depends on are left out."""
    live = {len(circuit.instructions) - 1}
    for i in range(len(circuit.instructions) - 1, -1, -1):
        if i in live:
            live.update(circuit.instructions[i].operands)
    index = {old: new for new, old in enumerate(sorted(live))}
    kept = tuple(
        replace(ins, operands=tuple(index[o] for o in ins.operands))
        for ins in (circuit.instructions[i] for i in sorted(live))
    )
    used = {ins.weight for ins in kept}
    return Circuit(circuit.slots, kept), {k: w for k, w in weights.items() if k in used}


class _Lowering:
    """tensors, activations: the pieces of each, by id. sums: of late squares, by id of the tensor that they are summed into."""

    def __init__(self, program: Program, levels: Levels, scales: Scales, parameters: Parameters) -> None:
        self.program, self.levels, self.scales, self.parameters = program, levels, scales, parameters
        self.emitter, self.late = Emitter(parameters), late_squares(program, levels, parameters)
        self.tensors: dict[int, Pieces] = {}
        self.activations: dict[int, Pieces] = {}
        self.sums: dict[int, Pieces] = {}
        self.dropped: dict[tuple[int, int], Value] = {}
        self.whole = any(
            isinstance(t, ProductTensor) for t in program.tensors
        )  # factors are cut alike: not at all

    def ranges(self, t: Tensor) -> list[Range]:
        size = math.prod(t.shape)
        step = size if self.whole or t is self.program.outputs[0] else CHUNK
        return [(i, min(i + step, size)) for i in range(0, size, step)]

    def tensor(self, t: Tensor) -> None:
        level, layer = self.levels.tensors[id(t)], self.program.layer_of(t)
        pieces = self.tensors.setdefault(id(t), {})
        if isinstance(t, InputTensor):
            size = math.prod(t.shape)
            value = self.emitter.emit(Op.INPUT, (), level, self.scales.base, name=t.name, members=size)
            pieces[0, size] = value
            self._activate(t, (0, size), value)
            return
        for at in self.ranges(t):
            self.emitter.layer = layer[:MAX_LAYER_NAME]
            if isinstance(t, AffineTensor):
                value = self._affine(t, at)
            else:
                factors = (self.tensors[id(x)][at] for x in (t.left, t.right))
                value = self.emitter.multiply(*(self._drop(x, level + 1) for x in factors))
            pieces[at] = value
            self.emitter.layer = f"{layer[: MAX_LAYER_NAME - len(ACTIVATION)]}{ACTIVATION}"
            self._activate(t, at, value)

    def _activate(self, t: Tensor, at: Range, value: Value) -> None:
        for activation in uses(self.program, t):
            level = self.levels.activations[id(activation)]
            if id(activation) in self.late:
                factor = self._drop(value, level + 1)
                square = self.emitter.emit(Op.MULTIPLY, (factor, factor), factor.level, factor.scale**2)
                self._add_late(activation, at, square)
            else:
                found = activate(
                    self.emitter, activation, value, level, np.arange(*at), _layout(at[1] - at[0])
                )
                self.activations.setdefault(id(activation), {})[at] = found

    def _add_late(self, activation: Activation, at: Range, square: Value) -> None:
        user = next(
            t
            for t in self.program.tensors
            if isinstance(t, AffineTensor) and activation in [a for a, _ in t.terms]
        )
        matrix = next(m for a, m in user.terms if a is activation)
        self.emitter.layer = user.layer[:MAX_LAYER_NAME]
        sums = self.sums.setdefault(id(user), {})
        for target in self.ranges(user):
            if (part := _part(matrix, target, at)).nnz or target not in sums:
                y = self._matrix(user, [part], [square])
                sums[target] = self.emitter.add(sums[target], y) if target in sums else y

    def _affine(self, t: AffineTensor, at: Range) -> Value:
        total: Value | None = None
        level = self.levels.operand(t)
        if (late := self.sums.get(id(t), {}).pop(at, None)) is not None:
            relinearised = self.emitter.emit(Op.RELINEARISE, (late,), late.level, late.scale)
            total = self.emitter.rescale(relinearised)
        for activation, matrix in t.terms:
            pieces = self.activations.get(id(activation), {})
            parts = {source: _part(matrix, at, source) for source in pieces}
            used = [source for source in pieces if parts[source].nnz] or list(pieces)[:1]
            if used:
                y = self._matrix(t, [parts[s] for s in used], [self._drop(pieces[s], level) for s in used])
                total = y if total is None else self.emitter.add(total, y)
        assert total is not None  # folding keeps at least one term
        total = total if id(t) in self.levels.unscaled else self.emitter.rescale(total)
        return self.emitter.add_plain(total, t.bias[slice(*at)])

    def _matrix(self, t: AffineTensor, parts: list[csr_array], stacks: list[Value]) -> Value:
        """At the level of the stacks, and at the scale that rescaling to the level of t's products makes theirs."""
        a, weight, level = stacks[0], hstack(parts).toarray(), self.levels.operand(t)
        wanted = self.scales.of_products(self.program, self.levels, self.parameters, t)
        wanted *= math.prod(self.emitter.primes[level + 1 : a.level + 1])
        return self.emitter.emit(
            Op.MATRIX,
            tuple(stacks),
            a.level,
            wanted,
            weight=weight,
            weight_scale=wanted / a.scale,
            members=len(weight),
            products=int(np.count_nonzero(weight)),
        )

    def _drop(self, a: Value, level: int) -> Value:
        """A lower level is made once, and used by all chunks."""
        key = a.index, level
        if key not in self.dropped:
            self.dropped[key] = self.emitter.drop(a, level)
        return self.dropped[key]


def _part(matrix: csr_array, rows: Range, columns: Range) -> csr_array:
    return csr_array(matrix[slice(*rows)][:, slice(*columns)])


def late_squares(program: Program, levels: Levels, parameters: Parameters) -> set[int]:
    """Squares (ids of activations) that one matrix uses, at once, and for which relinearising its results costs less."""
    found = set[int]()
    users: dict[int, list[tuple[AffineTensor, Activation, int]]] = {}
    for t in program.tensors:
        if isinstance(t, AffineTensor):
            for activation, matrix in t.terms:
                users.setdefault(id(activation), []).append((t, activation, int(matrix.count_nonzero())))
    for key, of in users.items():
        t, activation, products = of[0]
        level = levels.activations[key]
        if activation.function is not Function.SQUARE or len(of) > 1 or levels.operand(t) != level:
            continue
        inputs, outputs = math.prod(activation.tensor.shape), math.prod(t.shape)
        times = [_seconds(parameters, level + 1, inputs, outputs, products, late) for late in (False, True)]
        if times[1] < times[0]:
            found.add(key)
    return found


def _seconds(
    parameters: Parameters, level: int, inputs: int, outputs: int, products: int, late: bool
) -> float:
    """Of a matrix on squares that are made at `level`, from the product to the result, but for a rescale of the result that both have."""
    evaluator = CountingEvaluator(parameters)
    value = CountedValue(level, inputs, 3)
    if late:
        value = evaluator.relinearise(evaluator.matrix([value], "", 1.0, outputs, products))
        evaluator.rescale(value)
    else:
        value = evaluator.rescale(evaluator.relinearise(value))
        evaluator.matrix([value], "", 1.0, outputs, products)
    return default_machine().costs().seconds(parameters, evaluator.cost.calls)
