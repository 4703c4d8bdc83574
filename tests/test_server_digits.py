"""The committed digits model, compiled from ONNX, through the full HTTP path: real pictures, compared with ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from serving import ROOT, start_server

from ckks.modelfile import save_model
from compiler.compile import compile_model
from he_serve.client import Client
from he_serve.images import read_rows, to_input
from he_serve.plaintext import run_onnx

MODELS = ROOT / "models"


def test_digits_from_onnx_to_prediction(tmp_path: Path) -> None:
    rows = read_rows(MODELS / "samples" / "digits.npz")
    (tmp_path / "models").mkdir()
    model = compile_model(MODELS / "digits.onnx", calibration=rows, name="digits")
    save_model(tmp_path / "models" / "digits.hem", model)
    samples = [
        s for s in json.loads((MODELS / "samples" / "index.json").read_text()) if s["model"] == "digits"
    ]
    assert samples
    with (
        start_server(tmp_path / "models", tmp_path / "state", threads=2) as server,
        Client(server.url) as client,
    ):
        bundle = client.bundle()
        for picture in samples:
            path = MODELS / "samples" / picture["file"]
            prediction = client.predict(path)
            assert prediction.label == picture["label"]
            assert (
                abs(sum(prediction.probabilities.values()) - 1) <= 10 * 0.005
            )  # each is rounded to two digits or more
            assert {"encrypt", "round_trip", "evaluate", "decrypt"} <= set(prediction.timings)
            clear = run_onnx(MODELS / "digits.onnx", to_input(path, bundle.input)[None])[0]
            assert np.abs(client.predict_raw(path).logits - clear).max() <= bundle.promised_error
        clear = run_onnx(MODELS / "digits.onnx", rows[:17])
        for row, expected in zip(rows[:17], clear, strict=True):
            assert np.abs(client.predict_raw(row).logits - expected).max() <= bundle.promised_error
