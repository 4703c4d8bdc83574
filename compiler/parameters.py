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

MIN_SCALE_BITS, MAX_SCALE_BITS = 26, 50
# P exceeds the largest digit by 2^SPECIAL_MARGIN: key-switching noise then stays near the rounding of its division.
SPECIAL_MARGIN = 3
FAST_BITS = 48  # special primes up to here run on the engine's double-precision kernels; larger ones only if one limb needs it


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
            for margin in (
                SPECIAL_MARGIN,
                0.5,
            ):  # the small margin where the modulus has no room for the other
                bits = max(math.ceil((digit + margin) / count), 20)
                if bits > max(FAST_BITS, modulus.base_bits + SPECIAL_MARGIN) or bits > MAX_PRIME_BITS:
                    continue
                try:
                    special = ntt_primes(degree, bits, count, exclude=data)
                    made = Parameters(degree, data, special, alpha)
                except InputError:
                    continue
                if made.security_bits >= security:
                    found.append(made)
                    break
    return found


def key_bytes(parameters: Parameters, circuit: Circuit) -> int:
    """Bytes of the seeded evaluation keys a client uploads for `circuit`."""
    needs = circuit.key_needs()
    levels = [
        *needs.rotations.values(),
        *([needs.relinearisation] if needs.relinearisation is not None else []),
    ]
    return sum(key_size(parameters, level) for level in levels)


def key_size(parameters: Parameters, level: int) -> int:
    """Bytes of one seeded evaluation key for use at `level` and below."""
    return len(parameters.digits(level)) * _row_bytes(parameters, parameters.extended_rows(level))


def ciphertext_bytes(parameters: Parameters, level: int, members: int = 0) -> int:
    """Bytes of the seeded ciphertext, or stack, a client sends at `level`."""
    return max(members, 1) * _row_bytes(parameters, parameters.data_rows(level))


def _row_bytes(parameters: Parameters, rows: tuple[int, ...]) -> int:
    return sum(4 if parameters.moduli[r] < 1 << 32 else 8 for r in rows) * parameters.degree


def cheapest(
    choices: list[Parameters], circuit: Circuit, prices: Prices, byte_seconds: float = KEY_BYTE_SECONDS
) -> Parameters:
    """The set with the least time, keys included. Only levels matter, so any of them may have made `circuit`.

    byte_seconds: the price of a key byte.
    """
    return min(choices, key=lambda p: prices.circuit(p, circuit) + key_bytes(p, circuit) * byte_seconds)
