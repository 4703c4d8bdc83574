"""Several ciphertexts a tensor, several inputs and outputs: random networks in the clear, and two models through a real server."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx_models import ModelBuilder
from samples import bundle_ends
from serving import Server, assert_problem, start_server

from ckks.errors import InputError, ModelError
from ckks.modelfile import CompiledModel, save_model
from ckks.types import Slots
from ckks.wire import ciphertexts_limit, dump_ciphertexts
from compiler import fitting
from compiler.compile import compile_model
from compiler.precision import evaluate
from he_serve.client import Client
from he_serve.images import read_rows, to_inputs
from he_serve.packing import pack_inputs
from he_serve.trial import twin

Arrays = dict[str, np.ndarray]


def few_slots(patch: pytest.MonkeyPatch, slots: int) -> None:
    patch.setattr(fitting, "MAX_PART_SLOTS", slots)


def add_input(b: ModelBuilder, name: str, shape: tuple[int, ...]) -> str:
    b.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape]))
    return name


def onnx_outputs(model: onnx.ModelProto, rows: Arrays) -> list[np.ndarray]:
    """Every output, [rows][elements], by ONNX Runtime, a row at a time."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    count = len(next(iter(rows.values())))
    results = [session.run(None, {name: x[i : i + 1] for name, x in rows.items()}) for i in range(count)]
    return [np.stack([r[k].reshape(-1) for r in results]) for k in range(len(results[0]))]


