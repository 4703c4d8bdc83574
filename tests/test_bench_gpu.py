"""The GPU bench without a GPU: what it counts, and that a prediction is never called anything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_backends import parameters, residues

from bench import gpu
from ckks.backends.device import Work
from ckks.backends.gpu import GpuBackend


def test_predictions_follow_from_what_is_counted() -> None:
    model = gpu.Model("d", bandwidth=8e9, instructions=1e12, doubles=None, source="")
    assert gpu.predicted({}, model) == 0
    assert gpu.predicted({"a": Work(1, words=10**9)}, model) == pytest.approx(1.0)
    busy = Work(1, words=10**9, products=10**12, sums=10**12, reductions=10**12)
    assert gpu.predicted({"a": busy, "b": Work(1, words=10**9)}, model) == pytest.approx(27 + 18 + 31 + 1)
    both = gpu.Model("d", bandwidth=8e9, instructions=1e12, doubles=5e11, source="")
    busy = Work(1, products=10**12, double_products=10**12, double_sums=10**12, double_reductions=10**12)
    assert gpu.predicted({"a": busy}, both) == pytest.approx(27 + 2 * (9 + 6 + 11))


@pytest.mark.parametrize("doubles", [False, True])
def test_counts_of_a_transform(doubles: bool) -> None:
    device = gpu.nowhere(doubles)
    p = gpu.parameters(14, 8, 35, 3)
    work = gpu.counted(device, gpu.operations(device, p)["forward transform, one polynomial"])
    assert sum(done.launches for done in work.values()) == 2
    values = 8 * p.degree
    products = [sum(getattr(w, f) for w in work.values()) for f in ("products", "double_products")]
    assert products[doubles] == 14 * values // 2  # a butterfly for two values a stage
    assert products[not doubles] == 0
    # Read and written twice; once a twiddle, of two words or one.
    assert sum(done.words for done in work.values()) == (5 if doubles else 6) * values


def test_counts_share_out_arithmetics() -> None:
    """Conversions from sources that are too large are on integers, the transforms after them are not."""
    p = parameters("40_and_60_bits")
    device = gpu.nowhere(doubles=True)
    b, level = GpuBackend(p, device), p.max_level
    b.mod_down(b.upload(residues(p, p.extended_rows(level), 2)), level)
    convert, inverse = device.work["convert_columns"], device.work["ntt_inverse_blocks"]
    assert convert.sums and convert.reductions and convert.double_products
    assert not (convert.double_sums or convert.double_reductions or convert.products)
    assert inverse.products and not inverse.double_products
    device.work.clear()
    x = b.upload(residues(p, p.extended_rows(level), 1))
    b.multiply(x, x, p.extended_rows(level))
    work, rows = device.work["multiply_rows"], len(p.extended_rows(level))
    assert work.double_sums == (level + 1) * p.degree and work.sums == (rows - level - 1) * p.degree


def test_without_a_gpu_everything_is_marked_as_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "SETS", gpu.SETS[:1])
    file = tmp_path / "gpu.json"
    monkeypatch.setattr("sys.argv", ["gpu", "--device", "none", "--models", "digits", "--json", str(file)])
    gpu.main()
    shown = capsys.readouterr().out
    assert "PREDICTED, not measured" in shown and "measured beside" not in shown
    content = json.loads(file.read_text())
    assert content["kind"] == "prediction"
    assert {row["name"] for row in content["rows"]} > {"rotate", "rescale", "digits, whole prediction"}
    for row in content["rows"]:
        assert "measured_s" not in row and row["launches"] > 0
        assert len(row["predicted_s"]) == len(gpu.MODELS)
        assert all(0 < seconds < 0.1 for seconds in row["predicted_s"].values())
        assert row["bytes_on_doubles"] <= row["bytes"]
