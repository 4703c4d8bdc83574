"""Circuits on other primes than they were compiled for: same results, scales that verify, and refusals where the promise would not hold."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_models import ModelBuilder, onnx_outputs
from samples import small_parameters, tiny_expected, tiny_model
from test_compiler_operators import clear_outputs
from toy import ToyClient

from ckks.backends import make_backend
from ckks.circuit import Circuit, Op
from ckks.errors import ParameterError, SecurityError
from ckks.evaluator import CkksEvaluator
from ckks.interpreter import run
from ckks.modelfile import CompiledModel
from ckks.parameters import Parameters
from ckks.primes import ntt_primes
from ckks.rebase import is_rebased, rebase, rebase_model, switching_noise
from compiler import fitting
from compiler.approximate import Override
from compiler.compile import compile_model

OTHERS = 5  # primes of a size that are passed over


def near(p: Parameters, skip: int = OTHERS) -> Parameters:
    """Other primes of the same sizes, or a little larger special ones."""
    taken: tuple[int, ...] = p.moduli
    data: list[int] = []
    for q in p.data_primes:
        found = ntt_primes(p.degree, round(math.log2(q)), skip + 1, taken + tuple(data))
        data.append(found[-1])
    special = ntt_primes(p.degree, 60, len(p.special_primes))
    try:
        return Parameters(p.degree, tuple(data), special, p.digit_limbs)
    except SecurityError:
        return Parameters(p.degree, tuple(data), p.special_primes, p.digit_limbs)


def tiny_on(p: Parameters, data: tuple[int, ...]) -> Parameters:
    return Parameters(p.degree, data, p.special_primes, 1)


def test_its_own_primes_change_nothing() -> None:
    model = tiny_model()
    bundle, circuit = rebase(model.bundle, model.circuit, small_parameters())
    assert bundle is model.bundle and circuit is model.circuit


def test_encrypted_on_other_primes() -> None:
    """The evaluator takes the circuit as it is, gives the scale that the new bundle states, and the result is the model's."""
    model, p = tiny_model(), small_parameters()
    other = tiny_on(p, (min(ntt_primes(4096, 28, 3, p.moduli)), *ntt_primes(4096, 25, 2, p.moduli)))
    found = rebase_model(model, other)
    client, x = ToyClient(other), np.array([0.5, 0.25, -0.5, 0.0])
    weights, backend = found.weights, make_backend(other)
    evaluator = CkksEvaluator(backend, client.keys(found.bundle.key_needs()), weights)
    spec, output = found.bundle.input, found.bundle.output
    fresh = client.encrypt(np.tile(x, other.slots // 4), spec.level, spec.scale)
    result = run(found.circuit, {"x": fresh}, evaluator)["y"]
    assert (result.level, result.scale) == (output.level, output.scale) != (0, model.bundle.output.scale)
    assert np.abs(client.decrypt(result)[:2] - tiny_expected(x[:3])).max() < output.promised_error
    assert is_rebased(found.bundle, model.bundle, other)
    assert not is_rebased(found.bundle, model.bundle, p)
    for change in ({"description": "another"}, {"weights_digest": "0" * 64}, {"outputs": []}):
        assert not is_rebased(found.bundle.model_copy(update=change), model.bundle, other)


def polynomials(b: ModelBuilder) -> str:
    """Degrees that take plain products, powers, and factors of both."""
    x = b.node("Relu", b.conv("image", 1, 2))
    return b.dense(b.node("Flatten", b.node("Sigmoid", b.batch_norm(b.conv(x, 2, 2), 2))), 8, 3)


def residual(b: ModelBuilder) -> str:
    """Sums of values that came different ways, and a product of two tensors."""
    x = b.batch_norm(b.conv("image", 1, 1, pads=[1, 1, 1, 1]), 1)
    y = b.node("Mul", b.quadratic(x, 1), b.conv("image", 1, 1, pads=[1, 1, 1, 1]))
    return b.dense(b.node("Flatten", b.node("Add", y, x)), 36, 3)


NETWORKS = {
    "polynomials": (
        polynomials,
        {"activations": {"relu": Override(7), "sigmoid": Override(4)}, "precision": 0.02},
    ),
    "residual": (residual, {}),
    "lanes": (residual, {"batch": 4}),
    "batch": (residual, {"layout": "batch"}),
}


@pytest.fixture(scope="module")
def networks(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[CompiledModel, np.ndarray, np.ndarray]]:
    found = {}
    for name, (make, options) in NETWORKS.items():
        b = ModelBuilder((1, 6, 6), seed=3)
        path = b.save(tmp_path_factory.mktemp("m") / "m.onnx", make(b))
        rows = b.rows(32)
        model = compile_model(path, calibration=rows.astype(np.float64), name="m", **options)
        found[name] = model, rows, onnx_outputs(path, rows)
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_on_other_primes(
    name: str, networks: dict[str, tuple[CompiledModel, np.ndarray, np.ndarray]]
) -> None:
    model, rows, _ = networks[name]
    p = model.bundle.checked_parameters()
    found = rebase_model(model, near(p))
    assert found.bundle.checked_parameters().data_primes != p.data_primes
    assert np.abs(clear_outputs(found, rows) - clear_outputs(model, rows)).max() < 1e-9
    noisy = clear_outputs(found, rows, seed=5) - clear_outputs(found, rows)
    assert np.abs(noisy).max() <= model.bundle.promised_error
    # Weight scales move by what the primes do; affine results stay where they were.
    kept = [
        a.scale / b.scale
        for a, b in zip(found.circuit.instructions, model.circuit.instructions, strict=True)
        if b.op is Op.RESCALE
    ]
    assert np.abs(np.array(kept) - 1).max() < 0.15
    assert is_rebased(found.bundle, model.bundle, near(p))
    # With smaller special primes than those it comes from, a model may not go back to where it was.
    back = rebase_model(found, Parameters(p.degree, p.data_primes, near(p).special_primes, p.digit_limbs))
    assert np.abs(clear_outputs(back, rows) - clear_outputs(model, rows)).max() < 1e-9


def test_a_tensor_of_several_ciphertexts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fitting, "MAX_PART_SLOTS", 64)
    b = ModelBuilder((2, 8, 8), seed=1)
    x = b.quadratic(b.conv("image", 2, 3, pads=[1, 1, 1, 1]), 3)
    model = compile_model(b.save(tmp_path / "m.onnx", b.conv(x, 3, 3, pads=[1, 1, 1, 1])), name="m")
    assert model.bundle.output.packing.parts > 1
    found = rebase_model(model, near(model.bundle.checked_parameters()))
    rows = b.rows(2)
    assert np.abs(clear_outputs(found, rows) - clear_outputs(model, rows)).max() < 1e-9


@settings(max_examples=60, deadline=None)
@given(
    skips=st.lists(st.integers(0, 30), min_size=16, max_size=16),
    stretch=st.sampled_from([0, 0, 0, 0, -1, 1, 9]),
    limb=st.integers(0, 15),
    name=st.sampled_from(sorted(NETWORKS)),
    data=st.data(),
)
def test_any_set_is_refused_or_keeps_the_promise(
    networks: dict[str, tuple[CompiledModel, np.ndarray, np.ndarray]],
    skips: list[int],
    stretch: int,
    limb: int,
    name: str,
    data: st.DataObject,
) -> None:
    model, rows, _ = networks[name]
    p = model.bundle.checked_parameters()
    primes: list[int] = []
    for i, (q, skip) in enumerate(zip(p.data_primes, skips, strict=False)):
        bits = round(math.log2(q)) + (stretch if i == limb % len(p.data_primes) else 0)
        try:
            primes.append(ntt_primes(p.degree, bits, skip + 1, tuple(primes))[-1])
        except ParameterError:
            primes.append(ntt_primes(p.degree, bits, 1, tuple(primes))[-1])
    bits = data.draw(st.sampled_from([0, 0, 40, 60]))  # 0: the model's special primes and digits
    try:
        special = ntt_primes(p.degree, bits, 1, tuple(primes)) if bits else p.special_primes
        other = Parameters(p.degree, tuple(primes), special, 1 if bits else p.digit_limbs)
        found = rebase_model(model, other)
    except ParameterError:
        return
    assert np.abs(clear_outputs(found, rows) - clear_outputs(model, rows)).max() < 1e-9
    noisy = clear_outputs(found, rows, seed=9) - clear_outputs(found, rows)
    assert np.abs(noisy).max() <= model.bundle.promised_error


def test_refusals_name_the_limb_and_the_remedy() -> None:
    model, p = tiny_model(), small_parameters()
    q = p.data_primes

    def refused(other: Parameters, match: str) -> None:
        with pytest.raises(ParameterError, match=match):
            rebase(model.bundle, model.circuit, other)

    far = ntt_primes(4096, 24, 1)[0]
    refused(
        tiny_on(p, (q[0], far, q[2])),
        rf"limb 1 \({far}, 2\^24.00\) is too far from 2\^25.00.*SetScalingModSize\(25\)",
    )
    small = ntt_primes(4096, 26, 1)[0]
    refused(tiny_on(p, (small, *q[1:])), r"limb 0 .*values may wrap around.*SetFirstModSize\(28\)")
    refused(tiny_on(p, q[:2]), "needs 3 data primes .a depth of 2., this prime set has 2")
    wide = ntt_primes(8192, 28, 1) + ntt_primes(8192, 25, 2)
    refused(Parameters(8192, wide, ntt_primes(8192, 40, 1), 1), "needs N=4096, this prime set has N=8192")


def test_special_primes_that_are_too_small_for_the_digits(
    networks: dict[str, tuple[CompiledModel, np.ndarray, np.ndarray]],
) -> None:
    model, *_ = networks["residual"]
    p = model.bundle.checked_parameters()
    special = ntt_primes(p.degree, round(math.log2(p.data_primes[0])) - 1, 3, p.data_primes)
    other = Parameters(p.degree, p.data_primes, (max(special),), 1)
    assert switching_noise(p, other, p.max_level) > 2
    with pytest.raises(ParameterError, match=r"times the noise .* SetNumLargeDigits"):
        rebase(model.bundle, model.circuit, other)


def test_a_circuit_whose_sums_cannot_meet_on_other_primes() -> None:
    """Two values of one scale by accident: no compiler makes that, and no server evaluates it on other primes."""
    model, p = tiny_model(), small_parameters()
    q = p.data_primes
    ins = list(model.circuit.instructions)
    # A product with scale q_2 in place of the linear transform's scale: it meets the input, dropped, only if q_2 is what it was.
    chance = dataclasses.replace(ins[0], scale=float(q[2]))
    circuit = Circuit(
        model.circuit.slots,
        (
            chance,
            dataclasses.replace(ins[4], operands=(0, 0), level=2, scale=float(q[2]) ** 2),
            dataclasses.replace(ins[5], operands=(1,), level=2, scale=float(q[2]) ** 2),
            dataclasses.replace(ins[6], operands=(2,), level=1, scale=float(q[2])),
            dataclasses.replace(ins[0], op=Op.DROP_LEVEL, operands=(0,), level=1, scale=float(q[2]), name=""),
            dataclasses.replace(ins[6], op=Op.ADD, operands=(3, 4), level=1, scale=float(q[2])),
            dataclasses.replace(ins[7], operands=(5,), level=1, scale=float(q[2])),
        ),
    )
    with pytest.raises(ParameterError, match="cannot be moved to other primes"):
        rebase(model.bundle, circuit, tiny_on(p, (q[0], *ntt_primes(4096, 25, 2, p.moduli))))
