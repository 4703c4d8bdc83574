"""The throughput suite: every layout of the smallest network once, with the checks that a row must pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import _common as common
from bench import throughput


def test_every_layout_of_the_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "BUDGET_S", 0.0)
    net = throughput.network("digits", tmp_path)
    found = dict(throughput.layouts(net, lambda phase: None))
    names = list(found)
    assert names[:2] == ["one image", "2 lanes"] and names[-1] == "batch layout" and len(names) >= 4
    images = {}
    for name in ("one image", names[-2], "batch layout"):
        (folder := tmp_path / name.replace(" ", "-")).mkdir()
        row = throughput.measure(net, name, found[name], folder, 1)
        assert row.more["same_class"] and row.ours_error <= row.more["promised_error"]
        images[name] = row.more["images_per_request"]
    assert images == {"one image": 1, names[-2]: int(names[-2].split()[0]), "batch layout": 4096}


def test_what_does_not_fit_memory_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "_available", lambda: 1 << 20)
    said: list[str] = []
    names = [name for name, _ in throughput.layouts(throughput.network("digits", tmp_path), said.append)]
    assert "batch layout" not in names and "left out" in said[-1]


def test_random_networks_leave_rows_for_both(tmp_path: Path) -> None:
    net = throughput.network("mlp", tmp_path)
    assert len(net.calibration) == throughput.CALIBRATION and len(net.rows) == throughput.DISTINCT
    assert net.path.exists() and common.ROOT not in net.path.parents
