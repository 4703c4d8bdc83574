"""Cutting an ONNX graph at its logits: softmax, arg max, label look-ups and the like run on the client, after decryption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from ckks.errors import ModelError

# Operators that turn logits into probabilities or a label.
_HEADS = {
    "Softmax": "softmax",
    "LogSoftmax": "softmax",
    "Hardmax": "softmax",
    "ArgMax": "softmax",
    "Sigmoid": "sigmoid",
    "ZipMap": "none",
}
# What exporters put behind them: formats, 1 - p, normalised sums, names of labels. None of these may read the logits themselves.
_AFTER = {
    "Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Concat", "Sub", "Normalizer", "ArgMax", "Greater",
    "GreaterOrEqual", "Binarizer", "ArrayFeatureExtractor", "LabelEncoder", "Not",
}  # fmt: skip
_TRANSFORMS = {"LOGISTIC": "sigmoid", "SOFTMAX": "softmax", "NONE": "none"}


@dataclass(frozen=True)
class Tail:
    """What was cut off behind one of the new outputs, which is called `logits`; name: the output that it led to.

    post: "softmax", "sigmoid" or "none"; labels: the class names found.
    axis: of the operator that reads the logits, None where there is none; to_end: it spans that axis and all after it (Softmax before
    opset 13), else that axis alone.
    """

    logits: str
    name: str
    post: str
    labels: tuple[str, ...] = ()
    axis: int | None = None
    to_end: bool = False


def cut_tail(proto: Any, sources: Set[str]) -> tuple[Tail, ...]:
    """Cut `proto` (an onnx.ModelProto, one that passed the checker) in place at the logits that follow from the inputs `sources`.

    What no longer reaches an output is dropped as well. Tails are in the order of the outputs. Raises ModelError.
    """
    graph = proto.graph
    nodes = list(graph.node)
    classifier = _open_classifiers(nodes)
    encrypted = _dependent(nodes, sources)
    outputs = [o.name for o in graph.output]
    cut = _tail_nodes(nodes, encrypted, set(outputs), classifier)
    made = {name for i in cut for name in nodes[i].output}
    ends = {*outputs} | {name for i in cut for name in nodes[i].input}
    labels_of = {
        n.output[0]: n.output[1] for n in nodes if n.op_type == "LinearClassifier" and len(n.output) > 1
    }
    ends = {labels_of.get(name, name) for name in ends if name in encrypted and name not in made}
    if not ends:
        raise ModelError(f"no output depends on the input {', '.join(map(repr, sorted(sources)))}")
    if classifier and ends != set(classifier):
        raise ModelError(
            "linear classifiers are parts of the model; export one multi-class classifier instead"
        )
    scores_of = {scores: label for label, scores in labels_of.items()}
    after = {end: _after(nodes, cut, {end, scores_of.get(end, end)}) for end in ends}
    tails: dict[str, Tail] = {}
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=1)
    for output in outputs:
        leads = [end for end in ends if output in after[end]]
        if len(leads) > 1:
            raise ModelError(
                f"output {output!r} joins {len(leads)} sets of classes; give each an output of its own"
            )
        for end in leads:
            behind = [i for i in sorted(cut) if set(nodes[i].output) & after[end]]
            tails.setdefault(end, _tail(graph, nodes, behind, end, after[end], classifier, opset))
    _keep(proto, [n for i, n in enumerate(nodes) if i not in cut], list(tails))
    return tuple(tails.values())


def _after(nodes: Sequence[Any], cut: Set[int], names: set[str]) -> set[str]:
    """`names`, and what the cut nodes make of them."""
    for i in sorted(cut):
        if names & set(nodes[i].input):
            names = names | set(nodes[i].output)
    return names


def _tail(
    graph: Any,
    nodes: Sequence[Any],
    behind: Sequence[int],
    logits: str,
    after: Set[str],
    classifier: Mapping[str, str],
    opset: int,
) -> Tail:
    """behind: the cut nodes that `logits` leads to; after: the values."""
    heads = [nodes[i] for i in behind if logits in nodes[i].input and nodes[i].op_type in _HEADS]
    # An arg max beside a sigmoid or softmax says no more than they do.
    heads.sort(key=lambda node: node.op_type == "ArgMax")
    outputs = [o.name for o in graph.output if o.name in after]
    shown = [logits, *(heads[0].output if heads else ())]
    name = next((n for n in shown if n in outputs), outputs[0])
    if any(n.op_type == "LinearRegressor" and logits in n.output for n in nodes):
        return Tail(logits, name, "none")
    makers = [n for n in nodes if n.op_type == "LinearClassifier" and logits in n.output]
    return Tail(
        logits,
        name,
        classifier.get(logits) or (_HEADS[heads[0].op_type] if heads else "softmax"),
        _labels(graph, makers + [nodes[i] for i in behind]),
        _axis(heads[0], opset) if heads else None,
        opset < 13,
    )


def _open_classifiers(nodes: Sequence[Any]) -> dict[str, str]:
    """Let every LinearClassifier give plain scores; what it did to them, by the scores' name."""
    found = {}
    for node in nodes:
        if node.op_type == "LinearClassifier" and len(node.output) > 1:
            for attribute in node.attribute:
                if attribute.name == "post_transform" and attribute.s.decode(errors="replace") in _TRANSFORMS:
                    found[node.output[1]] = _TRANSFORMS[attribute.s.decode()]
                    attribute.s = b"NONE"
            found.setdefault(node.output[1], "none")
    return found


