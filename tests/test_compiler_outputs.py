"""Outputs that are not rescaled: a level less for all that comes before, where precision allows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx_models import ModelBuilder
from test_compiler_operators import clear_outputs

from ckks.circuit import Op
from ckks.modelfile import CompiledModel
from compiler import pack as packing
from compiler.compile import compile_model
from he_serve.plaintext import run_onnx
from he_serve.trial import try_model


def squares(tmp_path: Path, both: bool = False) -> tuple[Path, ModelBuilder]:
    """Two dense layers, a square between; with `both`, the first is an output too."""
    b = ModelBuilder((1, 8, 8), seed=5)
    first = b.dense(b.node("Flatten", "image"), 64, 24)
    second = b.dense(b.node("Mul", first, first), 24, 3)
    path = tmp_path / "m.onnx"
    if both:
        path.write_bytes(b.model_of([first, second]).SerializeToString())
    else:
        b.save(path, second)
    return path, b


def rescales(model: CompiledModel) -> int:
    return sum(ins.op is Op.RESCALE for ins in model.circuit.instructions)


@pytest.mark.parametrize(("precision", "levels"), [(0.01, 2), (1e-5, 3)])
def test_precision_decides(tmp_path: Path, precision: float, levels: int) -> None:
    """Two linear layers and a square: two levels if the second layer's result stays at the scale of products, else three."""
    path, b = squares(tmp_path)
    rows = b.rows(40)
    model = compile_model(path, calibration=rows.astype(np.float64), precision=precision, name="m")
    spec, output = model.bundle.input, model.bundle.output
    assert spec.level == levels == rescales(model) and output.level == 0
    assert (output.scale > 2 * spec.scale) == (levels == 2)
    assert output.promised_error <= precision * model.report["largest_calibrated_output"]
    assert (
        np.abs(clear_outputs(model, rows) - run_onnx(path, rows)).max()
        <= 1e-5 * abs(run_onnx(path, rows)).max()
    )
    result = try_model(model, rows[:3], lambda x: run_onnx(path, x), 1, lambda *_: None)
    assert result["agrees"] and result["original_error"] <= output.promised_error


def test_a_linear_model_has_no_level(tmp_path: Path) -> None:
    b = ModelBuilder((1, 8, 8))
    path = b.save(tmp_path / "m.onnx", b.dense(b.node("Flatten", "image"), 64, 5))
    model = compile_model(path, name="m")
    p = model.bundle.checked_parameters()
    assert (
        model.bundle.input.level == rescales(model) == 0 and len(p.data_primes) == 1 and p.degree == 1 << 12
    )
    rows = b.rows(3)
    result = try_model(model, rows, lambda x: run_onnx(path, x), 1, lambda *_: None)
    assert result["agrees"] and result["original_error"] <= model.bundle.promised_error


def test_outputs_have_scales_of_their_own(tmp_path: Path) -> None:
    """As large as their values leave room for: 48 bits of the base prime, one for the sign and three in reserve."""
    path, b = squares(tmp_path, both=True)
    rows = b.rows(40)
    model = compile_model(path, calibration=rows.astype(np.float64), precision=0.05, name="m")
    sizes = [np.abs(x).max() for x in np.split(run_onnx(path, rows), [24], axis=1)]
    assert model.bundle.input.level == 2
    for output, size in zip(model.bundle.outputs, sizes, strict=True):
        assert output.level == 0 and output.scale == pytest.approx(2.0**44 / size, rel=1e-3)


def test_values_without_garbage_where_its_rounding_would_cost_the_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tidy packing is tried after the cheaper one, and only before the outputs in question."""
    path, b = squares(tmp_path)
    asked = []
    made = packing.pack

    def recorded(given, levels, tidy, costs):  # type: ignore[no-untyped-def]
        asked.append((bool(levels.unscaled), tidy))
        found = made(given, levels, tidy, costs)
        read = {id(e.activation.tensor) for e in given.edges if id(e.target) in levels.unscaled}
        assert not tidy or all(found.layouts[t].fold is None for t in read)
        return found

    monkeypatch.setattr("compiler.fitting.pack", recorded)
    compile_model(path, calibration=b.rows(40).astype(np.float64), precision=1e-5, name="m")
    ways = [(True, False), (True, True), (False, False)]
    assert asked[: len(ways)] == ways
