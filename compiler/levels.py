"""Levels: each tensor as low as its consumers allow, so that the input starts as low as the depth allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compiler.condition import Activation, AffineTensor, ProductTensor, Program


@dataclass(frozen=True, eq=False)
class Levels:
    """tensors: the level each tensor is computed at (by id). activations: the level of each activation's result (by id)."""

    tensors: Mapping[int, int]
    activations: Mapping[int, int]
    top: int


def assign_levels(program: Program) -> Levels:
    """The outputs at level 0; a linear transform, a product and each level of an activation take one level."""
    tensors: dict[int, int] = {id(output): 0 for output in program.outputs}
    activations: dict[int, int] = {}
    for tensor in reversed(program.tensors):  # consumers before operands
        level = tensors[id(tensor)]
        if isinstance(tensor, AffineTensor):
            for activation, _ in tensor.terms:
                activations[id(activation)] = max(activations.get(id(activation), 0), level + 1)
                _require(tensors, activation, activations[id(activation)])
        elif isinstance(tensor, ProductTensor):
            for operand in (tensor.left, tensor.right):
                tensors[id(operand)] = max(tensors.get(id(operand), 0), level + 1)
    return Levels(tensors, activations, max(tensors.values()))


def _require(tensors: dict[int, int], activation: Activation, level: int) -> None:
    key = id(activation.tensor)
    tensors[key] = max(tensors.get(key, 0), level + activation.depth)
