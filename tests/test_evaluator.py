"""Every evaluator operation, decrypted by a toy key, against slot arithmetic; worst slot against a noise bound."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import SCALE, small_parameters, tiny_expected, tiny_model
from toy import ToyClient, make_parameters

from ckks.backends import make_backend
from ckks.encoded import EncodedWeights
from ckks.errors import EvaluationError, MissingKeyError
from ckks.evaluator import CkksEvaluator
from ckks.interpreter import run
from ckks.parameters import Parameters
from ckks.types import Ciphertext, EvaluationKeys, KeyNeeds, Slots

STEPS = (1, 2, 3, 8, 16, 1000)
TERMS = ((0, 0), (0, 1), (0, 3), (8, 0), (8, 2), (16, 1), (16, 3))


@dataclass(frozen=True, eq=False)
class Bench:
    """A client with keys at the top level, an evaluator with weights, and two random slot vectors."""

    client: ToyClient
    evaluator: CkksEvaluator
    scale: float
    x: Slots
    y: Slots

    @property
    def parameters(self) -> Parameters:
        return self.client.parameters

    def encrypt(self, values: Slots, level: int) -> Ciphertext:
        return self.client.encrypt(values, level, self.scale)

    def error(self, result: Ciphertext, expected: Slots) -> float:
        return float(np.abs(self.client.decrypt(result) - expected).max())

    # Bounds: ten standard deviations sqrt(N)*sigma of a slot, sigma per coefficient. The worst of N/2 Gaussian slots reaches three to
    # four (a real part has sigma/sqrt(2)), the worst product of two such, e*s, six.
    def bound(self, *deviations: float) -> float:
        return 10 * math.sqrt(self.parameters.degree * sum(d * d for d in deviations)) / self.scale

    @property
    def rounding(self) -> float:
        """Deviation of e0 + e1*s for rounding errors e of deviation 1/sqrt(12) and a ternary secret."""
        return math.sqrt((1 + 2 * self.parameters.degree / 3) / 12)

    def switching(self, level: int) -> float:
        """Deviation of a key switch: digits of deviation D/sqrt(12) times errors of deviation 3.2, divided by P; without rounding."""
        p = self.parameters
        digits = [math.prod(p.data_primes[a:b]) for a, b in p.digits(level)]
        return 3.2 * math.sqrt(p.degree / 12 * sum((d / p.special_product) ** 2 for d in digits))

    @property
    def fresh(self) -> float:
        return math.hypot(3.2, 1 / math.sqrt(12))


SETS = {
    "n4096": (4096, (36, 30), (37,), 1),
    "n8192": (8192, (44, 33, 33, 33), (46,), 1),
    "n8192-60": (8192, (55, 45), (60, 50), 2),
    "n16384": (16384, (48, 36, 36, 36, 36), (45, 45), 2),
}


@cache
def client_of(name: str) -> tuple[ToyClient, EvaluationKeys]:
    degree, bits, special, alpha = SETS[name]
    client = ToyClient(make_parameters(degree, bits, special, alpha))
    top = client.parameters.max_level
    return client, client.keys(KeyNeeds(top, dict.fromkeys(STEPS, top)))


@cache
def bench_of(name: str, backend: str) -> Bench:
    client, keys = client_of(name)
    rng = np.random.default_rng(11)
    slots = client.parameters.slots
    weights = {
        "vector": rng.uniform(-1, 1, 64),
        "full": rng.uniform(-1, 1, slots),
        "matrix": rng.uniform(-1, 1, (len(TERMS), 256)),
        "wide": rng.uniform(-1, 1, (len(TERMS), slots)),
        "short": np.ones((2, 4)),
    }
    evaluator = CkksEvaluator(make_backend(client.parameters, backend), keys, weights)
    scale = 2.0 ** SETS[name][1][-1]
    return Bench(client, evaluator, scale, rng.uniform(-1, 1, slots), rng.uniform(-1, 1, slots))


@pytest.fixture(params=[(s, b) for b in ("reference", "cpu") for s in SETS], ids=lambda p: f"{p[1]}-{p[0]}")
def bench(request: pytest.FixtureRequest) -> Bench:
    return bench_of(*request.param)


def levels(bench: Bench) -> list[int]:
    return sorted({bench.parameters.max_level, bench.parameters.max_level // 2, 1} - {0})


def tiled(bench: Bench, weight: str) -> Slots:
    values = bench.evaluator.weights.weights[weight]
    return np.tile(values, bench.parameters.slots // values.shape[-1])


def test_add_and_subtract(bench: Bench) -> None:
    e = bench.evaluator
    for level in range(bench.parameters.max_level + 1):
        a, b = bench.encrypt(bench.x / 8, level), bench.encrypt(bench.y / 8, level)
        for result, expected in ((e.add(a, b), bench.x + bench.y), (e.subtract(a, b), bench.x - bench.y)):
            assert (result.level, result.scale) == (level, bench.scale)
            assert bench.error(result, expected / 8) < bench.bound(bench.fresh, bench.fresh)


@pytest.mark.parametrize("weight", ["vector", "full"])
def test_plain_operands(bench: Bench, weight: str) -> None:
    e, w = bench.evaluator, tiled(bench, weight)
    for level in levels(bench):
        a = bench.encrypt(bench.x, level)
        total = e.add_plain(a, weight)
        assert (total.level, total.scale) == (level, bench.scale)
        assert bench.error(total, bench.x + w) < bench.bound(bench.fresh, 0.3)
        assert (total.polys[1] == a.polys[1]).all() and (a.polys[0] != total.polys[0]).any()
        q = bench.parameters.data_primes[level]
        product = e.multiply_plain(a, weight, float(q))
        assert (product.level, product.scale) == (level, bench.scale * q)
        assert bench.error(product, bench.x * w) < bench.bound(bench.fresh, bench.scale / q)
        scaled = e.rescale(product)
        assert (scaled.level, scaled.scale) == (level - 1, bench.scale)
        assert bench.error(scaled, bench.x * w) < bench.bound(bench.fresh, bench.scale / q, bench.rounding)


def test_multiply_relinearise_rescale(bench: Bench) -> None:
    e, xy = bench.evaluator, bench.x * bench.y / 4
    for level in levels(bench):
        if math.prod(bench.parameters.data_primes[: level + 1]) < bench.scale**2 * 4:
            continue
        a, b = bench.encrypt(bench.x / 2, level), bench.encrypt(bench.y / 2, level)
        product = e.multiply(a, b)
        assert product.polys.shape[0] == 3 and (product.level, product.scale) == (level, bench.scale**2)
        noise = [bench.fresh, bench.fresh, 3.2**2 * math.sqrt(bench.parameters.degree) / bench.scale]
        assert bench.error(product, xy) < bench.bound(*noise)
        short = e.relinearise(product)
        assert short.polys.shape[0] == 2 and (short.level, short.scale) == (level, bench.scale**2)
        assert bench.error(short, xy) < bench.bound(
            *noise, (bench.switching(level) + bench.rounding) / bench.scale
        )
        scaled = e.rescale(short)
        assert scaled.level == level - 1
        assert scaled.scale == bench.scale**2 / bench.parameters.data_primes[level]
        assert bench.error(scaled, xy) < bench.bound(*noise, 1.1 * bench.rounding)
        late = e.rescale(product)  # three polynomials rescale too, and relinearise one level lower
        assert bench.error(e.relinearise(late), xy) < bench.bound(
            *noise, bench.switching(level - 1), 2 * bench.parameters.degree / 3
        )


def test_drop_level_keeps_the_value(bench: Bench) -> None:
    top = bench.parameters.max_level
    a = bench.encrypt(bench.x, top)
    for level in range(top + 1):
        dropped = bench.evaluator.drop_level(a, level)
        assert (dropped.level, dropped.scale, dropped.polys.shape[1]) == (level, bench.scale, level + 1)
        assert bench.error(dropped, bench.x) < bench.bound(bench.fresh)


def test_rotate(bench: Bench) -> None:
    for level in {*levels(bench), 0}:
        a = bench.encrypt(bench.x, level)
        bound = bench.bound(bench.fresh, bench.switching(level), bench.rounding)
        for steps in (1, 8, 1000, 1 - bench.parameters.slots):
            rotated = bench.evaluator.rotate(a, steps)
            assert (rotated.level, rotated.scale) == (level, bench.scale)
            assert bench.error(rotated, np.roll(bench.x, -steps)) < bound
        assert bench.evaluator.rotate(a, 0) is a


def test_hoisted_rotations_are_the_single_ones_bit_for_bit(bench: Bench) -> None:
    e, a = bench.evaluator, bench.encrypt(bench.x, 1)
    steps = (3, 0, 1, 3, bench.parameters.slots + 2)
    for many, step in zip(e.rotate_many(a, steps), steps, strict=True):
        assert (many.polys == e.rotate(a, step).polys).all()


@pytest.mark.parametrize("weight", ["matrix", "wide"])
def test_linear_transform(bench: Bench, weight: str) -> None:
    e, count = bench.evaluator, len(TERMS)
    diagonals = tiled_rows(bench, weight)
    expected = sum(d * np.roll(bench.x, -(g + b)) for d, (g, b) in zip(diagonals, TERMS, strict=True))
    for level in levels(bench):
        q = bench.parameters.data_primes[level]
        weight_scale = q / 16  # |y| can reach 7
        result = e.linear_transform(bench.encrypt(bench.x, level), weight, weight_scale, TERMS)
        assert (result.level, result.scale) == (level, bench.scale * weight_scale)
        # Each term: weight (at most 1) times fresh and switching noise, plus the weight's rounding error times the input. The
        # rotations by giant steps and the final division act at the scale of the product.
        term = [bench.fresh, bench.switching(level), bench.scale / weight_scale]
        giants = (2 * bench.switching(level) + 3 * bench.rounding) / weight_scale
        assert bench.error(result, expected) < bench.bound(*[math.sqrt(count) * t for t in term], giants)


def tiled_rows(bench: Bench, weight: str) -> Slots:
    values = bench.evaluator.weights.weights[weight]
    return np.tile(values, (1, bench.parameters.slots // values.shape[-1]))


@pytest.mark.parametrize("terms", [((0, 0), (0, 1)), ((8, 0), (16, 0)), ((0, 0), (0, 0)), ((1, 2), (8, 16))])
def test_linear_transforms_of_other_forms(bench: Bench, terms: tuple[tuple[int, int], ...]) -> None:
    level = bench.parameters.max_level
    result = bench.evaluator.linear_transform(bench.encrypt(bench.x / 4, level), "short", 2.0**20, terms)
    expected = sum(np.roll(bench.x / 4, -(g + b)) for g, b in terms)
    giants = (2 * bench.switching(level) + 3 * bench.rounding) / 2.0**20
    assert bench.error(result, expected) < bench.bound(2 * bench.fresh, 2 * bench.switching(level), giants)


def test_backends_agree_bit_for_bit_on_a_transform() -> None:
    results = []
    for backend in ("reference", "cpu"):
        bench = bench_of("n8192", backend)
        e, c = bench.evaluator, ToyClient(bench.parameters, seed=4).encrypt(bench.x, 3, bench.scale)
        out = e.rescale(e.linear_transform(c, "matrix", 2.0**33, TERMS))
        results.append(e.rescale(e.relinearise(e.multiply(e.rotate(out, 3), out))).polys)
    assert (results[0] == results[1]).all()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_circuit_end_to_end(backend: str) -> None:
    model, p = tiny_model(), small_parameters()
    client = ToyClient(p)
    keys = client.keys(model.circuit.key_needs())
    x = np.random.default_rng(3).uniform(-1, 1, 3)
    encrypted = client.encrypt(np.append(x, 0.0), 2, SCALE)
    evaluator = CkksEvaluator(make_backend(p, backend), keys, model.weights)
    y = run(model.circuit, {"x": encrypted}, evaluator)["y"]
    assert (y.level, y.scale) == (model.bundle.output.level, model.bundle.output.scale)
    packing = model.bundle.output.packing
    assert np.abs(client.decrypt(y)[packing.slots] - tiny_expected(x)).max() < model.bundle.promised_error


# Refusals


def test_operands_that_do_not_fit_are_refused() -> None:
    bench = bench_of("n8192", "reference")
    e, a = bench.evaluator, bench.encrypt(bench.x, 2)
    lower, other = e.drop_level(a, 1), replace(a, scale=a.scale * 1.001)
    three = e.multiply(a, a)
    refused = [
        lambda: e.add(a, lower),
        lambda: e.subtract(a, other),
        lambda: e.add(replace(three, scale=a.scale), a),
        lambda: e.multiply(a, lower),
        lambda: e.multiply(three, a),
        lambda: e.relinearise(a),
        lambda: e.rotate(three, 1),
        lambda: e.linear_transform(three, "matrix", 2.0**30, TERMS),
        lambda: e.linear_transform(a, "matrix", 2.0**30, TERMS[:3]),
        lambda: e.linear_transform(a, "matrix", 2.0**30, ()),
        lambda: e.linear_transform(a, "vector", 2.0**30, TERMS),
        lambda: e.multiply_plain(a, "matrix", 2.0**30),
        lambda: e.multiply_plain(a, "missing", 2.0**30),
        lambda: e.multiply_plain(a, "vector", 2.0**200),
        lambda: e.rescale(e.drop_level(a, 0)),
        lambda: e.drop_level(a, 3),
        lambda: e.drop_level(a, -1),
    ]
    for operation in refused:
        with pytest.raises(EvaluationError):
            operation()


def test_missing_keys_are_named() -> None:
    bench = bench_of("n8192", "reference")
    a, p = bench.encrypt(bench.x, 2), bench.parameters
    e = CkksEvaluator(bench.evaluator.backend, bench.client.keys(KeyNeeds(1, {5: 1})), {"w": np.ones((1, 1))})
    for operation in (
        lambda: e.rotate(a, 4),
        lambda: e.rotate(a, 5),
        lambda: e.rotate_many(e.drop_level(a, 1), (5, 6)),
        lambda: e.linear_transform(a, "w", 2.0**30, ((0, 7),)),
        lambda: e.linear_transform(a, "w", 2.0**30, ((7, 0),)),
    ):
        with pytest.raises(MissingKeyError, match="rotation by"):
            operation()
    with pytest.raises(MissingKeyError, match="relinearisation"):
        e.relinearise(e.multiply(a, a))
    low = e.drop_level(a, 1)
    assert bench.error(e.rotate(low, 5), np.roll(bench.x, -5)) < bench.bound(
        bench.switching(1), bench.rounding
    )
    with pytest.raises(EvaluationError, match="other parameters"):
        CkksEvaluator(
            bench.evaluator.backend,
            EvaluationKeys(replace(p, digit_limbs=1, data_primes=p.data_primes[:3]), None, {}),
            {},
        )


def test_weights_are_encoded_once() -> None:
    bench = bench_of("n8192", "reference")
    shared = EncodedWeights(bench.evaluator.backend, bench.evaluator.weights.weights)
    giants = (0,) * len(TERMS)
    first = shared.diagonals("matrix", 2, 2.0**30, giants)
    assert shared.diagonals("matrix", 2, 2.0**30, giants).data is first.data
    assert shared.diagonals("matrix", 1, 2.0**30, giants).data is not first.data
    residues = first.unpack()
    assert residues.shape == (len(TERMS), 4, 2 * 256)  # one of the 16 equal values in a row is kept
    plain = shared.encoder.encode(bench.evaluator.weights.weights["matrix"][1], 2, 2.0**30, extended=True)
    assert (np.repeat(residues[1], 16, axis=1) == plain.polynomial.residues).all()
    evaluators = [CkksEvaluator(bench.evaluator.backend, bench.evaluator.keys, shared) for _ in range(2)]
    assert evaluators[0].weights is evaluators[1].weights


# Properties


@given(st.integers(1, 2047), st.integers(1, 2047))
@settings(max_examples=8, deadline=None)
def test_rotations_are_a_group(a: int, b: int) -> None:
    bench = bench_of("n4096", "reference")
    slots, backend = bench.parameters.slots, bench.evaluator.backend
    needs = {s % slots: 1 for s in (a, b, a + b) if s % slots}
    e = CkksEvaluator(backend, bench.client.keys(KeyNeeds(None, needs)), {})
    c = bench.encrypt(bench.x, 1)
    twice, once = e.rotate(e.rotate(c, a), b), e.rotate(c, a + b)
    switch = math.hypot(bench.switching(1), bench.rounding)
    assert bench.error(twice, bench.client.decrypt(once)) < bench.bound(switch, switch, switch)
    assert bench.error(twice, np.roll(bench.x, -(a + b))) < bench.bound(bench.fresh, switch, switch)


@given(st.integers(0, 2**32), st.floats(-1, 1), st.floats(-1, 1))
@settings(max_examples=8, deadline=None)
def test_operations_are_linear(seed: int, u: float, v: float) -> None:
    bench = bench_of("n8192", "reference")
    e, rng, level = bench.evaluator, np.random.default_rng(seed), bench.parameters.max_level
    x, y = rng.uniform(-1, 1, (2, bench.parameters.slots))
    left = e.linear_transform(bench.encrypt(u * x + v * y, level), "matrix", 2.0**28, TERMS)
    fx, fy = (e.linear_transform(bench.encrypt(z, level), "matrix", 2.0**28, TERMS) for z in (x, y))
    expected = u * bench.client.decrypt(fx) + v * bench.client.decrypt(fy)
    noise = [
        3 * math.sqrt(len(TERMS)) * n for n in (bench.fresh, bench.switching(level), bench.scale / 2.0**28)
    ]
    assert bench.error(left, expected) < bench.bound(*noise)
    a, b = bench.encrypt(x / 8, level), bench.encrypt(y / 8, level)
    assert (e.add(a, b).polys == e.add(b, a).polys).all()
    assert (e.subtract(e.add(a, b), b).polys == a.polys).all()
    product = e.multiply(e.add(a, b), a)
    assert (product.polys == e.add(e.multiply(a, a), e.multiply(b, a)).polys).all()


@given(
    st.lists(
        st.sampled_from(["plain", "square", "rescale", "drop", "rotate", "add", "transform"]), max_size=6
    )
)
@settings(max_examples=15, deadline=None)
def test_level_and_scale_bookkeeping(operations: list[str]) -> None:
    """Against exact rationals of the true primes, for any sequence of operations."""
    bench = bench_of("n8192", "reference")
    e, p = bench.evaluator, bench.parameters
    c, level, scale = bench.encrypt(bench.x, p.max_level), p.max_level, Fraction(bench.scale)
    for operation in operations:
        match operation:
            case "plain":
                c, scale = e.multiply_plain(c, "vector", 2.0**20 / 3), scale * Fraction(2.0**20 / 3)
            case "square" if scale < 2**200:
                c, scale = e.relinearise(e.multiply(c, c)), scale**2
            case "transform":
                c, scale = e.linear_transform(c, "short", 2.0**15, ((0, 1), (8, 0))), scale * 2**15
            case "rescale" if level > 0:
                c, scale, level = e.rescale(c), scale / p.data_primes[level], level - 1
            case "drop" if level > 0:
                c, level = e.drop_level(c, level - 1), level - 1
            case "rotate":
                c = e.rotate(c, 3)
            case "add":
                c = e.add(c, c)
        assert c.level == level and c.polys.shape == (2, level + 1, p.degree)
        assert abs(Fraction(c.scale) / scale - 1) < Fraction(1, 2**48)
        assert (c.polys < np.array(p.data_primes[: level + 1], dtype=np.uint64)[:, None]).all()
