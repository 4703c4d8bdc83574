"""ONNX operators as nodes of the compiler's graph. An operator that cannot be done is named with its node and the remedy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ckks.errors import ModelError
from compiler import activations, matrices, shaping, spatial
from compiler.builder import Builder, Inputs, fixed, tensor
from compiler.graph import Elementwise, Graph, Linear, Nonlinear, Output, Product, Shape, Sum
from compiler.moving import MOVES, Constant
from compiler.onnx_import import OnnxModel, OnnxNode, OnnxOutput

MAX_POWER = 16
_FLOAT_TYPES = (1, 10, 11, 16)  # TensorProto's FLOAT, FLOAT16, DOUBLE, BFLOAT16

_ACTIVATION = "train with a polynomial activation such as a*x*x + b*x + c"
_CLIENT = "cut the graph at the logits: the client computes it after decryption"
_REMEDIES = (
    ({"MaxPool", "GlobalMaxPool"}, "use AveragePool and train again, or compile with --maxpool average"),
    ({"LpPool", "ReduceMax", "ReduceMin"}, "use AveragePool and train again"),
    ({"Softmax", "LogSoftmax", "Hardmax", "ArgMax", "ArgMin", "TopK", "ZipMap", "LinearClassifier"}, _CLIENT),
    ({"Normalizer"}, "cut it off: the client normalises inputs before encryption, and scores after decryption"),
    ({"LayerNormalization", "InstanceNormalization", "GroupNormalization", "LRN", "LpNormalization"}, "use BatchNormalization"),
    ({"LSTM", "GRU", "RNN", "Loop", "Scan", "If"}, "use a feed-forward network"),
)  # fmt: skip


def build_graph(model: OnnxModel) -> Graph:
    """The graph of a checked ONNX model. Raises ModelError naming the node and the remedy."""
    builder = Builder(model)
    for node in model.nodes:
        _add_named(builder, node)
    outputs = tuple(_output(builder, output) for output in model.outputs)
    return Graph(tuple(builder.nodes), outputs, model.description)


def _output(builder: Builder, output: OnnxOutput) -> Output:
    node = builder.values.get(output.tail.logits)
    if not isinstance(node, int):
        raise ModelError(f"output {output.tail.name!r} does not depend on the input's values")
    shape = builder.nodes[node].shape
    _check_classes(output, shape)
    if shape[:1] != (1,):  # the last operator moved or dropped the batch axis
        whole = np.ones(math.prod(shape))
        node = builder.append(Elementwise("output", node, whole, 0 * whole, (1, *shape)))
    return Output(node, output.tail.name, output.labels, output.post)


def _check_classes(output: OnnxOutput, shape: Shape) -> None:
    """The client treats all logits of an output as one set of classes."""
    size, tail, labels = math.prod(shape), output.tail, len(output.labels)
    if tail.axis is not None:
        if not -len(shape) <= tail.axis < len(shape):
            raise ModelError(
                f"the axis {tail.axis} of the last operator does not exist in logits of shape {shape}"
            )
        spanned = math.prod(shape[tail.axis :]) if tail.to_end else shape[tail.axis]
        if spanned != size:
            raise ModelError(
                f"the last operator works along axis {tail.axis} of logits of shape {shape}; only one set of classes can be compiled"
            )
    # One sigmoid may stand for two classes.
    if labels and labels != size and (output.post, size, labels) != ("sigmoid", 1, 2):
        raise ModelError(f"there are {labels} labels, the output has {size} elements")


def _add_named(builder: Builder, node: OnnxNode) -> None:
    try:
        _add_node(builder, node)
    except ModelError as error:
        raise ModelError(f"node {node.name[:200]!r} ({node.op}): {str(error)[:500]}") from None
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        what = f"{type(error).__name__}: {str(error)[:500]}"
        raise ModelError(f"node {node.name[:200]!r} ({node.op}): malformed ({what})") from None


def _add_node(builder: Builder, node: OnnxNode) -> None:
    if any(name and name not in builder.values for name in node.inputs):
        raise ModelError("an input is missing: nodes must be in order and every initialiser present")
    inputs = [builder.values[name] if name else None for name in node.inputs]
    if node.op in _OLD_BROADCASTING and node.attributes.get("broadcast", 0):
        inputs = [inputs[0], _old_broadcast(builder, node, inputs)]
    result: int | tuple[int, ...] | Constant | None = builder.constant(node, inputs)
    if result is None:
        handler = _HANDLERS.get(node.op)
        if handler is None:
            remedy = next((text for ops, text in _REMEDIES if node.op in ops), None)
            raise ModelError(
                f"this operator cannot be compiled; {remedy or 'use convolutions, dense layers and polynomials'}"
            )
        result = handler(builder, node, inputs)
    # Masks of Dropout and the like have no value here: what uses one is refused for a missing input.
    for name, value in zip(node.outputs, result if isinstance(result, tuple) else (result,), strict=False):
        if name:
            builder.values[name] = value


_OLD_BROADCASTING = ("Add", "Sub", "Mul", "Div", "Pow")


def _old_broadcast(b: Builder, node: OnnxNode, inputs: Inputs) -> Constant:
    """The second operand of Add, Sub, Mul, Div or Pow before opset 7: its axes start at the first one's axis `axis`."""
    y, rank = fixed(inputs, 1), len(b.shape(tensor(inputs)))
    axis = node.attributes.get("axis", rank - y.ndim)
    after = rank - (axis % rank) - y.ndim
    if after < 0:
        raise ModelError(f"an operand of shape {y.shape} does not fit at axis {axis}")
    return y.reshape(y.shape + (1,) * after)


