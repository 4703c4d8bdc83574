"""A small network as TenSEAL's tutorial would write it: one convolution in im2col form, then squares and matrices. Read off an ONNX file.

Tensors that the network squares are found in the graph; the maps between them are affine in the squares and the values, and are measured
on unit vectors with ONNX Runtime. A quadratic a x^2 + b x + c becomes a (x + b/2a)^2 + c'.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    """kernels [channel][kh][kw], bias [channel] of the convolution; then each (matrix [in][out], bias [out]) after a square.

    offset: subtracted from the picture before zeros are put around it, `pad` of them; stride: of the convolution.
    """

    kernels: Array
    bias: Array
    stride: int
    pad: int
    offset: float
    dense: tuple[tuple[Array, Array], ...]

    def __call__(self, picture: Array) -> Array:
        """The network in the clear on one picture [h][w]."""
        x = (_convolve(self.prepare(picture), self.kernels, self.stride) + self.bias[:, None]).ravel()
        for matrix, bias in self.dense:
            x = x**2 @ matrix + bias
        return x

    def prepare(self, picture: Array) -> Array:
        """What a client encrypts of a picture."""
        return np.pad(picture - self.offset, self.pad)


def _convolve(picture: Array, kernels: Array, stride: int) -> Array:
    """[channel][window]."""
    windows = np.lib.stride_tricks.sliding_window_view(picture, kernels.shape[1:])[::stride, ::stride]
    return np.einsum("ijkl,ckl->cij", windows, kernels).reshape(len(kernels), -1)


def read(path: Path) -> VectorNetwork:
    """The network in `path`: one input channel, a convolution first. Raises ValueError for another form."""
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    squared = [n.input[0] for n in model.graph.node if n.op_type == "Mul" and n.input[0] == n.input[1]]
    convolutions = [n for n in model.graph.node if n.op_type == "Conv"]
    if len(convolutions) != 1 or not squared:
        raise ValueError(f"{path.name}: not one convolution and squares")
    ends = [model.graph.input[0].name, *squared, model.graph.output[0].name]
    pieces = [_Piece(model, a, b) for a, b in pairwise(ends)]
    origin, linear = pieces[0].measure()[:2]  # no squares before the first one
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in convolutions[0].attribute}
    stride, pad = (attributes[k][0] for k in ("strides", "pads"))
    size = next(w.dims[2] for w in model.graph.initializer if w.name == convolutions[0].input[1])
    channels, height, width = pieces[1].shape[1:]
    rows, columns = pieces[0].shape[2:]
    maps = linear.reshape(rows, columns, channels, height, width)
    i, j = height // 2, width // 2  # a window that no padding touches
    top, left = i * stride - pad, j * stride - pad
    kernels = maps[top : top + size, left : left + size, :, i, j].transpose(2, 0, 1)
    # The bias of a window at the border shows what an offset of the picture contributes to it: bias = scalar - offset * ones.
    biases, dense = origin.reshape(channels, -1), []
    ones = _convolve(np.pad(np.ones((rows, columns)), pad), kernels, stride)
    varying = ones - ones.mean(axis=1, keepdims=True)
    offset = -float((varying * biases).sum() / (varying**2).sum()) if pad else 0.0
    bias = (biases + offset * ones).mean(axis=1)
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
    return VectorNetwork(kernels, bias, stride, pad, offset, tuple(dense))


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
        units = np.eye(int(np.prod(self.shape)))
        base = self._run(np.zeros(len(units)))
        plus, minus = (np.stack([self._run(sign * unit) for unit in units]) for sign in (1, -1))
        return base, (plus - minus) / 2, (plus + minus) / 2 - base
