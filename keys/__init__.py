"""The secret side: keys, encryption, decryption, secret keys at rest. Never imported by the server."""

from __future__ import annotations

from keys.seal import PublicKey, SecretKey
from keys.storage import load_secret_key, save_secret_key

__all__ = ["PublicKey", "SecretKey", "load_secret_key", "save_secret_key"]
