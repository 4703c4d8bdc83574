"""Reading ONNX files: untrusted bytes become plain arrays and names, with bounds on everything. The only file that imports onnx."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError
from onnx import external_data_helper, numpy_helper

from ckks.bundle import MAX_TENSORS, Post
from ckks.errors import ModelError
from compiler.functions import expanded_nodes
from compiler.graph import Shape
from compiler.moving import Constant
from compiler.tail import Tail, cut_tail

MAX_FILE_BYTES = 1 << 29
MAX_NODES = 5000
MAX_NAME = 200  # characters of an input's or output's name
MAX_INPUT = 1e30  # |value| of an input
MAX_WEIGHTS = 1 << 26  # elements, all tensors together
_FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
)
_INTEGERS = (
    onnx.TensorProto.BOOL,
    *(
        onnx.TensorProto.DataType.Value(f"{kind}{bits}")
        for kind in ("INT", "UINT")
        for bits in (8, 16, 32, 64)
    ),
)
_POSTS: tuple[Post, ...] = ("softmax", "sigmoid", "none")
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")


@dataclass(frozen=True, eq=False)
class OnnxNode:
    """A node as written. attributes: int, float, str, list of those, or an array."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass(frozen=True, eq=False)
class OnnxInput:
    """shape: with the batch axis, which is 1. low, high: the range, 0 and 1 where the file declares none."""

    name: str
    shape: Shape
    low: float
    high: float
    declared: bool


@dataclass(frozen=True, eq=False)
class OnnxOutput:
    """tail: what was cut off behind it; labels and post as declared, or else as found there."""

    tail: Tail
    labels: tuple[str, ...]
    post: Post


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """A checked model up to its logits: nodes in topological order, constants by name (float64 or int64), batch 1."""

    nodes: tuple[OnnxNode, ...]
    constants: dict[str, Constant]
    inputs: tuple[OnnxInput, ...]
    outputs: tuple[OnnxOutput, ...]
    description: str


def load_onnx(path: Path) -> OnnxModel:
    """Read and check an ONNX file of up to MAX_FILE_BYTES; the batch is pinned to 1, the graph cut at its logits. Raises ModelError."""
    proto, shapes, tails = _read(path)
    constants = {tensor.name: _array(tensor.name, tensor) for tensor in proto.graph.initializer}
    nodes = tuple(_node(node, i) for i, node in enumerate(proto.graph.node))
    properties = {p.key: p.value for p in proto.metadata_props}
    ranges = _declared(properties, "input_range", list(shapes))
    inputs = tuple(
        OnnxInput(name, shape, *_range(ranges.get(name, [0.0, 1.0])), name in ranges)
        for name, shape in shapes.items()
    )
    names = [tail.name for tail in tails]
    labels, posts = _declared(properties, "labels", names), _declared(properties, "post", names)
    if len(tails) > 1 and labels and not properties["labels"].lstrip().startswith("{"):
        raise ModelError('metadata "labels" must be a JSON object by output name: there are several outputs')
    outputs = tuple(
        OnnxOutput(
            tail, _labels(labels.get(tail.name)) or tail.labels, _post(posts.get(tail.name, tail.post))
        )
        for tail in tails
    )
    return OnnxModel(nodes, constants, inputs, outputs, properties.get("dataset", "")[:2000])


def logits_model(path: Path) -> bytes:
    """The model as an ONNX file that ends at its logits: what an encrypted prediction is to be compared with. Raises ModelError."""
    proto, _, _ = _read(path)
    inferred = onnx.shape_inference.infer_shapes(proto)
    known = {
        v.name: v.type.tensor_type.elem_type
        for v in [*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input]
    }
    for output in proto.graph.output:
        output.type.Clear()
        output.type.tensor_type.elem_type = known.get(output.name) or onnx.TensorProto.FLOAT
    return bytes(proto.SerializeToString())


