"""The doctor's checks, the micro-benchmark's figures and the times predicted from them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import small_parameters, tiny_model
from serving import ROOT
from typer.testing import CliRunner

from ckks import measure
from ckks.circuit import Op
from ckks.counting import Call, CountedValue, CountingEvaluator
from ckks.errors import FormatError, InputError
from ckks.interpreter import run
from ckks.kernels._cpu import instruction_sets
from ckks.machine import (
    FUNCTIONS,
    OVERHEAD,
    Costs,
    Machine,
    default_machine,
    load_machine,
    predict_layers,
    save_machine,
)
from ckks.parameters import Parameters
from ckks.primes import ntt_primes
from ckks.rehearsal import rehearse
from compiler.compile import compile_model
from he_serve import doctor
from he_serve.cli import app
from he_serve.machine import find_machine, machine_file

P = small_parameters()


@pytest.fixture(scope="module")
def measured() -> Machine:
    """A short benchmark: two small shapes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "SHAPES", measure.SHAPES[:2])
        patch.setattr(measure, "WIDE", measure.WIDE[1:])
        patch.setattr(measure, "REPEATS", 3)
        return measure.measure_machine((1,), "a test", "this test", lambda done, total: None)


def test_every_function_is_measured(measured: Machine) -> None:
    for primes in ("fast", "wide"):
        assert {s.function for s in measured.threads[1] if s.primes == primes} == set(FUNCTIONS)
    assert measured.bandwidth[1] > 1e8
    assert measured.instructions == instruction_sets()[0]


def test_a_measured_call_is_predicted_by_its_own_sample(measured: Machine) -> None:
    """Other shapes weigh less than the one that is there, so the prediction is near it."""
    p = measure.SHAPES[1].parameters()
    costs = Costs(measured.threads[1], 1)
    for s in measured.threads[1]:
        if (s.function, s.primes, s.log_degree) == ("key_switch", "fast", 13):
            evaluator = CountingEvaluator(p)
            evaluator.relinearise(CountedValue(s.rows - 1 - len(p.special_primes)))
            call = next(c for c in evaluator.cost.calls if c.function == "key_switch")
            assert costs.call_seconds(p, call) == pytest.approx(OVERHEAD * s.seconds, rel=0.6)


def test_prediction_of_layers_adds_up_and_is_of_the_size_measured() -> None:
    model = tiny_model()
    costs = default_machine().costs()
    layers = predict_layers(costs, P, model.circuit, model.weights)
    evaluator = CountingEvaluator(P, {name: w.shape[-1] for name, w in model.weights.items()})
    inputs = {i.name: CountedValue(i.level) for i in model.circuit.instructions if i.op is Op.INPUT}
    run(model.circuit, inputs, evaluator)
    assert sum(layers.values()) == pytest.approx(costs.seconds(P, evaluator.cost.calls))
    seconds = rehearse(model.circuit, model.weights, P, 1)
    assert set(layers) <= set(seconds)
    assert (
        0 < sum(layers.values()) < 20 * sum(seconds.values())
    )  # a busy machine measures more, none a twentieth


def test_more_work_takes_longer() -> None:
    costs = default_machine().costs()

    def rotation(p: Parameters, level: int) -> float:
        evaluator = CountingEvaluator(p)
        evaluator.rotate(CountedValue(level), 1)
        return costs.seconds(p, evaluator.cost.calls)

    shapes = [s.parameters() for s in measure.SHAPES[1:]]
    for p in shapes:
        times = [rotation(p, level) for level in range(p.max_level + 1)]
        assert times == sorted(times)
    data = ntt_primes(8192, 40, 2)
    fast = Parameters(8192, data, ntt_primes(8192, 46, 1), 1)
    wide = Parameters(8192, data, ntt_primes(8192, 55, 1), 1)  # one row of three on the integer kernels
    assert rotation(wide, 1) > 1.2 * rotation(fast, 1)


