"""Small ONNX models for tests, built with onnx.helper; inputs and weights are float32, weights drawn from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Floats = NDArray[np.float32]


class ModelBuilder:
    """Appends nodes; every method returns the name of the result. `value` starts as the input's name."""

    def __init__(self, shape: Sequence[int], seed: int = 0, batch: str | int = "n") -> None:
        self.random = np.random.default_rng(seed)
        self.shape = tuple(shape)
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: list[onnx.TensorProto] = []
        self.inputs = [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [batch, *shape])]

    def constant(self, array: object) -> str:
        """A weight by value (float32 unless it holds integers)."""
        a = np.asarray(array)
        name = f"c{len(self.initialisers)}"
        self.initialisers.append(
            numpy_helper.from_array(a if a.dtype.kind == "i" else a.astype(np.float32), name)
        )
        return name

    def weight(self, *shape: int) -> str:
        """A random weight whose fan-in keeps values near unit size."""
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        return self.constant(self.random.normal(0, 1 / np.sqrt(fan), shape))

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        out = f"v{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op, list(inputs), [out], name=f"{op}_{len(self.nodes)}", **attributes)
        )
        return out

    def conv(self, x: str, channels: int, out: int, kernel: int = 3, **attributes: Any) -> str:
        groups = attributes.get("group", 1)
        weight = self.weight(out, channels // groups, kernel, kernel)
        return self.node("Conv", x, weight, self.weight(out), **attributes)

    def dense(self, x: str, size: int, out: int) -> str:
        return self.node("Gemm", x, self.weight(out, size), self.weight(out), transB=1)

    def batch_norm(self, x: str, channels: int) -> str:
        draw = self.random.uniform(0.5, 1.5, (4, channels)) - np.array([[0], [1], [1], [0]])
        return self.node("BatchNormalization", x, *(self.constant(row) for row in draw))

    def quadratic(self, x: str, channels: int, spatial: bool = True) -> str:
        """a x^2 + b x + c with coefficients per channel, as exporters write it."""
        form = (channels, 1, 1) if spatial else (channels,)
        a, b, c = (self.constant(self.random.uniform(low, 1, form)) for low in (0.2, -1, -1))
        square = self.node("Mul", a, self.node("Mul", x, x))
        return self.node("Add", self.node("Add", square, self.node("Mul", b, x)), c)

    def model(self, output: str, metadata: dict[str, str] | None = None, opset: int = 17) -> onnx.ModelProto:
        # The rank of the output is found by inference: the checker wants a shape.
        result = helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "test", self.inputs, [result], self.initialisers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        inferred = onnx.shape_inference.infer_shapes(model)
        kept = next(v for v in [*inferred.graph.value_info, *inferred.graph.output] if v.name == output)
        model.graph.output[0].CopyFrom(kept)
        helper.set_model_props(model, metadata or {})
        return model

    def model_of(self, outputs: Sequence[str], metadata: dict[str, str] | None = None) -> onnx.ModelProto:
        """A model of several outputs."""
        model = self.model(outputs[0], metadata)
        inferred = onnx.shape_inference.infer_shapes(model).graph
        known = {v.name: v for v in [*inferred.value_info, *inferred.output]}
        model.graph.output.extend(known[name] for name in outputs[1:])
        return model

    def save(self, path: Path, output: str, metadata: dict[str, str] | None = None) -> Path:
        onnx.save(self.model(output, metadata), path)
        return path

    def rows(self, count: int) -> Floats:
        """Random inputs in [0, 1]."""
        return self.random.uniform(0, 1, (count, *self.shape)).astype(np.float32)


def onnx_outputs(path: Path, rows: Floats) -> NDArray[np.float64]:
    """ONNX Runtime's outputs, one row at a time (as batch 1), flat: [rows][elements]."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.stack([session.run(None, {name: row[None]})[0].reshape(-1).astype(np.float64) for row in rows])


def lesion_like(seed: int = 0) -> ModelBuilder:
    """The demonstration network's shape with random weights: conv 5x5/2, quadratic, conv 3x3, quadratic, pool, dense, quadratic, dense."""
    b = ModelBuilder((3, 28, 28), seed)
    x = b.node(
        "Div",
        b.node("Sub", "image", b.constant(np.full((3, 1, 1), 0.5))),
        b.constant(np.full((3, 1, 1), 0.25)),
    )
    x = b.quadratic(b.batch_norm(b.conv(x, 3, 16, 5, strides=[2, 2], pads=[2, 2, 2, 2]), 16), 16)
    x = b.quadratic(b.batch_norm(b.conv(x, 16, 32, 3, pads=[1, 1, 1, 1]), 32), 32)
    x = b.node("Flatten", b.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]))
    x = b.quadratic(b.batch_norm(b.dense(x, 1568, 64), 64), 64, spatial=False)
    b.dense(x, 64, 7)
    return b
