"""The untouched ONNX model in the clear, by ONNX Runtime: what an encrypted prediction is compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from ckks.errors import ModelError
from ckks.types import Slots
from compiler.onnx_import import logits_model

_DTYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64}


def run_onnx(path: Path, rows: Slots) -> Slots:
    """Logits of the model, float64 [rows][outputs], one run a row (the model's batch axis may be fixed at 1). Raises ModelError."""
    model = logits_model(path)
    try:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        source = session.get_inputs()[0]
        dtype = _DTYPES[source.type]
        outputs = [session.run(None, {source.name: row[None].astype(dtype)})[0].reshape(-1) for row in rows]
    except (
        Exception
    ) as error:  # ONNX Runtime raises a dozen types of its own, RuntimeError and KeyError among them
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise ModelError(f"{path.name}: ONNX Runtime cannot run the model: {reason}") from None
    return np.asarray(outputs, dtype=np.float64)
