"""Choice of key-switching digits: every offer is secure with all its primes; what is chosen is best by predicted time and key bytes."""

from __future__ import annotations

import math

import pytest

from ckks.circuit import Circuit, Instruction, Op
from ckks.machine import default_machine
from ckks.noise import NoiseModel
from ckks.security import max_log_qp
from compiler.keysets import choose
from compiler.parameters import Modulus, cheapest, digit_choices
from compiler.prices import Prices
from compiler.sizes import key_bytes

PRICES = Prices(default_machine().costs())
CHAINS = [
    (1 << 13, Modulus(26, 33, 3)),
    (1 << 14, Modulus(30, 38, 8)),
    (1 << 15, Modulus(36, 44, 14)),
    (1 << 16, Modulus(40, 49, 24)),
]


def circuit(degree: int, modulus: Modulus) -> Circuit:
    """A transform of 64 diagonals and a square at the top, a rotation at the bottom."""
    top, scale = modulus.levels, 2.0**modulus.scale_bits
    terms = tuple((8 * g, b) for g in range(8) for b in range(8))
    made = (
        Instruction(Op.INPUT, (), top, scale, name="x"),
        Instruction(Op.LINEAR_TRANSFORM, (0,), top, scale**2, weight="m", weight_scale=scale, terms=terms),
        Instruction(Op.RESCALE, (1,), top - 1, scale),
        Instruction(Op.MULTIPLY, (2, 2), top - 1, scale**2),
        Instruction(Op.RELINEARISE, (3,), top - 1, scale**2),
        Instruction(Op.RESCALE, (4,), top - 2, scale),
        Instruction(Op.DROP_LEVEL, (5,), 0, scale),
        Instruction(Op.ROTATE, (6,), 0, scale, steps=1000),
        Instruction(Op.OUTPUT, (7,), 0, scale, name="y"),
    )
    return Circuit(degree // 2, made)


@pytest.mark.parametrize(("degree", "modulus"), CHAINS)
def test_every_offer_is_secure_with_its_special_primes(degree: int, modulus: Modulus) -> None:
    offers = digit_choices(degree, modulus)
    assert len({p.digit_limbs for p in offers}) >= 2 and len({p.data_primes for p in offers}) == 1
    for p in offers:
        assert math.prod(p.data_primes + p.special_primes) <= 1 << max_log_qp(degree)
        # What a key switch adds before the rounding of its division stays below that rounding, but where the modulus leaves no room.
        noise = NoiseModel(p)
        if math.log2(p.special_product) >= 2 + max(
            math.log2(math.prod(p.data_primes[a:b])) for a, b in p.digits(p.max_level)
        ):
            assert noise.key_switch(p.max_level, 1.0) < noise.rounding(1.0) * 3


@pytest.mark.parametrize(("degree", "modulus"), CHAINS)
def test_the_choice_is_the_best_by_predicted_time_and_bytes(degree: int, modulus: Modulus) -> None:
    offers, c = digit_choices(degree, modulus), circuit(degree, modulus)
    figures = {p: (PRICES.circuit(p, c), key_bytes(p, c)) for p in offers}
    best = cheapest(offers, c, PRICES)
    seconds, size = figures[best]
    assert not any((s <= seconds and b < size) or (s < seconds and b <= size) for s, b in figures.values())
    fast, small = choose(c, offers, "fast", PRICES), choose(c, offers, "small", PRICES)
    assert fast is not None and small is not None
    assert fast.parameters == best and fast.bytes <= size
    assert small.bytes <= fast.bytes
    between = (small.bytes + fast.bytes) // 2
    chosen = choose(c, offers, between, PRICES)
    assert chosen is not None and chosen.bytes <= between and chosen.parameters in offers
    assert choose(c, offers, small.bytes // 100, PRICES) is None


def test_dearer_bytes_never_lead_to_larger_keys() -> None:
    """Up to the smallest that any digit size gives; for some chain the fastest keys are not the smallest."""
    differ = []
    for degree, modulus in [*CHAINS, (1 << 14, Modulus(26, 34, 8)), (1 << 15, Modulus(40, 49, 15))]:
        offers, c = digit_choices(degree, modulus), circuit(degree, modulus)
        sizes = [key_bytes(cheapest(offers, c, PRICES, price), c) for price in (0.0, 1e-10, 1e-8, 1e-6)]
        assert sizes == sorted(sizes, reverse=True) and sizes[-1] == min(key_bytes(p, c) for p in offers)
        differ.append(sizes[-1] < sizes[0])
    assert any(differ)
