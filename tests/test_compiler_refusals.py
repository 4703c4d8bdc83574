"""What cannot be compiled is named with its node and a remedy; hostile and corrupt files give ModelError and nothing else."""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_models import ModelBuilder

from ckks.cleartext import CleartextEvaluator
from ckks.errors import ModelError
from ckks.interpreter import run
from compiler.compile import compile_model
from he_serve.packing import pack, unpack

TENSOR = (3, 6, 6)

OPERATORS: dict[str, tuple[Callable[[ModelBuilder], str], str]] = {
    "Relu": (lambda b: b.node("Relu", "image"), "polynomial activation"),
    "Sigmoid": (lambda b: b.node("Neg", b.node("Sigmoid", "image")), "polynomial activation"),
    "MaxPool": (lambda b: b.node("MaxPool", "image", kernel_shape=[2, 2]), "AveragePool"),
    "Softmax": (
        lambda b: b.node("Neg", b.node("Softmax", b.node("Flatten", "image"))),
        "cut the graph at the logits",
    ),
    "Cast": (lambda b: b.node("Cast", b.node("Cast", "image", to=7), to=1), "cast to integers"),
    "InstanceNormalization": (
        lambda b: b.node("InstanceNormalization", "image", b.weight(3), b.weight(3)),
        "BatchNormalization",
    ),
    "Pow": (lambda b: b.node("Pow", "image", b.constant(0.5)), "whole powers"),
    "Div": (lambda b: b.node("Div", b.weight(3, 1, 1), "image"), "polynomial activation"),
    "Max": (lambda b: b.node("Max", "image", b.node("Neg", "image")), "beside a constant number"),
    "Greater": (
        lambda b: b.node("Where", b.node("Greater", "image", b.weight(3, 1, 1)), "image", "image"),
        "different numbers",
    ),
    "MatMul": (lambda b: b.node("MatMul", "image", "image"), "must be a constant"),
    "Sin": (lambda b: b.node("Sin", "image"), "polynomials"),
    "ReduceMean": (lambda b: b.node("ReduceMean", "image", axes=[0], keepdims=1), "batch"),
}


@pytest.mark.parametrize("op", OPERATORS)
def test_refused_operator_names_node_and_remedy(op: str, tmp_path: Path) -> None:
    make, remedy = OPERATORS[op]
    b = ModelBuilder(TENSOR)
    path = b.save(tmp_path / "m.onnx", make(b))
    with pytest.raises(ModelError, match=remedy) as caught:
        compile_model(path, name="m")
    assert op in str(caught.value) and f"{op}_" in str(caught.value)


def _refused(model: onnx.ModelProto, folder: Path, match: str) -> None:
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=match):
        compile_model(path, name="m")


def _dense() -> tuple[ModelBuilder, onnx.ModelProto]:
    b = ModelBuilder((4,))
    return b, b.model(b.dense("image", 4, 3))


def test_training_mode_is_refused(tmp_path: Path) -> None:
    b = ModelBuilder(TENSOR)
    weights = [b.weight(3) for _ in range(3)]
    out = b.node("BatchNormalization", "image", *weights, b.constant(np.ones(3)), training_mode=1)
    b.nodes[-1].output.extend(["mean", "variance"])
    _refused(b.model(out), tmp_path, "model.eval")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(bad: float, tmp_path: Path) -> None:
    b = ModelBuilder((4,))
    _refused(b.model(b.node("Mul", "image", b.constant([1, 2, bad, 4]))), tmp_path, "c0.*NaN or infinite")


def _with_functions(count: int, calls: int) -> onnx.ModelProto:
    """A chain of functions, each with `calls` calls of the next in a row; the last is Neg."""
    opset = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    functions = []
    for i in range(count):
        op, domain = ("Neg", "") if i + 1 == count else (f"f{i + 1}", "local")
        names = ["x", *(f"v{k}" for k in range(1, calls)), "y"]
        nodes = [helper.make_node(op, [a], [b], domain=domain) for a, b in itertools.pairwise(names)]
        functions.append(helper.make_function("local", f"f{i}", ["x"], ["y"], nodes, opset))
    image, out = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in ("image", "out"))
    graph = helper.make_graph(
        [helper.make_node("f0", ["image"], ["out"], domain="local")], "g", [image], [out]
    )
    return helper.make_model(graph, functions=functions, opset_imports=opset, ir_version=8)


