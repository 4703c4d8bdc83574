"""The operation-level seam (Evaluator) and the one interpreter that runs a circuit on any evaluator."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import Protocol, TypeVar

from ckks.circuit import Circuit, Hops, Instruction, Op
from ckks.errors import EvaluationError

C = TypeVar("C")


class Evaluator(Protocol[C]):
    """Operations on values of type C: ciphertexts of ours, slot vectors in the clear, costs, another library's ciphertexts.

    Level and scale rules are those of ckks/circuit.py. `weight` arguments are keys of the weights given to the evaluator when it was made.
    """

    def add(self, a: C, b: C) -> C: ...
    def subtract(self, a: C, b: C) -> C: ...
    def add_plain(self, a: C, weight: str) -> C: ...
    def multiply_plain(self, a: C, weight: str, weight_scale: float) -> C: ...
    def multiply(self, a: C, b: C) -> C: ...
    def relinearise(self, a: C) -> C: ...
    def rescale(self, a: C) -> C: ...
    def drop_level(self, a: C, level: int) -> C: ...
    def rotate(self, a: C, steps: int) -> C: ...
    def linear_transform(
        self,
        a: C,
        weight: str,
        weight_scale: float,
        terms: tuple[tuple[int, int], ...],
        baby_hops: Hops = (),
        giant_hops: Hops = (),
    ) -> C: ...
    def matrix(
        self, stacks: Sequence[C], weight: str, weight_scale: float, members: int, products: int
    ) -> C: ...


Step = Callable[[int, Instruction], None]


def run(
    circuit: Circuit, inputs: MutableMapping[str, C], evaluator: Evaluator[C], before_step: Step | None = None
) -> dict[str, C]:
    """Evaluate a verified circuit; returns its outputs by name.

    A value is let go after its last use, so memory is bounded by the circuit's width; inputs are taken out of their mapping.
    `before_step(index, instruction)` runs before each instruction: progress, and cancellation by raising. Raises EvaluationError for a
    missing input.
    """
    last_use = {operand: i for i, ins in enumerate(circuit.instructions) for operand in ins.operands}
    values: dict[int, C] = {}
    outputs: dict[str, C] = {}
    for i, ins in enumerate(circuit.instructions):
        if before_step is not None:
            before_step(i, ins)
        if ins.op is Op.INPUT:
            if ins.name not in inputs:
                raise EvaluationError(f"input {ins.name!r} is missing")
            values[i] = inputs.pop(ins.name)
            continue
        operands = [values[o] for o in ins.operands]
        if ins.op is Op.OUTPUT:
            outputs[ins.name] = operands[0]
        else:
            values[i] = _apply(ins, operands, evaluator)
        for o in ins.operands:
            if last_use[o] == i:
                values.pop(o, None)
    return outputs


def _apply(ins: Instruction, operands: list[C], evaluator: Evaluator[C]) -> C:
    a = operands[0]
    match ins.op:
        case Op.ADD:
            return evaluator.add(a, operands[1])
        case Op.SUBTRACT:
            return evaluator.subtract(a, operands[1])
        case Op.MULTIPLY:
            return evaluator.multiply(a, operands[1])
        case Op.ADD_PLAIN:
            return evaluator.add_plain(a, ins.weight)
        case Op.MULTIPLY_PLAIN:
            return evaluator.multiply_plain(a, ins.weight, ins.weight_scale)
        case Op.RELINEARISE:
            return evaluator.relinearise(a)
        case Op.RESCALE:
            return evaluator.rescale(a)
        case Op.DROP_LEVEL:
            return evaluator.drop_level(a, ins.level)
        case Op.ROTATE:
            return evaluator.rotate(a, ins.steps)
        case Op.LINEAR_TRANSFORM:
            hops = ins.baby_hops, ins.giant_hops
            return evaluator.linear_transform(a, ins.weight, ins.weight_scale, ins.terms, *hops)
        case Op.MATRIX:
            return evaluator.matrix(operands, ins.weight, ins.weight_scale, ins.members, ins.products)
        case _:
            raise EvaluationError(f"{ins.op.value} is not an operation on values")
