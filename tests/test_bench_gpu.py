"""The GPU bench without a GPU: what it counts, and that a prediction is never called anything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import gpu
from bench._stand_in import StandIn, ignore
from ckks.backends.device import Device, Work


def test_predictions_follow_from_what_is_counted() -> None:
    model = gpu.Model("d", bandwidth=8e9, instructions=1e12, source="")
    assert gpu.predicted({}, model) == 0
    assert gpu.predicted({"a": Work(1, words=10**9)}, model) == pytest.approx(1.0)
    busy = Work(1, words=10**9, products=10**12, sums=10**12, reductions=10**12)
    assert gpu.predicted({"a": busy, "b": Work(1, words=10**9)}, model) == pytest.approx(27 + 18 + 31 + 1)


def test_counts_of_a_transform() -> None:
    device = Device(StandIn(ignore, guarded=False), "none", 1 << 40)
    p = gpu.parameters(14, 8, 35, 3)
    work = gpu.counted(device, gpu.operations(device, p)["forward transform, one polynomial"])
    assert sum(done.launches for done in work.values()) == 2
    values = 8 * p.degree
    assert (
        sum(done.products for done in work.values()) == 14 * values // 2
    )  # a butterfly for two values a stage
    assert sum(done.words for done in work.values()) == 6 * values  # read and written twice, twiddles once


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
        assert all(0 < seconds < 0.1 for seconds in row["predicted_s"].values())
