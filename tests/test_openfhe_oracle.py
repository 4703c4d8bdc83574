"""Random circuits on our evaluator and on OpenFHE's own operations, decrypted by each side's own key. test_openfhe.py runs this file."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("openfhe", reason="needs the openfhe wheel (Python 3.10); see test_openfhe.py")

from seal_side import encrypt, expanded_keys
from toy import make_parameters

from bench._openfhe_circuit import OpenFheCircuit
from ckks.circuit import Circuit, Instruction, Op
from ckks.cleartext import CleartextEvaluator
from ckks.evaluator import CkksEvaluator
from ckks.interpreter import run
from ckks.types import KeyNeeds, same_scale
from keys import SecretKey

pytestmark = pytest.mark.openfhe
P = make_parameters(
    8192, (44, 33, 33, 33), (46,), 1
)  # with OpenFHE's special prime of 60 bits: 203 of 214 bits
SCALE = 2.0**33
STEPS = (1, 2, 5, 64, 4000)
PERIOD = 32
DRAW = np.random.default_rng(11)
WEIGHTS = {
    "vector": DRAW.uniform(-1, 1, PERIOD),
    "matrix": DRAW.uniform(-1, 1, (5, PERIOD)) / 5,
}
TERMS = ((0, 0), (0, 1), (2, 5), (64, 0), (64, 1))
INPUTS = {"x": DRAW.uniform(-1, 1, P.slots), "y": DRAW.uniform(-1, 1, P.slots)}
TOLERANCE = (
    2.0**-13
)  # of values of order 1; the noise of either side is a hundredth of it, a wrong step a thousand times it


class Builder:
    """A circuit that grows by legal operations; sizes: the largest slot that each value can have."""

    def __init__(self) -> None:
        self.made: list[Instruction] = []
        self.sizes: list[float] = []
        for name in INPUTS:
            self._put(Instruction(Op.INPUT, (), P.max_level, SCALE, name=name), 1.0)

    def _put(self, ins: Instruction, size: float) -> int:
        self.made.append(ins)
        self.sizes.append(size)
        return len(self.made) - 1

    def step(self, kind: str, first: int, second: int, steps: int) -> int:
        """Apply `kind` to earlier values where that is legal; the value that came of it, or the first operand."""
        a, size = self.made[first], self.sizes[first]
        b, other = self.made[second], self.sizes[second]
        if kind in ("add", "subtract") and a.level == b.level and same_scale(a.scale, b.scale):
            return self._put(Instruction(Op(kind), (first, second), a.level, a.scale), size + other)
        if kind == "add_plain":
            return self._put(Instruction(Op.ADD_PLAIN, (first,), a.level, a.scale, weight="vector"), size + 1)
        if kind == "rotate":
            return self._put(Instruction(Op.ROTATE, (first,), a.level, a.scale, steps=steps), size)
        if a.level == 0:
            return first
        if kind == "drop_level":
            return self._put(Instruction(Op.DROP_LEVEL, (first,), a.level - 1, a.scale), size)
        down = P.data_primes[a.level]
        if kind == "multiply" and a.level == b.level and size * other < 8:
            scale = a.scale * b.scale
            product = self._put(Instruction(Op.MULTIPLY, (first, second), a.level, scale), size * other)
            two = self._put(Instruction(Op.RELINEARISE, (product,), a.level, scale), size * other)
            return self._put(Instruction(Op.RESCALE, (two,), a.level - 1, scale / down), size * other)
        weight_scale = SCALE * down / a.scale  # lands on SCALE again
        scale = a.scale * weight_scale
        if kind == "multiply_plain":
            ins = Instruction(
                Op.MULTIPLY_PLAIN, (first,), a.level, scale, weight="vector", weight_scale=weight_scale
            )
        elif kind == "linear_transform":
            ins = Instruction(
                Op.LINEAR_TRANSFORM,
                (first,),
                a.level,
                scale,
                weight="matrix",
                weight_scale=weight_scale,
                terms=TERMS,
            )
        else:
            return first
        return self._put(Instruction(Op.RESCALE, (self._put(ins, size),), a.level - 1, SCALE), size)

    def circuit(self, result: int) -> Circuit:
        last = self.made[result]
        output = Instruction(Op.OUTPUT, (result,), last.level, last.scale, name="out")
        return Circuit(P.slots, (*self.made, output))


KINDS = [
    "add",
    "subtract",
    "add_plain",
    "rotate",
    "drop_level",
    "multiply",
    "multiply_plain",
    "linear_transform",
]


@st.composite
def circuits(draw: st.DrawFn) -> tuple[Circuit, float]:
    """A circuit of up to eight operations on two inputs, each on some of the latest values, and the largest slot that it can give."""
    builder, values = Builder(), [0, 1]
    for _ in range(draw(st.integers(1, 8))):
        pick = st.sampled_from(values[-4:])
        values.append(
            builder.step(draw(st.sampled_from(KINDS)), draw(pick), draw(pick), draw(st.sampled_from(STEPS)))
        )
    return builder.circuit(values[-1]), builder.sizes[values[-1]]


@cache
def sides() -> tuple[SecretKey, CkksEvaluator, OpenFheCircuit]:
    every = Builder()
    for steps in STEPS:
        every.step("rotate", 0, 0, steps)
    transformed = every.step("linear_transform", 0, 0, 0)
    key = SecretKey.generate(P)
    needs = KeyNeeds(P.max_level, dict.fromkeys(STEPS, P.max_level))
    ours = CkksEvaluator(key._backend, expanded_keys(key.evaluation_keys(needs)), WEIGHTS)
    return key, ours, OpenFheCircuit(P, every.circuit(transformed), WEIGHTS)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(circuits())
def test_our_evaluator_agrees_with_openfhes_operations(item: tuple[Circuit, float]) -> None:
    circuit, size = item
    key, ours, openfhe = sides()
    mine = run(circuit, {name: encrypt(key, v, P.max_level, SCALE) for name, v in INPUTS.items()}, ours)
    theirs = run(
        circuit,
        {name: openfhe.encrypt(v, P.max_level, SCALE) for name, v in INPUTS.items()},
        openfhe.evaluator,
    )
    clear = CleartextEvaluator(P, WEIGHTS)
    wanted = run(circuit, {name: clear.encrypt(v, P.max_level, SCALE) for name, v in INPUTS.items()}, clear)
    a, b, slots = mine["out"], theirs["out"], wanted["out"].slots
    assert (a.level, a.scale) == (b.level, b.scale)
    bound = TOLERANCE * max(1.0, size)
    assert np.abs(slots).max() <= size * (1 + 1e-9)
    got, expected = key.decrypt(a), openfhe.decrypt(b)
    assert np.abs(got - slots).max() < bound
    assert np.abs(expected - slots).max() < bound
    assert np.abs(got - expected).max() < bound


def test_openfhes_side_is_secure_and_has_a_key_for_every_rotation() -> None:
    _, _, openfhe = sides()
    assert openfhe.steps == sorted(STEPS) and openfhe.digits == 4 and len(openfhe.special_primes) == 1
    assert openfhe.key_bytes == 6 * 4 * 2 * 5 * P.degree * 8