def test_machine_files(measured: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_machine(tmp_path / "new" / "machine.json", measured)
    assert load_machine(tmp_path / "new" / "machine.json") == measured
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert find_machine() == default_machine()
    save_machine(machine_file(), measured)
    assert find_machine() == measured
    assert machine_file().is_relative_to(tmp_path)
    for content in (b"", b"{}", b"[1]", b"\xff", b" " * (2 << 20)):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(FormatError, match=r"bad\.json"):
            load_machine(tmp_path / "bad.json")
    with pytest.raises(FormatError, match="cannot be read"):
        load_machine(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be written"):
        save_machine(tmp_path / "bad.json" / "x.json", measured)
    few = measured.model_dump(mode="json")
    few["threads"]["1"] = [s for s in few["threads"]["1"] if s["function"] != "rescale"]
    (tmp_path / "bad.json").write_text(json.dumps(few))
    with pytest.raises(FormatError, match="lack rescale"):
        load_machine(tmp_path / "bad.json")


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_machine_file_is_refused_or_still_predicts(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    text = bytearray(json.dumps(default_machine().model_dump(mode="json")).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(text))
    try:
        machine = load_machine(path)
    except FormatError:
        return
    seconds = machine.costs().call_seconds(P, Call("mod_down", 1, 2, 6, 10.0))
    assert 0 < seconds < float("inf")


def test_the_checks_pass_here_and_find_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = doctor.check_installation(tmp_path / "not" / "yet" / "there", 1)
    assert {c.name: c.status for c in checks} == dict.fromkeys(
        ("kernels", "secret side", "memory", "state folder", "extra compile", "extra server"), "ok"
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--state"):
        doctor.check_state(tmp_path / "file")
    monkeypatch.setattr(doctor, "LEAST_MEMORY", 1 << 60)
    with pytest.raises(InputError, match="free"):
        doctor.check_memory()
    real = doctor._results

    def damaged(backend: object) -> dict[str, np.ndarray]:
        results = real(backend)  # type: ignore[arg-type]
        if getattr(backend, "name", "") == "cpu":
            results["mod_down"][0, 0, 0] ^= np.uint64(1)
        return results

    monkeypatch.setattr(doctor, "_results", damaged)
    with pytest.raises(InputError, match="mod_down with"):
        doctor.check_kernels(1)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SHAPES", measure.SHAPES[:2])
    monkeypatch.setattr(measure, "WIDE", measure.WIDE[1:])
    monkeypatch.setattr(measure, "REPEATS", 1)
    out, state = tmp_path / "figures.json", tmp_path / "state"
    base = ["doctor", "--threads", "1", "-o", str(out), "--state", str(state)]
    done = CliRunner().invoke(app, [*base, "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["healthy"] and answer["file"] == str(out) and not state.exists()
    assert load_machine(out).model_dump(mode="json") == answer["machine"]
    monkeypatch.setattr(doctor, "LEAST_MEMORY", 1 << 60)
    sick = CliRunner().invoke(app, [*base, "--json"])
    assert sick.exit_code == 1
    answer = json.loads(sick.stdout)
    assert not answer["healthy"] and answer["machine"] is None
    assert [c["name"] for c in answer["checks"] if c["status"] == "wrong"] == ["memory"]
    people = CliRunner().invoke(app, base)
    assert people.exit_code == 1 and "GiB free" in people.output


@pytest.mark.slow
def test_the_batch_layout_is_predicted_as_well_as_one_image() -> None:
    """A busy machine is slower than the committed figures: what counts is that both layouts are slower alike."""
    ratios = []
    for layout in ("latency", "batch"):
        model = compile_model(ROOT / "models" / "digits.onnx", layout=layout, name="digits")  # type: ignore[arg-type]
        p = model.bundle.checked_parameters()
        predicted = predict_layers(default_machine().costs(), p, model.circuit, model.weights)
        measured = min(
            (rehearse(model.circuit, model.weights, p, 1, clock=time.process_time) for _ in range(2)),
            key=lambda layers: sum(layers.values()),
        )
        assert set(predicted) <= set(measured)
        ratios.append(sum(predicted.values()) / sum(measured.values()))
    assert 0.4 < ratios[1] / ratios[0] < 2.5
    assert all(0.1 < ratio < 5 for ratio in ratios)
