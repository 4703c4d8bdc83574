"""Levels: each tensor as low as its consumers allow, so that the input starts as low as the depth allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compiler.condition import Activation, AffineTensor, ProductTensor, Program


@dataclass(frozen=True, eq=False)
class Levels:
    """tensors: the level each tensor is computed at (by id). activations: the level of each activation's result (by id).

    unscaled: outputs (by id) that keep the scale of the products they are sums of, which costs them no level. last: affine tensors of
    whose square or product, at level 0, such outputs are computed.
    """

    tensors: Mapping[int, int]
    activations: Mapping[int, int]
    top: int
    unscaled: frozenset[int] = frozenset()
    last: frozenset[int] = frozenset()

    def operand(self, tensor: AffineTensor) -> int:
        """The level that the linear transforms of `tensor` work at."""
        return self.tensors[id(tensor)] + (id(tensor) not in self.unscaled)


def assign_levels(program: Program, unscaled: bool = False) -> Levels:
    """The outputs at level 0; a linear transform, a product and each level of an activation take one level.

    unscaled: outputs that nothing else reads are not rescaled: they are at the scale of a product, and take no level.
    """
    read = {id(a.tensor) for a in _activations(program)}
    read |= {id(x) for t in program.tensors if isinstance(t, ProductTensor) for x in (t.left, t.right)}
    kept = frozenset(id(output) for output in program.outputs if unscaled and id(output) not in read)
    tensors: dict[int, int] = {id(output): 0 for output in program.outputs}
    activations: dict[int, int] = {}
    for tensor in reversed(program.tensors):  # consumers before operands
        level = tensors[id(tensor)]
        if isinstance(tensor, AffineTensor):
            for activation, _ in tensor.terms:
                below = level + (id(tensor) not in kept)
                activations[id(activation)] = max(activations.get(id(activation), 0), below)
                _require(tensors, activation, activations[id(activation)])
        elif isinstance(tensor, ProductTensor):
            for operand in (tensor.left, tensor.right):
                tensors[id(operand)] = max(tensors.get(id(operand), 0), level + 1)
    factors = {id(a.tensor) for a in _activations(program) if activations[id(a)] == 0 and a.depth == 1}
    for t in program.tensors:
        if isinstance(t, ProductTensor) and tensors[id(t)] == 0:
            factors |= {id(t.left), id(t.right)}
    last = frozenset(id(t) for t in program.tensors if isinstance(t, AffineTensor) and id(t) in factors)
    return Levels(tensors, activations, max(tensors.values()), kept, last)


def _activations(program: Program) -> list[Activation]:
    return [a for t in program.tensors if isinstance(t, AffineTensor) for a, _ in t.terms]


def _require(tensors: dict[int, int], activation: Activation, level: int) -> None:
    key = id(activation.tensor)
    tensors[key] = max(tensors.get(key, 0), level + activation.depth)
