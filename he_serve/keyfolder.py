"""A client's own files: secret keys, and what it knows of the servers that hold the matching evaluation keys.

Per model version ("NAME-DIGEST12") one secret-key file, one evaluation-key file while an upload is under way, and one entry in
index.json: the pinned bundle digest per server and model, and the id under which a server knows the keys. Ids are capabilities, so the
folder is for its owner only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ckks.bundle import Bundle
from ckks.errors import KeyFileError
from keys.libraries import AnySecretKey, Library, secret_key_type
from keys.storage import load_secret_key, save_secret_key

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Uploaded(BaseModel):
    """Keys that one server holds, or is being sent."""

    model_config = ConfigDict(extra="forbid")
    url: str
    model: str
    bundle_digest: Digest
    key_id: str


class Pin(BaseModel):
    """The bundle that this client accepted from a server."""

    model_config = ConfigDict(extra="forbid")
    url: str
    model: str
    bundle_digest: Digest


class Index(BaseModel):
    """index.json."""

    model_config = ConfigDict(extra="forbid")
    uploaded: list[Uploaded] = []
    pins: list[Pin] = []


@dataclass(frozen=True)
class LocalKey:
    """A secret-key file and the servers that hold its evaluation keys."""

    file: Path
    model: str
    uploaded: list[Uploaded]


class KeyFolder:
    """passphrase: protects secret-key files; None: plain files of mode 0600. secrets_on_disk False: secret keys stay in memory.

    library: which holds the keys; the files are the same for all. given: the secret key to use in place of new ones, in memory.
    """

    def __init__(
        self,
        path: Path,
        passphrase: str | None,
        secrets_on_disk: bool = True,
        library: Library = "seal",
        given: AnySecretKey | None = None,
    ) -> None:
        self.path, self._passphrase, self._on_disk = path, passphrase, secrets_on_disk
        self._library: Library = library
        self._given = given
        self._memory: dict[str, AnySecretKey] = {}
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            index = path / "index.json"
            self.index = Index.model_validate_json(index.read_bytes()) if index.exists() else Index()
        except ValidationError:
            raise KeyFileError(
                f"{path}/index.json is damaged; move the folder away and make new keys"
            ) from None
        except OSError as error:
            raise KeyFileError(f"cannot use the key folder {path}: {error.strerror}") from None

    def save(self) -> None:
        """Write index.json in one step."""
        part = self.path / "index.json.part"
        part.write_text(self.index.model_dump_json(indent=1))
        part.chmod(0o600)
        os.replace(part, self.path / "index.json")

    def secret_path(self, bundle: Bundle) -> Path:
        """The secret-key file of one model version."""
        return self.path / f"{bundle.name}-{bundle.digest[:12]}.secret"

    def upload_path(self, bundle: Bundle) -> Path:
        """The evaluation-key file of one model version, until a server has it."""
        return self.secret_path(bundle).with_suffix(".evaluation")

    def secret_key(self, bundle: Bundle) -> AnySecretKey | None:
        """The secret key of one model version, if there is one. Raises KeyFileError."""
        path = self.secret_path(bundle)
        if path.name not in self._memory and self._on_disk and path.exists():
            key = load_secret_key(path, self._passphrase, self._library)
            if key.parameters != bundle.checked_parameters():
                raise KeyFileError(
                    f"{path} has other parameters than {bundle.name}; move it away and make new keys"
                )
            self._memory[path.name] = key
        return self._memory.get(path.name)

    def new_secret_key(self, bundle: Bundle) -> AnySecretKey:
        """Generate (or take what was given) and keep a secret key for one model version, in place of an older one. Raises KeyFileError."""
        key = self._given or secret_key_type(self._library).generate(bundle.checked_parameters())
        path = self.secret_path(bundle)
        # What servers and the upload file hold belongs to the older key.
        self.index.uploaded = [u for u in self.index.uploaded if u.bundle_digest != bundle.digest]
        self.save()
        self.upload_path(bundle).unlink(missing_ok=True)
        if self._on_disk:
            path.unlink(missing_ok=True)
            save_secret_key(path, key, self._passphrase, plain=self._passphrase is None)
        self._memory[path.name] = key
        return key

    def uploaded(self, url: str, bundle: Bundle) -> Uploaded | None:
        """What a server holds for one model version."""
        found = (u for u in self.index.uploaded if (u.url, u.bundle_digest) == (url, bundle.digest))
        return next(found, None)

    def add_uploaded(self, entry: Uploaded) -> None:
        """Remember an upload."""
        self.remove_uploaded(entry.url, entry.bundle_digest)
        self.index.uploaded.append(entry)
        self.save()

    def remove_uploaded(self, url: str, digest: str) -> None:
        """Forget an upload."""
        self.index.uploaded = [u for u in self.index.uploaded if (u.url, u.bundle_digest) != (url, digest)]
        self.save()

    def pin(self, url: str, model: str) -> str | None:
        """The accepted bundle digest."""
        return next((p.bundle_digest for p in self.index.pins if (p.url, p.model) == (url, model)), None)

    def set_pin(self, url: str, model: str, digest: str) -> None:
        """Accept a bundle digest."""
        self.index.pins = [p for p in self.index.pins if (p.url, p.model) != (url, model)]
        self.index.pins.append(Pin(url=url, model=model, bundle_digest=digest))
        self.save()

    def keys(self) -> list[LocalKey]:
        """All secret-key files."""
        found = []
        for file in sorted(self.path.glob("*.secret")):
            model, _, digest = file.stem.rpartition("-")
            found.append(
                LocalKey(file, model, [u for u in self.index.uploaded if u.bundle_digest.startswith(digest)])
            )
        return found
