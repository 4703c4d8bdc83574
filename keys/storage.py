"""A secret key at rest: encrypted under a passphrase (scrypt, AES-256-GCM), or plain with mode 0600 if asked.

File: magic, u32 header size (little-endian), header JSON, body. The body is the ternary coefficients,
int8 [N], encrypted, or followed by the SHA-256 of all before it. What precedes it is authenticated with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ckks.errors import HeError, KeyFileError
from ckks.parameters import Parameters
from keys.libraries import AnySecretKey, Library, secret_key_type

_MAGIC = b"he-serve secret\n"
_MAX_FILE_BYTES = 1 << 20  # 2^16 coefficients and a header of at most 64 primes stay far below
_ENCRYPTED, _PLAIN = "scrypt-17-8-1-aes-256-gcm", "plain"
_SALT_BYTES, _NONCE_BYTES, _DIGEST_BYTES = 16, 12, 32
_REMEDY = "restore it from a copy or make a new key"


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1]
    protection: Literal["scrypt-17-8-1-aes-256-gcm", "plain"]
    parameters: dict[str, Any]
    key_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    created: Annotated[str, Field(pattern=r"^[0-9T:+-]{25}$")]
    salt: Annotated[str, Field(pattern=r"^([0-9a-f]{32})?$")]
    nonce: Annotated[str, Field(pattern=r"^([0-9a-f]{24})?$")]


def save_secret_key(
    path: str | os.PathLike[str], secret_key: AnySecretKey, passphrase: str | None, *, plain: bool = False
) -> None:
    """Write a new file of mode 0600; an existing file is never replaced, a partial one never left.

    passphrase: encrypts the file. plain=True with passphrase None: protected by the file's mode alone.
    Raises KeyFileError.
    """
    if plain == (passphrase is not None) or passphrase == "":
        raise KeyFileError("give a passphrase to encrypt the key file, or ask for a plain file, and not both")
    salt, nonce = ("", "") if plain else (secrets.token_hex(_SALT_BYTES), secrets.token_hex(_NONCE_BYTES))
    header = {
        "version": 1,
        "protection": _PLAIN if plain else _ENCRYPTED,
        "parameters": secret_key.parameters.to_json(),
        "key_id": secret_key.key_id,
        "created": secret_key.created,
        "salt": salt,
        "nonce": nonce,
    }
    text = json.dumps(header).encode()
    start = _MAGIC + struct.pack("<I", len(text)) + text
    secret = secret_key.coefficients().tobytes()
    target = Path(path)
    if passphrase is None:
        # No temporary file ever holds a bare secret: the file itself is made, mode 0600 from the start.
        _write_new(target, start + secret + hashlib.sha256(start + secret).digest())
        return
    sealed = AESGCM(_derive(passphrase, bytes.fromhex(salt))).encrypt(bytes.fromhex(nonce), secret, start)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    _write_new(temporary, start + sealed)
    try:
        os.link(temporary, target)  # atomic, and unlike a rename it refuses to replace
    except OSError as error:
        raise _cannot("write", target, error) from None
    finally:
        temporary.unlink()


def load_secret_key(
    path: str | os.PathLike[str], passphrase: str | None, library: Library = "seal"
) -> AnySecretKey:
    """The secret key in a file of `save_secret_key`, held by `library`; passphrase None for a plain file.

    Raises KeyFileError for a wrong passphrase, a damaged file, or a plain file that others may read; ParameterError for parameters
    that the library cannot have, InputError where it is not installed.
    """
    source = Path(path)
    data, mode = _read(source)
    header, start = _parse_header(data, source)
    body = data[len(start) :]
    if header.protection == _PLAIN:
        # Who gives a passphrase expects an encrypted key: a planted plain one must not pass for it.
        if passphrase is not None:
            raise KeyFileError(
                f"key file {source} is not encrypted and takes no passphrase; is it the file you mean?"
            )
        if stat.S_IMODE(mode) & 0o077:
            raise KeyFileError(
                f"key file {source} is plain and others may open it; chmod 600 it, or make a new key"
            )
        secret, digest = body[:-_DIGEST_BYTES], body[-_DIGEST_BYTES:]
        if hashlib.sha256(start + secret).digest() != digest:
            raise KeyFileError(f"key file {source} is damaged; {_REMEDY}")
    else:
        if passphrase is None:
            raise KeyFileError(f"key file {source} is encrypted; give its passphrase")
        try:
            secret = AESGCM(_derive(passphrase, bytes.fromhex(header.salt))).decrypt(
                bytes.fromhex(header.nonce), body, start
            )
        except (InvalidTag, ValueError):  # ValueError: no salt or nonce
            raise KeyFileError(
                f"wrong passphrase, or key file {source} is damaged; try again, or {_REMEDY}"
            ) from None
    try:
        parameters = Parameters.from_json(header.parameters)
    except HeError as error:
        raise KeyFileError(f"key file {source} has unusable parameters: {error}") from None
    return secret_key_type(library)(
        parameters, np.frombuffer(secret, dtype=np.int8), header.key_id, header.created
    )


def _derive(passphrase: str, salt: bytes) -> bytes:
    """The AES key: scrypt with 128 MiB of memory, about half a second a guess (RFC 7914)."""
    return Scrypt(salt=salt, length=32, n=1 << 17, r=8, p=1).derive(
        passphrase.encode("utf-8", "surrogateescape")
    )


def _parse_header(data: bytes, source: Path) -> tuple[_Header, bytes]:
    """The header, and the bytes up to the body."""
    offset = len(_MAGIC) + 4
    if len(data) < offset or not data.startswith(_MAGIC):
        raise KeyFileError(f"{source} is not a secret-key file")
    end = offset + int.from_bytes(data[len(_MAGIC) : offset], "little")
    try:
        if end > len(data):
            raise ValueError
        return _Header.model_validate_json(data[offset:end]), data[:end]
    except (ValidationError, ValueError):
        raise KeyFileError(f"key file {source} is damaged; {_REMEDY}") from None


def _read(source: Path) -> tuple[bytes, int]:
    """The bytes and the mode of one and the same open file."""
    try:
        with source.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _cannot("read", source, error) from None
    if len(data) > _MAX_FILE_BYTES:
        raise KeyFileError(f"{source} is not a secret-key file: it is larger than {_MAX_FILE_BYTES} bytes")
    return data, mode


def _write_new(path: Path, data: bytes) -> None:
    """Create `path` with mode 0600 and write it through to the disk; on failure nothing is left."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _cannot("write", path, error) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        raise _cannot("write", path, error) from None


def _cannot(verb: str, path: Path, error: OSError) -> KeyFileError:
    if isinstance(error, FileExistsError):
        return KeyFileError(f"key file {path} exists already; choose another name or move it away")
    return KeyFileError(f"cannot {verb} key file {path}: {error.strerror}")
