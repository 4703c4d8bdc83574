"""A small network as TenSEAL's tutorial would write it: a convolution in im2col form, then squares and matrices. Read off an ONNX file.

Tensors that the network squares are found in the graph; the maps between them (further convolutions, norms, pooling, dense layers: one
matrix each) are affine in the squares and the values, and are measured on unit vectors with ONNX Runtime.
A quadratic a x^2 + b x + c becomes a (x + b/2a)^2 + c'.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx.utils import Extractor

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class VectorNetwork:
    """kernels [channel][input channel][kh][kw], bias [channel] of the convolution; then each (matrix [in][out], bias [out]) after a square.

    offset [input channel]: subtracted from the picture before zeros are put around it, `pad` of them above and to the left, and enough
    below and to the right for `grid` windows a side; stride: of the convolution.
    """

    kernels: Array
    bias: Array
    stride: int
    pad: int
    grid: int
    offset: Array
    dense: tuple[tuple[Array, Array], ...]

    def __call__(self, picture: Array) -> Array:
        """The network in the clear on one picture [input channel][h][w]."""
        x = (_convolve(self.prepare(picture), self.kernels, self.stride) + self.bias[:, None]).ravel()
        for matrix, bias in self.dense:
            x = x**2 @ matrix + bias
        return x

    def prepare(self, picture: Array) -> Array:
        """What a client encrypts of a picture."""
        reach = (self.grid - 1) * self.stride + self.kernels.shape[-1]
        after = [max(0, reach - self.pad - length) for length in picture.shape[1:]]
        margins = [(0, 0), (self.pad, after[0]), (self.pad, after[1])]
        return np.pad(picture - self.offset[:, None, None], margins)

    def widened(self, grid: int) -> VectorNetwork:
        """The same function with `grid` windows a side; the matrix after them has rows of zeros for those that were added."""
        (matrix, bias), *others = self.dense
        rows = np.zeros((len(self.kernels), grid, grid, matrix.shape[1]))
        rows[:, : self.grid, : self.grid] = matrix.reshape(-1, self.grid, self.grid, matrix.shape[1])
        return replace(self, grid=grid, dense=((rows.reshape(-1, matrix.shape[1]), bias), *others))


def _convolve(picture: Array, kernels: Array, stride: int) -> Array:
    """[channel][window]."""
    windows = np.lib.stride_tricks.sliding_window_view(picture, kernels.shape[2:], axis=(1, 2))
    return np.einsum("nijkl,cnkl->cij", windows[:, ::stride, ::stride], kernels).reshape(len(kernels), -1)


def read(path: Path) -> VectorNetwork:
    """The network in `path`: a convolution first, on a square picture. Raises ValueError for another form."""
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    squared = [n.input[0] for n in model.graph.node if n.op_type == "Mul" and n.input[0] == n.input[1]]
    convolutions = [n for n in model.graph.node if n.op_type == "Conv"]
    if not convolutions or not squared:
        raise ValueError(f"{path.name}: not a convolution and squares")
    ends = [model.graph.input[0].name, *squared, model.graph.output[0].name]
    pieces = [_Piece(model, a, b) for a, b in pairwise(ends)]
    origin, linear = pieces[0].measure()[:2]  # no squares before the first one
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in convolutions[0].attribute}
    stride, pad = (attributes[k][0] for k in ("strides", "pads"))
    size = next(w.dims[2] for w in model.graph.initializer if w.name == convolutions[0].input[1])
    channels, height, width = pieces[1].shape[1:]
    if height != width:
        raise ValueError(f"{path.name}: its picture is not square")
    inputs, rows, columns = pieces[0].shape[1:]
    maps = linear.reshape(inputs, rows, columns, channels, height, width)
    i = height // 2  # a window that no padding touches
    at = slice(i * stride - pad, i * stride - pad + size)
    kernels = maps[:, at, at, :, i, i].transpose(3, 0, 1, 2)
    # The bias of a window at the border shows what the offset of each input channel contributes: bias = scalar - sum of offset * ones.
    biases, dense = origin.reshape(channels, -1), []
    ones = np.stack([_ones(kernels, n, rows, pad, stride) for n in range(inputs)])
    varying = (ones - ones.mean(axis=2, keepdims=True)).reshape(inputs, -1)
    offset = -np.linalg.lstsq(varying.T, biases.ravel(), rcond=None)[0] if pad else np.zeros(inputs)
    bias = (biases + np.tensordot(offset, ones, axes=1)).mean(axis=1)
    for piece in pieces[1:]:
        base, straight, curved = piece.measure()
        strongest = np.abs(curved).argmax(axis=1)[:, None]
        shift = np.take_along_axis(straight, strongest, 1) / (2 * np.take_along_axis(curved, strongest, 1))
        shift = shift[:, 0]
        if dense:
            dense[-1] = (dense[-1][0], dense[-1][1] + shift)
        else:
            bias = bias + shift.reshape(channels, -1).mean(axis=1)
        dense.append((curved, base - shift**2 @ curved))
    return VectorNetwork(kernels, bias, stride, pad, height, offset, tuple(dense))


def _ones(kernels: Array, channel: int, size: int, pad: int, stride: int) -> Array:
    """The convolution of a picture of ones in one input channel, zeros elsewhere: [channel][window]."""
    picture = np.zeros((kernels.shape[1], size, size))
    picture[channel] = 1
    return _convolve(np.pad(picture, [(0, 0), (pad, pad), (pad, pad)]), kernels, stride)


class _Piece:
    """The graph between two tensors, as a function of one flat input."""

    def __init__(self, model: onnx.ModelProto, start: str, end: str) -> None:
        piece = Extractor(model).extract_model([start], [end])
        self.shape = [d.dim_value or 1 for d in piece.graph.input[0].type.tensor_type.shape.dim]
        self._session = onnxruntime.InferenceSession(
            piece.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        self._name = start

    def _run(self, flat: Array) -> Array:
        result = self._session.run(None, {self._name: flat.reshape(self.shape).astype(np.float32)})[0]
        return np.asarray(result, dtype=np.float64).ravel()

    def measure(self) -> tuple[Array, Array, Array]:
        """y0, and per input element the linear and the quadratic part of the output: [out], [in][out], [in][out]."""
        unit, plus, minus = np.zeros(int(np.prod(self.shape))), [], []
        base = self._run(unit)
        for i in range(len(unit)):
            for sign, found in ((1, plus), (-1, minus)):
                unit[i] = sign
                found.append(self._run(unit))
            unit[i] = 0
        above, below = np.stack(plus), np.stack(minus)
        return base, (above - below) / 2, (above + below) / 2 - base
