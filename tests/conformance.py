"""The ONNX standard's node tests as a conformance suite of the compiler; run as a script it writes docs/operators.md.

A test counts if it has one node, its first input is a float tensor of one to four axes, and an output is a float tensor. Every input but
the first becomes a constant of the model, for that is how weights reach a compiled network. These tests know no batch: their leading
axis is an axis like any other. So the tensor is taken as one example: the model's input gets a leading batch axis of 1, and a Reshape to
the test's own shape stands before the node. A test with several float outputs gives one model for each.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from samples import bundle_ends

from ckks.errors import ModelError
from ckks.modelfile import CompiledModel
from ckks.types import Slots
from compiler.compile import compile_model
from compiler.precision import evaluate
from he_serve.prediction import sigmoid, softmax

PAGE = Path(__file__).parent.parent / "docs" / "operators.md"
TOLERANCE = 1e-4  # of the largest expected value, or absolute: some of the standard's expectations are written with four digits
LINEAR = (
    "Add", "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "Div", "Gemm", "GlobalAveragePool", "MatMul", "Mean", "Mul",
    "Neg", "ReduceMean", "ReduceSum", "Sub", "Sum",
)  # fmt: skip
POWERS = ("Pow", "ReduceSumSquare")
LAYOUT = (
    "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad",
    "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
)  # fmt: skip
# What refusals of the operators above may say: modes of training, powers that are no whole numbers, results without elements or with
# more than one ciphertext holds.
REFUSALS = ("in training mode", "only whole powers", "has 0 elements", "tensors of up to 40320 elements")
# What the client makes of the logits where these are the last operator.
_CLIENT: dict[str, Callable[[Slots], Slots]] = {
    "Softmax": softmax,
    "LogSoftmax": lambda x: np.log(softmax(x)),
    "Hardmax": lambda x: np.eye(x.size)[x.argmax()],
    "Sigmoid": sigmoid,
}
# Really encrypted, evaluated and decrypted: one of each kind of circuit.
ENCRYPTED = (
    "test_conv_with_strides_padding", "test_convtranspose", "test_gemm_all_attributes", "test_averagepool_2d_precomputed_pads",
    "test_batchnorm_example", "test_pow_example", "test_depthtospace_example", "test_transpose_default",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Case:
    """One output of one node test: a model with a batch axis of 1, its input row and the expected values, flat."""

    test: str
    operator: str
    model: onnx.ModelProto
    row: NDArray[np.float64]
    expected: NDArray[np.float64]


@dataclass(frozen=True)
class Result:
    """refusal: the message, empty if the test compiled. exact: its values equal the standard's."""

    test: str
    operator: str
    refusal: str
    exact: bool


