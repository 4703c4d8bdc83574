"""ONNX operators as nodes of the compiler's graph. An operator that cannot be done is named with its node and the remedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ckks.errors import ModelError
from compiler import matrices, shaping
from compiler.builder import Builder, Inputs, fixed, tensor
from compiler.constants import Constant
from compiler.graph import MAX_ELEMENTS, Graph, Linear, Product, Sum
from compiler.onnx_import import OnnxModel, OnnxNode

MAX_POWER = 16

_ACTIVATION = "train with a polynomial activation such as a*x*x + b*x + c"
_CLIENT = "cut the graph at the logits: the client computes it after decryption"
_REMEDIES = (
    ({"Relu", "LeakyRelu", "PRelu", "Sigmoid", "Tanh", "Elu", "Selu", "Celu", "Gelu", "Softplus", "Softsign", "HardSigmoid",
      "HardSwish", "Mish", "Clip", "Erf", "Exp", "Log", "Abs", "Max", "Min", "Sqrt", "Reciprocal", "Swish"}, _ACTIVATION),
    ({"MaxPool", "GlobalMaxPool", "LpPool", "ReduceMax", "ReduceMin"}, "use AveragePool and train again"),
    ({"Softmax", "LogSoftmax", "Hardmax", "ArgMax", "ArgMin", "TopK", "ZipMap", "LinearClassifier", "Normalizer"}, _CLIENT),
    ({"LayerNormalization", "InstanceNormalization", "GroupNormalization", "LRN", "LpNormalization"}, "use BatchNormalization"),
    ({"LSTM", "GRU", "RNN", "Loop", "Scan", "If"}, "use a feed-forward network"),
)  # fmt: skip


def build_graph(model: OnnxModel) -> Graph:
    """The graph of a checked ONNX model. Raises ModelError naming the node and the remedy."""
    builder = Builder(model)
    for node in model.nodes:
        _add_named(builder, node)
    output = builder.values.get(model.output_name)
    if not isinstance(output, int):
        raise ModelError(f"output {model.output_name!r} does not depend on the input {model.input_name!r}")
    size = math.prod(builder.nodes[output].shape)
    if model.labels and len(model.labels) != size:
        raise ModelError(
            f'metadata "labels" names {len(model.labels)} labels, the output has {size} elements'
        )
    return Graph(
        tuple(builder.nodes),
        output,
        model.output_name,
        model.labels,
        model.low,
        model.high,
        model.description,
    )


def _add_named(builder: Builder, node: OnnxNode) -> None:
    try:
        _add_node(builder, node)
    except ModelError as error:
        raise ModelError(f"node {node.name!r} ({node.op}): {error}") from None
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise ModelError(
            f"node {node.name!r} ({node.op}): malformed ({type(error).__name__}: {error})"
        ) from None


def _add_node(builder: Builder, node: OnnxNode) -> None:
    if any(name and name not in builder.values for name in node.inputs):
        raise ModelError("an input is missing: nodes must be in order and every initialiser present")
    inputs = [builder.values[name] if name else None for name in node.inputs]
    result: int | Constant | None = builder.constant(node, inputs)
    if result is None:
        handler = _HANDLERS.get(node.op)
        if handler is None:
            remedy = next((text for ops, text in _REMEDIES if node.op in ops), None)
            raise ModelError(
                f"this operator cannot be compiled; {remedy or 'use convolutions, dense layers and polynomials'}"
            )
        result = handler(builder, node, inputs)
    if any(node.outputs[1:]) and node.op not in ("Dropout", "BatchNormalization"):
        raise ModelError("only the first output of this operator can be used")
    builder.values[node.outputs[0]] = result


_Handler = Callable[[Builder, OnnxNode, Inputs], int]


def _add(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    negate = -1.0 if node.op == "Sub" else 1.0
    x, y = inputs
    if isinstance(x, int) and isinstance(y, int):
        y = b.elementwise(node, y, negate, 0.0) if node.op == "Sub" else y
        shape = np.broadcast_shapes(b.shape(x), b.shape(y))
        return b.append(Sum(node.name, b.broadcast(node, x, shape), b.broadcast(node, y, shape), shape))
    if isinstance(x, int):
        return b.elementwise(node, x, 1.0, negate * fixed(inputs, 1))
    return b.elementwise(node, tensor(inputs, 1), negate, fixed(inputs, 0))


def _sum(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    constants = [x for x in inputs if isinstance(x, np.ndarray)]
    tensors = [x for x in inputs if isinstance(x, int)]
    result = tensors[0]
    for other in tensors[1:]:
        result = _add(b, node, (result, other))
    gain = 1.0 / len(inputs) if node.op == "Mean" else 1.0
    return b.elementwise(node, result, gain, gain * sum(constants, np.zeros(1)))


def _multiply(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    x, y = inputs
    if isinstance(x, int) and isinstance(y, int):
        shape = np.broadcast_shapes(b.shape(x), b.shape(y))
        return b.append(Product(node.name, b.broadcast(node, x, shape), b.broadcast(node, y, shape), shape))
    encrypted, constant = (x, y) if isinstance(x, int) else (y, x)
    return b.elementwise(node, tensor([encrypted]), fixed([constant], 0), 0.0)


def _divide(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    if not isinstance(inputs[1], np.ndarray):
        raise ModelError("cannot divide by an encrypted value; divide by constants only")
    if (inputs[1] == 0).any():
        raise ModelError("division by zero")
    return b.elementwise(node, tensor(inputs), 1.0 / inputs[1], 0.0)


def _power(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    x, exponent = tensor(inputs), fixed(inputs, 1)
    n = float(exponent.reshape(-1)[0]) if exponent.size == 1 else math.nan
    if n not in range(1, MAX_POWER + 1):
        raise ModelError(f"only whole powers from 1 to {MAX_POWER} can be compiled; {_ACTIVATION}")
    result = x
    for bit in bin(int(n))[3:]:  # square and multiply, from the bit after the leading one
        result = b.append(Product(node.name, result, result, b.shape(x)))
        if bit == "1":
            result = b.append(Product(node.name, result, x, b.shape(x)))
    return result


def _identity(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    if node.op == "Dropout" and len(inputs) > 2 and inputs[2] is not None and np.any(inputs[2]):
        raise ModelError("is in training mode; export the model for inference (model.eval())")
    return tensor(inputs)


def _negate(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    return b.elementwise(node, tensor(inputs), -1.0, 0.0)


def _batch_normalization(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    x = tensor(inputs)
    if node.attributes.get("training_mode", 0) or any(node.outputs[1:]):
        raise ModelError("is in training mode; export the model for inference (model.eval())")
    scale, bias, mean, variance = (fixed(inputs, i) for i in range(1, 5))
    variance = variance + node.attributes.get("epsilon", 1e-5)
    if (variance <= 0).any():
        raise ModelError("a variance is not positive; train the model again")
    gain = scale / np.sqrt(variance)
    form = (-1,) + (1,) * (len(b.shape(x)) - 2)
    return b.elementwise(node, x, gain.reshape(form), (bias - mean * gain).reshape(form))


def _spatial(b: Builder, node: OnnxNode, x: int, kernel: Sequence[int]) -> matrices.Index:
    """The windows of a Conv or AveragePool node."""
    at, rank, shape = node.attributes, len(kernel), b.shape(x)
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
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    overhang = [0] * rank
    auto = at.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        total = [
            max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(shape[2:], strides, reach, strict=True)
        ]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = small + large if auto == "SAME_UPPER" else large + small
    elif auto == "VALID":
        pads = [0] * (2 * rank)
    elif at.get("ceil_mode", 0):
        for i, (n, s, r) in enumerate(zip(shape[2:], strides, reach, strict=True)):
            padded = n + pads[i] + pads[i + rank]
            outputs = -(-(padded - r) // s) + 1
            outputs -= (outputs - 1) * s >= n + pads[
                i
            ]  # a window must start inside the input or its leading padding
            overhang[i] = max((outputs - 1) * s + r - padded, 0)
    return matrices.windows(shape, kernel, strides, pads, dilations, overhang)


def _conv(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    x, weight = tensor(inputs), fixed(inputs, 1)
    groups, shape = node.attributes.get("group", 1), b.shape(x)
    out = weight.shape[0]
    if groups < 1 or weight.ndim != len(shape) or weight.shape[1] * groups != shape[1] or out % groups:
        raise ModelError(
            f"weights of shape {weight.shape} in {groups} groups do not fit an input of shape {shape}"
        )
    window = _spatial(b, node, x, weight.shape[2:])
    matrix = matrices.convolution(weight, groups, window, math.prod(shape))
    places = window.shape[1 : weight.ndim - 1]
    bias = np.repeat(fixed(inputs, 2, np.zeros(out)).astype(np.float64), math.prod(places))
    return b.append(Linear(node.name, x, matrix, bias, (1, out, *places)))


def _average_pool(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    x = tensor(inputs)
    shape = b.shape(x)
    kernel = shape[2:] if node.op == "GlobalAveragePool" else node.attributes["kernel_shape"]
    window = _spatial(b, node, x, kernel)
    matrix = matrices.average(window, math.prod(shape), bool(node.attributes.get("count_include_pad", 0)))
    return b.append(
        Linear(node.name, x, matrix, np.zeros(matrix.shape[0]), (1, *window.shape[: len(shape) - 1]))
    )


def _reduce(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    x = tensor(inputs)
    shape, at = b.shape(x), node.attributes
    axes = fixed(inputs, 1).tolist() if len(inputs) > 1 and inputs[1] is not None else at.get("axes", [])
    if not axes and at.get("noop_with_empty_axes", 0):
        return x
    axes = sorted({int(a) % len(shape) for a in axes} or range(len(shape)))
    if 0 in axes and len(shape) > 1:
        raise ModelError("would mix the pictures of a batch; reduce over the other axes only")
    kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
    result = kept if at.get("keepdims", 1) else tuple(n for i, n in enumerate(shape) if i not in axes)
    matrix = matrices.mean_over(shape, axes, node.op == "ReduceMean")
    return b.append(Linear(node.name, x, matrix, np.zeros(matrix.shape[0]), result))


def _matmul(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    x, weight = tensor(inputs), fixed(inputs, 1)
    shape = b.shape(x)
    if weight.ndim != 2 or len(shape) < 2 or shape[-1] != weight.shape[0]:
        raise ModelError(
            f"a constant of shape {weight.shape} cannot multiply {shape} from the right; use a two-axis weight matrix"
        )
    matrix = matrices.matrix_product(weight, math.prod(shape[:-1]))
    return b.append(Linear(node.name, x, matrix, np.zeros(matrix.shape[0]), (*shape[:-1], weight.shape[1])))


def _gemm(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    x, weight, at = tensor(inputs), fixed(inputs, 1), node.attributes
    if at.get("transA", 0):
        x = b.gather(node, x, np.arange(math.prod(b.shape(x))).reshape(b.shape(x)).T)
    weight = weight.T if at.get("transB", 0) else weight
    result = _matmul(b, node, [x, at.get("alpha", 1.0) * weight])
    bias = fixed(inputs, 2, np.zeros(1))
    return b.elementwise(node, result, 1.0, at.get("beta", 1.0) * bias)


_HANDLERS: dict[str, _Handler] = {
    "Add": _add, "Sub": _add, "Sum": _sum, "Mean": _sum, "Mul": _multiply, "Div": _divide, "Neg": _negate, "Pow": _power,
    "Identity": _identity, "Dropout": _identity, "BatchNormalization": _batch_normalization, "Conv": _conv,
    "AveragePool": _average_pool, "GlobalAveragePool": _average_pool, "ReduceMean": _reduce, "ReduceSum": _reduce,
    "MatMul": _matmul, "Gemm": _gemm, "Flatten": shaping.reshape, "Reshape": shaping.reshape, "Pad": shaping.pad,
    "Concat": shaping.concat,
    **dict.fromkeys(("Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather"), shaping.rearrange),
}  # fmt: skip
