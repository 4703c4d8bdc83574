"""A whole encrypted prediction through gpu.py on the stand-in: the CPU backend's bits, with everything staying on the device."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_shim import Shim
from onnx_models import ModelBuilder
from test_backends import residues
from toy import ToyClient, make_parameters

from bench._stand_in import StandIn, ignore
from ckks.backends import backend_for, encoding_backend
from ckks.backends.device import Device
from ckks.backends.gpu import GpuBackend, open_device
from ckks.circuit import Circuit, Instruction, Op
from ckks.encoded import EncodedWeights
from ckks.evaluator import CkksEvaluator
from ckks.interpreter import run
from ckks.modelfile import CompiledModel, save_model
from ckks.stacks import multiply_constants
from ckks.types import Ciphertext, KeyNeeds
from ckks.wire import dump_ciphertext
from compiler.compile import compile_model
from he_serve.trial import try_model
from he_serve.worker import evaluate, load_models

MODELS = Path(__file__).resolve().parents[1] / "models"


def count(device: Device, operation: Callable[[], Any]) -> int:
    """Launches of an operation."""
    before = sum(work.launches for work in device.work.values())
    operation()
    return sum(work.launches for work in device.work.values()) - before


# The cheaper keys with the other arithmetic.
@pytest.mark.parametrize(("keys", "doubles"), [("fast", False), ("small", True)])
def test_digits_on_the_stand_in(keys: Any, doubles: bool) -> None:
    rows = np.load(MODELS / "samples" / "digits.npz")["x"].astype(np.float64)
    model = compile_model(MODELS / "digits.onnx", calibration=rows[:32], name="digits", keys=keys)
    bundle, p = model.bundle, model.bundle.checked_parameters()
    client, library = ToyClient(p), StandIn(Shim("shuffled"))
    gpu = GpuBackend(p, Device(library, "stand-in", 1 << 30, doubles=doubles))
    cpu = encoding_backend(gpu, threads=2)
    weights, switch_keys = EncodedWeights(cpu, model.weights), client.keys(bundle.key_needs())
    on_cpu, on_gpu = (CkksEvaluator(b, switch_keys, weights) for b in (cpu, gpu))
    for image in rows[-2:]:
        slots = np.zeros(bundle.input.packing.period)
        slots[bundle.input.packing.slots] = image.ravel()
        c = client.encrypt(slots, bundle.input.level, bundle.input.scale)
        expected = run(model.circuit, {bundle.input.name: c}, on_cpu)[bundle.output.name]
        library.uploaded = 0
        result = run(model.circuit, {bundle.input.name: on_gpu.upload(c)}, on_gpu)[bundle.output.name]
        np.testing.assert_array_equal(on_gpu.download(result).polys, expected.polys)
        assert result.scale == expected.scale and result.level == expected.level
    # By the second image keys and matrices are there: what travels is the ciphertext, biases, and addresses of what is multiplied.
    additions = sum(ins.op is Op.ADD_PLAIN for ins in model.circuit.instructions)
    assert c.polys.nbytes <= library.uploaded < (1.1 + additions / 2) * c.polys.nbytes


def test_a_worker_and_a_trial_on_the_stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: CompiledModel
) -> None:
    """What `serve` and `try` run with --device gpu, with the stand-in in CuPy's place: from bytes to bytes."""
    library = StandIn(Shim())
    monkeypatch.setitem(sys.modules, "cupy", library)
    open_device.cache_clear()
    try:
        rows = np.array([[0.1, 0.2, 0.3], [-0.5, 0.5, 1.0]])
        result = try_model(tiny, rows, None, 1, lambda *_: None, "gpu")
        assert result["agrees"] and result["backend"] == "gpu"
        save_model(tmp_path / "tiny.hem", tiny)
        loaded = load_models([str(tmp_path / "tiny.hem")], "gpu", 1, tmp_path)["tiny"]
        on_cpu = load_models([str(tmp_path / "tiny.hem")], "cpu", 1, tmp_path)["tiny"]
        p, spec = loaded.parameters, tiny.bundle.input
        client = ToyClient(p)
        data = dump_ciphertext(p, client.encrypt(np.zeros(spec.packing.period), spec.level, spec.scale))
        keys, used = (
            client.keys(tiny.bundle.key_needs()),
            sum(w.launches for w in open_device().work.values()),
        )
        answers = [evaluate(model, keys, data, lambda: False)[0] for model in (loaded, on_cpu)]
        bodies = [
            answer[8 + int.from_bytes(answer[:8], "little") :] for answer in answers
        ]  # after the header
        assert bodies[0] and bodies[0] == bodies[1]
        assert sum(w.launches for w in open_device().work.values()) > used
    finally:
        open_device.cache_clear()


