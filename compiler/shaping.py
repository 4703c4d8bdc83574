"""ONNX operators that only move elements: what they do to indices says where every element comes from."""

from __future__ import annotations

import math

import numpy as np

from ckks.errors import ModelError
from compiler import matrices
from compiler.builder import Builder, Inputs, fixed, tensor
from compiler.constants import fold_constant, reshaped_dimensions
from compiler.graph import MAX_ELEMENTS, Elementwise, Linear, Shape, Sum
from compiler.onnx_import import OnnxNode


def reshape(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    """Flatten and Reshape."""
    x = tensor(inputs)
    shape, at = b.shape(x), node.attributes
    if node.op == "Flatten":
        axis = at.get("axis", 1)
        axis += len(shape) if axis < 0 else 0
        new: Shape = (math.prod(shape[:axis]), math.prod(shape[axis:]))
    else:
        wanted = fixed(inputs, 1).tolist() if len(inputs) > 1 else at["shape"]
        new = reshaped_dimensions(wanted, shape, bool(at.get("allowzero", 0)))
    size = math.prod(shape)
    return b.append(Elementwise(node.name, x, np.ones(size), np.zeros(size), new))


def rearrange(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    """Transpose, Squeeze, Unsqueeze, Slice, Gather: what the operator does to indices says where every element comes from."""
    x = tensor(inputs)
    index = np.arange(math.prod(b.shape(x))).reshape(b.shape(x))
    constants = [fixed(inputs, i) for i in range(1, len(inputs))]
    moved = fold_constant(node.op, [index, *constants], node.attributes)
    return b.gather(node, x, fixed([moved], 0))


def pad(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    """Pad with zeros."""
    x, at = tensor(inputs), node.attributes
    shape = b.shape(x)
    rank = len(shape)
    pads = fixed(inputs, 1).tolist() if len(inputs) > 1 else at["pads"]
    value = fixed(inputs, 2, np.zeros(1)) if len(inputs) > 2 else np.array(at.get("value", 0.0))
    axes = fixed(inputs, 3, np.arange(rank)).tolist()
    if at.get("mode", "constant") != "constant" or np.any(value):
        raise ModelError("only padding with zeros can be compiled")
    if (
        len(pads) != 2 * len(axes)
        or min(pads) < 0
        or max(pads) > MAX_ELEMENTS
        or any(not -rank <= a < rank for a in axes)
    ):
        raise ModelError("pads must be pairs from 0 to 2^20, one for each axis")
    widths = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        widths[axis] = pads[i], pads[i + len(axes)]
    if math.prod(n + low + high for n, (low, high) in zip(shape, widths, strict=True)) > MAX_ELEMENTS:
        raise ModelError(f"its result has more than {MAX_ELEMENTS} elements")
    index = np.pad(np.arange(math.prod(shape)).reshape(shape), widths, constant_values=matrices.PADDING)
    return b.gather(node, x, index)


def concat(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    """Concat along any axis but the batch."""
    shapes = [b.shape(x) if isinstance(x, int) else np.shape(x) for x in inputs if x is not None]
    axis = node.attributes["axis"] % len(shapes[0])
    shape = (*shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1 :])
    if axis == 0 or any((*s[:axis], *s[axis + 1 :]) != (*shape[:axis], *shape[axis + 1 :]) for s in shapes):
        raise ModelError(f"tensors of shapes {shapes} cannot be joined along axis {axis}")
    index = np.arange(math.prod(shape)).reshape(shape)
    offset, tensors, start = np.zeros(math.prod(shape)), list[int](), 0
    for x, s in zip(inputs, shapes, strict=True):
        place = np.take(index, np.arange(start, start + s[axis]), axis=axis).reshape(-1)
        start += s[axis]
        if isinstance(x, int):
            matrix = matrices.selection(place, index.size).T.tocsr()
            tensors.append(b.append(Linear(node.name, x, matrix, np.zeros(index.size), shape)))
        else:
            offset[place] = np.reshape(fixed([x], 0), -1)
    result = tensors[0]
    for other in tensors[1:]:
        result = b.append(Sum(node.name, result, other, shape))
    return b.elementwise(node, result, 1.0, offset.reshape(shape))
