"""The ONNX standard's node tests: every linear and layout test passes or is refused for a reason of its own; see tests/conformance.py."""

from __future__ import annotations

import re
from pathlib import Path

import conformance
import numpy as np
import onnx
import pytest
from conformance import Case, Result

from he_serve.trial import try_model


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return list(conformance.cases())


@pytest.fixture(scope="module")
def results(cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    folder = tmp_path_factory.mktemp("conformance")
    return [conformance.run(case, folder) for case in cases]


def test_exact_operators_agree_with_the_standard(results: list[Result]) -> None:
    exact = conformance.LINEAR + conformance.POWERS + conformance.LAYOUT
    of = [r for r in results if r.operator in exact]
    assert {r.operator for r in of} == set(exact), "an operator without a test proves nothing"
    assert [r for r in of if not r.refusal and not r.exact] == []
    odd = [r for r in of if r.refusal and not any(reason in r.refusal for reason in conformance.REFUSALS)]
    assert odd == []
    assert len({r.test for r in of if r.exact}) >= 190


def test_what_the_client_computes_agrees_with_the_standard(results: list[Result]) -> None:
    of = [r for r in results if r.operator in ("Softmax", "LogSoftmax", "Hardmax", "Sigmoid")]
    assert {r.operator for r in of if r.exact} == {"Softmax", "LogSoftmax", "Hardmax", "Sigmoid"}
    assert [r for r in of if not r.refusal and not r.exact] == []


def test_refusals_name_node_and_remedy(results: list[Result]) -> None:
    for r in results:
        if "cannot be compiled; " in r.refusal:
            assert re.match(rf"node '.+' \({r.operator}\): .+; \w+", r.refusal), r


def test_the_page_is_current(results: list[Result]) -> None:
    text = conformance.PAGE.read_text()
    if f"(onnx {onnx.__version__})" not in text:
        pytest.skip("docs/operators.md was written with another version of onnx, which has other tests")
    assert conformance.page(results) == text, "write it again: python tests/conformance.py"


@pytest.mark.parametrize("name", conformance.ENCRYPTED)
def test_encrypted(name: str, cases: list[Case], tmp_path: Path) -> None:
    case = next(c for c in cases if c.test == name)
    model = conformance.compiled(case, tmp_path)
    shape = [1, *model.bundle.input.packing.shape]
    result = try_model(model, case.row.reshape(shape), lambda rows: case.expected[None], 1, lambda *_: None)
    assert result["agrees"]
    assert (
        result["original_error"]
        <= result["promised_error"] + conformance.TOLERANCE * np.abs(case.expected).max()
    )
