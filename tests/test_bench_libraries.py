"""The comparison of libraries on whole models: the network that TenSEAL runs is the model, and every side gets its answers right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from bench import _networks as networks
from bench import libraries
from bench._openfhe import find_python
from bench._vectors import read

MODELS = Path(__file__).resolve().parents[1] / "models"


@pytest.mark.parametrize("name", ["digits", "lola"])
def test_the_network_read_off_a_model_is_the_model(tmp_path: Path, name: str) -> None:
    if name == "digits":
        path, rows = MODELS / "digits.onnx", np.load(MODELS / "samples" / "digits.npz")["x"][:3]
    else:
        path, rows = tmp_path / "lola.onnx", networks.inputs(3)
        networks.save_onnx("lola", path)
    network = read(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for row in rows.astype(np.float32):
        logits = session.run(None, {"image": row[None]})[0].ravel()
        assert np.abs(network(row[0].astype(np.float64)) - logits).max() < 1e-4


def test_a_network_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="lesion"):
        read(MODELS / "lesion.onnx")


@pytest.mark.slow
def test_every_side_of_a_model_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """With OpenFHE's two sides where a Python 3.10 is named, without them elsewhere."""
    monkeypatch.setattr(libraries, "ROUNDS", 1)
    monkeypatch.setattr(libraries, "LEAST_S", 0.0)
    python = find_python()
    rows = libraries.measure(libraries.CASES[0], 1, python, lambda _: None)
    found = {row.other: row for row in rows}
    wanted = ["ours, SEAL's own kind of keys", "TenSEAL's vectors", "ONNX Runtime, in the clear"]
    wanted += ["ours, keys from OpenFHE", "OpenFHE's evaluator"] if python else []
    assert set(found) == set(wanted)
    for row in rows:
        assert row.ours_s > 0 and row.other_s > 0 and row.ratio > 0
        assert row.ours_error <= row.more["promised_error"]
        # TenSEAL's tutorial works at 25 bits, on a network of six units of logits.
        assert row.other_error <= (1.0 if "TenSEAL" in row.other else 2 * row.more["promised_error"])
        if "ONNX" not in row.other:
            assert row.more["other_key_bytes"] > 1e6 and row.more["ours_key_bytes"] > 1e6


def test_slow_sides_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def side(name: str, seconds: float) -> libraries.Side:
        def run(row: int) -> float:
            calls.append(name)
            return seconds

        return libraries.Side(name, "1", "p", run, lambda row: np.zeros(2), more={"key_bytes": 1})

    sides = [side("ours", 1.0), side("slow", 2 * libraries.SLOW_S), side("plain", 0.5)]

    class Model:
        class bundle:  # noqa: N801
            promised_error = 1.0

    monkeypatch.setattr(libraries, "_sides", lambda *_: (Model(), sides, {}))
    rows = libraries.measure(libraries.CASES[0], 1, None, lambda _: None)
    assert calls.count("slow") == 1 and calls.count("ours") == libraries.ROUNDS
    assert [row.ratio for row in rows] == [2 * libraries.SLOW_S, 0.5]
