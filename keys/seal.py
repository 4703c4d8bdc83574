"""The secret side over Microsoft SEAL: SEAL draws every random value under the secret.

What is added to it is deterministic linear algebra (keys/switching.py). SEAL's files pass through anonymous memory only.
"""

from __future__ import annotations

import os
import secrets
from datetime import datetime, timezone
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import tenseal.sealapi as sealapi

from ckks.backends import make_backend
from ckks.errors import EvaluationError, KeyFileError
from ckks.parameters import Parameters
from ckks.seeds import expand
from ckks.types import Ciphertext, KeyNeeds, Residues, SeededCiphertext, SeededKeys, SeededPublicKey, Slots
from keys import seal_bytes
from keys.switching import (
    Progress,
    Switching,
    check_ciphertext,
    does_not_fit,
    each_member,
    full_slots,
    secret_rows,
    ternary,
)

_MAX_OVERHEAD = 4096  # bytes of a SEAL object beside its residues


class SecretKey:
    """A secret key with everything that needs it. Its repr and errors show its id and parameters, no more.

    key_id: 32 hexadecimal digits, random, public. created: time of generation, ISO 8601, UTC.
    """

    def __init__(
        self, parameters: Parameters, coefficients: npt.NDArray[np.int8], key_id: str, created: str
    ) -> None:
        """A key from its coefficients, int8 [N], as SEAL drew them. Raises KeyFileError if not ternary."""
        if coefficients.shape != (parameters.degree,) or np.abs(coefficients.astype(np.int64)).max() > 1:
            raise KeyFileError("the secret key does not fit its parameters; make a new key")
        self.parameters, self.key_id, self.created = parameters, key_id, created
        self._coefficients = coefficients.astype(np.int8)
        self._backend = make_backend(parameters)
        self._context = _seal_context(parameters)
        self._parms_ids = _parms_ids(self._context, parameters)
        self._ntt = secret_rows(self._backend, coefficients)
        seal_key = sealapi.SecretKey()
        self._version = _seal_version(self._context)
        _load(
            seal_key,
            self._context,
            seal_bytes.write_secret_key(self._ntt, self._parms_ids[len(parameters.moduli)], self._version),
        )
        self._encryptor = sealapi.Encryptor(self._context, seal_key)
        self._decryptor = sealapi.Decryptor(self._context, seal_key)
        self._encoder = sealapi.CKKSEncoder(self._context)
        self._switching = Switching(self._backend, self._ntt, self._zero)

    @staticmethod
    def generate(parameters: Parameters) -> SecretKey:
        """A new ternary secret key, drawn by SEAL."""
        seal_key = sealapi.KeyGenerator(_seal_context(parameters)).secret_key()
        size = 8 * len(parameters.moduli) * parameters.degree
        residues = seal_bytes.read_secret_key(_dump(seal_key, size).members, len(parameters.moduli))
        coefficients = ternary(make_backend(parameters), residues[:1])
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

        Symmetric, error std 3.2, no modulus switching. Raises EvaluationError for values that do not fit.
        """
        return self._switching.ciphertext(
            lambda row: self._encrypted(row, level, scale), values, level, scale
        )

    def _encrypted(self, values: Slots, level: int, scale: float) -> Residues:
        """SEAL's symmetric encryption, uint64 [2][level+1][N]."""
        p, encrypted = self.parameters, sealapi.Ciphertext()
        plain = _encode(self._encoder, p, self._parms_ids, values, level, scale)
        self._encryptor.encrypt_symmetric(plain, encrypted)
        return _residues(encrypted, level + 1, p.degree)

    def decrypt(self, ciphertext: Ciphertext) -> Slots:
        """The slots of a ciphertext of two or three polynomials, at any level: float64 [N/2], real parts; of a stack [members][N/2].

        The result carries raw noise: shown to others together with the ciphertext it leaks the key (Li and
        Micciancio 2021). Raises EvaluationError for a ciphertext that does not fit the parameters.
        """
        p, polys = self.parameters, ciphertext.polys
        if polys.ndim == 4 and len(polys):
            return each_member(ciphertext, self.decrypt)
        check_ciphertext(p, polys, ciphertext.level, ciphertext.scale)
        # SEAL refuses to decode at a scale above the modulus; at scale 1 it never does, and we divide.
        encrypted, plain = sealapi.Ciphertext(), sealapi.Plaintext()
        data = seal_bytes.write_ciphertext(polys, self._parms_ids[ciphertext.level + 1], 1.0, self._version)
        try:
            _load(encrypted, self._context, data)
        except (ValueError, RuntimeError):
            raise EvaluationError(
                "the ciphertext has residues that do not belong to these parameters"
            ) from None
        self._decryptor.decrypt(encrypted, plain)
        return np.array(self._encoder.decode_double(plain), dtype=np.float64) / ciphertext.scale

    def public_key(self) -> SeededPublicKey:
        """What `PublicKey` encrypts with, anywhere."""
        return self._switching.public_key()

    def evaluation_keys(self, needs: KeyNeeds, progress: Progress | None = None) -> SeededKeys:
        """Exactly the needed keys, each over the rows of its level; progress(done, all) follows each key.

        Raises EvaluationError for a level or rotation that these parameters do not have.
        """
        return self._switching.evaluation_keys(needs, progress)

    def _zero(self) -> Residues:
        """SEAL's symmetric encryption of zero over all rows."""
        rows, zero = len(self.parameters.moduli), sealapi.Ciphertext()
        self._encryptor.encrypt_zero_symmetric(self._parms_ids[rows], zero)
        return _residues(zero, rows, self.parameters.degree)


