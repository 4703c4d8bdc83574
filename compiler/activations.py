"""ONNX's activation functions as nodes that approximation replaces (compiler/approximate.py)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import erf, expit

from ckks.errors import ModelError
from compiler.builder import Builder, Inputs, fixed, tensor
from compiler.graph import Array, Nonlinear, Product, Sum
from compiler.moving import Attributes
from compiler.onnx_import import OnnxNode

_Function = Callable[[Array], Array]
_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875  # ONNX Selu-6's defaults


def _elu(alpha: float) -> _Function:
    return lambda x: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _hard_sigmoid(alpha: float, beta: float) -> _Function:
    return lambda x: np.clip(alpha * x + beta, 0, 1)


def _gelu(approximate: str) -> _Function:
    if approximate == "tanh":
        return lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return lambda x: x / 2 * (1 + erf(x / math.sqrt(2)))


def _softplus(x: Array) -> Array:
    return np.logaddexp(0, x)


# ONNX's operator specifications; attribute defaults are theirs.
_FUNCTIONS: dict[str, Callable[[Attributes], _Function]] = {
    "Relu": lambda at: lambda x: np.maximum(x, 0),
    "LeakyRelu": lambda at: lambda x: np.where(x > 0, x, at.get("alpha", 0.01) * x),
    "ThresholdedRelu": lambda at: lambda x: np.where(x > at.get("alpha", 1.0), x, 0),
    "Abs": lambda at: np.abs,
    "Sigmoid": lambda at: expit,
    "Tanh": lambda at: np.tanh,
    "Erf": lambda at: erf,
    "Exp": lambda at: np.exp,
    "Log": lambda at: np.log,
    "Sqrt": lambda at: np.sqrt,
    "Reciprocal": lambda at: np.reciprocal,
    "Softplus": lambda at: _softplus,
    "Softsign": lambda at: lambda x: x / (1 + np.abs(x)),
    "Swish": lambda at: lambda x: x * expit(at.get("alpha", 1.0) * x),
    "Mish": lambda at: lambda x: x * np.tanh(_softplus(x)),
    "Gelu": lambda at: _gelu(at.get("approximate", "none")),
    "Elu": lambda at: _elu(at.get("alpha", 1.0)),
    "Celu": lambda at: lambda x: at.get("alpha", 1.0) * _elu(1.0)(x / at.get("alpha", 1.0)),
    "Selu": lambda at: lambda x: at.get("gamma", _SELU_GAMMA) * _elu(at.get("alpha", _SELU_ALPHA))(x),
    "HardSigmoid": lambda at: _hard_sigmoid(at.get("alpha", 0.2), at.get("beta", 0.5)),
    "Not": lambda at: lambda x: 1 - x,
    "HardSwish": lambda at: lambda x: x * _hard_sigmoid(1 / 6, 0.5)(x),
}
_COMPARISONS = {
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
}
OPERATORS = (*_FUNCTIONS, *_COMPARISONS, "Clip", "PRelu", "Max", "Min", "Where")


def activation(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    """The operator as a Nonlinear node; PRelu as slope * x + (1 - slope) * Relu(x), Where as y + condition * (x - y).

    A truth value is 1 or 0. Alone it makes a poor polynomial; as part of a curve (where x > 20 then x else log(1 + e^x)) it costs nothing.
    """
    if node.op == "Where":
        return _where(b, node, inputs)
    if node.op in ("Max", "Min", *_COMPARISONS):
        return _beside_a_number(b, node, inputs)
    x = tensor(inputs)
    shape = b.shape(x)
    if node.op == "PRelu":
        slope = fixed(inputs, 1)
        relu = b.append(Nonlinear(node.name, x, node.op, _FUNCTIONS["Relu"]({}), shape))
        linear = b.elementwise(node, x, slope, 0.0)
        return b.append(Sum(node.name, linear, b.elementwise(node, relu, 1 - slope, 0.0), shape))
    if node.op == "Clip":
        low, high = (_bound(node, inputs, i, name) for i, name in ((1, "min"), (2, "max")))
        if low > high:
            raise ModelError(f"its bounds {low:g}..{high:g} are empty")
        function: _Function = lambda x: np.clip(x, low, high)  # noqa: E731
    else:
        function = _FUNCTIONS[node.op](node.attributes)
    return b.append(Nonlinear(node.name, x, node.op, function, shape))


def _where(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    if not isinstance(inputs[0], int):
        raise ModelError("its condition is a constant and its values are not; multiply by a mask and add")
    shape = np.broadcast_shapes(
        *(b.shape(v) if isinstance(v, int) else np.shape(v) for v in inputs if v is not None)
    )
    condition = b.broadcast(node, inputs[0], shape)
    parts = []
    for i, wanted in ((1, condition), (2, b.elementwise(node, condition, -1.0, 1.0))):
        if not isinstance(inputs[i], int):
            parts.append(b.elementwise(node, wanted, fixed(inputs, i), 0.0))
        else:
            value = b.broadcast(node, tensor(inputs, i), shape)
            parts.append(b.append(Product(node.name, wanted, value, shape)))
    return b.append(Sum(node.name, parts[0], parts[1], shape))


def _beside_a_number(b: Builder, node: OnnxNode, inputs: Inputs) -> int:
    """Max, Min or a comparison of a tensor and a constant number."""
    if len(inputs) != 2 or all(isinstance(v, int) for v in inputs):
        raise ModelError("of several tensors it cannot be compiled, only beside a constant number")
    first = isinstance(inputs[0], int)
    x, number = tensor(inputs, int(not first)), fixed(inputs, int(first)).astype(np.float64)
    if number.size == 0 or not (number == number.flat[0]).all():
        raise ModelError("cannot be compiled beside different numbers for different elements")
    level = float(number.flat[0])
    x = b.broadcast(node, x, np.broadcast_shapes(b.shape(x), number.shape))
    if node.op in ("Max", "Min"):
        limit = np.maximum if node.op == "Max" else np.minimum
        function: _Function = lambda v: limit(v, level)  # noqa: E731
    else:
        compare = _COMPARISONS[node.op]
        function = lambda v: (compare(v, level) if first else compare(level, v)).astype(np.float64)  # noqa: E731
    return b.append(Nonlinear(node.name, x, node.op, function, b.shape(x)))


def _bound(node: OnnxNode, inputs: Inputs, i: int, name: str) -> float:
    """A bound of Clip: an input since opset 11, an attribute before."""
    default = -math.inf if name == "min" else math.inf
    value = fixed(inputs, i, np.array(node.attributes.get(name, default)))
    if value.size != 1:
        raise ModelError(f"its {name} must be one number")
    return float(value.reshape(-1)[0])
