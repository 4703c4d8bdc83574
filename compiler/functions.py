"""Local functions of an ONNX model (some exporters write one per module): what their expansion would come to."""

from __future__ import annotations

from typing import Any

from ckks.errors import ModelError

MAX_DEPTH = 32  # of functions that call functions; expanding recurses as deep


def expanded_nodes(proto: Any) -> int:
    """Nodes of `proto` (ModelProto) once its functions stand in the place of their calls.

    Counted before anything is expanded: functions that call each other twice, 50 deep, are a small file and 2^50 nodes. Raises ModelError
    for functions that call themselves or are defined twice.
    """
    functions = {(f.domain, f.name): f for f in proto.functions}
    if len(functions) != len(proto.functions):
        raise ModelError("a local function is defined twice; export the model again")
    known: dict[tuple[str, str], tuple[int, int]] = {}  # nodes and depth of what a call becomes

    def measure(nodes: Any, calls: int) -> tuple[int, int]:
        inner = [call((n.domain, n.op_type), calls) for n in nodes]
        return sum(n for n, _ in inner), max((depth for _, depth in inner), default=0)

    def call(key: tuple[str, str], calls: int) -> tuple[int, int]:
        if key not in functions:
            return 1, 0
        if calls <= MAX_DEPTH and key not in known:
            nodes, depth = measure(functions[key].node, calls + 1)
            known[key] = nodes, depth + 1
        if calls > MAX_DEPTH or known[key][1] > MAX_DEPTH:
            raise ModelError(
                f"local function {key[1]!r} calls itself or nests deeper than {MAX_DEPTH}; export the model without functions"
            )
        return known[key]

    return measure(proto.graph.node, 1)[0]
