"""SEAL as the oracle: every operation of our evaluator against SEAL's Evaluator on the same operands and the same keys.

Operations that SEAL computes without choice (sums, products, rescaling, level drop) must agree in every residue; those that encode a weight
or switch keys are compared in the worst slot, since SEAL rounds its encodings on its own and does not centre its digits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from seal_side import (
    SEAL_STD,
    SealOracle,
    encrypt,
    error_bound,
    expanded_keys,
    rounding_bound,
    seal_switch_bound,
    switch_bound,
)
from toy import make_parameters

from ckks.evaluator import CkksEvaluator
from ckks.parameters import Parameters
from ckks.types import Ciphertext, KeyNeeds, Slots, same_scale
from keys import SecretKey

PARAMETERS = {
    4096: make_parameters(4096, (38, 29), (38,)),
    8192: make_parameters(8192, (40, 30, 30, 30), (41,)),
    16384: make_parameters(16384, (50, 36, 36, 36, 36, 36, 36), (51,)),
}
STEPS = (1, 2, 3, 5, 8, 10, 100, 103)
TERMS = ((0, 1), (0, 2), (8, 0), (8, 2), (5, 5), (100, 3))
PERIOD = 256
RNG = np.random.default_rng(11)


@dataclass(frozen=True)
class Setting:
    """One secret key, SEAL on it, and our evaluator with SEAL's keys and with keys of our own making."""

    key: SecretKey
    oracle: SealOracle
    with_seal_keys: CkksEvaluator
    with_own_keys: CkksEvaluator
    weights: dict[str, Slots]


@pytest.fixture(scope="module", params=PARAMETERS, ids=str)
def setting(request: pytest.FixtureRequest) -> Setting:
    p = PARAMETERS[request.param]
    key = SecretKey.generate(p)
    oracle = SealOracle(key, STEPS)
    own = expanded_keys(key.evaluation_keys(KeyNeeds(p.max_level, dict.fromkeys(STEPS, p.max_level))))
    weights = {"vector": RNG.uniform(-1, 1, PERIOD), "matrix": RNG.uniform(-1, 1, (len(TERMS), PERIOD))}
    evaluators = [CkksEvaluator(key._backend, keys, weights) for keys in (oracle.evaluation_keys(), own)]
    return Setting(key, oracle, *evaluators, weights)


