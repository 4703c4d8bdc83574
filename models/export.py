"""A trained network as an ONNX file, and what ONNX Runtime makes of that file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

OPSET = 17


def export_onnx(
    network: nn.Module, shape: tuple[int, int, int], labels: Sequence[str], dataset: str, path: Path
) -> None:
    """Writes `network` ([n][*shape] -> [n][len(labels)]) as input "image", output "logits", any batch n.

    Metadata: "labels" (JSON list), "dataset" (one line), "input_range" ("[0, 1]"). Weights lie in the file.
    Raises onnx.checker.ValidationError if the exported file is not valid ONNX.
    """
    # The tracing exporter needs no onnxscript; it folds BatchNormalization into Conv and keeps it after Gemm.
    torch.onnx.export(
        network.eval(),
        (torch.zeros(1, *shape),),
        str(path),
        dynamo=False,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "n"}, "logits": {0: "n"}},
    )
    model = onnx.load(path)
    onnx.helper.set_model_props(
        model, {"labels": json.dumps(list(labels)), "dataset": dataset, "input_range": "[0, 1]"}
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def onnx_logits(path: Path, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits [n][classes] by ONNX Runtime for pictures float32 [n][channels][height][width] in [0, 1]."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(["logits"], {"image": pictures})[0]
    return logits
