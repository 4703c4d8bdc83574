"""The secret side over OpenFHE (Python 3.10, where its wheel works): OpenFHE draws every random value under the secret.

The counterpart of keys/seal.py for the same parameters, with the same results on the wire: a server cannot tell them apart. OpenFHE
chooses primes by itself when it makes a context, but a context that it reads may have any: ours is written over the primes of the
parameters, data before special ones, with our roots of unity, so that its NTT order is ours. Its slot i is p(zeta^(5^i)), ours is
p(zeta^(3^j)). Evaluation keys are made of its encryptions of zero (keys/switching.py) and not by its own key generation, whose errors
have standard deviation 1.0 in versions 1.2 to 1.6 (docs/openfhe.md) where the security table supposes 3.19.
"""

from __future__ import annotations

import math
import secrets
from datetime import datetime, timezone
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import openfhe

from ckks.backends import make_backend
from ckks.counting import CountedValue, CountingEvaluator
from ckks.errors import EvaluationError, FormatError, KeyFileError, ParameterError, SecurityError
from ckks.machine import KEY_BYTE_SECONDS, default_machine
from ckks.parameters import Parameters
from ckks.primes import smallest_root
from ckks.rebase import TOLERANCE, switching_noise
from ckks.types import Ciphertext, KeyNeeds, Residues, SeededCiphertext, SeededKeys, SeededPublicKey, Slots
from ckks.wire_keys import key_file_size
from keys import openfhe_bytes
from keys.switching import (
    Progress,
    Switching,
    check_ciphertext,
    check_level,
    does_not_fit,
    each_member,
    full_slots,
    secret_rows,
    ternary,
)

STATISTICAL_BITS = 30  # of flooding noise over the noise it hides: OpenFHE's default