def _read(path: Path) -> tuple[onnx.ModelProto, dict[str, Shape], tuple[Tail, ...]]:
    """The checked file with its batch pinned, cut at the logits, and the inputs' shapes."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ModelError(f"{path.name}: larger than {MAX_FILE_BYTES >> 20} MiB")
        proto = onnx.load_model_from_string(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    except (DecodeError, ValueError, TypeError, RuntimeError) as error:
        raise ModelError(
            f"{path.name} is not an ONNX file ({type(error).__name__}); export the model again"
        ) from None
    proto = _without_functions(proto)
    _check_text(proto)
    _check_sizes(proto)
    _load_external(proto, path)
    shapes = _pin_batch(proto)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        ValueError,
        RuntimeError,
        TypeError,
    ) as error:
        raise ModelError(
            f"{path.name} is not valid ONNX: {_first_line(error)}; export the model again"
        ) from None
    tails = cut_tail(proto, set(shapes))
    if len(tails) > MAX_TENSORS:
        raise ModelError(f"the model has {len(tails)} outputs, more than {MAX_TENSORS}")
    for tail in tails:
        if not 1 <= len(tail.name) <= MAX_NAME:
            raise ModelError(f"an output must have a name of 1 to {MAX_NAME} characters")
    read = {name for node in proto.graph.node for name in node.input} | {tail.logits for tail in tails}
    for name in shapes:
        if name not in read:
            raise ModelError(f"no output depends on the input {name!r}; remove it from the model")
    return proto, shapes, tails


def _without_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    if not proto.functions:
        return proto
    if (nodes := expanded_nodes(proto)) > MAX_NODES:
        raise ModelError(
            f"the model has {nodes} nodes with its local functions expanded, more than {MAX_NODES}"
        )
    try:
        return onnx.inliner.inline_local_functions(proto)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ModelError(
            f"its local functions cannot be expanded: {_first_line(error)}; export the model without functions"
        ) from None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def _tensors(proto: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    for tensor in proto.graph.initializer:
        yield tensor.name, tensor
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield node.output[0] if node.output else node.name, attribute.t


def _check_text(proto: onnx.ModelProto) -> None:
    graph = proto.graph
    names: list[object] = [v.name for v in [*graph.input, *graph.output, *graph.initializer]]
    names += [x for p in proto.metadata_props for x in (p.key, p.value)]
    for node in graph.node:
        names += [
            node.name,
            node.op_type,
            node.domain,
            *node.input,
            *node.output,
            *(a.name for a in node.attribute),
        ]
    # Protobuf gives bytes where a string is not UTF-8.
    if any(not isinstance(name, str) for name in names):
        raise ModelError("a name in the model is not UTF-8 text; export the model again")


def _check_sizes(proto: onnx.ModelProto) -> None:
    graph = proto.graph
    if len(graph.node) > MAX_NODES:
        raise ModelError(f"the model has {len(graph.node)} nodes, more than {MAX_NODES}")
    for opset in proto.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version > onnx.defs.onnx_opset_version():
            raise ModelError(
                f"opset {opset.version} is newer than {onnx.defs.onnx_opset_version()}, the newest known here; export with an older one"
            )
    if graph.sparse_initializer or proto.training_info:
        raise ModelError(
            "the model has sparse weights or training information; export plain inference operators"
        )
    for node in graph.node:
        if any(
            a.HasField("g") or a.graphs or a.tensors or a.HasField("sparse_tensor") for a in node.attribute
        ):
            raise ModelError(
                f"node {node.name!r} ({node.op_type}) has a subgraph; export the model without control flow"
            )
        if node.domain not in _DOMAINS:
            raise ModelError(
                f"node {node.name!r} ({node.op_type}) is of domain {node.domain!r}; export standard ONNX operators only"
            )
    total = 0
    for name, tensor in _tensors(proto):
        if any(d < 0 for d in tensor.dims):
            raise ModelError(f"tensor {name!r} has a negative dimension")
        total += math.prod(tensor.dims)
        if total > MAX_WEIGHTS:
            raise ModelError(
                f"the weights have more than {MAX_WEIGHTS} elements (at tensor {name!r}); use a smaller model"
            )


def _load_external(proto: onnx.ModelProto, path: Path) -> None:
    """Read tensor data that lies in a plain file beside the model, and nowhere else."""
    for name, tensor in _tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        where = {e.key: e.value for e in tensor.external_data}
        file = path.parent / where.get("location", "")
        plain = where.get("location", "") not in ("", ".", "..") and file.name == where.get("location")
        length = where.get("length", "0")
        if (
            not plain
            or file.is_symlink()
            or not file.is_file()
            or not length.isdigit()
            or int(length) > 8 * MAX_WEIGHTS
        ):
            raise ModelError(
                f"tensor {name!r} has its data outside the model's folder or in no file; save all weights inside the ONNX file"
            )
        # What the library reads without a length, and all that a length may ask for: the rest of a file may be terabytes of holes.
        offset = where.get("offset", "0")
        size = (
            int(length)
            if "length" in where
            else file.stat().st_size - (int(offset) if offset.isdigit() else 0)
        )
        if size > 8 * math.prod(tensor.dims):
            raise ModelError(f"tensor {name!r}: external data of {size} bytes is more than its shape names")
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
        except Exception as error:  # the library raises many kinds on bad offsets and lengths
            raise ModelError(
                f"tensor {name!r}: external data cannot be read ({type(error).__name__})"
            ) from None
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _array(name: str, tensor: onnx.TensorProto) -> Constant:
    if tensor.data_type not in _FLOATS + _INTEGERS:
        kind = (
            onnx.TensorProto.DataType.Name(tensor.data_type)
            if tensor.data_type in onnx.TensorProto.DataType.values()
            else "unknown"
        )
        raise ModelError(
            f"tensor {name!r} is of type {kind}; export float32 weights (quantised models are not read)"
        )
    try:
        array = numpy_helper.to_array(tensor)
        if array.size != math.prod(tensor.dims):
            raise ValueError("size")
    except (ValueError, TypeError, RuntimeError) as error:
        raise ModelError(
            f"tensor {name!r} does not hold the data its shape names ({type(error).__name__})"
        ) from None
    result: Constant = np.array(array, dtype=np.float64 if tensor.data_type in _FLOATS else np.int64)
    if not np.isfinite(result).all():
        raise ModelError(f"tensor {name!r} holds NaN or infinite values; train the model again")
    return result


def _sources(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs proper: old files repeat initialisers as inputs."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    return [i for i in proto.graph.input if i.name not in constants]


def _pin_batch(proto: onnx.ModelProto) -> dict[str, Shape]:
    """The inputs' shapes by name."""
    inputs = _sources(proto)
    if not 1 <= len(inputs) <= MAX_TENSORS:
        raise ModelError(f"the model has {len(inputs)} inputs; from 1 to {MAX_TENSORS} can be encrypted")
    shapes = {value.name: _pinned(value) for value in inputs}
    # Stated shapes of other values may still name the batch symbolically or as another number: inference redoes them.
    del proto.graph.value_info[:]
    for output in proto.graph.output:
        for d in output.type.tensor_type.shape.dim:
            d.Clear()
    return shapes


