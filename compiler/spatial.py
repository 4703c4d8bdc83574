"""ONNX operators with a sliding window: Conv, ConvTranspose, AveragePool, GlobalAveragePool."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from ckks.errors import ModelError
from compiler import matrices
from compiler.builder import Builder, Inputs, fixed, tensor
from compiler.graph import MAX_ELEMENTS, MAX_NONZEROS, Array, Linear, Shape
from compiler.onnx_import import OnnxNode


@dataclass(frozen=True)
class _Window:
    """Attributes of a window over `rank` axes; pads: all beginnings, then all ends. reach: what a kernel covers."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto: str

    @property
    def reach(self) -> list[int]:
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]


def _window(node: OnnxNode, shape: Shape, kernel: Sequence[int]) -> _Window:
    at, rank = node.attributes, len(kernel)
    if len(shape) != rank + 2 or not 1 <= rank <= 3:
        raise ModelError(
            f"a kernel of {rank} axes does not fit an input of shape {shape}; 1 to 3 spatial axes can be compiled"
        )
    strides, dilations = at.get("strides", [1] * rank), at.get("dilations", [1] * rank)
    pads = at.get("pads", [0] * (2 * rank))
    if (
        [len(strides), len(dilations), len(pads)] != [rank, rank, 2 * rank]
        or min(*kernel, *strides, *dilations) < 1
        or min(pads) < 0
    ):
        raise ModelError("kernel, strides, dilations or pads are malformed")
    if max(*kernel, *strides, *dilations, *pads) > MAX_ELEMENTS:
        raise ModelError("kernel, strides, dilations or pads are too large")
    auto = at.get("auto_pad", "NOTSET")
    if auto not in ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"):
        raise ModelError(f"auto_pad {auto[:50]!r} is not known")
    return _Window(tuple(kernel), tuple(strides), tuple(dilations), tuple(pads), auto)


def _halves(totals: Sequence[int], auto: str) -> tuple[int, ...]:
    """Paddings split in two, the odd element at the end (SAME_UPPER) or at the beginning (SAME_LOWER)."""
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return tuple(small + large if auto != "SAME_LOWER" else large + small)