@st.composite
def networks(draw: st.DrawFn) -> tuple[onnx.ModelProto, Arrays]:
    """Convolutions, strides, pools, quadratics, residual sums and slices over one or two inputs, with one or two outputs."""
    side, channels = draw(st.sampled_from([4, 6, 8])), draw(st.integers(1, 3))
    b = ModelBuilder((channels, side, side), seed=draw(st.integers(0, 99)))
    shapes = {"image": (channels, side, side)}
    x = "image"
    if draw(st.booleans()):
        shapes["other"] = (2, side, side)
        x = b.node("Concat", x, add_input(b, "other", shapes["other"]), axis=1)
        channels += 2
    ends = []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["conv", "stride", "pool", "residual", "quadratic", "slice"]))
        if kind in ("conv", "stride"):
            out, stride = draw(st.integers(1, 5)), 2 if kind == "stride" and side > 3 else 1
            x = b.conv(x, channels, out, 3, pads=[1] * 4, strides=[stride] * 2)
            channels, side = out, -(-side // stride)
        elif kind == "pool" and side % 2 == 0:
            x = b.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
            side //= 2
        elif kind == "residual":
            x = b.node("Add", x, b.quadratic(b.conv(x, channels, channels, 3, pads=[1] * 4), channels))
        elif kind == "quadratic":
            x = b.quadratic(x, channels)
        elif kind == "slice" and channels > 1:  # whole parts may be without use
            x = b.node(
                "Slice",
                x,
                *(b.constant(np.array([v], np.int64)) for v in (channels - 1, channels, 1)),
            )
            channels = 1
        if draw(st.booleans()) and len(ends) < 1:
            ends.append(b.dense(b.node("Flatten", x), channels * side * side, 3))
    as_it_is = draw(st.booleans()) and x not in shapes
    ends.append(x if as_it_is else b.dense(b.node("Flatten", x), channels * side * side, 5))
    rows = {name: b.random.uniform(0, 1, (3, *shape)).astype(np.float32) for name, shape in shapes.items()}
    return b.model_of(ends), rows


def flat(rows: Arrays, model: CompiledModel) -> Slots:
    return np.concatenate([rows[s.name].reshape(len(rows[s.name]), -1) for s in model.bundle.inputs], axis=1)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(network=networks(), slots=st.sampled_from([16, 32, 128]), lanes=st.sampled_from([1, 1, 2, 4]))
def test_networks_in_many_parts_agree_with_onnx_runtime(
    network: tuple[onnx.ModelProto, Arrays], slots: int, lanes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """As the compiler lays tensors out, and as clients do; three images, one a ciphertext or several in its lanes."""
    proto, rows = network
    few_slots(monkeypatch, slots * lanes)
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    try:
        model = compile_model(path, name="m", calibration=rows, batch=lanes)
    except ModelError as error:
        # 16 slots hold few of the larger ones; a slice may leave an input without use.
        if "ciphertexts of" not in str(error) and "remove it" not in str(error):
            raise
        event(str(error)[-30:])
        return
    event(f"at most {max(s.packing.parts for s in (*model.bundle.inputs, *model.bundle.outputs))} parts")
    p = model.bundle.checked_parameters()
    ends = bundle_ends(model.bundle)
    assert max(layout.period for _, layout in (*ends.inputs, *ends.outputs)) <= slots
    assert model.bundle.lanes == lanes
    got = evaluate(model.circuit, model.weights, p, flat(rows, model), ends)
    clients = twin(model, [{name: x[i] for name, x in rows.items()} for i in range(3)])
    assert np.abs(clients - got).max() <= 1e-9 * max(1.0, np.abs(got).max())
    for mine, exact in zip(ends.split(got), onnx_outputs(proto, rows), strict=True):
        assert np.abs(mine - exact).max() <= 1e-5 * max(1.0, np.abs(exact).max())
    # Slots of an answer that hold no element carry nothing of the model.
    for spec in model.bundle.outputs:
        assert spec.packing.parts * spec.packing.period >= len(spec.packing.slots)


def two_parts() -> tuple[onnx.ModelProto, Arrays]:
    """4 x 8 x 8 = 256 values over 128 slots, a residual connection, 3 classes."""
    b = ModelBuilder((4, 8, 8), seed=3)
    x = b.node("Add", "image", b.quadratic(b.conv("image", 4, 4, 3, pads=[1] * 4), 4))
    output = b.dense(b.node("Flatten", b.node("AveragePool", x, kernel_shape=[4, 4], strides=[4, 4])), 16, 3)
    metadata = {"labels": json.dumps(["red", "green", "blue"])}
    return b.model(output, metadata), {"image": b.rows(2)}


def two_by_two() -> tuple[onnx.ModelProto, Arrays]:
    """A picture and a record of six numbers; four classes and a regression of two values."""
    b = ModelBuilder((1, 6, 6), seed=4)
    record = add_input(b, "record", (6,))
    x = b.quadratic(b.conv("image", 1, 2, 3), 2)
    joined = b.node("Concat", b.node("Flatten", x), record, axis=1)
    kind = b.node("Softmax", b.dense(joined, 38, 4))
    size = b.dense(joined, 38, 2)
    metadata = {
        "labels": json.dumps({kind: ["a", "b", "c", "d"], size: ["width", "depth"]}),
        "post": json.dumps({size: "none"}),
        "input_range": json.dumps({"record": [-2, 2]}),
    }
    rows = {"image": b.rows(2), "record": b.random.uniform(-2, 2, (2, 6)).astype(np.float32)}
    return b.model_of([kind, size], metadata), rows


@dataclass
class Served:
    server: Server
    folder: Path
    models: dict[str, tuple[CompiledModel, onnx.ModelProto, Arrays]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "models").mkdir()
    made = {}
    for name, (proto, rows), slots, lanes in (
        ("parts", two_parts(), 128, 1),
        ("pairs", two_by_two(), 1 << 15, 1),
        ("lanes", two_by_two(), 32, 2),
    ):
        onnx.save(proto, folder / f"{name}.onnx")
        with pytest.MonkeyPatch.context() as patch:
            few_slots(patch, slots)
            model = compile_model(folder / f"{name}.onnx", name=name, calibration=rows, batch=lanes)
        save_model(folder / "models" / f"{name}.hem", model)
        made[name] = model, proto, rows
    with start_server(folder / "models", folder / "state") as server:
        yield Served(server, folder, made)


def test_a_tensor_in_two_ciphertexts_over_http(served: Served) -> None:
    model, proto, rows = served.models["parts"]
    assert model.bundle.input.ciphertexts == ["image.0", "image.1"]
    expected = onnx_outputs(proto, rows)[0]
    with Client(served.server.url, model="parts") as client:
        for x, logits in zip(rows["image"], expected, strict=True):
            raw = client.predict_raw(x)
            assert np.abs(raw.logits - logits).max() <= model.bundle.promised_error
            assert client.predict(x).label == model.bundle.output.labels[int(logits.argmax())]
        assert raw.sent_bytes > 2 * 2 * model.bundle.checked_parameters().degree * 4


def test_two_inputs_and_two_outputs_over_http(served: Served) -> None:
    model, proto, rows = served.models["pairs"]
    bundle = model.bundle
    kind, size = bundle.outputs
    assert [(o.post, len(o.labels)) for o in bundle.outputs] == [("softmax", 4), ("none", 2)]
    assert (bundle.inputs[1].low, bundle.inputs[1].high) == (-2.0, 2.0)
    probabilities, sizes = onnx_outputs(proto, rows)
    with Client(served.server.url, model="pairs") as client:
        for i in range(2):
            x = {name: values[i] for name, values in rows.items()}
            found = client.predict_all(x)
            assert list(found) == [kind.name, size.name]
            assert found[kind.name].label == kind.labels[int(probabilities[i].argmax())]
            shown = np.array([*found[size.name].probabilities.values()])
            assert np.abs(shown - sizes[i]).max() <= 2 * size.promised_error + 1e-6
        for bad, message in (
            (x["image"], "2 inputs"),
            ({"image": x["image"]}, "takes the inputs image, record"),
            (x | {"more": x["image"]}, "takes the inputs"),
            (x | {"record": x["record"] * 9}, "from -2 to 2"),
        ):
            with pytest.raises(InputError, match=message):
                client.predict_all(bad)
        with pytest.raises(InputError, match="2 outputs"):
            client.predict(x)


def test_lanes_of_two_inputs_in_parts_and_two_outputs_over_http(served: Served) -> None:
    """Three images, two a request: the picture of 36 values takes three ciphertexts of 16 slots for each of two images."""
    model, proto, rows = served.models["lanes"]
    bundle = model.bundle
    assert bundle.lanes == 2 and [len(s.ciphertexts) for s in bundle.inputs] == [3, 1]
    images = [{name: values[i] for name, values in rows.items()} for i in (0, 1, 0)]
    probabilities, sizes = onnx_outputs(proto, rows)
    kind, size = bundle.outputs
    with Client(served.server.url, model="lanes") as client:
        found = client.predict_many_raw(images)
        labels = [p[kind.name].label for p in client.predict_many(images)]
    assert [r[size.name].images for r in found] == [2, 2, 1]
    assert labels == [kind.labels[int(probabilities[i].argmax())] for i in (0, 1, 0)]
    for raw, i in zip(found, (0, 1, 0), strict=True):
        assert np.abs(raw[size.name].logits - sizes[i]).max() <= size.promised_error + 1e-6


@pytest.mark.parametrize("keys", ["fast", "small"])
def test_rings_are_weighed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: str) -> None:
    """5,000 values take parts at N = 2^12 and 2^13 and one ciphertext at 2^14: all are tried, the cheapest is taken."""
    b = ModelBuilder((5, 25, 40))
    path = b.save(tmp_path / "m.onnx", b.dense(b.node("Flatten", b.conv("image", 5, 1, 5)), 756, 3))
    prices: dict[int, float] = {}
    price = fitting._price

    def recorded(compiled: Any, keys: Any) -> float:
        prices[compiled.parameters.degree] = price(compiled, keys)
        return prices[compiled.parameters.degree]

    monkeypatch.setattr(fitting, "_price", recorded)
    model = compile_model(path, name="m", keys=keys)  # type: ignore[arg-type]
    degree = model.bundle.checked_parameters().degree
    assert sorted(prices) == [1 << 12, 1 << 13, 1 << 14]
    assert degree == min(prices, key=prices.__getitem__)
    assert model.bundle.input.packing.parts == -(-5000 * 2 // degree)


def test_command_line_takes_one_array_per_input(served: Served, tmp_path: Path) -> None:
    model, _, rows = served.models["pairs"]
    np.savez(tmp_path / "rows.npz", **rows)
    tried = json.loads(
        run_cli("try", served.folder / "pairs.onnx", "--input", tmp_path / "rows.npz", "--json")
    )
    assert tried["agrees"] and tried["same_class"] and tried["rows"] == 2
    options = (
        "--url",
        served.server.url,
        "--model",
        "pairs",
        "--key-store",
        tmp_path / "keys",
        "--plain",
        "--json",
    )
    found = json.loads(run_cli("predict", tmp_path / "rows.npz", *options))["predictions"]
    assert [list(row["outputs"]) for row in found] == [[o.name for o in model.bundle.outputs]] * 2
    shown = json.loads(run_cli("inspect", served.folder / "models" / "parts.hem", "--json"))
    assert shown["inputs"]["image"]["ciphertexts"] == ["image.0", "image.1"]


def test_rows_of_several_inputs(served: Served, tmp_path: Path) -> None:
    proto, rows = served.models["pairs"][1:]
    path = served.folder / "pairs.onnx"
    for bad, message in (
        (rows["image"], "no array for the input 'record'"),
        ({"image": rows["image"]}, "no array for the input 'record'"),
        (rows | {"record": rows["record"][:1]}, "as many rows"),
        (rows | {"record": rows["record"][:, :5]}, "of shape"),
    ):
        with pytest.raises(ModelError, match=message):
            compile_model(path, name="m", calibration=bad)
    with pytest.raises(ModelError, match="several outputs"):
        compile_model(path, name="m", calibration=rows, validation=(rows, np.zeros(2, np.int64)))
    np.savez(tmp_path / "rows.npz", **(rows | {"record": rows["record"][:1]}))
    with pytest.raises(InputError, match="different numbers of rows"):
        read_rows(tmp_path / "rows.npz")
    helper.set_model_props(proto, {"input_range": '{"nothing": [0, 1]}'})
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="names 'nothing'"):
        compile_model(tmp_path / "m.onnx", name="m")


def run_cli(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "he_serve.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_missing_extra_and_repeated_ciphertexts_are_problems(served: Served) -> None:
    model, _, rows = served.models["parts"]
    bundle, p = model.bundle, model.bundle.checked_parameters()
    with Client(served.server.url, model="parts") as client:
        headers = {
            "Content-Type": "application/octet-stream",
            "Key-Id": client.ensure_keys(),
            "Bundle-Digest": bundle.digest,
        }
        secret = client._keys.secret_key(bundle)
        assert secret is not None

        def post(body: bytes) -> object:
            return served.server.http.post("/v2/models/parts/infer", content=body, headers=headers)

        packed = pack_inputs(to_inputs(rows["image"][0], bundle), bundle)
        fresh = {name: secret.encrypt(x, *bundle.input_ciphertexts[name]) for name, x in packed.items()}
        first, second = fresh.values()
        good = dump_ciphertexts(p, fresh)
        assert post(good).status_code == 200
        assert len(good) <= ciphertexts_limit(p, bundle.input_ciphertexts)
        length = struct.unpack("<Q", good[:8])[0]
        header = good[8 : 8 + length].rstrip()
        twice = header.replace(b'"level:image.1"', b'"level:image.0"')
        moved = json.loads(header)
        moved["image.1.0.9"] = moved.pop("image.1.0.0")

        def with_header(text: bytes) -> bytes:
            text += b" " * (-len(text) % 8)
            return struct.pack("<Q", len(text)) + text + good[8 + length :]

        for body, detail in (
            (dump_ciphertexts(p, {"image.0": first}), "ciphertexts"),
            (dump_ciphertexts(p, {"image.0": first, "image.2": second}), "'image.1' is missing"),
            (dump_ciphertexts(p, {"image": first, "image.1": second}), "'image.0' is missing"),
            (with_header(twice), "stated twice"),
            (with_header(json.dumps(moved).encode()), "limbs"),
            (dump_ciphertexts(p, {"image.0": first, "image.1": first}), "share a seed"),
            (good[:-8], "not a valid"),
        ):
            problem = assert_problem(post(body), 422, "bad-ciphertext")
            assert detail in problem["detail"], (detail, problem["detail"])
        three = dump_ciphertexts(p, fresh | {"image.2": secret.encrypt(*_zeros(bundle))})
        assert_problem(post(three + bytes(len(good))), 413, "too-large")


def _zeros(bundle: object) -> tuple[Slots, int, float]:
    level, scale = bundle.input_ciphertexts["image.0"]  # type: ignore[attr-defined]
    return np.zeros(128), level, scale
