"""Files as exporters write them: compiled, evaluated exactly in the clear, and compared with ONNX Runtime at the logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx_models import ModelBuilder
from test_compiler_operators import clear_outputs

from ckks.errors import ModelError
from ckks.modelfile import CompiledModel
from compiler.compile import compile_model
from compiler.report import Budgets, add_budgets
from compiler.report_html import render
from he_serve.plaintext import run_onnx
from he_serve.prediction import Prediction, RawPrediction

EXPORTED = Path(__file__).parent / "exported"
# Levels: what the polynomials and the linear maps between them need, and nothing for what an exporter adds.
FILES: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "torchscript_cnn": ("softmax", 5, ()),
    "dynamo_cnn": ("softmax", 5, ()),
    "dynamo_dynamic": ("softmax", 5, ()),
    "torchscript_1d": ("sigmoid", 3, ()),
    "dynamo_1d": ("sigmoid", 3, ()),
    "dynamo_up": ("softmax", 3, ()),
    "keras_cnn": ("softmax", 5, ()),
    "skl_logistic": ("softmax", 1, ("0", "1", "2")),
    "skl_logistic_binary": ("sigmoid", 1, ("0", "1")),
    "skl_mlp": ("softmax", 0, ("setosa", "versicolor", "virginica")),
    "skl_mlp_binary": ("sigmoid", 1, ("0", "1")),
    "skl_ridge": ("none", 1, ()),
    "skl_perceptron": ("none", 1, ("setosa", "versicolor", "virginica")),
}


def _compiled(path: Path, count: int = 3) -> tuple[CompiledModel, np.ndarray, np.ndarray]:
    """The model, random rows, and the exact logits of its circuit, equal to ONNX Runtime's."""
    shape = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).get_inputs()[0].shape
    rows = np.random.default_rng(0).uniform(0, 1, (count, *shape[1:]))
    model = compile_model(path, name="m", calibration=rows, precision=1e-4)  # shows three digits
    got, expected = clear_outputs(model, rows), run_onnx(path, rows)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())
    return model, rows, got


@pytest.mark.parametrize("name", FILES)
def test_exported_file(name: str) -> None:
    post, level, labels = FILES[name]
    model, rows, logits = _compiled(EXPORTED / f"{name}.onnx")
    output = model.bundle.output
    assert (output.post, model.bundle.input.level, tuple(output.labels)) == (post, level, labels)
    # What the client shows is what the untouched model says.
    shown = [_prediction(model, row) for row in logits]
    expected = _probabilities(EXPORTED / f"{name}.onnx", rows)
    for prediction, row in zip(shown, expected, strict=True):
        got = list(prediction.probabilities.values())
        assert np.abs(np.array(got)[-len(row) :] - row).max() <= 1e-3 * max(1.0, np.abs(row).max())


def _prediction(model: CompiledModel, logits: np.ndarray) -> Prediction:
    return RawPrediction(logits, {}, 0, 0).rounded(model.bundle.output)