def _places(node: OnnxNode, shape: Shape, kernel: Sequence[int]) -> matrices.Index:
    """The windows of a Conv or AveragePool over `shape`: see matrices.windows."""
    w, rank = _window(node, shape, kernel), len(kernel)
    pads, overhang = w.pads, [0] * rank
    sizes = list(zip(shape[2:], w.strides, w.reach, strict=True))
    if w.auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = _halves([max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in sizes], w.auto)
    elif w.auto == "VALID":
        pads = (0,) * (2 * rank)
    elif node.attributes.get("ceil_mode", 0):
        for i, (n, s, r) in enumerate(sizes):
            size = n + pads[i] + pads[i + rank]
            outputs = -(-(size - r) // s) + 1
            # A window must start inside the input or its leading padding.
            outputs -= (outputs - 1) * s >= n + pads[i]
            overhang[i] = max((outputs - 1) * s + r - size, 0)
    return matrices.windows(shape, kernel, w.strides, pads, w.dilations, overhang)


def _weight(node: OnnxNode, inputs: Inputs, shape: Shape) -> tuple[Array, int]:
    """The kernel, checked against the input's shape but for its second axis, and the number of groups."""
    weight, groups = fixed(inputs, 1), node.attributes.get("group", 1)
    axis = 0 if node.op == "ConvTranspose" else 1
    fits = weight.ndim == len(shape) > 2 and weight.shape[0] > 0 and 0 < groups <= MAX_ELEMENTS
    if fits:
        fits = weight.shape[axis] * (groups if axis else 1) == shape[1] and weight.shape[0] % groups == 0
    if not fits:
        raise ModelError(
            f"weights of shape {weight.shape} in {groups} groups do not fit an input of shape {shape}"
        )
    return weight, groups


def _with_bias(
    b: Builder, node: OnnxNode, inputs: Inputs, matrix: csr_array, channels: int, spatial: Shape
) -> int:
    x = tensor(inputs)
    count = b.shape(x)[0]
    bias = np.tile(
        np.repeat(fixed(inputs, 2, np.zeros(channels)).astype(np.float64), math.prod(spatial)), count
    )
    return b.append(Linear(node.name, x, matrices.repeated(matrix, count), bias, (count, channels, *spatial)))


def conv(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    """Conv over 1 to 3 spatial axes."""
    shape = b.shape(tensor(inputs))
    weight, groups = _weight(node, inputs, shape)
    places = _places(node, (1, *shape[1:]), weight.shape[2:])
    matrix = matrices.convolution(weight, groups, places, math.prod(shape[1:]))
    return _with_bias(b, node, inputs, matrix, weight.shape[0], places.shape[1 : weight.ndim - 1])


def conv_transpose(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    """ConvTranspose: the transposed matrix of the convolution that its result would be the input of."""
    shape, at = b.shape(tensor(inputs)), node.attributes
    weight, groups = _weight(node, inputs, shape)
    w, rank = _window(node, shape, weight.shape[2:]), weight.ndim - 2
    extra = at.get("output_padding", [0] * rank)
    if len(extra) != rank or min(extra) < 0 or max(extra) > MAX_ELEMENTS:
        raise ModelError("output_padding is malformed")
    grown = [(n - 1) * s + r + e for n, s, r, e in zip(shape[2:], w.strides, w.reach, extra, strict=True)]
    pads: tuple[int, ...] = w.pads
    if wanted := at.get("output_shape"):
        grown = [
            max(g, n) for g, n in zip(grown, wanted[-rank:], strict=True)
        ]  # zeros where it asks for more
        pads = _halves([g - n for g, n in zip(grown, wanted[-rank:], strict=True)], w.auto)
    elif w.auto in ("SAME_UPPER", "SAME_LOWER"):
        same = [n * s for n, s in zip(shape[2:], w.strides, strict=True)]
        grown = [max(g, n) for g, n in zip(grown, same, strict=True)]
        pads = _halves([g - n for g, n in zip(grown, same, strict=True)], w.auto)
    elif w.auto == "VALID":
        pads = (0,) * (2 * rank)
    spatial = tuple(g - pads[i] - pads[i + rank] for i, g in enumerate(grown))
    channels = weight.shape[1] * groups
    if min(spatial) < 1 or channels * math.prod(spatial) > MAX_ELEMENTS:
        raise ModelError(
            f"its result of shape {(channels, *spatial)} is empty or above {MAX_ELEMENTS} elements"
        )
    places = matrices.windows((1, channels, *spatial), w.kernel, w.strides, pads, w.dilations, [0] * rank)
    # Extra elements at the end may have room for further windows, which no input element feeds.
    places = places[(slice(None), *(slice(n) for n in shape[2:]))]
    if places.shape[1 : 1 + rank] != shape[2:]:
        raise ModelError("its pads do not fit its strides")
    matrix = matrices.convolution(weight, groups, places, channels * math.prod(spatial))
    return _with_bias(b, node, inputs, csr_array(matrix.T), channels, spatial)


def average_pool(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    """AveragePool and GlobalAveragePool; every axis before the spatial ones counts as channels."""
    x = tensor(inputs)
    shape = b.shape(x)
    kernel = shape[2:] if node.op == "GlobalAveragePool" else node.attributes["kernel_shape"]
    places = _places(node, (1, math.prod(shape[:2]), *shape[2:]), kernel)
    matrix = matrices.average(places, math.prod(shape), bool(node.attributes.get("count_include_pad", 0)))
    result = (*shape[:2], *places.shape[1 : len(shape) - 1])
    if matrix.shape[0] * math.prod(kernel) > MAX_NONZEROS:
        raise ModelError("its windows are too many; make the picture or the kernel smaller")
    return b.append(Linear(node.name, x, matrix, np.zeros(matrix.shape[0]), result))
