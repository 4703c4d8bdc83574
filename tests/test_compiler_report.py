"""The compile report: validation figures, budgets, and the page."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from onnx_models import ModelBuilder, onnx_outputs
from typer.testing import CliRunner

from ckks.errors import InputError, ModelError
from ckks.modelfile import CompiledModel, load_model
from compiler.compile import compile_model
from compiler.plots import fit_plot, ticks, tradeoff_plot
from compiler.report import add_measurement
from compiler.report_html import render
from he_serve.cli import app

LABELS = '["<b>one", "two & a half", "three"]'


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelBuilder, np.ndarray, np.ndarray]:
    b = ModelBuilder((1, 4, 4))
    x = b.node("Relu", b.conv("image", 1, 2))
    out = b.dense(b.node("Flatten", x), 8, 3)
    path = b.save(tmp_path_factory.mktemp("report") / "m.onnx", out, {"labels": LABELS})
    rows = b.rows(60)
    return path, b, rows, onnx_outputs(path, rows).argmax(axis=1)


@pytest.fixture(scope="module")
def model(built: tuple[Path, ModelBuilder, np.ndarray, np.ndarray]) -> CompiledModel:
    path, _, rows, labels = built
    x = rows.astype(np.float64)
    return compile_model(path, calibration=x, validation=(x, labels), activation_error=0.05, name="m")


def test_validation_compares_with_the_original(model: CompiledModel) -> None:
    found = model.report["validation"]
    assert found["rows"] == 60 and found["accuracy"] == 1.0  # the labels are its own answers
    assert found["polynomial"]["accuracy"] == found["polynomial"]["agreement"] >= 0.9
    assert 0 < found["noisy"]["largest_difference"] <= model.bundle.promised_error
    confusion = np.array(found["confusion"])
    assert confusion.sum() == 60 and np.trace(confusion) == round(60 * found["polynomial"]["accuracy"])
    assert found["outside"] == {
        "rows": 0,
        "outside": 0,
        "bound": None,
    }  # all of them calibrated: they prove nothing


def test_rows_outside_fitted_intervals_are_counted_among_new_ones_only(
    built: tuple[Path, ModelBuilder, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    """40 rows calibrate, 20 new ones and two far outside are checked: 2 of 22, of all inputs less than 26 % (Clopper and Pearson)."""
    path, _, rows, labels = built
    x = np.concatenate([rows, 40 * rows[:2]]).astype(np.float64)
    y = np.concatenate([labels, labels[:2]])
    model = compile_model(path, calibration=x[:40], validation=(x, y), name="m")
    outside = model.report["validation"]["outside"]
    assert (outside["rows"], outside["outside"]) == (22, 2)
    # The chance of at most two such rows in 22 is 5 % at the bound.
    p = outside["bound"]
    assert sum(math.comb(22, k) * p**k * (1 - p) ** (22 - k) for k in range(3)) == pytest.approx(0.05)
    page = render(model.bundle, model.report)
    assert "2 of the 22 rows that did not calibrate" in page
    np.savez(tmp_path / "x.npz", x=x[:40])
    np.savez(tmp_path / "xy.npz", x=x, y=y)
    base = ["compile", str(path), "-o", str(tmp_path / "m.hem"), "--calibrate", str(tmp_path / "x.npz"), "--strict"]  # fmt: skip
    for more, name in (
        (["--validate", str(tmp_path / "xy.npz")], "from validation rows"),
        ([], "from 40 calibration rows"),
    ):
        result = CliRunner().invoke(app, [*base, *more, "--max-outside", "0.03"])
        assert (
            result.exit_code == 1
            and f"missed: inputs outside a fitted interval, bound {name}" in result.stderr
        )
    assert (
        CliRunner().invoke(app, [*base, "--max-outside", "0.05"]).exit_code == 0
    )  # 2 / 41: one layer, 40 rows


def test_steps_account_for_every_level_and_all_time(model: CompiledModel) -> None:
    steps = model.report["steps"]
    assert [s["level_before"] for s in steps][1:] == [s["level_after"] for s in steps][:-1]
    assert steps[0]["level_before"] == model.report["levels"] and steps[-1]["level_after"] == 0
    assert sum(s["predicted_seconds"] for s in steps) == pytest.approx(model.report["predicted_seconds"])
    assert any("(activation)" in s["layer"] for s in steps)
    assert model.report["expanded_key_bytes"] > model.report["key_bytes"] > 0


def test_page_is_well_formed_and_holds_the_figures(model: CompiledModel) -> None:
    page = render(model.bundle, model.report)
    body = re.sub(r"<style>.*?</style>|<!doctype html>|<meta[^>]*>", "", page, flags=re.S)
    ElementTree.fromstring(body)  # every tag closed
    assert "<script" not in page and "http" not in page  # self-contained
    assert "&lt;b&gt;one" in page and "<b>one" not in page
    assert page.count("<svg") == 2 and "Relu at Relu_1" in page and "Keys against time" in page
    for text in ("2024/463", f"N = {model.report['n']}", "predictions, not measurements", "Confusion matrix"):
        assert text in page


def test_a_model_without_approximations_or_validation_has_a_page(tmp_path: Path) -> None:
    b = ModelBuilder((1, 3, 3))
    path = b.save(tmp_path / "m.onnx", b.dense(b.node("Flatten", b.quadratic("image", 1)), 9, 2))
    model = compile_model(path, name="m")
    page = render(model.bundle, model.report)
    assert "Activations" not in page and "Not measured" in page and "Confusion" not in page


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((3, 1, 4, 4)), np.zeros(2, int), "one whole number a row"),
        (np.zeros((3, 1, 4, 4)), np.zeros(3), "one whole number a row"),
        (np.zeros((3, 4, 4)), np.zeros(3, int), "of shape"),
        (np.full((3, 1, 4, 4), np.nan), np.zeros(3, int), "finite"),
        (np.zeros((3, 1, 4, 4)), np.array([0, 1, 3]), r"0\.\.2"),
    ],
)
def test_bad_validation_data(
    built: tuple[Path, ModelBuilder, np.ndarray, np.ndarray], x: np.ndarray, y: np.ndarray, message: str
) -> None:
    path, _, rows, _ = built
    with pytest.raises(ModelError, match=message):
        compile_model(path, calibration=rows.astype(np.float64), validation=(x, y), name="m")


def test_command_line_budgets(
    built: tuple[Path, ModelBuilder, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    path, _, rows, labels = built
    np.savez(tmp_path / "rows.npz", x=rows, y=labels)
    np.savez(tmp_path / "x.npz", x=rows)
    base = [
        "compile",
        str(path),
        "-o",
        str(tmp_path / "m.hem"),
        "--calibrate",
        str(tmp_path / "x.npz"),
        "--json",
    ]
    good = [*base, "--activation", "relu=degree:8", "--validate", str(tmp_path / "rows.npz"), "--strict"]
    result = CliRunner().invoke(
        app, [*good, "--max-accuracy-drop", "0.5", "--report", str(tmp_path / "m.html")]
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "m.html").read_text().startswith("<!doctype html>")
    report = load_model(tmp_path / "m.hem").report
    assert report["activations"]["fits"][0]["degree"] == 8
    assert [(b["name"].split(",")[0], b["met"]) for b in report["budgets"]] == [
        ("accuracy drop", True),
        ("inputs outside a fitted interval", True),
    ]
    # two measurements of the same run: apart by what happens between steps, which is little unless something else has the processor
    assert report["measured_seconds"] == pytest.approx(
        sum(s["measured_seconds"] for s in report["steps"]), rel=0.5
    )
    assert json.loads(result.stdout)["report"]["validation"]["rows"] == 60
    for option, limit, name in (
        ("--max-key-bytes", "1000", "key bytes"),
        ("--max-latency", "1e-6", "latency, measured"),
        ("--max-memory", "1000", "server memory"),
    ):
        missed = CliRunner().invoke(app, [*good, option, limit])
        assert missed.exit_code == 1 and f"missed: {name}" in missed.stderr
    unmeasured = CliRunner().invoke(
        app, [*base, "--max-latency", "1000", "--max-memory", "100000000000", "--strict"]
    )
    assert unmeasured.exit_code == 0, unmeasured.output
    budgets = json.loads(unmeasured.stdout)["report"]["budgets"]
    assert [b["name"].split(",")[1].strip() for b in budgets[1:2]] == ["predicted"] and len(budgets) == 3
    for wrong in (["--max-accuracy-drop", "0.1"], ["--validate", str(tmp_path / "x.npz")]):
        assert isinstance(CliRunner().invoke(app, [*base, *wrong]).exception, InputError)


def test_a_measurement_and_replaced_pooling_are_shown(model: CompiledModel) -> None:
    report = copy.deepcopy(model.report)
    predicted = {step["layer"]: 0.002 for step in report["steps"]}
    add_measurement(report, dict.fromkeys(predicted, 0.003), predicted, threads=2)
    report["maxpool"] = {
        "replaced": ["<pool>"], "rows": 60, "same_class": 0.9, "largest_change": 0.5, "largest_logit": 2.0
    }  # fmt: skip
    page = render(model.bundle, report)
    for text in (
        "measured; predicted",
        "2 threads",
        "threads: 2",
        "&lt;pool&gt;",
        "90.00 %",
        "Train the network",
    ):
        assert text in page
    assert report["predicted_seconds"] == pytest.approx(0.002 * len(predicted))


def test_the_tradeoff_curve_starts_at_all_keys_and_holds_the_choice(model: CompiledModel) -> None:
    curve, choice = model.report["key_tradeoff"], model.report["key_choice"]
    assert choice == [model.report["key_bytes"], model.report["predicted_seconds"]]
    assert [size for size, _ in curve] == sorted((size for size, _ in curve), reverse=True)
    assert curve[-1][0] <= choice[0] <= curve[0][0]
    assert any(choice == pytest.approx(point) for point in curve)


def test_plots() -> None:
    plot = ElementTree.fromstring(tradeoff_plot([[4, 10], [2, 20], [1, 40]], [2, 20], "b", "MB", "ms"))
    circles = plot.findall("circle")
    assert len(circles) == 4
    chosen = next(c for c in circles if c.get("class") == "chosen")
    assert (chosen.get("cx"), chosen.get("cy")) in [
        (c.get("cx"), c.get("cy")) for c in circles if c is not chosen
    ]
    plot = ElementTree.fromstring(fit_plot([0, 1, 2], [0, 1, 2], [0, 1, 2], [0.5, 0.0, 0.5], (0.5, 1.5), "a"))
    assert len(plot.findall("rect")) == 2 and len(plot.findall("polyline")) == 2
    assert ticks(-1.0, 1.0) == [-1, -0.5, 0, 0.5, 1] and ticks(3.2, 3.9) == [3.2, 3.4, 3.6, 3.8]
