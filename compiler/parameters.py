"""Choice of primes and key-switching digits: the security level first, then the least work and key material."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ckks.circuit import Circuit
from ckks.errors import InputError
from ckks.machine import KEY_BYTE_SECONDS
from ckks.parameters import Parameters
from ckks.primes import MAX_PRIME_BITS, ntt_primes
from ckks.security import REQUIRED_BITS, max_log_qp
from compiler.prices import Prices
from compiler.sizes import key_bytes

MIN_SCALE_BITS, MAX_SCALE_BITS = 26, 50
# P exceeds the largest digit by 2^SPECIAL_MARGIN: key-switching noise then stays near the rounding of its division.
SPECIAL_MARGIN = 3
FAST_BITS = (
    49  # special primes below 2^49 run on the engine's vector kernels; larger ones only if one limb needs it
)


@dataclass(frozen=True)
class Modulus:
    """The data chain in bits: q_0, and `levels` primes of scale_bits above it."""

    scale_bits: int
    base_bits: int
    levels: int

    @property
    def bits(self) -> int:
        return self.base_bits + self.levels * self.scale_bits


def fits(degree: int, modulus: Modulus, security: int = REQUIRED_BITS) -> bool:
    """Whether some digit size could give this chain `security` bits at `degree`: one digit per limb is the least."""
    special = max(modulus.base_bits, modulus.scale_bits if modulus.levels else 0)
    return modulus.base_bits <= MAX_PRIME_BITS and modulus.bits + special <= max_log_qp(degree, security)


def digit_choices(degree: int, modulus: Modulus, security: int = REQUIRED_BITS) -> list[Parameters]:
    """Every parameter set over this chain with `security` bits (128, 192, 256), one per digit size and number of special primes."""
    limbs = modulus.levels + 1
    if not fits(degree, modulus, security):
        return []
    try:
        base = ntt_primes(degree, modulus.base_bits, 1)
        data = base + ntt_primes(degree, modulus.scale_bits, modulus.levels, exclude=base)
    except InputError:
        return []
    found = []
    for alpha in range(1, limbs + 1):
        digit = max(math.log2(math.prod(data[i : i + alpha])) for i in range(0, limbs, alpha))
        for count in range(1, alpha + 1):
            # A smaller margin where the modulus has no room for the usual one, or would leave the fast kernels.
            most, least = (max(math.ceil((digit + m) / count), 20) for m in (SPECIAL_MARGIN, 0.5))
            for bits in sorted(range(least, most + 1), key=lambda b: (b > FAST_BITS, -b)):
                if bits > max(FAST_BITS, modulus.base_bits + SPECIAL_MARGIN) or bits > MAX_PRIME_BITS:
                    continue
                try:
                    special = ntt_primes(degree, bits, count, exclude=data, below=bits == FAST_BITS)
                    made = Parameters(degree, data, special, alpha)
                except InputError:
                    continue
                if made.security_bits >= security:
                    found.append(made)
                    break
    return found


def cheapest(
    choices: list[Parameters], circuit: Circuit, prices: Prices, byte_seconds: float = KEY_BYTE_SECONDS
) -> Parameters:
    """The set with the least time, keys included. Only levels matter, so any of them may have made `circuit`.

    byte_seconds: the price of a key byte.
    """
    return min(choices, key=lambda p: prices.circuit(p, circuit) + key_bytes(p, circuit) * byte_seconds)