@pytest.mark.parametrize("doubles", [False, True])
def test_a_stack_on_the_stand_in(tmp_path: Path, doubles: bool) -> None:
    """A model of the batch layout: products of two stacks, sums of them, constants, all on the device."""
    b = ModelBuilder((2, 2, 2), 1)
    x = b.quadratic(b.conv("image", 2, 2, 1), 2)
    x = b.node("Mul", x, b.constant(np.linspace(0.5, 1.5, 8, dtype=np.float32).reshape(1, 2, 2, 2)))
    path = b.save(tmp_path / "m.onnx", b.dense(b.node("Flatten", x), 8, 3))
    model = compile_model(path, layout="batch", name="m")
    ops = {ins.op for ins in model.circuit.instructions}
    assert {Op.MATRIX, Op.MULTIPLY, Op.RELINEARISE, Op.RESCALE, Op.ADD_PLAIN} <= ops
    bundle, p = model.bundle, model.bundle.checked_parameters()
    gpu = GpuBackend(p, Device(StandIn(Shim("reverse")), "stand-in", 1 << 30, doubles=doubles))
    cpu, keys = encoding_backend(gpu, threads=2), ToyClient(p).keys(bundle.key_needs())
    on_cpu, on_gpu = (CkksEvaluator(e, keys, EncodedWeights(cpu, model.weights)) for e in (cpu, gpu))
    rows, spec = p.data_rows(bundle.input.level), bundle.input
    c = Ciphertext(residues(p, rows, spec.packing.members, 2), spec.level, spec.scale)
    expected = run(model.circuit, {spec.name: c}, on_cpu)[bundle.output.name]
    result = run(model.circuit, {spec.name: on_gpu.upload(c)}, on_gpu)[bundle.output.name]
    assert isinstance(result.polys, gpu.device.library.ndarray)
    np.testing.assert_array_equal(on_gpu.download(result).polys, expected.polys)
    plain = multiply_constants(cpu, c.polys, residues(p, rows)[:, : len(c.polys)])
    other = multiply_constants(gpu, on_gpu.upload(c).polys, residues(p, rows)[:, : len(c.polys)])
    np.testing.assert_array_equal(gpu.download(other), plain)


def test_stacks_that_do_not_fit_run_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def stack(members: int) -> Circuit:
        one = Instruction(Op.INPUT, (), 3, 2.0**20, name="x", members=members)
        squared = Instruction(Op.MULTIPLY, (0, 0), 3, 2.0**40)
        return Circuit(4096, (one, squared, Instruction(Op.OUTPUT, (1,), 3, 2.0**40, name="y")))

    def memory(circuit: Circuit) -> int:
        """Bytes that make it just fit: half is for copies of weights."""
        return 2 * circuit.working_bytes()

    assert (
        stack(100).working_bytes() == 100 * (3 + 3) * 4 * 8192 * 8
    )  # the product, as a value and as an output
    monkeypatch.setitem(sys.modules, "cupy", StandIn(ignore, memory=memory(stack(100))))
    open_device.cache_clear()
    assert [backend_for("gpu", stack(n)) for n in (0, 100, 101, 32768)] == ["gpu", "gpu", "cpu", "cpu"]
    assert backend_for("cpu", stack(1)) == "cpu"
    open_device.cache_clear()


def test_operations_take_a_handful_of_launches() -> None:
    p = make_parameters(8192, (40, 30, 30), (40,))
    client, device = ToyClient(p), Device(StandIn(Shim()), "stand-in", 1 << 30)
    gpu = GpuBackend(p, device)
    evaluator = CkksEvaluator(gpu, client.keys(KeyNeeds(p.max_level, {1: p.max_level})), {})
    a = evaluator.upload(client.encrypt(np.ones(8), p.max_level, 2.0**30))
    assert count(device, lambda: evaluator.rotate(a, 1)) == 11
    assert count(device, lambda: evaluator.relinearise(evaluator.multiply(a, a))) == 12
    assert count(device, lambda: evaluator.rescale(a)) == 5
    dropped = evaluator.drop_level(a, 1)
    assert evaluator.download(evaluator.subtract(dropped, dropped)).polys.max() == 0