def test_local_functions_are_expanded(tmp_path: Path) -> None:
    onnx.save(_with_functions(3, 3), tmp_path / "m.onnx")  # Neg 27 times
    model = compile_model(tmp_path / "m.onnx", name="m")
    evaluator = CleartextEvaluator(model.bundle.checked_parameters(), model.weights)
    x, spec = np.array([0.5, 0.25, 1.0, 0.0]), model.bundle.input
    inputs = {spec.name: evaluator.encrypt(pack(x, spec.packing), spec.level, spec.scale)}
    (result,) = run(model.circuit, inputs, evaluator).values()
    assert np.abs(unpack(result.slots, model.bundle.output.packing) + x).max() < 1e-9


@pytest.mark.parametrize(
    ("count", "calls", "match"), [(30, 3, "nodes with its local functions"), (40, 1, "nests deeper")]
)
def test_local_functions_that_grow_are_refused(count: int, calls: int, match: str, tmp_path: Path) -> None:
    _refused(_with_functions(count, calls), tmp_path, match)


def test_a_local_function_that_calls_itself_is_refused(tmp_path: Path) -> None:
    model = _with_functions(2, 2)
    model.functions[1].node[0].op_type, model.functions[1].node[0].domain = "f0", "local"
    _refused(model, tmp_path, "calls itself")
    model = _with_functions(2, 1)
    model.functions.append(model.functions[0])
    _refused(model, tmp_path, "defined twice")


def test_missing_initialiser(tmp_path: Path) -> None:
    _, model = _dense()
    del model.graph.initializer[0]
    _refused(model, tmp_path, "not valid ONNX")


def test_cycle(tmp_path: Path) -> None:
    _, model = _dense()
    model.graph.node[0].input[0] = model.graph.node[0].output[0]
    _refused(model, tmp_path, "not valid ONNX")


def test_dynamic_axis(tmp_path: Path) -> None:
    _, model = _dense()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "width"
    _refused(model, tmp_path, "axis 1 has no fixed size")


def test_fixed_batch(tmp_path: Path) -> None:
    _, model = _dense()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8
    _refused(model, tmp_path, "batch of 8")


def test_inputs_and_outputs_without_use_and_too_many(tmp_path: Path) -> None:
    _, model = _dense()
    two = onnx.ModelProto()
    two.CopyFrom(model)
    two.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1, 4]))
    _refused(two, tmp_path, "'other'; remove it")
    many = [helper.make_tensor_value_info(f"other{i}", TensorProto.FLOAT, [1, 4]) for i in range(17)]
    two.graph.input.extend(many)
    _refused(two, tmp_path, "19 inputs")


def test_output_that_ignores_the_input(tmp_path: Path) -> None:
    b = ModelBuilder((4,))
    _refused(b.model(b.node("Mul", "image", b.constant(np.zeros(4)))), tmp_path, "does not depend")


@pytest.mark.parametrize("dims", [[1 << 40, 1 << 40], [1 << 30, 4], [-4, -3], [4, 3, 1 << 20]])
def test_huge_and_negative_dimensions_cost_nothing(dims: list[int], tmp_path: Path) -> None:
    _, model = _dense()
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    start = time.perf_counter()
    _refused(model, tmp_path, "elements|negative|does not hold|not valid")
    assert time.perf_counter() - start < 5


def test_huge_picture_and_huge_padding(tmp_path: Path) -> None:
    b = ModelBuilder((3, 1 << 12, 1 << 12))
    _refused(b.model(b.node("GlobalAveragePool", "image")), tmp_path, "smaller picture")
    b = ModelBuilder((3, 640, 640))
    _refused(b.model(b.conv("image", 3, 4)), tmp_path, "slots|elements|entries")
    b = ModelBuilder(TENSOR)
    _refused(b.model(b.conv("image", 3, 4, pads=[1 << 30] * 4)), tmp_path, "too large")


