"""The secret side: keys, encryption, decryption, secret keys at rest. Never imported by the server."""

from __future__ import annotations

from keys.libraries import AnySecretKey, Library, secret_key_type
from keys.seal import PublicKey, SecretKey
from keys.storage import load_secret_key, save_secret_key

__all__ = [
    "AnySecretKey",
    "Library",
    "PublicKey",
    "SecretKey",
    "load_secret_key",
    "save_secret_key",
    "secret_key_type",
]
