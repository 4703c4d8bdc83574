"""Lanes: the circuit of one image, for several at once. In the clear on random networks, encrypted on the digits model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_models import ModelBuilder, onnx_outputs
from serving import ROOT, start_server
from test_compiler_operators import clear_outputs

from ckks.errors import ModelError
from ckks.modelfile import CompiledModel, load_model, save_model
from compiler.compile import compile_model
from he_serve.client import Client
from he_serve.images import read_rows
from he_serve.plaintext import run_onnx
from he_serve.trial import try_model

DIGITS = ROOT / "models" / "digits.onnx"
ROWS = read_rows(ROOT / "models" / "samples" / "digits.npz")


@pytest.fixture(scope="module")
def eight() -> CompiledModel:
    return compile_model(DIGITS, calibration=ROWS, batch=8, name="digits")


@given(
    log_lanes=st.integers(0, 5),
    size=st.integers(3, 7),
    channels=st.integers(1, 3),
    outputs=st.integers(1, 9),
    depth=st.integers(0, 2),
    seed=st.integers(0, 99),
)
@settings(max_examples=12, deadline=None)
def test_every_lane_computes_the_network(
    tmp_path_factory: pytest.TempPathFactory, log_lanes: int, size: int, channels: int, outputs: int, depth: int, seed: int
) -> None:  # fmt: skip
    b = ModelBuilder((channels, size, size), seed)
    x = "image"
    for _ in range(depth):
        x = b.quadratic(b.conv(x, channels, channels, 3, pads=[1, 1, 1, 1]), channels)
    x = b.dense(b.node("Flatten", x), channels * size * size, outputs)
    path = b.save(tmp_path_factory.mktemp("lanes") / "m.onnx", x)
    model = compile_model(path, batch=1 << log_lanes, name="m")
    packing, slots = model.bundle.input.packing, model.bundle.checked_parameters().slots
    assert packing.lanes == 1 << log_lanes and packing.period * packing.lanes <= slots
    rows = b.rows(2 * packing.lanes + 1 if log_lanes < 4 else packing.lanes)
    expected = onnx_outputs(path, rows)
    assert np.abs(clear_outputs(model, rows) - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())


def test_the_lanes_cost_no_operation(eight: CompiledModel) -> None:
    """As long as the slots suffice: what is packed for 512 slots takes the operations of what is packed for 4096, or a few more."""
    one = compile_model(DIGITS, calibration=ROWS, name="digits")
    assert eight.bundle.parameters == one.bundle.parameters
    assert eight.report["predicted_seconds"] <= 1.1 * one.report["predicted_seconds"]


def test_digits_encrypted(eight: CompiledModel) -> None:
    """Twenty rows in three ciphertexts; the last is not full."""
    rows = ROWS[:20]
    result = try_model(eight, rows, lambda x: run_onnx(DIGITS, x), 1, lambda *_: None)
    assert result["agrees"] and result["same_class"] and result["rows"] == 20
    assert result["images_per_request"] == 8
    assert result["original_error"] <= eight.bundle.promised_error


def test_digits_over_http(eight: CompiledModel, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    save_model(tmp_path / "models" / "digits.hem", eight)
    assert load_model(tmp_path / "models" / "digits.hem").bundle.input.packing.lanes == 8
    rows, clear = ROWS[:11], run_onnx(DIGITS, ROWS[:11])
    with (
        start_server(tmp_path / "models", tmp_path / "state") as server,
        Client(server.url) as client,
    ):
        raw = client.predict_many_raw(rows)
        assert [r["logits"].images for r in raw] == [8] * 8 + [3] * 3
        worst = max(np.abs(r["logits"].logits - c).max() for r, c in zip(raw, clear, strict=True))
        assert worst <= eight.bundle.promised_error
        labels = [p["logits"].label for p in client.predict_many(rows)]
        assert labels == [eight.bundle.output.labels[c.argmax()] for c in clear]
        assert np.abs(client.predict_raw(rows[0]).logits - clear[0]).max() <= eight.bundle.promised_error


@pytest.mark.parametrize("batch", [0, 3, 1 << 20])
def test_a_batch_is_a_power_of_two(batch: int) -> None:
    with pytest.raises(ModelError, match="power of two"):
        compile_model(DIGITS, batch=batch, name="m")


def test_a_batch_that_fits_no_ring() -> None:
    with pytest.raises(ModelError, match="for 16384 images"):
        compile_model(DIGITS, batch=16384, name="m")
