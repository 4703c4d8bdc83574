"""The peer's example networks as ONNX, with random weights from a seed: the same numbers for both sides of bench/models.py.

Shapes are those of the examples of orion-v2 (MIT); weights are drawn as PyTorch initialises its layers, batch norms as if trained a little.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Array = npt.NDArray[np.float32]
Layer = tuple[str, tuple[int, ...]]  # ("conv", (in, out, kernel, stride, padding)) or ("dense", (in, out))

SHAPE = (1, 28, 28)
NETWORKS: dict[str, tuple[Layer, ...]] = {
    "lola": (("conv", (1, 5, 2, 2, 0)), ("dense", (980, 100)), ("dense", (100, 10))),
    "mlp": (("dense", (784, 128)), ("dense", (128, 128)), ("dense", (128, 10))),
    "lenet": (
        ("conv", (1, 32, 5, 2, 2)),
        ("conv", (32, 64, 5, 2, 2)),
        ("dense", (3136, 512)),
        ("dense", (512, 10)),
    ),
}


def weights(network: str, seed: int = 42) -> dict[str, Array]:
    """Arrays by PyTorch's names: l0.weight, l0.bias, and b0.weight, b0.bias, b0.running_mean, b0.running_var but for the last."""
    draw = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for i, (kind, sizes) in enumerate(NETWORKS[network]):
        inputs, outputs = sizes[:2]
        shape = (outputs, inputs, sizes[2], sizes[2]) if kind == "conv" else (outputs, inputs)
        bound = 1 / np.sqrt(np.prod(shape[1:]))
        found[f"l{i}.weight"] = draw.uniform(-bound, bound, shape)
        found[f"l{i}.bias"] = draw.uniform(-bound, bound, outputs)
        if i + 1 < len(NETWORKS[network]):
            found[f"b{i}.weight"] = draw.uniform(0.8, 1.2, outputs)
            found[f"b{i}.bias"] = draw.uniform(-0.1, 0.1, outputs)
            found[f"b{i}.running_mean"] = draw.uniform(-0.1, 0.1, outputs)
            found[f"b{i}.running_var"] = draw.uniform(0.8, 1.2, outputs)
    return {name: np.asarray(array, dtype=np.float32) for name, array in found.items()}


def inputs(count: int, seed: int = 7) -> Array:
    """Standard normal pictures, float32 [count][1][28][28], as the peer's examples feed them."""
    return np.random.default_rng(seed).standard_normal((count, *SHAPE)).astype(np.float32)


def save_onnx(network: str, path: Path) -> None:
    """Write the network as an exporter would: Conv or Gemm, BatchNormalization, Mul(x, x), and Flatten before the first dense layer."""
    arrays, layers = weights(network), NETWORKS[network]
    nodes: list[onnx.NodeProto] = []

    def node(op: str, names: list[str], out: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, names, [out], name=out, **attributes))
        return out

    x, flat = "image", False
    for i, (kind, sizes) in enumerate(layers):
        if kind == "dense" and not flat:
            x, flat = node("Flatten", [x], "flat"), True
        names = [x, f"l{i}.weight", f"l{i}.bias"]
        if kind == "conv":
            x = node("Conv", names, f"conv{i}", strides=[sizes[3]] * 2, pads=[sizes[4]] * 4)
        else:
            x = node("Gemm", names, f"dense{i}", transB=1)
        if i + 1 < len(layers):
            norm = [x, *(f"b{i}.{part}" for part in ("weight", "bias", "running_mean", "running_var"))]
            x = node("BatchNormalization", norm, f"norm{i}")
            x = node("Mul", [x, x], f"square{i}")
    graph = helper.make_graph(
        nodes,
        network,
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, *SHAPE])],
        [helper.make_tensor_value_info(x, onnx.TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
