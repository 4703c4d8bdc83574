"""Where a graph is cut: behind the logits, never inside the network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import ModelBuilder

from ckks.errors import ModelError
from compiler.onnx_import import load_onnx


def _loaded(b: ModelBuilder, outputs: list[str], folder: Path) -> tuple[str, str, list[str]]:
    """The name of the logits, the post-processing, and the operators that are left."""
    onnx.save(b.model_of(outputs), folder / "m.onnx")
    loaded = load_onnx(folder / "m.onnx")
    (output,) = loaded.outputs
    return output.tail.logits, output.post, [node.op for node in loaded.nodes]


TAILS: dict[str, tuple[Callable[[ModelBuilder, str], list[str]], str]] = {
    "nothing": (lambda b, x: [x], "softmax"),
    "softmax": (lambda b, x: [b.node("Softmax", x)], "softmax"),
    "logits and softmax": (lambda b, x: [x, b.node("Softmax", x)], "softmax"),
    "label alone": (lambda b, x: [b.node("Cast", b.node("ArgMax", x, axis=1), to=1)], "softmax"),
    "label and sigmoid": (lambda b, x: [b.node("Sigmoid", x), b.node("ArgMax", x, axis=1)], "sigmoid"),
    "both classes": (
        lambda b, x: [b.node("Concat", b.node("Sub", b.constant(1.0), b.node("Sigmoid", x)), "v1", axis=1)],
        "sigmoid",
    ),
}


@pytest.mark.parametrize("name", TAILS)
def test_cut_at_the_logits(name: str, tmp_path: Path) -> None:
    make, post = TAILS[name]
    b = ModelBuilder((4,))
    logits = b.dense("image", 4, 3)
    assert _loaded(b, make(b, logits), tmp_path) == (logits, post, ["Gemm"])


INSIDE: dict[str, Callable[[ModelBuilder, str], str]] = {
    "swish": lambda b, x: b.node("Mul", x, b.node("Sigmoid", x)),
    "attention": lambda b, x: b.node("MatMul", b.node("Softmax", x), b.weight(3, 2)),
    "joined with the logits": lambda b, x: b.node("Concat", b.node("Sigmoid", x), x, axis=1),
    "shifted": lambda b, x: b.node("Sub", b.node("Sigmoid", x), b.constant(0.5)),
}


@pytest.mark.parametrize("name", INSIDE)
def test_not_cut_inside(name: str, tmp_path: Path) -> None:
    b = ModelBuilder((4,))
    output = INSIDE[name](b, b.dense("image", 4, 3))
    logits, post, operators = _loaded(b, [output], tmp_path)
    assert (logits, post) == (output, "softmax") and len(operators) == len(b.nodes)


def test_what_no_output_needs_is_dropped(tmp_path: Path) -> None:
    b = ModelBuilder((4,))
    b.node("Sin", b.dense("image", 4, 4))
    output = b.node("Mul", "image", b.constant(np.ones(4)))
    assert _loaded(b, [output], tmp_path) == (output, "softmax", ["Mul"])


def test_different_outputs_are_cut_each_at_its_logits(tmp_path: Path) -> None:
    b = ModelBuilder((4,))
    x, y = b.dense("image", 4, 3), b.dense("image", 4, 2)
    outputs = [b.node("Softmax", x), b.node("Sigmoid", y), b.node("ArgMax", x, axis=1)]
    model = b.model_of(outputs)
    helper.set_model_props(model, {"labels": json.dumps({outputs[1]: ["p", "q"]})})
    onnx.save(model, tmp_path / "m.onnx")
    loaded = load_onnx(tmp_path / "m.onnx")
    found = [(o.tail.logits, o.tail.name, o.post, o.labels) for o in loaded.outputs]
    assert found == [(x, outputs[0], "softmax", ()), (y, outputs[1], "sigmoid", ("p", "q"))]


def test_an_output_that_joins_two_sets_of_classes_is_refused(tmp_path: Path) -> None:
    b = ModelBuilder((4,))
    heads = b.node("Softmax", b.dense("image", 4, 3)), b.node("Sigmoid", b.dense("image", 4, 2))
    with pytest.raises(ModelError, match="joins 2 sets"):
        _loaded(b, [b.node("Concat", *heads, axis=1)], tmp_path)
