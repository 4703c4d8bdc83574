"""The secret side over Microsoft SEAL: SEAL draws every random value under the secret.

What is added to SEAL here is deterministic linear algebra. A key-switching key s' -> s is SEAL's symmetric
encryption of zero over all primes plus the gadget term P*g_j*s' (hybrid key switching: Han and Ki 2020,
section 3). Every uniform half a is replaced by a' = expand(seed) and b by b + (a - a')*s: the phase, hence
SEAL's error, stays the same. SEAL's files pass through anonymous memory only.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import tenseal.sealapi as sealapi

from ckks.backends import make_backend
from ckks.errors import EvaluationError, KeyFileError
from ckks.parameters import Parameters
from ckks.seeds import SEED_BYTES, expand
from ckks.types import (
    Ciphertext,
    KeyNeeds,
    Residues,
    SeededCiphertext,
    SeededKey,
    SeededKeys,
    SeededPublicKey,
    Slots,
)
from keys import seal_bytes

Progress = Callable[[int, int], None]
Rows = tuple[int, ...]
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
        moduli = np.array(parameters.moduli, dtype=np.uint64)[:, None]
        residues = np.where(coefficients < 0, moduli - np.uint64(1), np.abs(coefficients).astype(np.uint64))
        self._rows: Rows = tuple(range(len(parameters.moduli)))
        self._ntt = self._backend.forward(residues, self._rows)
        seal_key = sealapi.SecretKey()
        self._version = _seal_version(self._context)
        _load(
            seal_key,
            self._context,
            seal_bytes.write_secret_key(self._ntt, self._parms_ids[len(self._rows)], self._version),
        )
        self._encryptor = sealapi.Encryptor(self._context, seal_key)
        self._decryptor = sealapi.Decryptor(self._context, seal_key)
        self._encoder = sealapi.CKKSEncoder(self._context)

    @staticmethod
    def generate(parameters: Parameters) -> SecretKey:
        """A new ternary secret key, drawn by SEAL."""
        seal_key = sealapi.KeyGenerator(_seal_context(parameters)).secret_key()
        size = 8 * len(parameters.moduli) * parameters.degree
        residues = seal_bytes.read_secret_key(_dump(seal_key, size).members, len(parameters.moduli))
        first = make_backend(parameters).inverse(np.ascontiguousarray(residues[:1]), (0,))[0]
        coefficients = np.where(
            first == np.uint64(parameters.moduli[0] - 1), -1, np.minimum(first, 2).astype(np.int64)
        )
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return SecretKey(parameters, coefficients.astype(np.int8), secrets.token_hex(16), created)

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
        seed = secrets.token_bytes(SEED_BYTES)
        if values.ndim == 2 and len(values):
            b = np.stack([self._encrypted(row, level, scale, seed, i) for i, row in enumerate(values)])
        else:
            b = self._encrypted(values, level, scale, seed, 0)
        return SeededCiphertext(b, seed, level, float(scale))

    def _encrypted(self, values: Slots, level: int, scale: float, seed: bytes, digit: int) -> Residues:
        p, encrypted = self.parameters, sealapi.Ciphertext()
        plain = _encode(self._encoder, p, self._parms_ids, values, level, scale)
        self._encryptor.encrypt_symmetric(plain, encrypted)
        return self._reseed(encrypted, seed, digit, p.data_rows(level))

    def decrypt(self, ciphertext: Ciphertext) -> Slots:
        """The slots of a ciphertext of two or three polynomials, at any level: float64 [N/2], real parts; of a stack [members][N/2].

        The result carries raw noise: shown to others together with the ciphertext it leaks the key (Li and
        Micciancio 2021). Raises EvaluationError for a ciphertext that does not fit the parameters.
        """
        p, polys = self.parameters, ciphertext.polys
        _check_level(p, ciphertext.level)
        if polys.ndim == 4:
            members = (Ciphertext(x, ciphertext.level, ciphertext.scale) for x in polys)
            return np.stack([self.decrypt(x) for x in members])
        shapes = [(count, ciphertext.level + 1, p.degree) for count in (2, 3)]
        if polys.shape not in shapes or polys.dtype != np.uint64:
            raise EvaluationError(
                f"a ciphertext at level {ciphertext.level} cannot be {polys.dtype} of shape {polys.shape}"
            )
        if not 0.0 < ciphertext.scale < float("inf"):
            raise EvaluationError("the scale must be finite and positive")
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
        """SEAL's symmetric encryption of zero over all rows, reseeded: what `PublicKey` encrypts with, anywhere."""
        zero, seed = sealapi.Ciphertext(), secrets.token_bytes(SEED_BYTES)
        self._encryptor.encrypt_zero_symmetric(self._parms_ids[len(self._rows)], zero)
        return SeededPublicKey(self.parameters, self._reseed(zero, seed, 0, self._rows), seed)

    def evaluation_keys(self, needs: KeyNeeds, progress: Progress | None = None) -> SeededKeys:
        """Exactly the needed keys, each over the rows of its level; progress(done, all) follows each key.

        Raises EvaluationError for a level or rotation that these parameters do not have.
        """
        p = self.parameters
        for level in [
            *needs.rotations.values(),
            *([] if needs.relinearisation is None else [needs.relinearisation]),
        ]:
            _check_level(p, level)
        if any(not 0 < steps < p.slots for steps in needs.rotations):
            raise EvaluationError(f"rotation steps must be 1..{p.slots - 1}")
        total, done = len(needs.rotations) + (needs.relinearisation is not None), 0
        relinearisation: SeededKey | None = None
        galois: dict[int, SeededKey] = {}
        if needs.relinearisation is not None:
            rows = p.data_rows(needs.relinearisation)
            s = self._ntt[: len(rows)]
            relinearisation = self._key_switch_key(self._backend.multiply(s, s, rows), needs.relinearisation)
            done += 1
            if progress is not None:
                progress(done, total)
        for steps, level in needs.rotations.items():
            element = p.galois_element(steps)
            galois[element] = self._key_switch_key(
                self._backend.automorphism(self._ntt[: level + 1], element), level
            )
            done += 1
            if progress is not None:
                progress(done, total)
        return SeededKeys(p, relinearisation, galois)

    def _key_switch_key(self, source: Residues, level: int) -> SeededKey:
        """The key s' -> s good up to `level`; `source` is s' over the data rows, NTT domain."""
        p, seed = self.parameters, secrets.token_bytes(SEED_BYTES)
        rows, data_rows = p.extended_rows(level), p.data_rows(level)
        special = np.array([p.special_product % p.moduli[i] for i in data_rows], dtype=np.uint64)
        gadget = self._backend.multiply_scalars(source, special, data_rows)
        digits = []
        for j, (start, stop) in enumerate(p.digits(level)):
            zero = sealapi.Ciphertext()
            self._encryptor.encrypt_zero_symmetric(self._parms_ids[len(self._rows)], zero)
            b = self._reseed(zero, seed, j, rows)
            b[start:stop] = self._backend.add(b[start:stop], gadget[start:stop], data_rows[start:stop])
            digits.append(b)
        return SeededKey(np.stack(digits), seed, level)

    def _reseed(self, encrypted: Any, seed: bytes, digit: int, rows: Rows) -> Residues:
        """SEAL's fresh (b, a), cut to `rows`, as b + (a - a')*s with a' = expand(seed, digit)."""
        members = _dump(encrypted, 16 * len(self._rows) * self.parameters.degree).members
        polys, _, _ = seal_bytes.read_ciphertext(members)
        b, a = np.take(polys, rows, axis=1)
        difference = self._backend.subtract(a, expand(self.parameters, seed, digit, rows), rows)
        return self._backend.add(b, self._backend.multiply(difference, self._ntt[list(rows)], rows), rows)


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
        polys, _, _ = seal_bytes.read_ciphertext(_dump(encrypted, 16 * (level + 1) * p.degree).members)
        return Ciphertext(polys.astype(np.uint64), level, float(scale))


def _check_level(p: Parameters, level: int) -> None:
    if not 0 <= level <= p.max_level:
        raise EvaluationError(f"level {level} does not exist; these parameters have levels 0..{p.max_level}")


def _encode(
    encoder: Any, p: Parameters, parms_ids: dict[int, list[int]], values: Slots, level: int, scale: float
) -> Any:
    """A SEAL plaintext of float64 [k], repeated to fill the slots. Raises EvaluationError; its text holds no value."""
    _check_level(p, level)
    if values.ndim != 1 or values.size == 0 or p.slots % values.size:
        raise EvaluationError(
            f"the number of values must be a power of two up to {p.slots}, got shape {values.shape}"
        )
    if not np.isfinite(values).all() or not 0.0 < scale < float("inf"):
        raise EvaluationError("values and scale must be finite, and the scale positive")
    slots = np.tile(np.asarray(values, dtype=np.float64), p.slots // values.size)
    plain = sealapi.Plaintext()
    try:
        encoder.encode(slots.tolist(), parms_ids[level + 1], float(scale), plain)
    except ValueError:
        raise EvaluationError(
            f"the values do not fit at level {level} and scale {scale:.6g}; lower the scale"
        ) from None
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