def _probabilities(path: Path, rows: np.ndarray) -> list[np.ndarray]:
    """The untouched model's last output as probabilities (or values), one array a row."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0]
    found = []
    for row in rows:
        result = session.run(None, {source.name: row[None].astype(np.float32)})[-1]
        if isinstance(result, list):  # ZipMap's list of dictionaries
            result = np.array(list(result[0].values()))
        elif session.get_outputs()[-1].name in ("scores", "log_softmax"):
            result = np.exp(result)
        found.append(np.asarray(result, dtype=np.float64).reshape(-1))
    if "up" in path.name:  # no softmax of its own: the client's default
        found = [np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in found]
    return found


@pytest.mark.parametrize("name", ["skl_ovr"])
def test_exported_file_that_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="one multi-class classifier"):
        compile_model(EXPORTED / f"{name}.onnx", name="m")


def _int(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def _nhwc(b: ModelBuilder) -> str:
    """As tf2onnx writes a Keras network: NHWC input, asymmetric padding, shape arithmetic before the dense layer, softmax."""
    x = b.node("Transpose", "image", perm=[0, 3, 1, 2])
    x = b.conv(x, 3, 4, strides=[2, 2], pads=[0, 0, 1, 1])
    x = b.quadratic(b.batch_norm(x, 4), 4)
    x = b.node("Transpose", b.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]), perm=[0, 2, 3, 1])
    shape = b.node("Cast", b.node("Shape", x), to=TensorProto.INT32)
    batch = b.node("Slice", shape, b.constant(_int(0)), b.constant(_int(1)), b.constant(_int(0)))
    joined = b.node("Concat", batch, b.constant(np.array([-1], np.int32)), axis=0)
    x = b.node("Reshape", x, b.node("Cast", joined, to=TensorProto.INT64))
    x = b.node("Add", b.node("MatMul", x, b.weight(16, 5)), b.weight(5))
    return b.node("Softmax", x, axis=-1)


def _nhwc_reshape(b: ModelBuilder) -> str:
    """One channel: tf2onnx turns the first Transpose into a Reshape."""
    shape = b.node("Concat", b.node("Slice", b.node("Shape", "image"), *(b.constant(_int(k)) for k in (0, 1, 0))),
                   b.constant(_int(1, 8, 8)), axis=0)  # fmt: skip
    x = b.conv(b.node("Reshape", "image", shape), 1, 3, auto_pad="SAME_UPPER", strides=[2, 2])
    x = b.node("Squeeze", b.node("ReduceMean", b.node("Mul", x, x), axes=[2, 3]), b.constant(_int(2, 3)))
    return b.node("Identity", b.node("Sigmoid", b.dense(x, 3, 4)))


def _keras(b: ModelBuilder) -> str:
    """Keras on torch: casts, BatchNorm as Sub, Mul and Add, padding computed from shapes."""
    size = b.node("Gather", b.node("Shape", "image"), b.constant(_int(2)))
    rest = b.node("Mod", size, b.constant(_int(4)))
    ahead = b.node("Sub", b.constant(_int(4)), rest)
    spot = b.node("Where", b.node("Equal", rest, b.constant(_int(0))), b.constant(_int(0)), ahead)
    pads = b.node("Concat", b.constant(_int(0, 0, 0, 0, 0, 0)), spot, b.constant(_int(1)), axis=0)
    x = b.node("Pad", b.node("Cast", "image", to=1), b.node("Cast", pads, to=TensorProto.INT64))
    x = b.conv(x, 2, 3, strides=[2, 2])
    mean, scale, shift = (b.weight(1, 3, 1, 1) for _ in range(3))
    x = b.node(
        "Add", b.node("Mul", b.node("Sub", x, mean), b.node("Reciprocal", b.node("Exp", scale))), shift
    )
    x = b.node("Pow", x, b.constant(2.0))
    x = b.node("Flatten", b.node("Expand", x, b.constant(_int(1, 1, 1, 1))))
    return b.node("LogSoftmax", b.node("Gemm", x, b.weight(27, 4), b.weight(4)))


WRITTEN: dict[str, tuple[tuple[int, ...], Callable[[ModelBuilder], str], str]] = {
    "tf2onnx": ((8, 8, 3), _nhwc, "softmax"),
    "tf2onnx one channel": ((8, 8, 1), _nhwc_reshape, "sigmoid"),
    "keras on torch": ((2, 6, 6), _keras, "softmax"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_written_like_an_exporter(name: str, tmp_path: Path) -> None:
    shape, make, post = WRITTEN[name]
    b = ModelBuilder(shape, batch="unk__5")
    model, _, _ = _compiled(b.save(tmp_path / "m.onnx", make(b)))
    assert model.bundle.output.post == post
    assert model.bundle.input.level == 3


@pytest.mark.parametrize("batch", [-1, 0, 1])
def test_batch_written_as_a_number(batch: int, tmp_path: Path) -> None:
    b = ModelBuilder((4,))
    model = b.model(b.dense("image", 4, 3))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(model, tmp_path / "m.onnx")
    compile_model(tmp_path / "m.onnx", name="m")


def _in_words_of(opset: int) -> onnx.ModelProto:
    """One network in the words of its opset: attributes became operands, and initialisers left the list of inputs."""
    b = ModelBuilder((2, 6, 6))
    x = b.conv("image", 2, 4, pads=[1] * 4)
    scale = b.constant(b.random.uniform(0.5, 1, (4,) if opset < 7 else (4, 1, 1)))
    x = b.node("Mul", x, scale, **({"axis": 1, "broadcast": 1} if opset < 7 else {}))
    x = b.batch_norm(x, 4)
    if opset < 7:
        b.nodes[-1].attribute.append(helper.make_attribute("is_test", 1))
    x = b.node("Mul", x, x)
    x = b.node("Dropout", x, **({"is_test": 1} if opset < 7 else {}))
    if opset < 11:
        x = b.node("Pad", x, pads=[0, 0, 0, 1, 0, 0, 0, 1], mode="edge")
    else:
        x = b.node("Pad", x, b.constant(_int(0, 0, 0, 1, 0, 0, 0, 1)), mode="edge")
    x = b.node("Slice", x, starts=[1], ends=[9], axes=[2]) if opset < 10 else b.node(
        "Slice", x, *(b.constant(_int(k)) for k in (1, 9, 2)))  # fmt: skip
    x = (
        b.node("ReduceMean", x, axes=[3], keepdims=1)
        if opset < 18
        else b.node("ReduceMean", x, b.constant(_int(3)))
    )
    x = b.node("Squeeze", x, axes=[3]) if opset < 13 else b.node("Squeeze", x, b.constant(_int(3)))
    left = helper.make_node(
        "Split", [x], ["left", "right"], axis=1, **({"num_outputs": 2} if opset >= 18 else {})
    )
    b.nodes.append(left)
    x = b.node("Flatten", b.node("Sub", "left", "right"))
    x = b.node("Gemm", x, b.weight(3, 10), b.weight(3), transB=1, **({"broadcast": 1} if opset < 7 else {}))
    x = b.node("Softmax", x, **({} if opset < 13 else {"axis": 1}))
    model = b.model(x, opset=opset)
    if opset < 9:
        model.ir_version = 3
        for tensor in model.graph.initializer:
            model.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return model


@pytest.mark.parametrize("opset", [6, 7, 9, 11, 12, 13, 15, 18, 21])
def test_opsets(opset: int, tmp_path: Path) -> None:
    path, twin = tmp_path / "m.onnx", tmp_path / "twin.onnx"
    onnx.save(_in_words_of(opset), path)
    onnx.save(_in_words_of(max(opset, 7)), twin)  # ONNX Runtime knows no older words
    rows = np.random.default_rng(0).uniform(0, 1, (3, 2, 6, 6))
    model = compile_model(path, name="m", calibration=rows)
    assert np.abs(clear_outputs(model, rows) - run_onnx(twin, rows)).max() <= 1e-5
    assert model.bundle.input.level == 3


def test_softmax_over_one_axis_of_several(tmp_path: Path) -> None:
    b = ModelBuilder((3, 4, 4))
    path = b.save(tmp_path / "m.onnx", b.node("Softmax", b.conv("image", 3, 2, 1), axis=1))
    with pytest.raises(ModelError, match="only one set of classes"):
        compile_model(path, name="m")


def test_post_by_metadata(tmp_path: Path) -> None:
    b = ModelBuilder((4,))
    output = b.dense("image", 4, 1)
    model = compile_model(b.save(tmp_path / "m.onnx", output, {"post": "none"}), name="m")
    assert _prediction(model, np.array([2.5])).probabilities == {"0": 2.5}
    with pytest.raises(ModelError, match="post"):
        compile_model(b.save(tmp_path / "m.onnx", output, {"post": "tanh"}), name="m")


SCALING: dict[str, Callable[[ModelBuilder], str]] = {
    "by 255": lambda b: b.node("Div", "image", b.constant(255.0)),
    "mean and deviation": lambda b: b.node(
        "Div", b.node("Sub", "image", b.weight(3, 1, 1)), b.constant([[[0.2]], [[0.3]], [[0.5]]])
    ),
    "to -1..1": lambda b: b.node("Sub", b.node("Mul", "image", b.constant(2.0)), b.constant(1.0)),
}


@pytest.mark.parametrize("name", SCALING)
def test_scaling_before_the_first_layer_costs_nothing(name: str, tmp_path: Path) -> None:
    b = ModelBuilder((3, 5, 5))
    path = b.save(tmp_path / "m.onnx", b.conv(SCALING[name](b), 3, 2))
    model, _, _ = _compiled(path)
    assert model.bundle.input.level == 1


def test_input_range(tmp_path: Path) -> None:
    """Clients refuse inputs outside the range: without a word in the file it comes from the calibration rows, and both must agree."""
    path = EXPORTED / "skl_logistic.onnx"
    rows = np.random.default_rng(0).uniform(0.1, 7.9, (40, 4))
    found = compile_model(path, name="m", calibration=rows).bundle.input
    assert -8 < found.low < rows.min() and rows.max() < found.high < 16
    b = ModelBuilder((4,))
    output = b.dense("image", 4, 2)
    plain, told = (
        b.save(tmp_path / "a.onnx", output),
        b.save(tmp_path / "b.onnx", output, {"input_range": "[0, 8]"}),
    )
    for file, given, wanted in ((plain, rows / 8, (0, 1)), (plain, None, (0, 1)), (told, rows, (0, 8))):
        found = compile_model(file, name="m", calibration=given).bundle.input
        assert (found.low, found.high) == wanted
    with pytest.raises(ModelError, match=r"outside the input_range 0\.\.8"):
        compile_model(told, name="m", calibration=2 * rows)


def test_max_pooling_replaced_on_request(tmp_path: Path) -> None:
    b = ModelBuilder((2, 8, 8))
    x = b.node(
        "MaxPool", b.conv("image", 2, 4), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1
    )
    path = b.save(tmp_path / "m.onnx", b.dense(b.node("Flatten", b.node("GlobalMaxPool", x)), 4, 3))
    rows = b.rows(16).astype(np.float64)
    with pytest.raises(ModelError, match="--maxpool average"):
        compile_model(path, name="m", calibration=rows)
    model = compile_model(path, name="m", calibration=rows, maxpool="average")
    for node in b.nodes:
        node.op_type = node.op_type.replace("MaxPool", "AveragePool")
    twin = b.save(tmp_path / "twin.onnx", b.nodes[-1].output[0])
    got, before = clear_outputs(model, rows), run_onnx(path, rows)
    assert np.abs(got - run_onnx(twin, rows)).max() <= 1e-5
    report = model.report["maxpool"]
    assert report["replaced"] == ["MaxPool_1", "GlobalMaxPool_2"] and report["rows"] == 16
    assert (
        report["largest_change"] == pytest.approx(np.abs(got - before).max(), rel=1e-4)
        and report["largest_change"] > 0.01
    )
    assert report["same_class"] == (got.argmax(axis=1) == before.argmax(axis=1)).mean()
    # Accuracy is lost to the replacement too: the original is the file as it came.
    labels = before.argmax(axis=1)
    validated = compile_model(path, name="m", calibration=rows, maxpool="average", validation=(rows, labels))
    found = validated.report["validation"]
    assert found["accuracy"] == 1.0
    assert found["averaged"]["accuracy"] == found["averaged"]["agreement"] == report["same_class"]
    add_budgets(validated.report, Budgets(accuracy_drop=0.0))
    (budget,) = validated.report["budgets"]
    assert budget["value"] == pytest.approx(1 - report["same_class"])
    assert "with average pooling" in render(validated.bundle, validated.report)
