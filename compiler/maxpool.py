"""Max pooling replaced by average pooling, on the operator's word, and what that does to the model's answers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime

from ckks.errors import ModelError
from compiler.graph import Array
from compiler.onnx_import import OnnxInput, OnnxModel, OnnxNode

_AVERAGES = {"MaxPool": "AveragePool", "GlobalMaxPool": "GlobalAveragePool"}


def average_for_max(model: OnnxModel) -> tuple[OnnxModel, list[str]]:
    """The model with averages over the same windows (padding not counted), and the names of the nodes replaced."""

    def averaged(node: OnnxNode) -> OnnxNode:
        return replace(node, op=_AVERAGES[node.op]) if node.op in _AVERAGES else node

    names = [node.name for node in model.nodes if node.op in _AVERAGES]
    return replace(model, nodes=tuple(map(averaged, model.nodes))), names


def untouched_outputs(original: bytes, rows: Array, inputs: tuple[OnnxInput, ...]) -> Array:
    """What the `original` file (up to its logits) gives for rows [rows][elements]: float64 [rows][elements].

    Raises ModelError if ONNX Runtime cannot run it.
    """
    try:
        session = onnxruntime.InferenceSession(original, providers=["CPUExecutionProvider"])
        kinds = {
            x.name: np.float64 if x.type == "tensor(double)" else np.float32 for x in session.get_inputs()
        }
        ends = np.cumsum([math.prod(x.shape) for x in inputs])[:-1]
        results = []
        for row in rows:
            parts = zip(inputs, np.split(row, ends), strict=True)
            feed = {x.name: part.reshape(x.shape).astype(kinds[x.name]) for x, part in parts}
            results.append(np.concatenate([y.reshape(-1) for y in session.run(None, feed)]))
    except Exception as error:  # it raises a dozen types of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise ModelError(f"ONNX Runtime cannot run the model to compare with: {reason}") from None
    return np.array(results, np.float64)


def effect(before: Array, names: list[str], outputs: Array) -> dict[str, Any]:
    """What replacing `names` did: `outputs` [rows][elements] beside those of the untouched model on the same rows."""
    return {
        "replaced": names,
        "rows": len(before),
        "same_class": float((before.argmax(axis=1) == outputs.argmax(axis=1)).mean()),
        "largest_change": float(np.abs(before - outputs).max()),
        "largest_logit": float(np.abs(before).max()),
    }