def test_constant_arithmetic_is_bounded(tmp_path: Path) -> None:
    """Outer sums of constants square their size at every node."""
    b = ModelBuilder((1,))
    x = b.constant(np.ones((4096, 1)))
    y = b.node("Add", x, b.constant(np.ones((1, 4096))))
    z = b.node("Add", b.node("Unsqueeze", y, b.constant(np.array([2]))), b.constant(np.ones(1 << 14)))
    b.node("Mul", "image", b.node("ReduceSum", z))
    model = b.model(b.node("Mul", "image", y))
    start = time.perf_counter()
    _refused(model, tmp_path, "too large|elements")
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("location", ["/etc/passwd", "../weights", "", "nowhere", "link", "."])
def test_external_data_outside_the_folder(location: str, tmp_path: Path) -> None:
    _, model = _dense()
    tensor = model.graph.initializer[0]
    (tmp_path / "link").symlink_to("/etc/passwd")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    _refused(model, tmp_path, "inside the ONNX file")


def test_external_data_beyond_the_shape_is_not_read(tmp_path: Path) -> None:
    """A file of 64 GiB, nearly all holes, and no length: the library would read all of it."""
    _, model = _dense()
    tensor = model.graph.initializer[0]
    with (tmp_path / "weights").open("wb") as file:
        file.truncate(1 << 36)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights")
    _refused(model, tmp_path, "more than its shape names")


def test_wide_joins_cost_no_memory(tmp_path: Path) -> None:
    """Every input of a Concat has a matrix of as many rows as the result."""
    b = ModelBuilder((4,))
    start = time.perf_counter()
    _refused(b.model(b.node("Concat", *["image"] * 100_000, axis=1)), tmp_path, "entries in all")
    assert time.perf_counter() - start < 20


def test_long_chains_of_activations_end(tmp_path: Path) -> None:
    """Far deeper than Python's stack; all but the first do nothing, and the polynomial of the first must serve them all."""
    b = ModelBuilder((4,))
    x = "image"
    for _ in range(3000):
        x = b.node("Relu", x)
    path = b.save(tmp_path / "m.onnx", b.dense(x, 4, 2))
    rows = 2 * b.rows(40).astype(np.float64) - 1
    with contextlib.suppress(ModelError):
        compile_model(path, name="m", calibration=rows, precision=0.1)


def test_weights_without_elements(tmp_path: Path) -> None:
    b = ModelBuilder((4,))
    _refused(b.model(b.node("Gemm", "image", b.constant(np.zeros((4, 0))))), tmp_path, "no elements")


def test_an_opset_of_the_future(tmp_path: Path) -> None:
    b = ModelBuilder((4,))
    model = b.model(b.dense("image", 4, 3))
    model.opset_import[0].version = 999
    _refused(model, tmp_path, "opset 999 is newer")


def test_external_data_beside_the_model(tmp_path: Path) -> None:
    _, model = _dense()
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    assert (tmp_path / "m.data").exists()
    compile_model(tmp_path / "m.onnx", name="m")


RANGES = ["[1, 0]", "[0]", "[NaN, 1]", "0", "[-1e308, 1e308]"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("labels", text) for text in ("[1, 2, 3]", "{", '["a"]')),
        *(("input_range", text) for text in RANGES),
    ],
)
def test_bad_metadata(key: str, value: str, tmp_path: Path) -> None:
    b = ModelBuilder((4,))
    _refused(b.model(b.dense("image", 4, 3), {key: value}), tmp_path, key)


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        compile_model(tmp_path / "none.onnx", name="m")
    (tmp_path / "m.onnx").write_bytes(b"not a model at all")
    with pytest.raises(ModelError, match="ONNX"):
        compile_model(tmp_path / "m.onnx", name="m")
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(ModelError):
        compile_model(tmp_path / "m.onnx", name="m")


