"""The untouched ONNX model in the clear, by ONNX Runtime: what an encrypted prediction is compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from ckks.errors import ModelError
from ckks.types import Slots
from compiler.onnx_import import logits_model
from he_serve.images import Rows

_DTYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64}


def run_onnx(path: Path, rows: Rows) -> Slots:
    """Logits of the model, float64 [rows][outputs, one after the other], one run a row (the model's batch axis may be fixed at 1).

    rows: [rows][...] for the one input, or such arrays by input name. Raises ModelError.
    """
    model = logits_model(path)
    try:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        sources = session.get_inputs()
        arrays = rows if isinstance(rows, dict) else {sources[0].name: rows}
        outputs = []
        for i in range(len(arrays[sources[0].name])):
            feed = {s.name: arrays[s.name][i][None].astype(_DTYPES[s.type]) for s in sources}
            outputs.append(np.concatenate([y.reshape(-1) for y in session.run(None, feed)]))
    except (
        Exception
    ) as error:  # ONNX Runtime raises a dozen types of its own, RuntimeError and KeyError among them
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise ModelError(f"{path.name}: ONNX Runtime cannot run the model: {reason}") from None
    return np.asarray(outputs, dtype=np.float64)
