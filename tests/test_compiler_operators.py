"""Every operator alone, and random small networks, compiled and evaluated exactly in the clear, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx_models import ModelBuilder, onnx_outputs
from samples import bundle_ends

from ckks.circuit import Op
from ckks.modelfile import CompiledModel
from compiler.compile import compile_model
from compiler.precision import evaluate


def clear_outputs(model: CompiledModel, rows: np.ndarray, seed: int | None = None) -> np.ndarray:
    """What the compiled circuit computes in the clear: [rows][elements]."""
    ends = bundle_ends(model.bundle)
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    return evaluate(model.circuit, model.weights, model.bundle.checked_parameters(), flat, ends, seed)


def assert_agrees(path: Path, builder: ModelBuilder, tolerance: float = 1e-5) -> CompiledModel:
    """Compile the saved model; its exact evaluation equals ONNX Runtime's to float32 rounding, worst element."""
    rows = builder.rows(3)
    model = compile_model(path, name="test")
    expected = onnx_outputs(path, rows)
    got = clear_outputs(model, rows)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= tolerance * max(1.0, np.abs(expected).max())
    return model


Make = Callable[[ModelBuilder], str]


def _int(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def _reshaped(b: ModelBuilder, x: str) -> str:
    """x.view(x.shape[0], -1) as tracing exporters write it."""
    batch = b.node("Slice", b.node("Shape", x), *(b.constant(_int(k)) for k in (0, 1, 0)))
    return b.node("Reshape", x, b.node("Concat", batch, b.constant(_int(-1)), axis=0))


def _split(b: ModelBuilder) -> str:
    b.nodes.append(
        helper.make_node("Split", ["image", b.constant(_int(1, 2, 3))], ["first", "second", "third"], axis=1)
    )
    return b.node("Concat", "third", b.node("Neg", "first"), axis=1)


LINEAR: dict[str, tuple[tuple[int, ...], Make]] = {
    "conv": ((3, 8, 8), lambda b: b.conv("image", 3, 4)),
    "conv stride pad": ((2, 9, 7), lambda b: b.conv("image", 2, 5, strides=[2, 3], pads=[1, 0, 2, 1])),
    "conv dilated": ((2, 9, 9), lambda b: b.conv("image", 2, 3, dilations=[2, 3])),
    "conv grouped": ((4, 6, 6), lambda b: b.conv("image", 4, 8, group=2)),
    "conv depthwise": ((6, 6, 6), lambda b: b.conv("image", 6, 6, group=6, pads=[1, 1, 1, 1])),
    "conv same upper": ((2, 7, 7), lambda b: b.conv("image", 2, 3, strides=[2, 2], auto_pad="SAME_UPPER")),
    "conv same lower": ((2, 8, 8), lambda b: b.conv("image", 2, 3, 4, auto_pad="SAME_LOWER")),
    "conv no bias": ((2, 5, 5), lambda b: b.node("Conv", "image", b.weight(3, 2, 3, 3))),
    "conv 1d": ((3, 20), lambda b: b.node("Conv", "image", b.weight(4, 3, 5), b.weight(4), strides=[2])),
    "gemm": ((10,), lambda b: b.dense("image", 10, 7)),
    "gemm alpha beta": ((10,), lambda b: b.node("Gemm", "image", b.weight(10, 4), b.weight(4), alpha=0.5, beta=2.0)),
    "matmul": ((10,), lambda b: b.node("MatMul", "image", b.weight(10, 4))),
    "matmul rows": ((4, 6), lambda b: b.node("MatMul", "image", b.weight(6, 5))),
    "add": ((2, 4, 4), lambda b: b.node("Add", "image", b.weight(2, 1, 1))),
    "sub": ((2, 4, 4), lambda b: b.node("Sub", "image", b.weight(2, 1, 1))),
    "sub from": ((2, 4, 4), lambda b: b.node("Sub", b.weight(2, 1, 1), "image")),
    "mul": ((2, 4, 4), lambda b: b.node("Mul", b.weight(2, 4, 4), "image")),
    "div": ((2, 4, 4), lambda b: b.node("Div", "image", b.constant([[[0.25]], [[2.0]]]))),
    "neg": ((5,), lambda b: b.node("Neg", "image")),
    "batch norm": ((3, 4, 4), lambda b: b.batch_norm("image", 3)),
    "batch norm flat": ((6,), lambda b: b.batch_norm("image", 6)),
    "average pool": ((2, 8, 8), lambda b: b.node("AveragePool", "image", kernel_shape=[2, 2], strides=[2, 2])),
    "average pool pads": ((2, 7, 7), lambda b: b.node("AveragePool", "image", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])),
    "average pool counting pads": (
        (2, 7, 7),
        lambda b: b.node("AveragePool", "image", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1),
    ),
    "average pool ceil": ((2, 7, 8), lambda b: b.node("AveragePool", "image", kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1)),
    "global average pool": ((4, 5, 5), lambda b: b.node("GlobalAveragePool", "image")),
    "reduce mean": ((4, 5, 5), lambda b: b.node("ReduceMean", "image", axes=[2, 3], keepdims=0)),
    "flatten": ((2, 3, 4), lambda b: b.node("Flatten", "image")),
    "reshape": ((2, 6), lambda b: b.node("Reshape", "image", b.constant(_int(0, 3, -1)))),
    "identity": ((5,), lambda b: b.node("Identity", "image")),
    "dropout": ((5,), lambda b: b.node("Dropout", "image")),
    "transpose": ((3, 4, 5), lambda b: b.node("Transpose", "image", perm=[0, 2, 3, 1])),
    "pad": ((2, 3, 4), lambda b: b.node("Pad", "image", b.constant(_int(0, 0, 1, 2, 0, 1, 0, 1)))),
    "concat": ((2, 3, 4), lambda b: b.node("Concat", "image", b.weight(1, 1, 3, 4), b.node("Neg", "image"), axis=1)),
    "pow 1": ((5,), lambda b: b.node("Pow", "image", b.constant(1.0))),
    "conv transpose": ((3, 5, 4), lambda b: b.node("ConvTranspose", "image", b.weight(3, 2, 3, 3), b.weight(2), strides=[2, 1])),
    "conv transpose pads": (
        (4, 5, 5),
        lambda b: b.node("ConvTranspose", "image", b.weight(4, 3, 3, 2), group=2, strides=[2, 3], pads=[1, 0, 0, 1], output_padding=[1, 0]),
    ),
    "conv transpose 1d dilated": ((2, 7), lambda b: b.node("ConvTranspose", "image", b.weight(2, 3, 3), dilations=[2], strides=[2])),
    "conv transpose same": ((2, 5), lambda b: b.node("ConvTranspose", "image", b.weight(2, 3, 3), strides=[2], auto_pad="SAME_UPPER")),
    "conv of several": (
        (2, 6, 6),
        lambda b: b.conv(b.node("Reshape", "image", b.constant(_int(2, 1, 6, 6))), 1, 3, strides=[2, 2], pads=[1] * 4),
    ),
    "pool of several": (
        (2, 6, 6),
        lambda b: b.node("AveragePool", b.node("Reshape", "image", b.constant(_int(2, 1, 6, 6))), kernel_shape=[3, 2], pads=[1, 0, 0, 1]),
    ),
    "matmul from the left": ((4, 6), lambda b: b.node("MatMul", b.weight(5, 4), "image")),
    "matmul stacked": ((3, 4, 6), lambda b: b.node("MatMul", "image", b.weight(3, 6, 2))),
    "gemm with an encrypted bias": ((4,), lambda b: b.node("Gemm", "image", b.weight(4, 4), "image", beta=0.5)),
    "reduce sum": ((4, 5, 5), lambda b: b.node("ReduceSum", "image", b.constant(_int(-1, 1)), keepdims=0)),
    "mean": ((4,), lambda b: b.node("Mean", "image", b.weight(4), b.dense("image", 4, 4), b.weight(4))),
    "split": ((6, 3), lambda b: _split(b)),
    "slice backwards": ((6, 5), lambda b: b.node("Slice", "image", *(b.constant(_int(*k)) for k in ((-1, 4), (-9, 0), (1, 2), (-2, -1))))),
    "pad reflect": ((1, 4, 5), lambda b: b.node("Pad", "image", b.constant(_int(0, 0, 1, 2, 0, 0, 3, 1)), mode="reflect")),
    "pad edge": ((1, 4, 5), lambda b: b.node("Pad", "image", b.constant(_int(0, 0, 0, 7, 0, 0, 2, 0)), mode="edge")),
    "pad with a value, and cut": ((4, 5), lambda b: b.node("Pad", "image", b.constant(_int(0, 1, -2, 0, 0, 1)), b.constant(1.5))),
    "expand": ((3, 1), lambda b: b.node("Expand", "image", b.constant(_int(1, 3, 4)))),
    "tile": ((3, 2), lambda b: b.node("Tile", "image", b.constant(_int(1, 2, 3)))),
    "gather": ((5, 3), lambda b: b.node("Gather", "image", b.constant(_int(4, 0, -2)), axis=1)),
    "depth to space": ((8, 2, 3), lambda b: b.node("DepthToSpace", "image", blocksize=2, mode="CRD")),
    "space to depth": ((2, 4, 6), lambda b: b.node("SpaceToDepth", "image", blocksize=2)),
    "cast": ((5,), lambda b: b.node("Cast", b.node("Cast", "image", to=11), to=1)),
    "constant node": ((5,), lambda b: b.node("Add", "image", b.node("Constant", value_floats=[1.0, 2.0, 3.0, 4.0, 5.0]))),
    "shape arithmetic": ((2, 3, 4), lambda b: _reshaped(b, b.node("Mul", "image", b.weight(2, 3, 4)))),
    "sum of three": ((4,), lambda b: b.node("Sum", "image", b.node("Neg", b.dense("image", 4, 4)), b.weight(4))),
}  # fmt: skip

