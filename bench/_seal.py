"""SEAL's side: SEAL's own evaluation keys for a secret key of ours, the same keys in our form, and its evaluator on our ciphertexts."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import tenseal.sealapi as sealapi

from bench._ours import STEP
from ckks.parameters import Parameters
from ckks.primes import ntt_primes
from ckks.types import Ciphertext, EvaluationKeys, KeySwitchKey
from keys import SecretKey, seal, seal_bytes

NAME = "SEAL, through TenSEAL's sealapi; same keys and ciphertexts"
VERSION = f"SEAL of TenSEAL {version('tenseal')}"
_KEY_BYTES = 1 << 30  # more than any key set that a comparison makes


@dataclass(frozen=True)
class Setting:
    """SEAL's kind of parameters: one limb a digit and one special prime, of special_bits."""

    degree: int
    limbs: int
    first_bits: int
    scale_bits: int
    special_bits: int

    def parameters(self) -> Parameters:
        """Primes near these powers of two."""
        first = ntt_primes(self.degree, self.first_bits, 1)
        data = first + ntt_primes(self.degree, self.scale_bits, self.limbs - 1, first)
        return Parameters(self.degree, data, ntt_primes(self.degree, self.special_bits, 1, data))


class SealSide:
    """SEAL draws relinearisation and rotation keys for `key`; ciphertexts cross as bytes, before any clock runs."""

    def __init__(self, key: SecretKey) -> None:
        self.key, self.context = key, key._context
        secret, rows = sealapi.SecretKey(), len(key.parameters.moduli)
        seal._load(
            secret, self.context, seal_bytes.write_secret_key(key._ntt, key._parms_ids[rows], key._version)
        )
        generator = sealapi.KeyGenerator(self.context, secret)
        self.relinearisation, self.galois = sealapi.RelinKeys(), sealapi.GaloisKeys()
        generator.create_relin_keys(self.relinearisation)
        generator.create_galois_keys([key.parameters.galois_element(STEP)], self.galois)
        self.evaluator = sealapi.Evaluator(self.context)

    def evaluation_keys(self) -> EvaluationKeys:
        """SEAL's keys as ours: the key with index i in SEAL's Galois keys is that of the element 2i + 1."""
        galois = {2 * index + 1: key for index, key in self._parse(self.galois).items()}
        return EvaluationKeys(self.key.parameters, self._parse(self.relinearisation)[0], galois)

    def operations(self, a: Ciphertext, b: Ciphertext) -> dict[str, Callable[[], object]]:
        """Each call runs one operation on a (and b) in SEAL and returns SEAL's ciphertext; `ours` reads it."""
        evaluator, x, y = self.evaluator, self._import(a), self._import(b)

        def rotate() -> object:
            result = sealapi.Ciphertext()
            evaluator.rotate_vector(x, STEP, self.galois, result)
            return result

        def multiply() -> object:
            result = sealapi.Ciphertext()
            evaluator.multiply(x, y, result)
            evaluator.relinearize_inplace(result, self.relinearisation)
            return result

        product = multiply()

        def rescale() -> object:
            result = sealapi.Ciphertext()
            evaluator.rescale_to_next(product, result)
            return result

        return {"rotate": rotate, "multiply + relinearise": multiply, "rescale": rescale}

    def ours(self, result: object) -> Ciphertext:
        """SEAL's ciphertext in our form."""
        p = self.key.parameters
        members = seal._dump(result, 24 * len(p.moduli) * p.degree).members
        polys, scale, _ = seal_bytes.read_ciphertext(members)
        return Ciphertext(polys.copy(), polys.shape[1] - 1, scale)

    def _import(self, c: Ciphertext) -> object:
        result, parms_id = sealapi.Ciphertext(), self.key._parms_ids[c.level + 1]
        seal._load(
            result, self.context, seal_bytes.write_ciphertext(c.polys, parms_id, c.scale, self.key._version)
        )
        return result

    def _parse(self, keys: object) -> dict[int, KeySwitchKey]:
        """SEAL's KSwitchKeys: parms_id, their number, then for each the number of digits and one nested public key per digit."""
        p, members = self.key.parameters, seal._dump(keys, _KEY_BYTES).members
        (count,) = struct.unpack_from("<Q", members, 32)
        offset, found = 40, {}
        for index in range(count):
            (digits,) = struct.unpack_from("<Q", members, offset)
            offset += 8
            parts = []
            for _ in range(digits):
                polys, _, offset = seal_bytes.read_ciphertext(members, offset + 16)  # after its own header
                parts.append(polys)
            if parts:
                found[index] = KeySwitchKey.from_residues(p, np.stack(parts), p.max_level)
        return found
