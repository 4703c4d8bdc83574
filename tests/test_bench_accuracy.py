"""The accuracy bench on a few pictures: what it counts, and that it says no when a class differs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import accuracy


def test_digits_agree_and_a_differing_class_is_a_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "IMAGES", 4)
    monkeypatch.setattr(accuracy, "MODELS", {"digits": accuracy.digits})
    monkeypatch.setattr("sys.argv", ["accuracy", "--json", str(tmp_path / "a.json"), "--threads", "1"])
    assert accuracy.main() == 0
    (row,) = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert row["images"] == row["same_class_as_twin"] == 4
    assert 0 < row["worst_error"] <= row["predicted_error"] < row["promised_error"]
    assert set(row["correct"]) == {"encrypted", "twin", "original"}

    monkeypatch.setattr(
        accuracy, "twin", lambda model, rows: -np.ones((len(rows), 10)) * np.arange(10)
    )  # says 0
    monkeypatch.setattr(accuracy.common, "require_precise", lambda *_: None)
    assert accuracy.main() == 1


def test_calibration_rows_are_not_among_the_pictures() -> None:
    pictures = accuracy.digits()
    seen = {row.tobytes() for row in pictures.calibration}
    assert len(pictures.x) == accuracy.IMAGES
    assert not seen & {row.tobytes() for row in pictures.x}
    assert pictures.x.min() >= 0 and pictures.x.max() <= 1