POLYNOMIAL: dict[str, tuple[tuple[int, ...], Make]] = {
    "square of input": ((5,), lambda b: b.node("Mul", "image", "image")),
    "pow 2": ((6,), lambda b: b.node("Pow", b.dense("image", 6, 6), b.constant(2.0))),
    "pow 3": ((6,), lambda b: b.node("Pow", b.dense("image", 6, 4), b.constant(3.0))),
    "pow 5": ((6,), lambda b: b.node("Pow", b.dense("image", 6, 4), b.constant(_int(5)))),
    "a power for each": ((3, 2), lambda b: b.node("Pow", "image", b.constant([[1.0, 2], [3, 4], [2, 2]]))),
    "sum of squares": ((3, 4), lambda b: b.node("ReduceSumSquare", "image", axes=[2])),
    "gate": ((3, 4, 4), lambda b: b.node("Mul", "image", b.conv(b.node("GlobalAveragePool", "image"), 3, 3, 1))),
    "quadratic": ((2, 4, 4), lambda b: b.quadratic(b.conv("image", 2, 3), 3)),
    "product of tensors": ((6,), lambda b: b.node("Mul", b.dense("image", 6, 4), b.dense("image", 6, 4))),
    "product of planes": ((2, 6, 6), lambda b: b.node("Mul", b.conv("image", 2, 3), b.conv("image", 2, 3))),
    "product with broadcast": (
        (2, 6, 6),
        lambda b: b.node("Mul", b.conv("image", 2, 3), b.node("GlobalAveragePool", b.conv("image", 2, 3))),
    ),
    "product of a square": ((6,), lambda b: b.node("Mul", b.quadratic(b.dense("image", 6, 4), 4, False), b.dense("image", 6, 4))),
    "cubic, some coefficients zero": (
        (4,),
        lambda b: b.node("Sub", b.node("Pow", b.dense("image", 4, 4), b.constant(3.0)), b.node("Mul", "v0", b.constant([1.0, 0, 2, 0]))),
    ),
    "tiny curvature": (
        (4,),
        lambda b: b.node("Add", b.node("Mul", b.node("Mul", b.dense("image", 4, 4), "v0"), b.constant([1e-9, 1.0, 0, 1.0])), "v0"),
    ),
    "residual": ((3, 6, 6), lambda b: b.node("Add", b.conv(b.quadratic(b.conv("image", 3, 4), 4), 4, 4, pads=[1] * 4), "v0")),
    "residual of activation": (
        (3, 6, 6),
        lambda b: b.quadratic(b.node("Add", b.conv(b.quadratic(b.conv("image", 3, 4), 4), 4, 4, pads=[1] * 4), "v5"), 4),
    ),
    "quadratic twice": ((6,), lambda b: b.dense(b.quadratic(b.dense(b.quadratic(b.dense("image", 6, 6), 6, False), 6, 5), 5, False), 5, 3)),
}  # fmt: skip


