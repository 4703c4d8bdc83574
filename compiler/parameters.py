"""Choice of primes and key-switching digits: 128 bits of security first, then the least work and key material."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ckks.circuit import Circuit, Op
from ckks.counting import CountedValue, CountingEvaluator
from ckks.errors import InputError
from ckks.interpreter import run
from ckks.parameters import Parameters
from ckks.primes import MAX_PRIME_BITS, ntt_primes
from ckks.security import max_log_qp

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


def fits(degree: int, modulus: Modulus) -> bool:
    """Whether some digit size could make this chain secure at `degree`: one digit per limb is the least."""
    special = max(modulus.base_bits, modulus.scale_bits if modulus.levels else 0)
    return modulus.base_bits <= MAX_PRIME_BITS and modulus.bits + special <= max_log_qp(degree)


def digit_choices(degree: int, modulus: Modulus) -> list[Parameters]:
    """Every secure parameter set over this chain, one per digit size and number of special primes."""
    limbs = modulus.levels + 1
    if not fits(degree, modulus):
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
                    found.append(Parameters(degree, data, special, alpha))
                    break
                except InputError:
                    continue
    return found


def key_bytes(parameters: Parameters, circuit: Circuit) -> int:
    """Bytes of the seeded evaluation keys a client uploads for `circuit`."""
    needs = circuit.key_needs()
    levels = [
        *needs.rotations.values(),
        *([needs.relinearisation] if needs.relinearisation is not None else []),
    ]
    return sum(
        len(parameters.digits(level)) * _row_bytes(parameters, parameters.extended_rows(level))
        for level in levels
    )


def ciphertext_bytes(parameters: Parameters, level: int) -> int:
    """Bytes of the seeded ciphertext a client sends at `level`."""
    return _row_bytes(parameters, parameters.data_rows(level))


def _row_bytes(parameters: Parameters, rows: tuple[int, ...]) -> int:
    return sum(4 if parameters.moduli[r] < 1 << 32 else 8 for r in rows) * parameters.degree


def count(parameters: Parameters, circuit: Circuit) -> CountingEvaluator:
    """The evaluator that counted `circuit`."""
    evaluator = CountingEvaluator(parameters)
    run(circuit, {i.name: CountedValue(i.level) for i in circuit.instructions if i.op is Op.INPUT}, evaluator)
    return evaluator


def cheapest(choices: list[Parameters], circuit: Circuit) -> Parameters:
    """The set with the least time, an upload of its keys included. Only levels matter, so any of them may have made `circuit`."""

    def seconds(p: Parameters) -> float:
        # A limb transform at N=2^14 takes 38 us, a limb product a third of that (one thread); a key byte is read at 10 GB/s
        # each time, and uploaded once: one in 1,000 inferences at 100 MB/s.
        cost = count(p, circuit).cost
        return (cost.ntts + cost.products / 3) * 38e-6 * p.degree / (1 << 14) + key_bytes(p, circuit) / 5e9

    return min(choices, key=seconds)
