"""What tests of the secret side share: expansion of seeded objects, phases, and SEAL itself as an oracle for our evaluator."""

from __future__ import annotations

import math
import struct

import numpy as np
import tenseal.sealapi as sealapi

from ckks import seeds
from ckks.encoder import unembed
from ckks.parameters import Parameters
from ckks.types import (
    Ciphertext,
    EvaluationKeys,
    KeySwitchKey,
    Residues,
    SeededCiphertext,
    SeededKey,
    SeededKeys,
    Slots,
)
from keys import SecretKey, seal, seal_bytes

SEAL_STD = 3.24  # centred binomial with 21 + 21 bits: sqrt(42)/2


def expanded(key: SecretKey, c: SeededCiphertext) -> Ciphertext:
    """What the server makes of an uploaded ciphertext."""
    a = seeds.expand(key.parameters, c.seed, 0, key.parameters.data_rows(c.level))
    return Ciphertext(np.stack([c.b, a]), c.level, c.scale)


def encrypt(key: SecretKey, values: Slots, level: int, scale: float) -> Ciphertext:
    return expanded(key, key.encrypt(values, level, scale))


def expanded_keys(keys: SeededKeys) -> EvaluationKeys:
    """What the server makes of uploaded keys."""
    p = keys.parameters

    def one(key: SeededKey) -> KeySwitchKey:
        a = [seeds.expand(p, key.seed, j, p.extended_rows(key.level)) for j in range(len(key.b))]
        return KeySwitchKey.from_residues(p, np.stack([key.b, np.stack(a)], axis=1), key.level)

    relinearisation = None if keys.relinearisation is None else one(keys.relinearisation)
    return EvaluationKeys(p, relinearisation, {element: one(key) for element, key in keys.galois.items()})


def centred_phase(key: SecretKey, b: Residues, a: Residues, rows: tuple[int, ...]) -> np.ndarray:
    """The coefficients of b + a*s, centred in each row: int64 [row][N]."""
    backend = key._backend
    phase = backend.add(b, backend.multiply(a, key._ntt[list(rows)], rows), rows)
    coefficients = backend.inverse(phase, rows).astype(np.int64)
    moduli = np.array([[key.parameters.moduli[r]] for r in rows], dtype=np.int64)
    return np.where(coefficients > moduli // 2, coefficients - moduli, coefficients)


def error_bound(p: Parameters) -> float:
    """Eight standard deviations of a slot of a fresh ciphertext, times its scale: the error and the rounding of the encoding.

    The worst of 8192 slots exceeds eight with probability below 1e-10.
    """
    return 8 * math.sqrt(p.degree / 2 * (SEAL_STD**2 + 1 / 12))


def rounding_bound(key: SecretKey, polys: int = 2) -> Slots:
    """Eight standard deviations, per slot [N/2], of rounding each of `polys` polynomials and decrypting them with this very secret."""
    s = np.abs(unembed(key.coefficients().astype(np.float64)))
    return 8 * np.sqrt(key.parameters.degree / 24 * sum(s ** (2 * k) for k in range(polys)))


def switch_bound(key: SecretKey, level: int) -> Slots:
    """Of one key switch with centred digits, per slot [N/2], times the scale.

    24 standard deviations for digit times error: the product of two normal values has a longer tail than one of them.
    """
    p = key.parameters
    ratios = sum((math.prod(p.data_primes[a:b]) / p.special_product) ** 2 for a, b in p.digits(level))
    return rounding_bound(key) + 24 * math.sqrt(p.degree / 2 * ratios / 12 * p.degree) * SEAL_STD


def seal_switch_bound(key: SecretKey, level: int) -> Slots:
    """Of one key switch of SEAL's. Its digits are not centred: their mean q/2 * (1 + X + ...) = q / (1 - X) is large in a few slots."""
    p = key.parameters
    roots = np.exp(1j * np.pi / p.degree * np.array([pow(3, j, 2 * p.degree) for j in range(p.slots)]))
    ratio = math.sqrt(sum((q / p.special_product) ** 2 for q in p.data_primes[: level + 1]))
    return switch_bound(key, level) + 8 * ratio * math.sqrt(p.degree / 2) * SEAL_STD / np.abs(1 - roots)


class SealOracle:
    """SEAL's own keys and Evaluator under the same secret; takes and gives ciphertexts of ours. One digit per prime, one special prime."""

    def __init__(self, key: SecretKey, steps: tuple[int, ...]) -> None:
        self.key, self.parameters, self.context = key, key.parameters, key._context
        secret = sealapi.SecretKey()
        rows = len(self.parameters.moduli)
        seal._load(
            secret, self.context, seal_bytes.write_secret_key(key._ntt, key._parms_ids[rows], key._version)
        )
        generator = sealapi.KeyGenerator(self.context, secret)
        self.relin_keys, self.galois_keys = sealapi.RelinKeys(), sealapi.GaloisKeys()
        generator.create_relin_keys(self.relin_keys)
        generator.create_galois_keys([self.parameters.galois_element(s) for s in steps], self.galois_keys)
        self.evaluator, self.encoder = sealapi.Evaluator(self.context), sealapi.CKKSEncoder(self.context)

    def evaluation_keys(self) -> EvaluationKeys:
        """SEAL's keys in our form."""
        galois = {2 * i + 1: key for i, key in self._parse(self.galois_keys).items()}
        return EvaluationKeys(self.parameters, self._parse(self.relin_keys)[0], galois)

    def apply(self, operation: str, *operands: Ciphertext, **extra: object) -> Ciphertext:
        """Evaluator.operation(operands, extra values in order) as SEAL computes it."""
        result = sealapi.Ciphertext()
        getattr(self.evaluator, operation)(*[self.to_seal(c) for c in operands], *extra.values(), result)
        return self.from_seal(result)

    def plain(self, values: Slots, level: int, scale: float) -> object:
        encoded = sealapi.Plaintext()
        slots = np.tile(values, self.parameters.slots // values.size)
        self.encoder.encode(slots.tolist(), self.key._parms_ids[level + 1], scale, encoded)
        return encoded

    def to_seal(self, c: Ciphertext) -> object:
        result = sealapi.Ciphertext()
        data = seal_bytes.write_ciphertext(
            c.polys, self.key._parms_ids[c.level + 1], c.scale, self.key._version
        )
        seal._load(result, self.context, data)
        return result

    def from_seal(self, c: object) -> Ciphertext:
        members = seal._dump(c, 3 * 8 * len(self.parameters.moduli) * self.parameters.degree).members
        polys, scale, _ = seal_bytes.read_ciphertext(members)
        return Ciphertext(polys.copy(), polys.shape[1] - 1, scale)

    def _parse(self, keys: object) -> dict[int, KeySwitchKey]:
        """KSwitchKeys: parms_id, count, then per index the number of digits and that many nested ciphertexts over all primes."""
        p, members = self.parameters, seal._dump(keys, 1 << 28).members
        (count,) = struct.unpack_from("<Q", members, 32)
        offset, found = 40, {}
        for index in range(count):
            (digits,) = struct.unpack_from("<Q", members, offset)
            offset, parts = offset + 8, []
            for _ in range(digits):
                polys, _, offset = seal_bytes.read_ciphertext(members, offset + 16)
                parts.append(polys)
            if parts:
                found[index] = KeySwitchKey.from_residues(p, np.stack(parts), p.max_level)
        assert offset == len(members)
        return found