@pytest.mark.parametrize("case", LINEAR)
def test_linear_operator(case: str, tmp_path: Path) -> None:
    shape, make = LINEAR[case]
    builder = ModelBuilder(shape)
    model = assert_agrees(builder.save(tmp_path / "m.onnx", make(builder)), builder)
    levels = {ins.level for ins in model.circuit.instructions if ins.op is Op.LINEAR_TRANSFORM}
    assert len(levels) == 1, "one run of linear operators is one transform"


def test_activation_that_is_a_line_where_it_is_used(tmp_path: Path) -> None:
    b = ModelBuilder((5,))
    path = b.save(tmp_path / "m.onnx", b.node("Clip", "image", b.constant(-1.0), b.constant(2.0)))
    rows = b.rows(40)
    model = compile_model(path, name="m", calibration=rows.astype(np.float64))
    assert model.bundle.input.level == 0 and np.abs(clear_outputs(model, rows) - rows).max() <= 1e-5


@pytest.mark.parametrize("case", POLYNOMIAL)
def test_polynomial(case: str, tmp_path: Path) -> None:
    shape, make = POLYNOMIAL[case]
    builder = ModelBuilder(shape)
    assert_agrees(builder.save(tmp_path / "m.onnx", make(builder)), builder)


@pytest.mark.parametrize("degree", range(2, 17))
def test_depth_of_polynomials_is_minimal(degree: int, tmp_path: Path) -> None:
    """A polynomial with full coefficients takes ceil(log2(degree+1)) levels, a quadratic one, the linear map before it one.

    The map behind it takes none: outputs keep the scale of its products.
    """
    b = ModelBuilder((4,))
    x = b.dense("image", 4, 4)
    y = b.constant(np.full(4, 0.5))
    for _ in range(degree):  # Horner
        y = b.node("Add", b.node("Mul", y, x), b.constant(b.random.uniform(0.5, 1, 4)))
    model = assert_agrees(b.save(tmp_path / "m.onnx", b.dense(y, 4, 3)), b)
    assert model.bundle.input.level == 1 + (1 if degree == 2 else int(np.ceil(np.log2(degree + 1))))