def _pinned(value: onnx.ValueInfoProto) -> Shape:
    tensor = value.type.tensor_type
    if tensor.elem_type not in _FLOATS:
        raise ModelError(f"input {value.name!r} must be a float tensor")
    dims = tensor.shape.dim
    if not 1 <= len(dims) <= 7 or not 1 <= len(value.name) <= MAX_NAME:
        raise ModelError(f"input {value.name[:50]!r} must have a name and 1 to 7 axes")
    if dims[0].dim_value > 1:
        raise ModelError(
            f"input {value.name!r} has a batch of {dims[0].dim_value}; export with batch 1 or a dynamic batch axis"
        )
    dims[0].dim_value = 1
    for axis, d in enumerate(dims):
        if not 1 <= d.dim_value <= 1 << 20:
            raise ModelError(
                f"input {value.name!r}: axis {axis} has no fixed size in 1..2^20; only the batch axis may be dynamic"
            )
    return tuple(d.dim_value for d in dims)


def _attribute(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> Any:
    if attribute.type == onnx.AttributeProto.TENSOR:
        return _array(node.output[0] if node.output else node.name, attribute.t)
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return list(value) if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS) else value


def _node(node: onnx.NodeProto, index: int) -> OnnxNode:
    try:
        attributes = {a.name: _attribute(node, a) for a in node.attribute}
    except ValueError as error:
        raise ModelError(f"node {node.name!r} ({node.op_type}): {_first_line(error)}") from None
    return OnnxNode(
        node.op_type,
        node.name or f"{node.op_type}_{index}",
        tuple(node.input),
        tuple(node.output),
        attributes,
    )


def _declared(properties: dict[str, str], key: str, names: list[str]) -> dict[str, Any]:
    """What metadata `key` says of each of `names`: one value for all (JSON, or a word), or a JSON object by name."""
    text = properties.get(key)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    if not isinstance(value, dict):
        return dict.fromkeys(names, value)
    for name in value:
        if name not in names:
            raise ModelError(f'metadata "{key}" names {name[:50]!r}; there are {", ".join(names)[:500]}')
    return value


def _post(value: object) -> Post:
    post = next((p for p in _POSTS if p == value), None)
    if post is None:
        raise ModelError(f'metadata "post" must be one of {", ".join(_POSTS)}, got {str(value)[:50]!r}')
    return post


def _labels(labels: object) -> tuple[str, ...]:
    if labels is None:
        return ()
    if not isinstance(labels, list) or not all(isinstance(x, str) and len(x) <= 200 for x in labels):
        raise ModelError('metadata "labels" must be a JSON list of strings of up to 200 characters')
    return tuple(labels)


def _range(value: Any) -> tuple[float, float]:
    try:
        low, high = (float(x) for x in value)
        if not -MAX_INPUT <= low < high <= MAX_INPUT:
            raise ValueError("empty")
    except (ValueError, TypeError, OverflowError):
        raise ModelError(
            f'metadata "input_range" must be a JSON list [low, high] with {-MAX_INPUT:g} <= low < high <= {MAX_INPUT:g}'
        ) from None
    return low, high