def own_parameters(model: Parameters, needs: KeyNeeds) -> Parameters:
    """The primes that OpenFHE chooses when asked for a model's sizes: FIXEDMANUAL, HYBRID, special primes of 60 bits.

    Of the numbers of digits that are as secure (128, 192 or 256 bits) and no noisier in key switching than the model's parameters
    (ckks/rebase.py refuses others), the best by predicted time and key bytes. Raises SecurityError where special primes of 60 bits
    leave none.
    """
    limbs, found = len(model.data_primes), list[Parameters]()
    for alpha in range(1, limbs + 1):
        digits = -(-limbs // alpha)
        if -(-limbs // digits) != alpha:
            continue  # OpenFHE is told the number of digits and makes them as even as this
        try:
            made = _chosen(model, digits)
        except ParameterError:
            continue
        quiet = all(switching_noise(model, made, level) <= TOLERANCE for level in range(limbs))
        if quiet and made.security_bits >= model.security_bits:
            found.append(made)
    if not found:
        raise SecurityError(
            f"OpenFHE's special primes of 60 bits leave no set of {limbs} data primes with {model.security_bits} bits of security for "
            f"N={model.degree}; use the model's own primes"
        )
    return min(found, key=lambda p: _price(p, needs))


def _price(p: Parameters, needs: KeyNeeds) -> float:
    """Predicted seconds of using every key once, and the share of an upload, as the compiler weighs them."""
    evaluator = CountingEvaluator(p)
    for level in (
        *needs.rotations.values(),
        *(() if needs.relinearisation is None else (needs.relinearisation,)),
    ):
        evaluator.rotate(CountedValue(level), 1)
    seconds = default_machine().costs().seconds(p, evaluator.cost.calls)
    return seconds + key_file_size(p, needs)[1] * KEY_BYTE_SECONDS


def _chosen(model: Parameters, digits: int) -> Parameters:
    """What a context of OpenFHE's is over. Raises ParameterError or SecurityError, by our own table."""
    asked = openfhe.CCParamsCKKSRNS()
    asked.SetSecretKeyDist(openfhe.UNIFORM_TERNARY)
    asked.SetSecurityLevel(openfhe.HEStd_NotSet)  # its table is older than ours
    asked.SetRingDim(model.degree)
    asked.SetBatchSize(model.slots)
    asked.SetMultiplicativeDepth(model.max_level)
    asked.SetFirstModSize(round(math.log2(model.data_primes[0])))
    asked.SetScalingModSize(round(math.log2(model.data_primes[-1])))
    asked.SetScalingTechnique(openfhe.FIXEDMANUAL)
    asked.SetKeySwitchTechnique(openfhe.HYBRID)
    asked.SetNumLargeDigits(digits)
    try:
        context = openfhe.GenCryptoContext(asked)
    except RuntimeError:  # for example too few primes of that size
        raise ParameterError("OpenFHE makes no context of these sizes") from None
    for feature in (openfhe.PKE, openfhe.KEYSWITCH, openfhe.LEVELEDSHE):
        context.Enable(feature)
    return _parameters(context, context.KeyGen().secretKey, digits)


def _parameters(context: Any, secret_key: Any, digits: int) -> Parameters:
    """Our parameters over the primes of a context with so many digits: special primes can be seen in evaluation keys only."""
    keys = context.EvalAutomorphismKeyGen(secret_key, [3])
    (key,) = openfhe_bytes.read_switch_keys(openfhe.Serialize(keys, openfhe.BINARY)).values()
    primes, limbs = tuple(limb.prime for limb in key.rows), len(key.context.limbs)
    return Parameters(key.rows[0].degree, primes[:limbs], primes[limbs:], -(-limbs // digits))


def adopt(private_key: Any) -> SecretKey:
    """The secret key of an OpenFHE program as one of ours, over the primes that its context chose (for Client's `secret_key`).

    private_key: openfhe.PrivateKey of a CKKS context with HYBRID, FIXEDMANUAL, UNIFORM_TERNARY and the features PKE and KEYSWITCH; it stays
    usable. Raises FormatError for another kind of context, SecurityError for one that our table refuses, KeyFileError for a secret of
    another distribution.
    """
    found = openfhe_bytes.read_secret_key(openfhe.Serialize(private_key, openfhe.BINARY))
    if any(limb.root != smallest_root(limb.degree, limb.prime) for limb in found.rows):
        raise FormatError("this OpenFHE uses other roots of unity than versions 1.4 to 1.6")
    parameters = _parameters(private_key.GetCryptoContext(), private_key, found.context.digits)
    coefficients = ternary(make_backend(parameters), found.residues[0][:1])
    # Two thirds of uniform ternary coefficients are not zero, to ten deviations: the security table holds for no sparser secret.
    weight, n = np.count_nonzero(coefficients), parameters.degree
    if np.abs(coefficients).max() > 1 or abs(weight - 2 * n / 3) > 10 * math.sqrt(2 * n / 9):
        raise KeyFileError(
            "the secret key is not uniform ternary; make the context with UNIFORM_TERNARY secrets"
        )
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return SecretKey(parameters, coefficients, secrets.token_hex(16), created)


class _Templates(NamedTuple):
    """Objects of one context: those written begin as they do."""

    key: openfhe_bytes.Polynomials
    ciphertext: openfhe_bytes.Polynomials


class SecretKey:
    """A secret key with everything that needs it. Its repr and errors show its id and parameters, no more.

    key_id: 32 hexadecimal digits, random, public. created: time of generation, ISO 8601, UTC.
    """

    def __init__(
        self, parameters: Parameters, coefficients: npt.NDArray[np.int8], key_id: str, created: str
    ) -> None:
        """A key from its coefficients, int8 [N]. Raises KeyFileError if not ternary."""
        if coefficients.shape != (parameters.degree,) or np.abs(coefficients.astype(np.int64)).max() > 1:
            raise KeyFileError("the secret key does not fit its parameters; make a new key")
        self.parameters, self.key_id, self.created = parameters, key_id, created
        self._coefficients = coefficients.astype(np.int8)
        self._backend = make_backend(parameters)
        self._ntt = secret_rows(self._backend, coefficients)
        self._slots = _openfhe_slots(parameters.slots)
        self._templates = _templates(parameters)
        self._scale = 2.0**self._templates.key.context.scale_bits
        self._key = _load(self._templates, self._ntt)
        self._context = self._key.GetCryptoContext()
        self._nothing = self._context.MakeCKKSPackedPlaintext(np.zeros(parameters.slots))
        self._switching = Switching(self._backend, self._ntt, self._zero)

    @staticmethod
    def generate(parameters: Parameters) -> SecretKey:
        """A new ternary secret key, drawn by OpenFHE."""
        # A key of no use leads to a context over our primes, which draws the real one.
        templates = _templates(parameters)
        context = _load(templates, np.zeros_like(templates.key.residues[0])).GetCryptoContext()
        drawn = openfhe_bytes.read_secret_key(
            openfhe.Serialize(context.KeyGen().secretKey, openfhe.BINARY)
        ).residues[0]
        coefficients = ternary(make_backend(parameters), drawn[:1])
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return SecretKey(parameters, coefficients, secrets.token_hex(16), created)

    def __repr__(self) -> str:
        return f"SecretKey(key_id={self.key_id!r}, parameters={self.parameters})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret key is never pickled or copied; use keys.save_secret_key")

    def coefficients(self) -> npt.NDArray[np.int8]:
        """THE SECRET ITSELF: the ternary coefficients, int8 [N]. For keys/storage.py."""
        return self._coefficients

    def encrypt(self, values: Slots, level: int, scale: float) -> SeededCiphertext:
        """Encrypt float64 [k], k a power of two up to N/2 (the vector repeats), at `level` and `scale`; [members][k] as a stack.

        Symmetric, error std 3.19, no modulus switching. Raises EvaluationError for values that do not fit.
        """
        return self._switching.ciphertext(
            lambda row: self._encrypt(self._encode(row, level, scale)), values, level, scale
        )

    def _encode(self, values: Slots, level: int, scale: float) -> Any:
        p = self.parameters
        slots = full_slots(p, values, level, scale)
        # A coefficient of the encoding is at most the largest slot.
        if not 2 * float(np.abs(slots).max()) * scale < math.prod(p.data_primes[: level + 1]):
            raise does_not_fit(level, scale)
        scaled = slots[self._slots] * (scale / self._scale)
        try:
            return self._context.MakeCKKSPackedPlaintext(scaled, 1, len(p.moduli) - 1 - level)
        except RuntimeError:
            raise does_not_fit(level, scale) from None

    def decrypt(self, ciphertext: Ciphertext) -> Slots:
        """The slots of a ciphertext of two or three polynomials, at any level: float64 [N/2], real parts; of a stack [members][N/2].

        The result carries raw noise, as keys.seal.SecretKey.decrypt. Raises EvaluationError for a ciphertext that does not fit.
        """
        if ciphertext.polys.ndim == 4 and len(ciphertext.polys):
            return each_member(ciphertext, self.decrypt)
        return self._decrypt(ciphertext, self._templates, self._key)

    def decrypt_to_share(self, ciphertext: Ciphertext, error: float, queries: int = 1) -> Slots:
        """As `decrypt`, for results that others see: OpenFHE adds Gaussian noise that drowns the ciphertext's own (NOISE_FLOODING_DECRYPT).

        error: standard deviation of what the result is off by. The noise added is 2^15 * sqrt(12 * queries) times it: 30 bits of
        statistical security over `queries` such decryptions (Li, Micciancio, Schultz and Sorrell, CRYPTO 2022). So 17 bits of the
        circuit's precision are lost, and a circuit must have them to lose. Raises EvaluationError where they do not fit the modulus.
        """
        p = self.parameters
        if not 0 < error < math.inf or queries < 1:
            raise EvaluationError("the error must be positive, and the queries at least one")
        # Independent coefficients of deviation d give slots whose real part has deviation d * sqrt(N/2).
        noise = error * ciphertext.scale / math.sqrt(p.degree / 2)
        flood = 2.0 ** (STATISTICAL_BITS / 2) * math.sqrt(12 * queries) * noise
        check_level(p, ciphertext.level)
        modulus = math.prod(p.data_primes[: ciphertext.level + 1])
        if 16 * flood > min(modulus, 2**58):
            raise EvaluationError(
                f"noise of 2^{math.log2(flood):.0f} does not fit the modulus; compile with a higher precision"
            )
        templates = _Templates(*(openfhe_bytes.flooded(t, flood) for t in self._templates))
        return self._decrypt(ciphertext, templates, _load(templates, self._ntt))

    def public_key(self) -> SeededPublicKey:
        """What `keys.PublicKey` encrypts with, anywhere."""
        return self._switching.public_key()

    def evaluation_keys(self, needs: KeyNeeds, progress: Progress | None = None) -> SeededKeys:
        """Exactly the needed keys, each over the rows of its level; progress(done, all) follows each key.

        Raises EvaluationError for a level or rotation that these parameters do not have.
        """
        return self._switching.evaluation_keys(needs, progress)

    def _zero(self) -> Residues:
        """OpenFHE's symmetric encryption of zero over all rows."""
        return self._encrypt(self._nothing)

    def _encrypt(self, plain: Any) -> Residues:
        """Symmetric, over the rows of the plaintext: uint64 [2][row][N]."""
        encrypted = openfhe.Serialize(self._context.Encrypt(self._key, plain), openfhe.BINARY)
        return openfhe_bytes.read_ciphertext(encrypted).residues

    def _decrypt(self, ciphertext: Ciphertext, templates: _Templates, key: Any) -> Slots:
        p, polys = self.parameters, ciphertext.polys
        check_ciphertext(p, polys, ciphertext.level, ciphertext.scale)
        # OpenFHE does not look at residues; beyond their prime they make it compute anything.
        if (polys >= np.array(p.data_primes[: ciphertext.level + 1], dtype=np.uint64)[:, None]).any():
            raise EvaluationError("the ciphertext has residues that do not belong to these parameters")
        # It decodes at a power of its one scale, and judges noise by that: the nearest, and we correct.
        power = max(1, round(math.log2(ciphertext.scale) / math.log2(self._scale)))
        data = openfhe_bytes.write_ciphertext(templates.ciphertext, polys, power)
        try:
            encrypted = openfhe.DeserializeCiphertextString(data, openfhe.BINARY)
            plain = key.GetCryptoContext().Decrypt(key, encrypted)
        except RuntimeError:  # it judges the imaginary parts: under a wrong key they are as large as anything
            raise EvaluationError(
                "the decrypted value is out of range; check that key and ciphertext belong together"
            ) from None
        plain.SetLength(p.slots)
        slots = np.empty(p.slots)
        slots[self._slots] = plain.GetRealPackedValue()
        return slots * (self._scale**power / ciphertext.scale)


def _load(templates: _Templates, residues: Residues) -> Any:
    """A secret key, uint64 [row][N], as an object of OpenFHE's in the context of `templates`."""
    return openfhe.DeserializePrivateKeyString(
        openfhe_bytes.write_secret_key(templates.key, residues), openfhe.BINARY
    )


def _openfhe_slots(slots: int) -> npt.NDArray[np.int64]:
    """Our slot for each of OpenFHE's: 5^i is 3^j or -3^j modulo 4*slots, and real values are the same at both."""
    place: dict[int, int] = {}
    power = 1
    for j in range(slots):
        place[power] = place[4 * slots - power] = j
        power = power * 3 % (4 * slots)
    found, power = [], 1
    for _ in range(slots):
        found.append(place[power])
        power = power * 5 % (4 * slots)
    return np.array(found, dtype=np.int64)


def _templates(p: Parameters) -> _Templates:
    """Objects in a context over the primes of `p`: made over primes of OpenFHE's choice, as many, which are then replaced."""
    asked = openfhe.CCParamsCKKSRNS()
    asked.SetSecretKeyDist(openfhe.UNIFORM_TERNARY)
    asked.SetSecurityLevel(openfhe.HEStd_NotSet)  # its table is older than ours, which `p` has passed
    asked.SetRingDim(p.degree)
    asked.SetBatchSize(p.slots)
    asked.SetMultiplicativeDepth(len(p.moduli) - 1)
    # At level 0 OpenFHE judges noise by this scale, whatever the ciphertext's: an output that was not rescaled has up to q_0's bits.
    scale_bits = min(round(math.log2(p.data_primes[0])), 50)
    asked.SetScalingModSize(scale_bits)
    asked.SetFirstModSize(scale_bits + 8)
    asked.SetScalingTechnique(openfhe.FIXEDMANUAL)
    asked.SetKeySwitchTechnique(openfhe.HYBRID)
    asked.SetNumLargeDigits(len(p.moduli))
    context = openfhe.GenCryptoContext(asked)
    for feature in (openfhe.PKE, openfhe.KEYSWITCH, openfhe.LEVELEDSHE):
        context.Enable(feature)
    key = context.KeyGen().secretKey
    ciphertext = context.Encrypt(key, context.MakeCKKSPackedPlaintext(np.zeros(p.slots)))
    roots = tuple(smallest_root(p.degree, q) for q in p.moduli)
    found = (
        openfhe_bytes.read_secret_key(openfhe.Serialize(key, openfhe.BINARY)),
        openfhe_bytes.read_ciphertext(openfhe.Serialize(ciphertext, openfhe.BINARY)),
    )
    return _Templates(*(openfhe_bytes.over(template, p.moduli, roots) for template in found))