_Handler = Callable[[Builder, OnnxNode, Inputs], int | tuple[int, ...]]


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
        y = tensor(inputs, 1)
        inverse = Nonlinear(node.name, y, "Reciprocal", np.reciprocal, b.shape(y))
        return _multiply(b, node, (inputs[0], b.append(inverse)))
    if (inputs[1] == 0).any():
        raise ModelError("division by zero")
    return b.elementwise(node, tensor(inputs), 1.0 / inputs[1], 0.0)


def _power(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    """Whole powers; an exponent per element becomes a sum of powers, each where it is wanted."""
    x, exponent = tensor(inputs), fixed(inputs, 1)
    if exponent.size == 0 or not np.isin(exponent, range(1, MAX_POWER + 1)).all():
        raise ModelError(f"only whole powers from 1 to {MAX_POWER} can be compiled; {_ACTIVATION}")
    exponents = np.unique(exponent).astype(np.int64)
    if len(exponents) == 1:
        x = b.broadcast(node, x, np.broadcast_shapes(b.shape(x), exponent.shape))
        return _whole_power(b, node, x, int(exponents[0]))
    parts = [
        b.elementwise(node, _whole_power(b, node, x, n), (exponent == n).astype(np.float64), 0.0)
        for n in exponents.tolist()
    ]
    result = parts[0]
    for part in parts[1:]:
        result = b.append(Sum(node.name, result, part, b.shape(result)))
    return result


def _whole_power(b: Builder, node: OnnxNode, x: int, n: int) -> int:
    result = x
    for bit in bin(n)[3:]:  # square and multiply, from the bit after the leading one
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
    if not node.attributes.get("spatial", 1):  # before opset 9: statistics of their own for every element
        form = b.shape(x)[1:]
    return b.elementwise(node, x, gain.reshape(form), (bias - mean * gain).reshape(form))


def _reduce(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    x = tensor(inputs)
    shape, at = b.shape(x), node.attributes
    axes = fixed(inputs, 1).tolist() if len(inputs) > 1 and inputs[1] is not None else at.get("axes", [])
    if not axes and at.get("noop_with_empty_axes", 0):
        return x
    axes = sorted({int(a) % len(shape) for a in axes} or range(len(shape)))
    if 0 in axes and len(shape) > 1 and shape[0] == 1:
        raise ModelError("would mix the pictures of a batch; reduce over the other axes only")
    if node.op == "ReduceSumSquare":
        x = b.append(Product(node.name, x, x, shape))
    kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
    result = kept if at.get("keepdims", 1) else tuple(n for i, n in enumerate(shape) if i not in axes) or (1,)
    matrix = matrices.mean_over(shape, axes, node.op == "ReduceMean")
    return b.append(Linear(node.name, x, matrix, np.zeros(matrix.shape[0]), result))


def _matmul(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    from_left = isinstance(inputs[0], np.ndarray)
    x, weight = tensor(inputs, int(from_left)), fixed(inputs, 1 - int(from_left))
    matrix, shape = matrices.matrix_product(weight, b.shape(x), from_left)
    return b.append(Linear(node.name, x, matrix, np.zeros(matrix.shape[0]), shape))


def _gemm(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    at = node.attributes
    operands: list[int | Constant] = []
    for x, transposed in zip(inputs[:2], (at.get("transA", 0), at.get("transB", 0)), strict=True):
        if isinstance(x, int):
            index = np.arange(math.prod(b.shape(x))).reshape(b.shape(x))
            operands.append(b.gather(node, x, index.T) if transposed else x)
        else:
            weight = at.get("alpha", 1.0) * fixed([x], 0)
            operands.append(weight.T if transposed else weight)
    result = _matmul(b, node, operands)
    if len(inputs) > 2 and isinstance(inputs[2], int):
        scaled = b.elementwise(node, inputs[2], at.get("beta", 1.0), 0.0)
        return _add(b, node, (result, scaled))
    return b.elementwise(node, result, 1.0, at.get("beta", 1.0) * fixed(inputs, 2, np.zeros(1)))


def _scaler(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    """ai.onnx.ml Scaler: (x - offset) * scale."""
    scale = np.asarray(node.attributes.get("scale", [1.0]))
    return b.elementwise(
        node, tensor(inputs), scale, -scale * np.asarray(node.attributes.get("offset", [0.0]))
    )


def _linear_model(b: Builder, node: OnnxNode, inputs: Inputs) -> int | tuple[int, ...]:
    """ai.onnx.ml LinearRegressor and LinearClassifier (its scores): one row of coefficients per target or class."""
    x, at = tensor(inputs), node.attributes
    coefficients = np.asarray(at["coefficients"], dtype=np.float64)
    labels = at.get("classlabels_ints") or at.get("classlabels_strings") or []
    targets = len(labels) if node.op == "LinearClassifier" else at.get("targets", 1)
    features = b.shape(x)[-1]
    if targets < 1 or coefficients.size != targets * features:
        raise ModelError(
            f"{coefficients.size} coefficients are not {features} for each of {targets} classes or targets"
        )
    if at.get("post_transform", "NONE") != "NONE":
        raise ModelError(f"its post_transform cannot be compiled here; {_CLIENT}")
    scores = _matmul(b, node, [x, coefficients.reshape(targets, features).T])
    bias = np.asarray(at.get("intercepts") or [0.0], dtype=np.float64)
    scores = b.elementwise(node, scores, 1.0, bias)
    return (scores, scores) if node.op == "LinearClassifier" else scores


def _cast(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    if node.op == "Cast" and node.attributes.get("to") not in _FLOAT_TYPES:
        raise ModelError("an encrypted value cannot be cast to integers; remove the cast")
    return tensor(inputs)


_HANDLERS: dict[str, _Handler] = {
    "Add": _add, "Sub": _add, "Sum": _sum, "Mean": _sum, "Mul": _multiply, "Div": _divide, "Neg": _negate, "Pow": _power,
    "Identity": _identity, "Dropout": _identity, "BatchNormalization": _batch_normalization,
    "Conv": spatial.conv, "ConvTranspose": spatial.conv_transpose,
    "AveragePool": spatial.average_pool, "GlobalAveragePool": spatial.average_pool,
    "ReduceMean": _reduce, "ReduceSum": _reduce, "ReduceSumSquare": _reduce, "MatMul": _matmul, "Gemm": _gemm,
    "Cast": _cast, "CastLike": _cast, "Scaler": _scaler, "LinearRegressor": _linear_model, "LinearClassifier": _linear_model,
    "Pad": shaping.pad, "Concat": shaping.concat, "Split": shaping.split,
    **dict.fromkeys(MOVES, shaping.rearrange), **dict.fromkeys(activations.OPERATORS, activations.activation),
}  # fmt: skip
