"""Uploaded evaluation keys: one SQLite row and one file each, kept over restarts.

States: uploading -> validating -> ready or rejected. An id is 256 random bits and works as a capability: whoever knows it may use,
query and revoke that key. The bytes on disk are the truth about how far an upload got; the SHA-256 at its end is the truth about them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

from ckks.errors import InputError
from he_serve.problems import RequestError
from he_serve.settings import Settings

State = Literal["uploading", "validating", "ready", "rejected"]
_SCHEMA = """CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY, model TEXT NOT NULL, bundle_digest TEXT NOT NULL, size INTEGER NOT NULL, reserved INTEGER NOT NULL,
    sha256 TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL, created REAL NOT NULL, primes TEXT NOT NULL DEFAULT '')"""
_COLUMNS = "id, model, bundle_digest, size, sha256, state, reason, created, primes"


@dataclass(frozen=True)
class KeyRecord:
    """One uploaded key set. size and sha256: of the file the client announced; created: seconds since the epoch.

    primes: JSON of the prime set that the client chose; "" for the model's.
    """

    id: str
    model: str
    bundle_digest: str
    size: int
    sha256: str
    state: State
    reason: str
    created: float
    primes: str


class KeyStore:
    """All methods are quick (a durable write takes a few milliseconds) and may be called from any thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._folder = settings.state / "keys"
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Two servers on one folder would each undo the other's uploads; the kernel drops the lock when a process ends.
        self._owner = (settings.state / "lock").open("wb")
        try:
            fcntl.flock(self._owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"{settings.state}: another server uses this state folder; stop it or choose another --state"
            ) from None
        self._db = sqlite3.connect(
            settings.state / "keys.sqlite", check_same_thread=False, isolation_level=None
        )
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(_SCHEMA)
        if "primes" not in {
            row[1] for row in self._db.execute("PRAGMA table_info(keys)")
        }:  # of an older server
            self._db.execute("ALTER TABLE keys ADD COLUMN primes TEXT NOT NULL DEFAULT ''")
        self._clean()

    def _clean(self) -> None:
        """Make rows and files agree after an unclean end."""
        for record in self.records():
            if record.state == "ready" and not self.expanded_path(record.id).exists():
                self.finish(record.id, "the server lost this key; make and upload new ones")
        kept = {record.id for record in self.records() if record.state != "rejected"}
        for path in self._folder.iterdir():
            if path.name.split(".")[0] not in kept or path.suffix == ".partial":
                path.unlink()

    def close(self) -> None:
        """Close the database and give up the folder."""
        with self._lock:
            self._db.close()
            self._owner.close()

    def upload_path(self, key_id: str) -> Path:
        """Where the uploaded bytes lie until they are validated."""
        return self._folder / f"{key_id}.upload"

    def expanded_path(self, key_id: str) -> Path:
        """Where the expanded keys lie once they are ready; a file here is always complete."""
        return self._folder / f"{key_id}.packed"

    def create(
        self, model: str, digest: str, size: int, sha256: str, reserved: int, primes: str = ""
    ) -> KeyRecord:
        """Begin an upload. reserved: disk bytes to account for. Raises RequestError 507 if the store is full."""
        self._expire()
        record = KeyRecord(
            secrets.token_urlsafe(32), model, digest, size, sha256, "uploading", "", time.time(), primes
        )
        row = (record.id, model, digest, size, reserved, sha256, record.state, "", record.created, primes)
        with self._lock:
            used = self._db.execute(
                "SELECT coalesce(sum(reserved), 0) FROM keys WHERE state != 'rejected'"
            ).fetchone()[0]
            if used + reserved > self._settings.key_store_bytes:
                raise RequestError(
                    507,
                    "key-store-full",
                    "the server has no space for more keys; revoke old ones or ask its operator",
                )
            self._db.execute("INSERT INTO keys VALUES (?,?,?,?,?,?,?,?,?,?)", row)
        self.upload_path(record.id).touch(mode=0o600)
        return record

    def get(self, key_id: str) -> KeyRecord:
        """One record. Raises RequestError 404."""
        with self._lock:
            row = self._db.execute(f"SELECT {_COLUMNS} FROM keys WHERE id = ?", (key_id,)).fetchone()
        if row is None:
            raise RequestError(
                404,
                "unknown-key",
                "no such key here: it was revoked, it expired, or it was sent to another server",
            )
        return KeyRecord(*row)

    def records(self) -> list[KeyRecord]:
        """All records, oldest first."""
        with self._lock:
            rows = self._db.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY created").fetchall()
        return [KeyRecord(*row) for row in rows]

    def offset(self, record: KeyRecord) -> int:
        """Bytes received of an upload."""
        if record.state != "uploading":
            return record.size
        with contextlib.suppress(FileNotFoundError):
            return self.upload_path(record.id).stat().st_size
        return 0

    def open_upload(self, record: KeyRecord) -> BinaryIO:
        """The upload's file, open for appending, unbuffered: what a write returned from is counted by `offset`."""
        return cast(BinaryIO, self.upload_path(record.id).open("ab", buffering=0))

    def uploaded(self, key_id: str) -> None:
        """The last byte has arrived and is on disk."""
        self._set(key_id, "validating", "")

    def finish(self, key_id: str, reason: str) -> None:
        """Validation is over: ready if `reason` is empty, else rejected. The caller has put the expanded file in place."""
        known = self._set(key_id, "rejected" if reason else "ready", reason)
        self.upload_path(key_id).unlink(missing_ok=True)
        if reason or not known:  # not known: revoked while it was being validated
            self.expanded_path(key_id).unlink(missing_ok=True)

    def revoke(self, key_id: str) -> None:
        """Forget a key and delete its files. Raises RequestError 404."""
        self.get(key_id)
        self._remove(key_id)

    def _set(self, key_id: str, state: State, reason: str) -> bool:
        with self._lock:
            update = self._db.execute(
                "UPDATE keys SET state = ?, reason = ? WHERE id = ?", (state, reason[:500], key_id)
            )
        return update.rowcount == 1

    def _remove(self, key_id: str) -> None:
        with self._lock:
            self._db.execute("DELETE FROM keys WHERE id = ?", (key_id,))
        self.upload_path(key_id).unlink(missing_ok=True)
        self.expanded_path(key_id).unlink(missing_ok=True)

    def _expire(self) -> None:
        """Drop unfinished and rejected uploads that are too old to matter."""
        for record in self.records():
            if (
                record.state in ("uploading", "rejected")
                and record.created + self._settings.upload_lifetime < time.time()
            ):
                self._remove(record.id)


def sync_file(file: BinaryIO) -> None:
    """Put a file's bytes on disk."""
    os.fsync(file.fileno())
