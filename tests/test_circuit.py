"""Circuit format, verifier, cleartext and counting evaluators, bundle and compiled model file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import SCALE, small_parameters, tiny_expected, tiny_model

from ckks.bundle import Bundle
from ckks.circuit import Circuit, Instruction, Op
from ckks.cleartext import CleartextEvaluator
from ckks.counting import CountedValue, CountingEvaluator
from ckks.errors import CircuitError, EvaluationError, FormatError, HeError
from ckks.interpreter import run
from ckks.modelfile import CompiledModel, load_model, save_model
from ckks.verify import verify

MODEL = tiny_model()


def _with(index: int, **changes: Any) -> Circuit:
    instructions = list(MODEL.circuit.instructions)
    instructions[index] = dataclasses.replace(instructions[index], **changes)
    return dataclasses.replace(MODEL.circuit, instructions=tuple(instructions))


def test_tiny_model_verifies_and_computes() -> None:
    verify(MODEL.circuit, MODEL.bundle, MODEL.weights)
    evaluator = CleartextEvaluator(small_parameters(), MODEL.weights)
    x = np.random.default_rng(0).uniform(-1, 1, (5, 3))
    packed = np.concatenate([x, np.zeros((5, 1))], axis=1)
    y = run(MODEL.circuit, {"x": evaluator.encrypt(packed, 2, SCALE)}, evaluator)["y"]
    assert y.level == 0 and y.scale == MODEL.bundle.output.scale
    for row, got in zip(x, y.slots, strict=True):
        assert np.abs(got[:2] - tiny_expected(row)).max() < 1e-12
        assert np.array_equal(got[:4], got[4:8])  # the period of the weights is kept


def test_simulated_noise_has_the_predicted_size() -> None:
    p = small_parameters()
    noisy = CleartextEvaluator(p, MODEL.weights, np.random.default_rng(1))
    exact = CleartextEvaluator(p, MODEL.weights)
    x = np.array([0.5, -0.5, 0.25, 0.0])
    a = run(MODEL.circuit, {"x": noisy.encrypt(x, 2, SCALE)}, noisy)["y"].slots
    b = run(MODEL.circuit, {"x": exact.encrypt(x, 2, SCALE)}, exact)["y"].slots
    worst = np.abs(a - b).max()
    assert 1e-6 < worst < 1e-2  # scale 2^25 leaves about 2^-12 after two operations


def test_counting() -> None:
    evaluator = CountingEvaluator(small_parameters())
    run(MODEL.circuit, {"x": CountedValue(2)}, evaluator)
    operations = evaluator.cost.operations
    assert operations["linear_transform"] == 1 and operations["diagonal"] == 4 and operations["rescale"] == 2
    assert operations["key_product"] == 1 + 1 + 1  # a baby step, a giant step, the relinearisation
    assert evaluator.cost.ntts > 0 and evaluator.cost.products > 0


def test_key_needs_are_exact() -> None:
    needs = MODEL.circuit.key_needs()
    assert needs.relinearisation == 1 and dict(needs.rotations) == {1: 2, 2: 2}


def test_json_round_trip_is_exact() -> None:
    again = Circuit.from_json(json.loads(json.dumps(MODEL.circuit.to_json())))
    assert again == MODEL.circuit


def test_dump_is_readable() -> None:
    lines = MODEL.circuit.dump().splitlines()
    assert len(lines) == 8
    assert lines[1].startswith("%1 = linear_transform %0, w, 4 diagonals, 2 babies, 2 giants")


BROKEN: list[tuple[str, Circuit]] = [
    ("operand", _with(1, operands=(1,))),
    ("operand", _with(1, operands=(-1,))),
    ("operands", _with(4, operands=(3,))),
    ("relinearised", _with(6, operands=(4,))),
    ("relinearised", _with(5, operands=(3,))),
    ("states level", _with(2, level=2)),
    ("states level", _with(2, scale=SCALE * 1.001)),
    ("out of range", _with(0, level=3)),
    ("out of range", _with(0, scale=float("inf"))),
    ("does not fit", _with(0, scale=2.0**100)),
    ("no weight", _with(3, weight="missing")),
    ("one diagonal for each", _with(1, terms=((0, 0), (0, 1)))),
    ("distinct", _with(1, terms=((0, 0), (0, 0), (2, 0), (2, 1)))),
    ("outside", _with(1, terms=((0, 0), (0, 5000), (2, 0), (2, 1)))),
    ("weight scale", _with(1, weight_scale=0.5, scale=SCALE * 0.5)),
    ("input", _with(0, name="z")),
    ("output", _with(7, name="z")),
    ("nothing can be rescaled", _with(7, op=Op.RESCALE, name="")),
]


@pytest.mark.parametrize(("reason", "circuit"), BROKEN)
def test_verifier_refuses(reason: str, circuit: Circuit) -> None:
    with pytest.raises(CircuitError, match=reason):
        verify(circuit, MODEL.bundle, MODEL.weights)


def test_verifier_refuses_weights_and_keys_that_do_not_fit() -> None:
    with pytest.raises(CircuitError, match="finite"):
        verify(MODEL.circuit, MODEL.bundle, {**MODEL.weights, "b": np.array([np.nan, 0.0])})
    with pytest.raises(CircuitError, match="never used"):
        verify(MODEL.circuit, MODEL.bundle, {**MODEL.weights, "c": np.zeros(4)})
    fewer_keys = MODEL.bundle.model_copy(update={"rotations": []})
    with pytest.raises(CircuitError, match="evaluation keys"):
        verify(MODEL.circuit, fewer_keys, MODEL.weights)


def test_malformed_circuit_json() -> None:
    good = MODEL.circuit.to_json()
    for bad in (
        {},
        [],
        None,
        {"slots": "8", "instructions": []},
        {"slots": 8, "instructions": [1]},
        good | {"more": 1},
    ):
        with pytest.raises(CircuitError):
            Circuit.from_json(bad)
    row: dict[str, Any]
    for change in (
        {"op": "halt"},
        {"scale": "x"},
        {"terms": [[1]]},
        {"bonus": 1},
        {"operands": ["0"]},
        {"level": True},
    ):
        row = good["instructions"][1] | change
        with pytest.raises(CircuitError):
            Circuit.from_json({"slots": good["slots"], "instructions": [row]})


def test_interpreter_stops_where_it_is_told_and_names_a_missing_input() -> None:
    evaluator = CountingEvaluator(small_parameters())
    seen: list[int] = []

    def stop_at_three(index: int, instruction: Instruction) -> None:
        seen.append(index)
        if index == 3:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        run(MODEL.circuit, {"x": CountedValue(2)}, evaluator, stop_at_three)
    assert seen == [0, 1, 2, 3]
    with pytest.raises(EvaluationError, match="'x'"):
        run(MODEL.circuit, {}, evaluator)


def test_model_file_round_trip(tmp_path: Path) -> None:
    save_model(tmp_path / "a.hem", MODEL)
    save_model(tmp_path / "b.hem", MODEL)
    assert (tmp_path / "a.hem").read_bytes() == (tmp_path / "b.hem").read_bytes()
    loaded = load_model(tmp_path / "a.hem")
    assert loaded.bundle == MODEL.bundle and loaded.circuit == MODEL.circuit and loaded.report == MODEL.report
    assert all(np.array_equal(loaded.weights[k], MODEL.weights[k]) for k in MODEL.weights)


def test_damaged_model_files(tmp_path: Path) -> None:
    path = tmp_path / "m.hem"
    save_model(path, MODEL)
    data = path.read_bytes()
    rng = np.random.default_rng(3)
    for _ in range(1000):
        at = int(rng.integers(0, len(data)))
        bad = data[:at] if rng.random() < 0.3 else data[:at] + rng.bytes(1) + data[at + 1 :]
        path.write_bytes(bad)
        with contextlib.suppress(HeError):
            same_model(load_model(path))  # an edit of the report or of zip padding is harmless
    with pytest.raises(FormatError, match="no such file"):
        load_model(tmp_path / "missing.hem")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("manifest.json", "circuit.json", "weights.safetensors", "report.json"):
            archive.writestr(name, b"{}")
    with pytest.raises(FormatError, match="without compression"):
        load_model(path)


def same_model(model: CompiledModel) -> None:
    assert model.bundle == MODEL.bundle and model.circuit == MODEL.circuit


def test_bundle_is_parsed_strictly() -> None:
    good = json.loads(MODEL.bundle.to_bytes())
    assert Bundle.from_bytes(json.dumps(good).encode()) == MODEL.bundle
    weak = good["parameters"] | {"degree": 2048}
    insecure = good["parameters"] | {"special_primes": [1152921504606830593]}
    first, last = good["inputs"][0], good["outputs"][0]
    parts = {"shape": [3], "slots": [0, 1, 4], "period": 4, "parts": 2}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"schema_version": 1}, "schema_version"),
        ({"code": "import os"}, "code"),
        ({"parameters": weak}, "ring degree"),
        ({"parameters": insecure}, "128-bit"),
        ({"name": "../../etc"}, "name"),
        ({"relinearisation_level": 9}, "does not exist"),
        ({"rotations": [{"steps": 1, "level": 0}] * 2}, "twice"),
        ({"outputs": [last | {"promised_error": 0.0}]}, "promised_error"),
        ({"outputs": [last | {"largest": -1.0}]}, "largest"),
        ({"inputs": [first | {"scale": 1e400}]}, "inputs.0.scale"),
        ({"outputs": [last | {"labels": ["one"]}]}, "label"),
        ({"inputs": [first, first]}, "same name"),
        ({"inputs": [first | {"name": "x.0"}, first | {"packing": parts}]}, "same name"),
        ({"inputs": []}, "inputs"),
        ({"inputs": [first | {"packing": parts | {"slots": [0, 1, 8]}}]}, "below the period"),
        ({"inputs": [first | {"packing": {"shape": [3], "slots": [0, 0, 1], "period": 4}}]}, "distinct"),
        (
            {"inputs": [first | {"packing": {"shape": [3], "slots": [0, 1, 2], "period": 3}}]},
            "power of two",
        ),
    ]
    for change, reason in cases:
        with pytest.raises(FormatError, match=reason):
            Bundle.from_bytes(json.dumps(good | change).encode())
    for junk in (b"", b"\xff\xfe", b"[]", b"{" * 100_000, b"0" * (9 << 20)):
        with pytest.raises(FormatError):
            Bundle.from_bytes(junk)
