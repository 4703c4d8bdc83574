"""Key sets: every point of the curve computes the same circuit with the keys and bytes it states; budgets and security levels hold."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Protocol

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx_models import ModelBuilder
from samples import small_parameters
from seal_side import encrypt, expanded_keys

from ckks.backends import make_backend
from ckks.circuit import Circuit, Instruction, Op, rotation_path
from ckks.cleartext import CleartextEvaluator
from ckks.errors import CircuitError, ModelError
from ckks.evaluator import CkksEvaluator
from ckks.interpreter import run
from ckks.machine import default_machine
from ckks.modelfile import CompiledModel
from ckks.verify import verify
from compiler.compile import compile_model
from compiler.keysets import Keys, compose, key_sets
from compiler.parameters import Modulus, digit_choices
from compiler.prices import Prices
from compiler.sizes import key_bytes
from he_serve.packing import pack, unpack
from keys import SecretKey

PARAMETERS = small_parameters()
PRICES = Prices(default_machine().costs())
SLOTS = PARAMETERS.slots


def circuit(terms: tuple[tuple[int, int], ...], fold: int) -> Circuit:
    """A transform and a rotation of its result."""
    top = PARAMETERS.max_level
    return Circuit(
        SLOTS,
        (
            Instruction(Op.INPUT, (), top, 2.0**30, name="x"),
            Instruction(
                Op.LINEAR_TRANSFORM, (0,), top, 2.0**60, weight="m", weight_scale=2.0**30, terms=terms
            ),
            Instruction(Op.ROTATE, (1,), top, 2.0**60, steps=fold),
            Instruction(Op.OUTPUT, (2,), top, 2.0**60, name="y"),
        ),
    )


steps = st.integers(0, SLOTS - 1) | st.integers(0, 20)


@given(
    terms=st.lists(st.tuples(steps, steps), min_size=1, max_size=12, unique=True).map(tuple),
    fold=st.integers(1, SLOTS - 1),
)
def test_every_point_reaches_every_rotation(terms: tuple[tuple[int, int], ...], fold: int) -> None:
    plain = circuit(terms, fold)
    points = key_sets(plain, PARAMETERS, 4 * PRICES.circuit(PARAMETERS, plain), PRICES)
    sizes = [point.bytes for point in points]
    assert sizes == sorted(set(sizes), reverse=True) and sizes[0] == key_bytes(PARAMETERS, plain)
    for point in points:
        composed = compose(plain, point)
        assert key_bytes(PARAMETERS, composed) == point.bytes
        assert PRICES.circuit(PARAMETERS, composed) == pytest.approx(point.seconds)
        transform = composed.instructions[1]
        assert transform.terms == terms
        for wanted, hops in ((1, transform.baby_hops), (0, transform.giant_hops)):
            reached = {0}
            for step, parent, key in rotation_path({t[wanted] for t in terms}, hops, SLOTS):
                assert parent in reached and (parent + key) % SLOTS == step
                reached.add(step)
            assert reached >= {t[wanted] for t in terms}
        rotations = [i.steps for i in composed.instructions if i.op is Op.ROTATE]
        assert sum(rotations) % SLOTS == fold


def test_a_circle_of_hops_is_refused() -> None:
    with pytest.raises(CircuitError, match="circle"):
        rotation_path({3}, ((3, 1), (2, SLOTS - 1)), SLOTS)


class Compile(Protocol):
    """Compiles the network of the fixture."""

    def __call__(self, keys: Keys = "fast", security: int = 128) -> CompiledModel: ...


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    b = ModelBuilder((96,), seed=3)
    x = b.dense("image", 96, 40)
    path = b.save(tmp_path_factory.mktemp("keysets") / "net.onnx", b.dense(b.node("Mul", x, x), 40, 5))
    rows = b.rows(32).astype(np.float64)

    @cache
    def make(keys: Keys = "fast", security: int = 128) -> CompiledModel:
        options = {"precision": 1e-2, "keys": keys, "security": security}
        return compile_model(path, calibration=rows, name="net", **options)

    return make


def worst_error(model: CompiledModel, rows: NDArray[np.float64]) -> float:
    """The largest error of an encrypted evaluation, with exactly the announced keys, against the circuit in float64."""
    bundle, parameters = model.bundle, model.bundle.checked_parameters()
    spec, output = bundle.input, bundle.output
    secret = SecretKey.generate(parameters)
    keys = expanded_keys(secret.evaluation_keys(bundle.key_needs()))
    encrypted = CkksEvaluator(make_backend(parameters), keys, model.weights)
    clear = CleartextEvaluator(parameters, model.weights)
    worst = 0.0
    for row in rows:
        slots = pack(row, spec.packing)
        ciphertext = encrypt(secret, slots, spec.level, spec.scale)
        result = run(model.circuit, {spec.name: ciphertext}, encrypted)[output.name]
        exact = run(model.circuit, {spec.name: clear.encrypt(slots, spec.level, spec.scale)}, clear)
        difference = secret.decrypt(result) - exact[output.name].slots
        worst = max(worst, float(np.abs(unpack(difference, output.packing)).max()))
    return worst


def test_small_keys_keep_the_promise_and_compute_the_same(compiled: Compile) -> None:
    fast, small = compiled("fast"), compiled("small")
    assert small.report["key_bytes"] < fast.report["key_bytes"] / 2
    rows = np.random.default_rng(5).uniform(0, 1, (2, 96))
    for model in (fast, small):
        verify(model.circuit, model.bundle, model.weights)
        assert worst_error(model, rows) <= model.bundle.promised_error
    assert Circuit.from_json(small.circuit.to_json()) == small.circuit


def test_a_budget_is_met_by_a_circuit_that_is_faster_than_the_smallest(compiled: Compile) -> None:
    fast, small = compiled("fast"), compiled("small")
    budget = (fast.report["key_bytes"] + small.report["key_bytes"]) // 2
    between = compiled(budget)
    assert small.report["key_bytes"] <= between.report["key_bytes"] <= budget
    assert between.report["predicted_seconds"] <= small.report["predicted_seconds"]


def test_a_budget_that_no_key_set_meets_is_refused(compiled: Compile) -> None:
    with pytest.raises(ModelError, match="budget for keys"):
        compiled(10_000)
    with pytest.raises(ModelError, match="positive number of bytes"):
        compiled(0)


def test_the_curve_falls_in_bytes_and_rises_in_time(compiled: Compile) -> None:
    curve = compiled().report["key_tradeoff"]
    assert len(curve) > 2 and all(len(point) == 2 for point in curve)
    assert [b for b, _ in curve] == sorted((b for b, _ in curve), reverse=True)
    assert curve[-1][1] > curve[0][1]


@pytest.mark.parametrize("security", [192, 256])
def test_higher_security_takes_smaller_moduli_or_larger_rings(compiled: Compile, security: int) -> None:
    model = compiled(security=security)
    assert model.bundle.checked_parameters().security_bits == model.report["security"]["bits"] >= security
    assert all(p.security_bits >= security for p in digit_choices(1 << 14, Modulus(26, 34, 3), security))


def test_no_other_security_level_is_accepted(compiled: Compile) -> None:
    with pytest.raises(ModelError, match="128, 192, 256"):
        compiled(security=100)


def test_a_hop_that_nothing_uses_is_refused(compiled: Compile) -> None:
    model = compiled("small")
    at, ins = next((i, x) for i, x in enumerate(model.circuit.instructions) if x.baby_hops)
    for hops in (((SLOTS // 2 + 1, 1),), ((1, 0),), ins.baby_hops[:1]):
        bad = list(model.circuit.instructions)
        bad[at] = replace(ins, baby_hops=(*ins.baby_hops, *hops))
        with pytest.raises(CircuitError, match="hop"):
            verify(Circuit(model.circuit.slots, tuple(bad)), model.bundle, model.weights)
