"""ONNX operators that only move elements of an encrypted tensor: what they do to indices says where every element comes from."""

from __future__ import annotations

import math

import numpy as np

from ckks.errors import ModelError
from compiler import matrices
from compiler.builder import Builder, Inputs, fixed, tensor
from compiler.graph import MAX_ELEMENTS, Linear, Sum
from compiler.moving import Constant, moved, operand, padded
from compiler.onnx_import import OnnxNode


def _index(b: Builder, x: int) -> Constant:
    return np.arange(math.prod(b.shape(x))).reshape(b.shape(x))


def _constants(inputs: Inputs) -> list[Constant | None]:
    """All operands but the first; None where one is left out."""
    return [None if x is None else fixed(inputs, i) for i, x in enumerate(inputs) if i]


def rearrange(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    """Every operator of compiler/moving.py."""
    x = tensor(inputs)
    return b.gather(
        node, x, moved(node.op, [_index(b, x), *_constants(inputs)], node.attributes, MAX_ELEMENTS)
    )


def pad(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    """Pad with a constant, or with elements of the tensor itself (reflect, edge, wrap)."""
    x, at = tensor(inputs), node.attributes
    constants = [None, *_constants(inputs)]
    pads = (
        operand(constants, 1, at, "pads") or operand([], 1, at, "paddings") or []
    )  # its name before opset 2
    axes = operand(constants, 3, at, "axes")
    mode = at.get("mode", "constant")
    index = padded(
        _index(b, x),
        pads,
        range(len(b.shape(x))) if axes is None else axes,
        mode,
        matrices.PADDING,
        MAX_ELEMENTS,
    )
    result = b.gather(node, x, index)
    value = float(fixed(inputs, 2, np.array(at.get("value", 0.0))).reshape(-1)[0])
    if value and mode == "constant":
        result = b.elementwise(node, result, 1.0, np.where(index == matrices.PADDING, value, 0.0))
    return result


def concat(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    """Concat along any axis but the batch."""
    shapes = [b.shape(x) if isinstance(x, int) else np.shape(x) for x in inputs if x is not None]
    axis = node.attributes["axis"] % len(shapes[0])
    shape = (*shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1 :])
    if any((*s[:axis], *s[axis + 1 :]) != (*shape[:axis], *shape[axis + 1 :]) for s in shapes):
        raise ModelError(f"tensors of shapes {shapes} cannot be joined along axis {axis}")
    if axis == 0 and len(shape) > 1 and shapes[0][0] == 1:
        raise ModelError("would join pictures to a batch; join along another axis")
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


def split(b: Builder, node: OnnxNode, inputs: Inputs) -> tuple[int, ...]:
    """Split: sizes as an operand (opset 13 on), an attribute (before), or equal parts (the last one smaller, opset 18)."""
    x = tensor(inputs)
    shape, count = b.shape(x), len(node.outputs)
    axis = node.attributes.get("axis", 0) % len(shape)
    sizes = operand([None, *_constants(inputs)], 1, node.attributes, "split")
    if sizes is None:
        part = -(-shape[axis] // count)
        sizes = [min(part, shape[axis] - i * part) for i in range(count)]
    if len(sizes) != count or sum(sizes) != shape[axis] or min(sizes) < 1:
        raise ModelError(f"parts of {sizes} do not make up an axis of {shape[axis]}")
    parts = np.split(_index(b, x), np.cumsum(sizes)[:-1], axis=axis)
    return tuple(b.gather(node, x, part) for part in parts)
