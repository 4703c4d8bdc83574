"""Folding, precision, security and reports of whole models, evaluated in the clear."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_models import ModelBuilder, lesion_like, onnx_outputs
from test_compiler_operators import clear_outputs

from ckks.circuit import Op
from ckks.modelfile import CompiledModel, load_model, save_model
from compiler.compile import compile_model
from compiler.fold import fold
from compiler.onnx_import import load_onnx
from compiler.operators import build_graph

MODELS = Path(__file__).resolve().parents[1] / "models"


def count(model: CompiledModel, op: Op) -> int:
    return sum(i.op is op for i in model.circuit.instructions)


def test_linear_runs_become_one_transform(tmp_path: Path) -> None:
    b = ModelBuilder((2, 8, 8))
    x = b.batch_norm(b.conv(b.node("Sub", "image", b.constant(0.5)), 2, 4), 4)
    x = b.node("AveragePool", b.conv(b.node("Neg", x), 4, 3), kernel_shape=[2, 2], strides=[2, 2])
    x = b.batch_norm(b.dense(b.node("Flatten", x), 12, 5), 5)
    model = compile_model(b.save(tmp_path / "m.onnx", x), name="m")
    assert (
        count(model, Op.LINEAR_TRANSFORM) == 1
        and count(model, Op.RESCALE) == 1
        and count(model, Op.MULTIPLY) == 0
    )
    rows = b.rows(4)
    assert np.abs(clear_outputs(model, rows) - onnx_outputs(tmp_path / "m.onnx", rows)).max() < 1e-5


def test_quadratics_cost_one_square_and_one_level_each() -> None:
    b = lesion_like()
    assert b.nodes[-1].op_type == "Gemm"
    graph = fold_of(b)
    degrees = [p.degree for p, _ in graph.terms]
    assert degrees == [2]


def fold_of(b: ModelBuilder):  # type: ignore[no-untyped-def]
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        (output,) = fold(build_graph(load_onnx(b.save(Path(folder) / "m.onnx", b.nodes[-1].output[0]))))
        return output


@pytest.fixture(scope="module")
def lesion(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelBuilder, CompiledModel]:
    b = lesion_like()
    labels = '["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]'
    path = b.save(
        tmp_path_factory.mktemp("lesion") / "m.onnx",
        b.nodes[-1].output[0],
        {"labels": labels, "dataset": "none"},
    )
    return path, b, compile_model(path, name="lesion", calibration=b.rows(32).astype(np.float64))


def test_the_demonstration_network_stays_cheap(lesion: tuple[Path, ModelBuilder, CompiledModel]) -> None:
    _, _, model = lesion
    p = model.bundle.checked_parameters()
    assert (p.degree, p.max_level, p.security_bits) == (1 << 14, 7, 128)
    assert count(model, Op.LINEAR_TRANSFORM) == 4 and count(model, Op.MULTIPLY) == 3
    layers = model.report["layers"]
    assert sum(layer["diagonals"] for layer in layers) <= 360
    assert sum(layer["babies"] + layer["giants"] + layer["folds"] for layer in layers) < 80
    assert len(model.bundle.rotations) <= 48
    assert model.report["key_bytes"] < 100 << 20
    assert model.bundle.output.labels[4] == "mel" and model.bundle.output.packing.shape == [7]


def test_the_promise_holds_in_simulation_and_is_not_lazy(
    lesion: tuple[Path, ModelBuilder, CompiledModel],
) -> None:
    path, b, model = lesion
    rows = b.rows(20)
    expected = onnx_outputs(path, rows)
    assert np.abs(clear_outputs(model, rows) - expected).max() < 1e-5 * np.abs(expected).max()
    worst = max(np.abs(clear_outputs(model, rows, seed) - expected).max() for seed in (11, 12))
    assert worst <= model.bundle.promised_error <= 30 * worst
    assert model.bundle.promised_error <= 1e-3 * model.report["largest_calibrated_output"]


def test_unused_output_slots_are_zero(lesion: tuple[Path, ModelBuilder, CompiledModel]) -> None:
    """The eighth slot of a period of eight holds no class: exactly nothing."""
    from ckks.cleartext import CleartextEvaluator
    from ckks.interpreter import run

    _, b, model = lesion
    evaluator = CleartextEvaluator(model.bundle.checked_parameters(), model.weights)
    spec = model.bundle.input
    slots = np.zeros(spec.packing.period)
    slots[spec.packing.slots] = b.rows(1).reshape(-1)
    (out,) = run(
        model.circuit, {spec.name: evaluator.encrypt(slots, spec.level, spec.scale)}, evaluator
    ).values()
    packing = model.bundle.output.packing
    folded = out.slots.reshape(-1, packing.period)
    unused = np.setdiff1d(np.arange(packing.period), packing.slots)
    assert len(unused) and not folded[:, unused].any()
    assert np.abs(folded - folded[0]).max() < 1e-9


def test_more_precision_takes_larger_scales(tmp_path: Path) -> None:
    b = ModelBuilder((1, 6, 6))
    path = b.save(
        tmp_path / "m.onnx", b.dense(b.node("Flatten", b.quadratic(b.conv("image", 1, 3), 3)), 48, 4)
    )
    scales = []
    for precision in (1e-2, 1e-4, 1e-5):
        model = compile_model(path, name="m", precision=precision)
        assert model.bundle.promised_error <= precision * model.report["largest_calibrated_output"]
        rows = b.rows(20)
        worst = np.abs(clear_outputs(model, rows, 5) - clear_outputs(model, rows)).max()
        assert worst <= model.bundle.promised_error
        scales.append(model.bundle.input.scale)
    assert scales[0] < scales[1] < scales[2]


def test_compiling_is_deterministic(tmp_path: Path) -> None:
    b = ModelBuilder((1, 6, 6))
    path = b.save(tmp_path / "m.onnx", b.quadratic(b.conv("image", 1, 3), 3))
    one, two = (compile_model(path, name="m") for _ in range(2))
    assert one.bundle.to_bytes() == two.bundle.to_bytes()


def test_model_files_round_trip(lesion: tuple[Path, ModelBuilder, CompiledModel], tmp_path: Path) -> None:
    _, _, model = lesion
    save_model(tmp_path / "m.hem", model)
    again = load_model(tmp_path / "m.hem")
    assert again.bundle == model.bundle and again.circuit == model.circuit and again.report == model.report


@pytest.mark.parametrize("name", ["digits", "fashion", "lesion"])
def test_committed_models(name: str) -> None:
    rows = np.load(MODELS / "samples" / f"{name}.npz")["x"]
    path = MODELS / f"{name}.onnx"
    model = compile_model(path, name=name, calibration=rows[:32].astype(np.float64))
    expected = onnx_outputs(path, rows[32:])
    assert np.abs(clear_outputs(model, rows[32:]) - expected).max() < 1e-4
    assert np.abs(clear_outputs(model, rows[32:], seed=3) - expected).max() <= model.bundle.promised_error
    properties = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert str(model.bundle.output.labels).replace("'", '"') == properties["labels"]
    assert (model.bundle.input.low, model.bundle.input.high) == (0.0, 1.0)