class PublicKey:
    """Encrypts for the holder of the secret key, who alone can decrypt: for a device that sends and must not read.

    Raises EvaluationError for residues that do not fit the parameters.
    """

    def __init__(self, key: SeededPublicKey) -> None:
        self.parameters = parameters = key.parameters
        context = _seal_context(parameters)
        self._parms_ids = _parms_ids(context, parameters)
        rows = tuple(range(len(parameters.moduli)))
        polys = np.stack([key.b, expand(parameters, key.seed, 0, rows)])
        seal_key = sealapi.PublicKey()
        # SEAL writes a public key as the ciphertext that it is.
        data = seal_bytes.write_ciphertext(polys, self._parms_ids[len(rows)], 1.0, _seal_version(context))
        try:
            _load(seal_key, context, data)
        except (ValueError, RuntimeError):
            raise EvaluationError("the public key does not belong to these parameters") from None
        self._encryptor = sealapi.Encryptor(context, seal_key)
        self._encoder = sealapi.CKKSEncoder(context)

    def encrypt(self, values: Slots, level: int, scale: float) -> Ciphertext:
        """Encrypt float64 [k], k a power of two up to N/2 (the vector repeats), at `level` and `scale`.

        SEAL encrypts zero one prime higher and divides by it, so the error is that of a rounding: about ten times a
        symmetric one. Twice the bytes too: nothing of it can be seeded. Raises EvaluationError.
        """
        p, encrypted = self.parameters, sealapi.Ciphertext()
        plain = _encode(self._encoder, p, self._parms_ids, values, level, scale)
        self._encryptor.encrypt(plain, encrypted)
        polys = _residues(encrypted, level + 1, p.degree)
        return Ciphertext(polys.astype(np.uint64), level, float(scale))


def _residues(encrypted: Any, rows: int, degree: int) -> Residues:
    """The two polynomials of a SEAL ciphertext, uint64 [2][row][N]."""
    polys, _, _ = seal_bytes.read_ciphertext(_dump(encrypted, 16 * rows * degree).members)
    return polys


def _encode(
    encoder: Any, p: Parameters, parms_ids: dict[int, list[int]], values: Slots, level: int, scale: float
) -> Any:
    """A SEAL plaintext of float64 [k], repeated to fill the slots. Raises EvaluationError; its text holds no value."""
    slots = full_slots(p, values, level, scale)
    plain = sealapi.Plaintext()
    try:
        encoder.encode(slots.tolist(), parms_ids[level + 1], float(scale), plain)
    except ValueError:
        raise does_not_fit(level, scale) from None
    return plain


def _parms_ids(context: Any, parameters: Parameters) -> dict[int, list[int]]:
    """SEAL's parms_id by number of rows: its chain drops the last prime first, so it has every data level."""
    ids: dict[int, list[int]] = {}
    data = context.key_context_data()
    for rows in range(len(parameters.moduli), 0, -1):
        ids[rows] = data.parms_id()
        data = data.next_context_data()
    return ids


def _seal_context(parameters: Parameters) -> Any:
    """SEAL's context over (data, special). Its security table is older and laxer than ours, so it is off."""
    seal_parameters = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    seal_parameters.set_poly_modulus_degree(parameters.degree)
    seal_parameters.set_coeff_modulus([sealapi.Modulus(q) for q in parameters.moduli])
    return sealapi.SEALContext(seal_parameters, True, sealapi.SEC_LEVEL_TYPE.NONE)


def _seal_version(context: Any) -> seal_bytes.Version:
    """The version that this SEAL writes and insists on reading."""
    return _dump(context.key_context_data().parms(), 0).version


def _memory_path(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


def _dump(seal_object: Any, size: int) -> seal_bytes.SealObject:
    """A SEAL object of at most `size` bytes of residues. SEAL saves to paths only: a memory file has one."""
    descriptor = os.memfd_create("seal", os.MFD_CLOEXEC)
    try:
        seal_object.save(_memory_path(descriptor))
        data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    finally:
        os.close(descriptor)
    return seal_bytes.unwrap(data, size + _MAX_OVERHEAD)


def _load(seal_object: Any, context: Any, data: bytes) -> None:
    """Fill a SEAL object from bytes, through a memory file. SEAL raises ValueError or RuntimeError."""
    descriptor = os.memfd_create("seal", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(data)
        seal_object.load(context, _memory_path(descriptor))
    finally:
        os.close(descriptor)
