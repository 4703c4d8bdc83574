"""OpenFHE on a whole circuit: context, keys and evaluator over the circuit's own data primes. Python 3.10 with OpenFHE's wheel only."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import openfhe

from ckks.circuit import Circuit, Weights
from ckks.openfhe import OpenFheEvaluator, OpenFheValue, rotations
from ckks.parameters import Parameters
from ckks.primes import ntt_primes, smallest_root
from ckks.security import REQUIRED_BITS, security_bits
from keys import openfhe_bytes


class OpenFheCircuit:
    """A fresh secret key with OpenFHE's own evaluation keys for `circuit`, HYBRID with the fewest digits that leave 128 bits.

    Its special primes are its own choice (60 bits each); all primes together pass our security table. Where they do not, the ring is twice
    as large, or more, with primes of the same sizes: `parameters` says so. A vector repeated in twice as many slots rotates as before.
    """

    def __init__(self, parameters: Parameters, circuit: Circuit, weights: Weights) -> None:
        while (found := _fewest_digits(parameters)) is None:
            parameters = _doubled(parameters)
        self.digits, self.special_primes, self.context = found
        self.parameters, self._slots = parameters, parameters.slots
        self._key = self.context.KeyGen().secretKey
        self._scale_bits = _scale_bits(parameters)
        self.context.EvalMultKeyGen(self._key)
        self.steps = rotations(circuit)
        self.context.EvalRotateKeyGen(self._key, self.steps)
        self.evaluator = OpenFheEvaluator(
            self.context, self._scale_bits, parameters, weights, self._extended_ring
        )
        self.evaluator.prepare(circuit)

    @property
    def key_bytes(self) -> int:
        """Of the evaluation keys, as OpenFHE serialises them: two halves, all primes, 8 bytes a residue."""
        limbs = len(self.parameters.data_primes) + len(self.special_primes)
        return (1 + len(self.steps)) * self.digits * 2 * limbs * self.parameters.degree * 8

    def encrypt(self, values: np.ndarray, level: int, scale: float) -> OpenFheValue:
        """float64 [k], repeated to fill the slots."""
        slots = np.tile(values, self._slots // len(values)) * (scale / 2.0**self._scale_bits)
        plain = self.context.MakeCKKSPackedPlaintext(slots, 1, self.parameters.max_level - level)
        return OpenFheValue(self.context.Encrypt(self._key, plain), level, scale)

    def decrypt(self, value: OpenFheValue) -> np.ndarray:
        """float64 [N/2]; OpenFHE adds noise of its own, relative to the scale that is nearest to a power of its one."""
        power = max(1, round(math.log2(value.scale) / self._scale_bits))
        value.ciphertext.SetNoiseScaleDeg(power)
        plain = self.context.Decrypt(self._key, value.ciphertext)
        value.ciphertext.SetNoiseScaleDeg(1)
        plain.SetLength(self._slots)
        return np.array(plain.GetRealPackedValue()) * (2.0 ** (power * self._scale_bits) / value.scale)

    def _extended_ring(self, level: int) -> Any:
        """The ring of the data primes of a level and the special primes: that of a context which has them all for data."""
        primes = self.parameters.data_primes[: level + 1] + self.special_primes
        return _context(self.parameters.degree, primes, len(primes), self._scale_bits).GetElementParams()


def _scale_bits(p: Parameters) -> int:
    """At level 0 OpenFHE judges noise by this scale, whatever the ciphertext's: an output that was not rescaled has up to q_0's bits."""
    return min(round(math.log2(p.data_primes[0])), 50)


def _doubled(p: Parameters) -> Parameters:
    """A ring of twice the degree with data primes of the same sizes. Raises ParameterError beyond the largest ring."""
    data: list[int] = []
    for q in p.data_primes:
        data += ntt_primes(2 * p.degree, round(math.log2(q)), 1, tuple(data))
    return Parameters(2 * p.degree, tuple(data), ntt_primes(2 * p.degree, 60, 1, tuple(data)), 1)


def _fewest_digits(p: Parameters) -> tuple[int, tuple[int, ...], Any] | None:
    """The number of digits, the special primes that OpenFHE adds for it, and the context; None if none has 128 bits."""
    limbs = len(p.data_primes)
    for digits in range(1, limbs + 1):
        if -(-limbs // -(-limbs // digits)) != digits:  # OpenFHE refuses numbers that leave a digit empty
            continue
        context = _context(p.degree, p.data_primes, digits, _scale_bits(p))
        key = context.KeyGen().secretKey
        made = openfhe.Serialize(context.EvalAutomorphismKeyGen(key, [3]), openfhe.BINARY)
        special = tuple(limb.prime for limb in openfhe_bytes.read_switch_keys(made)[3].rows[limbs:])
        if security_bits(p.degree, math.prod(p.data_primes + special)) >= REQUIRED_BITS:
            return digits, special, context
    return None


@cache
def _context(degree: int, primes: tuple[int, ...], digits: int, scale_bits: int) -> Any:
    """An OpenFHE context over these data primes: made over primes of its own choice, as many, which are replaced in its bytes."""
    p = openfhe.CCParamsCKKSRNS()
    p.SetSecretKeyDist(openfhe.UNIFORM_TERNARY)
    p.SetSecurityLevel(openfhe.HEStd_NotSet)  # checked above, special primes included
    p.SetRingDim(degree)
    p.SetBatchSize(degree // 2)
    p.SetMultiplicativeDepth(len(primes) - 1)
    p.SetScalingModSize(scale_bits)
    p.SetFirstModSize(scale_bits + 8)
    p.SetScalingTechnique(openfhe.FIXEDMANUAL)
    p.SetKeySwitchTechnique(openfhe.HYBRID)
    p.SetNumLargeDigits(digits)
    context = openfhe.GenCryptoContext(p)
    for feature in (openfhe.PKE, openfhe.KEYSWITCH, openfhe.LEVELEDSHE, openfhe.ADVANCEDSHE):
        context.Enable(feature)
    key = openfhe_bytes.read_secret_key(openfhe.Serialize(context.KeyGen().secretKey, openfhe.BINARY))
    template = openfhe_bytes.over(key, primes, tuple(smallest_root(degree, q) for q in primes))
    data = openfhe_bytes.write_secret_key(template, np.zeros_like(key.residues[0]))
    return openfhe.DeserializePrivateKeyString(data, openfhe.BINARY).GetCryptoContext()
