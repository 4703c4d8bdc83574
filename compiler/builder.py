"""What operators are built with: the graph so far, constants, and the few node types every operator becomes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ckks.errors import ModelError
from compiler import matrices
from compiler.constants import fold_constant
from compiler.graph import MAX_ELEMENTS, Elementwise, Linear, Node, Shape, Source
from compiler.moving import Constant
from compiler.onnx_import import OnnxModel, OnnxNode

MAX_TOTAL = 1 << 27  # matrix entries, element-wise values and folded constants of a whole network: under 2 GB
_CONSTANT_KEYS = ("value", "value_float", "value_floats", "value_int", "value_ints")
Inputs = Sequence[int | Constant | None]


class Builder:
    """Nodes so far, and what each ONNX name stands for: a node's index, or a constant."""

    def __init__(self, model: OnnxModel) -> None:
        self.nodes: list[Node] = []
        self.values: dict[str, int | Constant] = dict(model.constants)
        self.budget = MAX_TOTAL
        start = 0
        for x in model.inputs:
            if math.prod(x.shape) > MAX_ELEMENTS:
                raise ModelError(
                    f"input {x.name!r} has more than {MAX_ELEMENTS} elements; use a smaller picture"
                )
            self.values[x.name] = len(self.nodes)
            self.nodes.append(Source(x.name, x.shape, start, x.low, x.high, x.declared))
            start += math.prod(x.shape)

    def constant(self, node: OnnxNode, inputs: Sequence[int | Constant | None]) -> Constant | None:
        """The value of a node that does not depend on the encrypted input's values; None for any other."""
        at = node.attributes
        if node.op == "Constant":
            number = next((at[k] for k in _CONSTANT_KEYS if k in at), None)
            if number is None:
                raise ModelError("constants must be numbers")
            array = np.asarray(number)
            return array.astype(np.float64 if array.dtype.kind == "f" else np.int64)
        if node.op in ("Shape", "Size") and inputs[0] is not None:
            shape = np.shape(inputs[0]) if isinstance(inputs[0], np.ndarray) else self.nodes[inputs[0]].shape
            return np.array(
                shape[at.get("start", 0) : at.get("end")] if node.op == "Shape" else math.prod(shape),
                np.int64,
            )
        arrays = [x for x in inputs if not isinstance(x, int)]
        if len(arrays) != len(inputs):
            return None
        value = fold_constant(node.op, arrays, at)
        if value is not None:
            self._spend(value.size)
            if not np.isfinite(value).all():
                raise ModelError("its constants give NaN or infinite values")
        return value

    def append(self, node: Node) -> int:
        """The index of a new node."""
        if not math.prod(node.shape):
            raise ModelError(f"its result of shape {node.shape} has no elements")
        if math.prod(node.shape) > MAX_ELEMENTS:
            raise ModelError(
                f"its result has more than {MAX_ELEMENTS} elements; use a smaller picture or fewer channels"
            )
        # A matrix keeps a number for every row, and its bias another.
        self._spend((node.matrix.nnz if isinstance(node, Linear) else 0) + 2 * math.prod(node.shape))
        self.nodes.append(node)
        return len(self.nodes) - 1

    def _spend(self, values: int) -> None:
        self.budget -= values
        if self.budget < 0:
            raise ModelError(
                f"the network's matrices have more than {MAX_TOTAL} entries in all; use a smaller network"
            )

    def shape(self, x: int) -> Shape:
        return self.nodes[x].shape

    def elementwise(self, node: OnnxNode, x: int, gain: Constant | float, offset: Constant | float) -> int:
        """gain * x + offset, both broadcast with x."""
        shape = np.broadcast_shapes(self.shape(x), np.shape(gain), np.shape(offset))
        if math.prod(shape) > MAX_ELEMENTS:
            raise ModelError(f"its result has more than {MAX_ELEMENTS} elements")
        x = self.broadcast(node, x, shape)
        g, o = (np.broadcast_to(np.asarray(v, dtype=np.float64), shape).reshape(-1) for v in (gain, offset))
        return self.append(Elementwise(node.name, x, g, o, shape))

    def gather(self, node: OnnxNode, x: int, index: Constant) -> int:
        """The tensor x[index] for flat indices shaped as the result; -1 reads zero."""
        flat = index.reshape(-1).astype(np.int64)
        size = math.prod(self.shape(x))
        if flat.size == size and np.array_equal(flat, np.arange(size)):
            return self.append(Elementwise(node.name, x, np.ones(size), np.zeros(size), index.shape))
        if flat.size == 0 or flat.size > MAX_ELEMENTS:
            raise ModelError(f"its result has {flat.size} elements, outside 1..{MAX_ELEMENTS}")
        inside = flat >= 0
        matrix = matrices.sparse(
            np.ones(inside.sum()), np.flatnonzero(inside), flat[inside], (flat.size, size)
        )
        return self.append(Linear(node.name, x, matrix, np.zeros(flat.size), index.shape))

    def broadcast(self, node: OnnxNode, x: int, shape: Shape) -> int:
        """x repeated to `shape` by NumPy's rules."""
        index = np.arange(math.prod(self.shape(x))).reshape(self.shape(x))
        return x if self.shape(x) == shape else self.gather(node, x, np.broadcast_to(index, shape))


def tensor(inputs: Inputs, i: int = 0) -> int:
    """Operand i, a node's index. Raises ModelError for a constant."""
    x = inputs[i] if i < len(inputs) else None
    if not isinstance(x, int):
        raise ModelError(f"operand {i} must be computed from the input; swap or fold the constants")
    return x


def fixed(inputs: Inputs, i: int, default: Constant | None = None) -> Constant:
    """Operand i, a constant, or `default` where it is left out. Raises ModelError for an encrypted value."""
    x = inputs[i] if i < len(inputs) else None
    x = default if x is None else x
    if not isinstance(x, np.ndarray):
        raise ModelError(
            f"operand {i} must be a constant; weights computed from the input cannot be compiled"
        )
    return x
