"""OpenFHE by itself, for tests on Python 3.10: the primes that it chooses, and its own evaluation keys in our conventions."""

from __future__ import annotations

from typing import Any

import numpy as np
import openfhe

from ckks.parameters import Parameters
from ckks.primes import smallest_root
from ckks.types import EvaluationKeys, KeyNeeds, KeySwitchKey
from keys import openfhe_bytes
from keys.openfhe import SecretKey
from keys.openfhe_bytes import SwitchKey


def make_context(
    degree: int, levels: int, first_bits: int, scale_bits: int, digits: int, **others: Any
) -> Any:
    """A context as OpenFHE's users make one: they say sizes, it finds the primes. others: setters and their values."""
    p = openfhe.CCParamsCKKSRNS()
    p.SetSecurityLevel(openfhe.HEStd_NotSet)
    p.SetRingDim(degree)
    p.SetBatchSize(degree // 2)
    p.SetMultiplicativeDepth(levels)
    p.SetFirstModSize(first_bits)
    p.SetScalingModSize(scale_bits)
    p.SetScalingTechnique(openfhe.FIXEDMANUAL)
    p.SetKeySwitchTechnique(openfhe.HYBRID)
    p.SetNumLargeDigits(digits)
    for setter, value in others.items():
        getattr(p, setter)(value)
    context = openfhe.GenCryptoContext(p)
    for feature in (openfhe.PKE, openfhe.KEYSWITCH, openfhe.LEVELEDSHE):
        context.Enable(feature)
    return context


def chosen(degree: int, levels: int, first_bits: int, scale_bits: int, digit_limbs: int) -> Parameters:
    """Our parameters over the primes of such a context: its special primes of 60 bits are in its evaluation keys."""
    context = make_context(degree, levels, first_bits, scale_bits, -(-(levels + 1) // digit_limbs))
    key = _switch_key(context, context.KeyGen().secretKey, 3)
    primes = tuple(limb.prime for limb in key.rows)
    return Parameters(degree, primes[: levels + 1], primes[levels + 1 :], digit_limbs)


def own_keys(key: SecretKey, needs: KeyNeeds) -> EvaluationKeys:
    """The keys that OpenFHE's own key generation makes for the secret in `key`, whose primes must be those of `chosen`.

    Its key for a Galois element k switches s to s(X^(1/k)): the automorphism k of both halves makes it ours.
    """
    p = key.parameters
    limbs, first = len(p.data_primes), p.data_primes[0].bit_length()
    scale_bits = p.data_primes[-1].bit_length() - 1  # its last prime is the first above
    context = make_context(p.degree, limbs - 1, first, scale_bits, len(p.digits(p.max_level)))
    fresh = openfhe_bytes.read_secret_key(openfhe.Serialize(context.KeyGen().secretKey, openfhe.BINARY))
    data = openfhe_bytes.write_secret_key(fresh, key._ntt[:limbs])
    secret = openfhe.DeserializePrivateKeyString(data, openfhe.BINARY)
    context = secret.GetCryptoContext()

    def converted(found: SwitchKey, element: int, level: int) -> KeySwitchKey:
        assert tuple(limb.prime for limb in found.rows) == p.moduli
        assert all(limb.root == smallest_root(limb.degree, limb.prime) for limb in found.rows)
        rows = list(p.extended_rows(level))
        halves = np.stack([found.b, found.a], axis=1)[: len(p.digits(level)), :, rows]
        ours = key._backend.automorphism(np.ascontiguousarray(halves), element)
        return KeySwitchKey.from_residues(p, ours, level)

    relinearisation = None
    if needs.relinearisation is not None:
        context.EvalMultKeyGen(secret)
        made = context.GetEvalMultKeyVector(secret.GetKeyTag())[0]
        found = openfhe_bytes.read_switch_key(openfhe.Serialize(made, openfhe.BINARY))
        relinearisation = converted(found, 1, needs.relinearisation)
    galois = {}
    for steps, level in needs.rotations.items():
        element = p.galois_element(steps)
        galois[element] = converted(_switch_key(context, secret, element), element, level)
    return EvaluationKeys(p, relinearisation, galois)


def _switch_key(context: Any, secret: Any, element: int) -> SwitchKey:
    made = context.EvalAutomorphismKeyGen(secret, [element])
    return openfhe_bytes.read_switch_keys(openfhe.Serialize(made, openfhe.BINARY))[element]