def test_bad_precision_and_calibration(tmp_path: Path) -> None:
    b = ModelBuilder((4,))
    path = b.save(tmp_path / "m.onnx", b.dense("image", 4, 3))
    for precision in (0.0, -1.0, 1.0, 1e-14, float("nan")):
        with pytest.raises(ModelError, match="precision"):
            compile_model(path, name="m", precision=precision)
    for rows in (np.zeros((3, 5)), np.zeros((0, 4)), np.full((2, 4), np.nan), np.float64(3)):
        with pytest.raises(ModelError, match="calibration"):
            compile_model(path, name="m", calibration=rows)


def test_what_no_bundle_can_say_is_refused(tmp_path: Path) -> None:
    b = ModelBuilder((4,))
    path = b.save(tmp_path / "m.onnx", b.dense("image", 4, 3))
    for name in ("", "../m", "a b", "x" * 101):
        with pytest.raises(ModelError, match="name"):
            compile_model(path, name=name)
    wide = b.node("Reshape", "v0", b.constant(np.array([1] * 7 + [3])))
    _refused(b.model(wide), tmp_path, "cannot be described to clients: shape")


def test_overflowing_values(tmp_path: Path) -> None:
    b = ModelBuilder((4,))
    x = "image"
    for _ in range(12):
        x = b.node("Mul", b.node("Mul", x, b.constant(1e30)), b.constant(1e30))
    path = b.save(tmp_path / "m.onnx", b.node("Pow", x, b.constant(2.0)))
    with pytest.raises(ModelError, match="overflow"):
        compile_model(path, name="m")


def test_too_deep(tmp_path: Path) -> None:
    b = ModelBuilder((2,))
    x = "image"
    for _ in range(40):
        x = b.quadratic(b.dense(x, 2, 2), 2, spatial=False)
    path = b.save(tmp_path / "m.onnx", x)
    with pytest.raises(ModelError, match=r"fewer activations|overflow"):
        compile_model(path, name="m")


def _mutations(good: bytes, count: int, seed: int) -> list[bytes]:
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        data = bytearray(good)
        match draw.randrange(4):
            case 0:
                data = data[: draw.randrange(len(data))]
            case 1:
                for _ in range(draw.randrange(1, 5)):
                    data[draw.randrange(len(data))] = draw.randrange(256)
            case 2:
                at = draw.randrange(len(data))
                data[at:at] = draw.randbytes(draw.randrange(1, 9))
            case _:
                at = draw.randrange(len(data))
                del data[at : at + draw.randrange(1, 9)]
        found.append(bytes(data))
    return found


def _tiny() -> onnx.ModelProto:
    b = ModelBuilder((1, 4, 4))
    x = b.quadratic(b.batch_norm(b.conv("image", 1, 2, 2, pads=[0, 0, 1, 1]), 2), 2)
    x = b.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    x = b.node("Reshape", x, b.constant(np.array([0, -1])))
    x = b.node("Concat", x, b.node("Slice", x, *(b.constant(np.array([k])) for k in (0, 1, 1))), axis=1)
    x = b.node("Pow", b.node("Pad", x, b.constant(np.array([0, 1, 0, 0]))), b.constant(2.0))
    return b.model(b.dense(x, 10, 2), {"labels": '["a", "b"]', "input_range": "[0, 1]"})


def _tiny_moves() -> onnx.ModelProto:
    """Layout operators, shape arithmetic and a tail."""
    b = ModelBuilder((4, 4, 4))
    x = b.node("DepthToSpace", b.node("Transpose", "image", perm=[0, 3, 1, 2]), blocksize=2)
    x = b.node("ConvTranspose", x, b.weight(1, 2, 2, 2), strides=[2, 2], output_padding=[1, 0])
    x = b.node("Expand", b.node("SpaceToDepth", b.node("Slice", x, *(b.constant(np.array([k])) for k in (0, 16, 2))), blocksize=2),
               b.constant(np.array([1, 1, 1, 1])))  # fmt: skip
    x = b.node("Tile", b.node("ReduceMean", x, axes=[3]), b.constant(np.array([1, 1, 1, 2])))
    shape = b.node(
        "Concat",
        b.node("Gather", b.node("Shape", x), b.constant(np.array([0]))),
        b.constant(np.array([-1])),
        axis=0,
    )
    filled = b.node("ConstantOfShape", b.node("Range", *(b.constant(np.array(k)) for k in (2, 4, 1))))
    x = b.node(
        "Add", b.node("Reshape", x, shape), b.node("Reshape", filled, b.constant(np.array([-1, 1, 6])))
    )
    b.nodes[-1].op_type = "Identity"  # the sizes differ: mutations may make them meet
    del b.nodes[-1].input[1]
    x = b.node("MatMul", b.node("Gather", x, b.constant(np.array([0, 3, -1])), axis=1), b.weight(3, 2))
    return b.model(b.node("Softmax", x), {"labels": '["a", "b"]'})