@st.composite
def networks(draw: st.DrawFn) -> tuple[ModelBuilder, str]:
    """A random network of convolutions, pools, batch norms, quadratics and residual blocks, perhaps with a dense head."""
    channels, size = draw(st.integers(1, 4)), draw(st.integers(5, 9))
    b = ModelBuilder((channels, size, size), draw(st.integers(0, 999)))
    x = "image"
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "stride", "pool", "norm", "quadratic", "residual"]))
        if kind in ("conv", "stride"):
            out = draw(st.integers(1, 5))
            x = b.conv(x, channels, out, pads=[1] * 4, strides=[2, 2] if kind == "stride" else [1, 1])
            channels, size = out, (size + 1) // 2 if kind == "stride" else size
        elif kind == "pool" and size >= 4:
            x, size = b.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]), size // 2
        elif kind == "norm":
            x = b.batch_norm(x, channels)
        elif kind == "quadratic":
            x = b.quadratic(x, channels)
        elif kind == "residual":
            x = b.node("Add", x, b.quadratic(b.conv(x, channels, channels, pads=[1] * 4), channels))
    if draw(st.booleans()):
        x = b.dense(b.node("Flatten", x), channels * size * size, draw(st.integers(1, 6)))
    if x == "image":
        x = b.node("Neg", x)
    return b, x


@settings(max_examples=25, deadline=None)
@given(network=networks())
def test_random_networks(network: tuple[ModelBuilder, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    builder, output = network
    assert_agrees(builder.save(tmp_path_factory.mktemp("net") / "m.onnx", output), builder)