def cases() -> Iterator[Case]:
    """All cases, in the order of their names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some tests provoke overflow on purpose
        from onnx.backend.test.case.node import collect_testcases

        tests = collect_testcases(None)
    seen = set[str]()
    for test in sorted(tests, key=lambda t: t.name):
        graph = test.model.graph
        if len(graph.node) != 1 or test.name in seen or not _is_float(graph.input[:1]):
            continue
        seen.add(test.name)
        given, wanted = test.data_sets[0]
        if not isinstance(given[0], np.ndarray) or not 1 <= given[0].ndim <= 4 or not given[0].size:
            continue
        for i, value in enumerate(graph.output):
            if _is_float([value]) and isinstance(wanted[i], np.ndarray):
                yield _case(test, given, i, np.asarray(wanted[i]))


def _is_float(values: Any) -> bool:
    kinds = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
    return all(v.type.tensor_type.elem_type in kinds for v in values) and len(values) > 0


def _case(test: Any, given: list[Any], output: int, expected: NDArray[Any]) -> Case:
    graph, first = test.model.graph, given[0]
    constants = [numpy_helper.from_array(np.asarray(a), v.name) for a, v in zip(given[1:], graph.input[1:], strict=False)
                 if isinstance(a, np.ndarray | np.generic)]  # fmt: skip
    constants.append(numpy_helper.from_array(np.array(first.shape, np.int64), "he_shape"))
    node = onnx.NodeProto()
    node.CopyFrom(graph.node[0])
    kind = graph.input[0].type.tensor_type.elem_type
    source = helper.make_tensor_value_info("he_input", kind, [1, *first.shape])
    nodes = [helper.make_node("Reshape", ["he_input", "he_shape"], [graph.input[0].name]), node]
    name = graph.output[output].name
    result = helper.make_tensor_value_info(
        name, graph.output[output].type.tensor_type.elem_type, expected.shape
    )
    wrapped = helper.make_graph(nodes, test.name, [source], [result], constants)
    model = helper.make_model(
        wrapped, opset_imports=test.model.opset_import, ir_version=test.model.ir_version
    )
    low, high = float(first.min()), float(first.max())
    helper.set_model_props(model, {"input_range": f"[{low - 1}, {high + 1}]"})
    return Case(
        test.name,
        node.op_type,
        model,
        first.astype(np.float64).reshape(1, -1),
        expected.astype(np.float64).reshape(-1),
    )


def compiled(case: Case, folder: Path) -> CompiledModel:
    """The case compiled; its own input calibrates. Raises ModelError."""
    path = folder / "case.onnx"
    path.write_bytes(case.model.SerializeToString())
    shape = [d.dim_value for d in case.model.graph.input[0].type.tensor_type.shape.dim]
    return compile_model(path, name="case", calibration=case.row.reshape(shape), own_rows=True)


def run(case: Case, folder: Path) -> Result:
    """Compile, evaluate in the clear and compare."""
    try:
        model = compiled(case, folder)
    except ModelError as error:
        return Result(case.test, case.operator, str(error), False)
    ends = bundle_ends(model.bundle)
    got = evaluate(model.circuit, model.weights, model.bundle.checked_parameters(), case.row, ends)[0]
    got = _CLIENT.get(case.operator, np.asarray)(got)
    exact = got.shape == case.expected.shape
    exact = exact and np.abs(got - case.expected).max() <= TOLERANCE * max(1.0, np.abs(case.expected).max())
    return Result(case.test, case.operator, "", bool(exact))


def page(results: list[Result]) -> str:
    """docs/operators.md for the results of a whole run."""
    passed = _tests(r for r in results if r.exact)
    lines = [_INTRODUCTION.format(version=onnx.__version__, total=_tests(results), passed=passed)]
    groups = {"Linear": LINEAR, "Powers": POWERS, "Layout": LAYOUT, "Left to the client": tuple(_CLIENT)}
    named = {name for names in groups.values() for name in names}
    others = sorted({r.operator for r in results} - named)
    compiled = {r.operator for r in results if not r.refusal}
    groups["Approximated"] = tuple(name for name in others if name in compiled)
    groups["Refused"] = tuple(name for name in others if name not in compiled)
    for title, names in groups.items():
        if names:
            lines += [
                f"\n## {title}\n",
                *([_NOTES[title], ""] if title in _NOTES else []),
                *_table(results, names),
            ]
    return "\n".join(lines) + "\n"


def _table(results: list[Result], names: tuple[str, ...]) -> list[str]:
    lines = [
        "| operator | tests | encrypted | in the clear | refused | reasons |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        of = [r for r in results if r.operator == name]
        exact, refused = {r.test for r in of if r.exact}, {r.test for r in of if r.refusal}
        reasons = "; ".join(sorted({_reason(r.refusal) for r in of if r.refusal})[:2])
        counts = (_tests(of), len(exact & set(ENCRYPTED)), len(exact), len(refused))
        lines.append(f"| {name} | {' | '.join(map(str, counts))} | {reasons} |")
    return lines


_NOTES = {
    "Left to the client": "As the last operator over one set of classes these are cut off; the client computes them after decryption.",
    "Approximated": "By a polynomial over the calibrated range: *in the clear* counts tests where it comes as near as an exact one.",
}
_INTRODUCTION = """# Operators

What the compiler makes of the ONNX standard's own node tests (onnx {version}): of {total} tests with one node and a float tensor of
one to four axes as first input, {passed} pass. This page is written by `python tests/conformance.py`; a test compares it with a fresh run.

- *in the clear*: compiled to a circuit whose exact evaluation equals the standard's expected output to 1e-4 of its largest value.
  *encrypted*: those among them that the test suite also encrypts, evaluates and decrypts. *refused*: with the reason given.
- Every input but the first is bound as a constant, as weights are. A node test knows no batch, so its whole tensor is taken as one
  example: the model gets a batch axis of 1 in front and a Reshape to the test's shape. In a network the batch axis itself is pinned
  to 1, and operators that would mix the pictures of a batch are refused.
- Operators on constants alone (shape arithmetic, casts, weights) are folded and do not appear here."""


def _tests(results: Any) -> int:
    return len({r.test for r in results})


def _reason(refusal: str) -> str:
    """The message without the node it names and the numbers of the test."""
    text = refusal.split("): ", 1)[-1] if refusal.startswith("node ") else refusal
    return text.replace("|", "\\|").replace("\n", " ")[:160]


def main() -> None:
    import tempfile

    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(page([run(case, Path(folder)) for case in cases()]))


if __name__ == "__main__":
    main()