def _dependent(nodes: Sequence[Any], sources: Set[str]) -> set[str]:
    """Names of the values that depend on the values (not only the shapes) of `sources`."""
    found = set(sources)
    for node in nodes:
        if node.op_type not in ("Shape", "Size") and any(name in found for name in node.input):
            found.update(name for name in node.output if name)
    return found


def _tail_nodes(
    nodes: Sequence[Any], encrypted: set[str], outputs: set[str], classifier: dict[str, str]
) -> set[int]:
    """Indices of the nodes to cut: each leads to outputs through such nodes only, and reads the logits only if it is a head."""
    users: dict[str, list[int]] = {}
    for i, node in enumerate(nodes):
        for name in node.input:
            users.setdefault(name, []).append(i)
    opened = {name for node in nodes if node.op_type == "LinearClassifier" for name in node.output}
    cut = {i for i, n in enumerate(nodes) if n.op_type in _AFTER or n.op_type in _HEADS}
    while True:
        made = {name for i in cut for name in nodes[i].output} | (opened if classifier else set())

        def fits(i: int, made: set[str] = made, cut: set[int] = cut) -> bool:
            reads = [name for name in nodes[i].input if name in encrypted]
            ends = all(user in cut for name in nodes[i].output for user in users.get(name, []))
            reaches = any(name in outputs or name in users for name in nodes[i].output)
            return (
                bool(reads)
                and not (nodes[i].op_type == "Sub" and nodes[i].input[0] in encrypted)  # 1 - p only
                and ends
                and reaches
                and (nodes[i].op_type in _HEADS or all(r in made for r in reads))
            )

        kept = {i for i in cut if fits(i)}
        if kept == cut:
            return kept
        cut = kept


def _axis(head: Any, opset: int) -> int | None:
    if head.op_type == "Sigmoid":
        return None
    default = 0 if head.op_type == "ArgMax" else (1 if opset < 13 else -1)
    return next((int(a.i) for a in head.attribute if a.name == "axis"), default)


def _labels(graph: Any, nodes: Sequence[Any]) -> tuple[str, ...]:
    """Names of the classes as scikit-learn's converters leave them: in ZipMap, in LinearClassifier, or as a tensor to look up in."""
    for node in nodes:
        for attribute in node.attribute if node.op_type in ("ZipMap", "LinearClassifier") else ():
            if attribute.name in ("classlabels_strings", "classlabels_ints", "classlabels_int64s"):
                found = [s.decode(errors="replace") for s in attribute.strings] or [
                    str(i) for i in attribute.ints
                ]
                if found:
                    return tuple(found)
    tables = {n.input[0] for n in nodes if n.op_type == "ArrayFeatureExtractor" and n.input}
    for tensor in graph.initializer:
        if tensor.name in tables:
            numbers = list(tensor.int32_data) or list(tensor.int64_data)
            return tuple([s.decode(errors="replace") for s in tensor.string_data] or map(str, numbers))
    return ()


def _keep(proto: Any, nodes: Sequence[Any], logits: list[str]) -> None:
    """Reduce the graph to what `logits` need, and make them the only outputs."""
    needed, kept = set(logits), []
    for node in reversed(nodes):
        if any(name in needed for name in node.output):
            needed.update(node.input)
            kept.append(node)
    nodes = [type(n).FromString(n.SerializeToString()) for n in reversed(kept)]
    used = [t for t in proto.graph.initializer if t.name in needed]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    if len(used) < len(proto.graph.initializer):
        tensors = [type(t).FromString(t.SerializeToString()) for t in used]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(tensors)
    if [o.name for o in proto.graph.output] != logits:
        del proto.graph.output[:]
        for name in logits:
            proto.graph.output.add().name = name