def _mutate(model: onnx.ModelProto, draw: random.Random) -> None:
    """One change of meaning in a well-formed file: an attribute, a name, a size, a type, an operator."""
    node, tensor = draw.choice(model.graph.node), draw.choice(model.graph.initializer)
    number = draw.choice([-(1 << 62), -3, -1, 0, 1, 2, 3, 7, 1 << 20, 1 << 31, (1 << 62) - 1])
    names = (
        [t.name for t in model.graph.initializer]
        + [o for n in model.graph.node for o in n.output]
        + ["image", ""]
    )
    match draw.randrange(9):
        case 0 if node.attribute:
            attribute = draw.choice(node.attribute)
            if attribute.ints:
                attribute.ints[draw.randrange(len(attribute.ints))] = number
            attribute.i = number
        case 1:
            node.input[draw.randrange(len(node.input))] = draw.choice(names)
        case 2:
            node.op_type = draw.choice(
                [n.op_type for n in model.graph.node]
                + [
                    "Div",
                    "Sub",
                    "MatMul",
                    "ReduceMean",
                    "Gather",
                    "Split",
                    "Pad",
                    "Tile",
                    "GatherND",
                    "Sigmoid",
                    "ArgMax",
                    "Range",
                ]
            )
        case 3:
            model.graph.node.remove(node)
        case 4:
            tensor.dims[draw.randrange(len(tensor.dims))] = number if tensor.dims else 1
        case 5:
            tensor.data_type = draw.randrange(1, 24)
        case 6:
            array = np.frombuffer(tensor.raw_data, np.uint8).copy()
            array[draw.randrange(len(array))] = draw.randrange(256)
            tensor.raw_data = array.tobytes()
        case 7:
            model.graph.input[0].type.tensor_type.shape.dim[draw.randrange(4)].dim_value = number
        case _:
            node.attribute.append(
                helper.make_attribute(draw.choice(["axis", "axes", "pads", "strides", "group"]), number)
            )


@pytest.mark.parametrize("make", [_tiny, _tiny_moves])
def test_changed_meanings_never_crash(make: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    draw = random.Random(5)
    path = tmp_path / "m.onnx"
    compiled = 0
    for _ in range(300):
        model = make()
        for _ in range(draw.randrange(1, 3)):
            with contextlib.suppress(ValueError, IndexError):  # the library itself refuses some changes
                _mutate(model, draw)
        path.write_bytes(model.SerializeToString())
        start = time.perf_counter()
        try:
            compile_model(path, name="m", precision=0.01)
            compiled += 1
        except ModelError:
            pass
        assert time.perf_counter() - start < 20
    assert 0 < compiled < 300


def test_corrupt_files_never_crash(tmp_path: Path) -> None:
    """Structure is small beside weights in this model, so that most mutations hit structure."""
    b = ModelBuilder((1, 4, 4))
    x = b.quadratic(b.batch_norm(b.conv("image", 1, 2, 2), 2), 2)
    x = b.dense(b.node("Flatten", b.node("AveragePool", x, kernel_shape=[2, 2])), 8, 2)
    good = b.model(x, {"labels": '["a", "b"]', "input_range": "[0, 1]"}).SerializeToString()
    path = tmp_path / "m.onnx"
    refused = 0
    for data in _mutations(good, 400, seed=3):
        path.write_bytes(data)
        try:
            compile_model(path, name="m", precision=0.01)
        except ModelError:
            refused += 1
    assert refused > 100