def levels(p: Parameters) -> list[int]:
    return sorted({0, p.max_level // 2, p.max_level})


def scale_at(p: Parameters, level: int) -> float:
    """So large that a product with values up to 1 still fits the modulus, and no larger than is usual."""
    return 2.0 ** min(32.0, (math.log2(math.prod(p.data_primes[: level + 1])) - 5) / 2) * 1.01


def operands(s: Setting, level: int) -> tuple[Slots, Slots, Ciphertext, Ciphertext]:
    p = s.key.parameters
    x, y = RNG.uniform(-1, 1, (2, p.slots))
    scale = scale_at(p, level)
    return x, y, encrypt(s.key, x, level, scale), encrypt(s.key, y, level, scale)


def worst(a: Slots, b: Slots) -> float:
    return float(np.abs(a - b).max())


def below(a: Slots, b: Slots, bound: Slots | float) -> bool:
    """Whether every slot differs by less than its bound."""
    return bool((np.abs(a - b) < bound).all())


def encoding_bound(p: Parameters) -> float:
    """Of the difference of two roundings of one plaintext."""
    return 8 * math.sqrt(p.degree / 2 / 6)


def assert_same(ours: Ciphertext, seals: Ciphertext) -> None:
    assert ours.level == seals.level and same_scale(ours.scale, seals.scale)
    assert np.array_equal(ours.polys, seals.polys)


def assert_close(
    s: Setting,
    ours: Ciphertext,
    seals: Ciphertext,
    bound: Slots | float,
    clear: Slots,
    clear_bound: Slots | float,
) -> None:
    """Both decrypted by SEAL: equal up to `bound`, and ours near the exact result."""
    assert ours.level == seals.level and same_scale(ours.scale, seals.scale)
    decrypted = s.key.decrypt(ours)
    assert below(decrypted, s.key.decrypt(seals), bound)
    assert below(decrypted, clear, clear_bound)


def test_sums_products_and_level_drops_are_bit_exact(setting: Setting) -> None:
    p, ours, seal = setting.key.parameters, setting.with_seal_keys, setting.oracle
    for level in levels(p):
        x, y, a, b = operands(setting, level)
        assert_same(ours.add(a, b), seal.apply("add", a, b))
        assert_same(ours.subtract(a, b), seal.apply("sub", a, b))
        product = ours.multiply(a, b)
        assert_same(product, seal.apply("multiply", a, b))
        assert_same(ours.multiply(a, a), seal.apply("square", a))
        assert_same(ours.add(product, product), seal.apply("add", product, product))
        noise = error_bound(p) / a.scale
        assert worst(setting.key.decrypt(ours.add(a, b)), x + y) < 2 * noise
        assert worst(setting.key.decrypt(ours.subtract(a, b)), x - y) < 2 * noise
        assert worst(setting.key.decrypt(product), x * y) < 3 * noise
        for lower in range(level):
            dropped = ours.drop_level(a, lower)
            assert_same(dropped, seal.apply("mod_switch_to", a, parms_id=setting.key._parms_ids[lower + 1]))
            if 2 * a.scale < math.prod(p.data_primes[: lower + 1]) / 4:  # else the value no longer fits
                assert worst(setting.key.decrypt(dropped), x) < noise


def test_rescaling_is_bit_exact(setting: Setting) -> None:
    p, ours, seal = setting.key.parameters, setting.with_seal_keys, setting.oracle
    for level in levels(p)[1:]:
        x, y, a, b = operands(setting, level)
        for c in (a, ours.multiply(a, b)):
            rescaled = ours.rescale(c)
            assert_same(rescaled, seal.apply("rescale_to_next", c))
            assert rescaled.level == level - 1 and rescaled.scale == c.scale / p.data_primes[level]
        bound = 3 * error_bound(p) / a.scale + rounding_bound(setting.key, 3) / rescaled.scale
        assert below(setting.key.decrypt(rescaled), x * y, bound)


def test_plain_operands(setting: Setting) -> None:
    p, ours, seal = setting.key.parameters, setting.with_seal_keys, setting.oracle
    vector = setting.weights["vector"]
    clear = np.tile(vector, p.slots // PERIOD)
    for level in levels(p):
        x, _, a, _ = operands(setting, level)
        noise, rounding = error_bound(p) / a.scale, encoding_bound(p) / a.scale
        result = seal.apply("add_plain", a, plain=seal.plain(vector, level, a.scale))
        assert_close(setting, ours.add_plain(a, "vector"), result, rounding, x + clear, noise + rounding)
        result = seal.apply("multiply_plain", a, plain=seal.plain(vector, level, a.scale))
        product = ours.multiply_plain(a, "vector", a.scale)
        assert_close(setting, product, result, 2 * rounding, x * clear, 2 * (noise + rounding))


def test_relinearisation(setting: Setting) -> None:
    p, key, seal = setting.key.parameters, setting.key, setting.oracle
    for level in levels(p):
        x, y, a, b = operands(setting, level)
        product = setting.with_seal_keys.multiply(a, b)
        result = seal.apply("relinearize", product, keys=seal.relin_keys)
        own = switch_bound(key, level) / product.scale
        both = own + seal_switch_bound(key, level) / product.scale
        for ours in (setting.with_seal_keys, setting.with_own_keys):
            assert_close(
                setting, ours.relinearise(product), result, both, x * y, 3 * error_bound(p) / a.scale + own
            )


def test_rotations_single_and_hoisted(setting: Setting) -> None:
    p, key, seal, some = setting.key.parameters, setting.key, setting.oracle, STEPS[1:6]
    for level in levels(p):
        x, _, a, _ = operands(setting, level)
        own = switch_bound(key, level) / a.scale
        both, noise = own + seal_switch_bound(key, level) / a.scale, error_bound(p) / a.scale
        results = [seal.apply("rotate_vector", a, steps=r, keys=seal.galois_keys) for r in some]
        for ours in (setting.with_seal_keys, setting.with_own_keys):
            for r, rotated, result in zip(some, ours.rotate_many(a, some), results, strict=True):
                assert_close(setting, rotated, result, both, np.roll(x, -r), noise + own)
            assert_close(
                setting, ours.rotate(a, some[0]), results[0], both, np.roll(x, -some[0]), noise + own
            )


def test_linear_transform(setting: Setting) -> None:
    """Against the same sum by SEAL's rotations, plain products and additions, one by one."""
    p, key, seal = setting.key.parameters, setting.key, setting.oracle
    matrix = setting.weights["matrix"]
    for level in levels(p):
        x, _, a, _ = operands(setting, level)
        parts, clear = [], np.zeros(p.slots)
        for (giant, baby), diagonal in zip(TERMS, matrix, strict=True):
            steps = giant + baby
            rotated = seal.apply("rotate_vector", a, steps=steps, keys=seal.galois_keys)
            parts.append(seal.apply("multiply_plain", rotated, plain=seal.plain(diagonal, level, a.scale)))
            clear += np.tile(diagonal, p.slots // PERIOD) * np.roll(x, -steps)
        result = parts[0]
        for part in parts[1:]:
            result = seal.apply("add", result, part)
        # Weights are at most 1. We switch keys at most twice per term (and errors move between slots), SEAL once.
        encoding = len(TERMS) * encoding_bound(p) / a.scale
        own = len(TERMS) * 2 * switch_bound(key, level).max() / a.scale + encoding
        both = own + len(TERMS) * seal_switch_bound(key, level) / a.scale
        noise = len(TERMS) * error_bound(p) / a.scale
        for ours in (setting.with_seal_keys, setting.with_own_keys):
            transformed = ours.linear_transform(a, "matrix", a.scale, TERMS)
            assert_close(setting, transformed, result, both, clear, noise + own)


def switching_noise(key: SecretKey, rotated: Ciphertext, original: Ciphertext, steps: int) -> float:
    """Standard deviation, over the slots and times the scale, of what a rotation adds."""
    return float((key.decrypt(rotated) - np.roll(key.decrypt(original), -steps)).std() * original.scale)


def expected_noise(p: Parameters, level: int) -> float:
    """Of one key switch: centred digits times the key's error over P, and the rounding times (1, s)."""
    digits = sum((math.prod(p.data_primes[a:b]) / p.special_product) ** 2 / 12 for a, b in p.digits(level))
    return math.sqrt(p.degree / 2 * (digits * p.degree * SEAL_STD**2 + (1 + 2 * p.degree / 3) / 12))


def test_noise_of_our_keys_is_within_a_factor_of_two_of_seals(setting: Setting) -> None:
    """At one limb a digit and one special prime, where SEAL has such keys too."""
    key, seal, level = setting.key, setting.oracle, setting.key.parameters.max_level
    _, _, a, _ = operands(setting, level)
    own = switching_noise(key, setting.with_own_keys.rotate(a, 5), a, 5)
    with_seal_keys = switching_noise(key, setting.with_seal_keys.rotate(a, 5), a, 5)
    seals = switching_noise(key, seal.apply("rotate_vector", a, steps=5, keys=seal.galois_keys), a, 5)
    assert 0.9 < own / with_seal_keys < 1.1
    assert own < 2 * seals
    assert 0.9 < own / expected_noise(key.parameters, level) < 1.1


@pytest.mark.parametrize(("limbs", "digit_limbs"), [(8, 1), (8, 2), (7, 3), (7, 4)])
def test_noise_is_as_predicted_for_any_digit_size(limbs: int, digit_limbs: int) -> None:
    """As many special primes as limbs in a digit, of the same size, so that the keys' error is not divided away."""
    p = make_parameters(16384, (36,) * limbs, (36,) * digit_limbs, digit_limbs)
    key = SecretKey.generate(p)
    for level in (p.max_level, 4):
        keys = expanded_keys(key.evaluation_keys(KeyNeeds(level, {5: level})))
        evaluator = CkksEvaluator(key._backend, keys, {})
        a = encrypt(key, RNG.uniform(-1, 1, p.slots), level, 2.0**24)  # float64 must resolve it in a's square
        measured = switching_noise(key, evaluator.rotate(a, 5), a, 5)
        assert 0.9 < measured / expected_noise(p, level) < 1.1
        product = evaluator.multiply(a, a)
        difference = key.decrypt(evaluator.relinearise(product)) - key.decrypt(product)
        assert 0.9 < difference.std() * product.scale / expected_noise(p, level) < 1.1
