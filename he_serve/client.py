"""The client: fetches a model's bundle, makes and uploads keys, encrypts, asks, decrypts. The secret key never leaves this side.

What a server says is checked before it is used: the bundle against our own security table, its digest against the pin, the answer's
request, size, level and scale, and the plausibility of the decrypted values. That the result is the model's is not proven: a server can
evaluate another circuit.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from ckks.bundle import MAX_BUNDLE_BYTES, Bundle
from ckks.errors import HeError, InputError, RemoteError
from ckks.rebase import is_rebased
from ckks.types import Slots
from ckks.wire import ciphertexts_limit, dump_ciphertexts, load_ciphertexts
from ckks.wire_keys import dump_keys
from he_serve.answers import parse_bundle, parse_json, refusal
from he_serve.images import ImageLike, to_inputs
from he_serve.keyfolder import KeyFolder, Uploaded
from he_serve.packing import in_requests, joined, pack_inputs, unpack
from he_serve.prediction import Prediction, RawPrediction, check_plausible
from keys.libraries import AnySecretKey, Library, own_parameters, secret_key_type

Progress = Callable[[str, int, int], None]
_MAX_JSON = 1 << 20
_PART, _READ = 32 << 20, 1 << 20
_ATTEMPTS = 5


@dataclass
class KeySetup:
    """How the keys came about: seconds of each phase (0 where nothing was to be done) and bytes of the evaluation-key file."""

    make: float = 0.0
    upload: float = 0.0
    validate: float = 0.0
    key_bytes: int = 0


class Client:
    """One model on one server. Close it, or use it in a with statement.

    model: its name; may be left out where the server has only one. key_store: folder for keys that outlive this object; without one they
    live in memory and are revoked at the end. passphrase: protects the secret-key files there (None: plain files of mode 0600).
    pin: the bundle digest (SHA-256) to insist on; without one, the first bundle seen is remembered in key_store and insisted on.
    library: whose keys to use; "openfhe" needs Python 3.10 (docs/openfhe.md). own_primes: have that library choose primes of the model's
    sizes, and the server evaluate on those, if it has a place for them. The default, the model's primes, is faster.
    secret_key: one that the caller has (keys.openfhe.adopt), on whatever primes; it stays in memory, so there is no key_store.
    progress(phase, done, all): called while keys are made and uploaded. timeout: seconds to wait for an answer.
    Methods raise InputError for what the caller brought, RemoteError for what the server did.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        key_store: Path | str | None = None,
        passphrase: str | None = None,
        pin: str | None = None,
        library: Library = "seal",
        own_primes: bool = False,
        secret_key: AnySecretKey | None = None,
        progress: Progress | None = None,
        timeout: float = 600.0,
    ) -> None:
        secret_key_type(library)  # refused now rather than when older keys have been revoked
        if secret_key is not None and key_store is not None:
            raise InputError("a secret key that is given stays in memory: leave the key store out")
        self._own_primes, self._given = library if own_primes else None, secret_key
        self.url = url.rstrip("/")
        self._model, self._pin, self._progress = model, pin, progress or (lambda phase, done, total: None)
        try:
            host = httpx.URL(self.url).host
            if httpx.URL(self.url).scheme not in ("http", "https") or not host:
                raise InputError(f"{url}: not a server's address; give one like http://127.0.0.1:8000")
        except httpx.InvalidURL:
            raise InputError(f"{url}: not a server's address; give one like http://127.0.0.1:8000") from None
        local = host in (
            "127.0.0.1",
            "localhost",
            "::1",
        )  # a proxy from the environment cannot reach this machine's loopback
        limits = httpx.Timeout(timeout, connect=10.0)
        self._http = httpx.Client(
            base_url=self.url, timeout=limits, trust_env=not local, follow_redirects=False
        )
        self._temporary = tempfile.TemporaryDirectory(prefix="he-serve-") if key_store is None else None
        folder = Path(self._temporary.name) if self._temporary is not None else Path(key_store or "")
        self._keys = KeyFolder(folder, passphrase, self._temporary is None, library, secret_key)
        self._bundle: Bundle | None = None
        self._ready_id: str | None = None
        self.setup = KeySetup()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Revoke keys that live in memory only, and close the connection."""
        if self._temporary is not None:
            for entry in list(self._keys.index.uploaded):
                # If the server has gone: its copy is of no use without the secret key.
                with contextlib.suppress(RemoteError):
                    self._request("DELETE", f"/v2/keys/{entry.key_id}", accept=(204, 404))
            self._temporary.cleanup()
        self._http.close()

    # ---- what a caller does ----

    def predict(self, image: ImageLike | Mapping[str, ImageLike]) -> Prediction:
        """Encrypt a picture (a path, a PIL image, or an array as the model takes it), have it classified, decrypt the class.

        image: for a model of several inputs a mapping by their names. Raises InputError for a model of several outputs: see predict_all.
        """
        return self.predict_raw(image).rounded(self.bundle().output)

    def predict_all(self, image: ImageLike | Mapping[str, ImageLike]) -> dict[str, Prediction]:
        """As predict, for every output of the model by its name."""
        raw = self.predict_raw_all(image)
        return {output.name: raw[output.name].rounded(output) for output in self.bundle().outputs}

    def predict_many(
        self, images: Sequence[ImageLike | Mapping[str, ImageLike]]
    ) -> list[dict[str, Prediction]]:
        """As predict_all, for each picture in order; as many as the model's batch holds share a request."""
        outputs = self.bundle().outputs
        return [{o.name: raw[o.name].rounded(o) for o in outputs} for raw in self.predict_many_raw(images)]

    def predict_raw(self, image: ImageLike | Mapping[str, ImageLike]) -> RawPrediction:
        """The decrypted logits themselves. Keep them to yourself.

        A CKKS decryption carries the noise of the ciphertext. Whoever sees raw decryptions together with the ciphertexts (the server,
        above all) can solve for the secret key: CKKS is not IND-CPA-D secure (Li and Micciancio, EUROCRYPT 2021). `predict` rounds that
        noise away. Use this for tests and measurements on data that is not secret, with keys that are not used for anything else.
        """
        name = self.bundle().output.name
        return self.predict_raw_all(image)[name]

    def predict_raw_all(self, image: ImageLike | Mapping[str, ImageLike]) -> dict[str, RawPrediction]:
        """As predict_raw, and as secret, for every output of the model by its name."""
        return self.predict_many_raw([image])[0]

    def predict_many_raw(
        self, images: Sequence[ImageLike | Mapping[str, ImageLike]]
    ) -> list[dict[str, RawPrediction]]:
        """As predict_raw_all, and as secret, for each picture in order; as many as the model's batch holds share a request."""
        bundle = self.bundle()
        rows = [to_inputs(image, bundle) for image in images]
        key_id = self.ensure_keys()
        return [raw for group in in_requests(rows, bundle) for raw in self._ask(bundle, key_id, group)]

    def _ask(self, bundle: Bundle, key_id: str, values: dict[str, Slots]) -> list[dict[str, RawPrediction]]:
        """One request for values [images][*shape] of every input."""
        secret = self._keys.secret_key(bundle)
        assert secret is not None
        p, levels = bundle.checked_parameters(), bundle.input_ciphertexts
        start = time.perf_counter()
        fresh = {
            name: secret.encrypt(slots, *levels[name]) for name, slots in pack_inputs(values, bundle).items()
        }
        body = dump_ciphertexts(p, fresh)
        encrypted = time.perf_counter()
        answer, server = self._infer(bundle, key_id, body)
        received = time.perf_counter()
        try:
            ciphertexts = load_ciphertexts(answer, p, bundle.output_ciphertexts, bundle.output_members)
        except HeError as error:
            raise RemoteError(f"the server's answer is not what the model promises: {error}") from None
        decrypted = {name: secret.decrypt(ciphertext) for name, ciphertext in ciphertexts.items()}
        slots = {output.name: joined(decrypted, output) for output in bundle.outputs}
        for output in bundle.outputs:
            check_plausible(slots[output.name], output, p)
        timings = {
            "encrypt": encrypted - start,
            "round_trip": received - encrypted,
            **server,
            "decrypt": time.perf_counter() - received,
        }
        logits = {output.name: unpack(slots[output.name], output.packing) for output in bundle.outputs}
        images = len(next(iter(values.values())))
        return [
            {
                name: RawPrediction(rows[i], timings, len(body), len(answer), images)
                for name, rows in logits.items()
            }
            for i in range(images)
        ]

    def wait_ready(self, seconds: float) -> None:
        """Wait until the server can evaluate. Raises RemoteError after `seconds`."""
        end = time.monotonic() + seconds
        while self._request("GET", "/v2/health/ready", accept=(200, 503))[1]["x-status"] != "200":
            if time.monotonic() > end:
                raise RemoteError(f"{self.url} is not ready after {seconds:g} s; its log says why")
            time.sleep(0.05)

    def bundle(self) -> Bundle:
        """The model's bundle, checked by our own security table and against the pin. Fetched once."""
        if self._bundle is None:
            bundle, digest = self._fetch_bundle()
            pin = self._pin or self._keys.pin(self.url, bundle.name)
            if pin is not None and digest != pin:
                raise RemoteError(
                    f"the server's bundle for {bundle.name} is {digest[:12]}..., not the pinned {pin[:12]}...: the model was replaced, or "
                    "somebody is in between; if you expect a new version, accept it with `he-serve keys new`"
                )
            if pin is None:
                self._keys.set_pin(self.url, bundle.name, digest)
            self._bundle = self._on_own_primes(bundle)
        return self._bundle

    def new_keys(self) -> str:
        """Accept the bundle that the server has now, whatever was pinned before, and make and upload new keys for it -> the key's id.

        An older secret key for the same bundle is deleted, and this server forgets its evaluation keys.
        """
        bundle, digest = self._fetch_bundle()
        if self._pin not in (None, digest):
            raise RemoteError(
                f"the server's bundle for {bundle.name} is {digest[:12]}..., not the pinned {str(self._pin)[:12]}..."
            )
        self._keys.set_pin(self.url, bundle.name, digest)
        self._bundle = bundle = self._on_own_primes(bundle)
        self.revoke()
        self._keys.new_secret_key(bundle)
        return self.ensure_keys()

    def ensure_keys(self) -> str:
        """Make what is missing of secret key, evaluation keys and upload; wait until the server has checked them -> the key's id."""
        if self._ready_id is None:
            bundle = self.bundle()
            start = time.perf_counter()
            if self._keys.secret_key(bundle) is None:
                self._keys.new_secret_key(bundle)
            entry = self._keys.uploaded(self.url, bundle)
            state = self._key_state(entry.key_id) if entry is not None else "unknown"
            path = self._keys.upload_path(bundle)
            if (
                entry is None
                or state in ("unknown", "rejected")
                or (state == "uploading" and not path.exists())
            ):
                entry, state = self._announce(bundle, path), "uploading"
            made = time.perf_counter()
            if state == "uploading":
                self.setup.key_bytes = path.stat().st_size
                self._upload(entry.key_id, path)
            sent = time.perf_counter()
            self._wait_ready(entry.key_id)
            path.unlink(missing_ok=True)
            self.setup.make, self.setup.upload, self.setup.validate = (
                made - start,
                sent - made,
                time.perf_counter() - sent,
            )
            self._ready_id = entry.key_id
        return self._ready_id

    def revoke(self) -> bool:
        """Have the server forget this model's keys; False if it holds none of ours."""
        bundle = self.bundle()
        entry = self._keys.uploaded(self.url, bundle)
        self._ready_id = None
        if entry is None:
            return False
        self._request("DELETE", f"/v2/keys/{entry.key_id}", accept=(204, 404))
        self._keys.remove_uploaded(self.url, bundle.digest)
        return True

    # ---- requests ----

    def _fetch_bundle(self) -> tuple[Bundle, str]:
        name = self._model or self._only_model()
        data, _ = self._request("GET", f"/v2/models/{name}/client", limit=MAX_BUNDLE_BYTES)
        bundle = parse_bundle(data, name)
        self._model = name
        return bundle, bundle.digest

    def _on_own_primes(self, bundle: Bundle) -> Bundle:
        """The bundle on the primes of our key or our library's choice, if wanted; no more may have changed than follows from them."""
        if self._given is not None:
            primes = self._given.parameters
        elif self._own_primes is not None:
            primes = own_parameters(self._own_primes, bundle.checked_parameters(), bundle.key_needs())
        else:
            return bundle
        path, body = f"/v2/models/{bundle.name}/client", {"parameters": primes.to_json()}
        data, _ = self._request("POST", path, json=body, limit=MAX_BUNDLE_BYTES)
        found = parse_bundle(data, bundle.name)
        if not is_rebased(found, bundle, primes):
            raise RemoteError(f"the server's bundle for other primes is not that of {bundle.name} on them")
        return found

    def _only_model(self) -> str:
        try:
            names = [str(m["name"]) for m in self._json("GET", "/v2/models")["models"]]
        except (KeyError, TypeError):
            raise RemoteError(
                "the server's list of models is malformed; is this an he-serve server?"
            ) from None
        if len(names) != 1 or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", names[0]):
            raise InputError(f"say which model; the server has {', '.join(n[:100] for n in names) or 'none'}")
        return names[0]

    def _announce(self, bundle: Bundle, path: Path) -> Uploaded:
        secret = self._keys.secret_key(bundle)
        assert secret is not None
        if not path.exists():
            keys = secret.evaluation_keys(
                bundle.key_needs(), lambda done, total: self._progress("making keys", done, total)
            )
            part = path.with_suffix(".part")
            dump_keys(part, keys)
            part.replace(path)
        new = {
            "model": bundle.name,
            "bundle_digest": bundle.digest,
            "size": path.stat().st_size,
            "sha256": _file_digest(path),
        } | ({"parameters": bundle.parameters} if self._own_primes or self._given else {})
        try:
            key_id = str(self._json("POST", "/v2/keys", json=new, accept=(201,))["id"])
        except (KeyError, TypeError):
            raise RemoteError("the server's answer to a new key is malformed") from None
        if not re.fullmatch(r"[A-Za-z0-9_-]{16,100}", key_id):
            raise RemoteError("the server gave a malformed key id")
        entry = Uploaded(url=self.url, model=bundle.name, bundle_digest=bundle.digest, key_id=key_id)
        self._keys.add_uploaded(entry)
        return entry

    def _upload(self, key_id: str, path: Path) -> None:
        """Send what the server lacks, from where it stands; a broken connection is tried again from there."""
        size, failures = path.stat().st_size, 0
        offset = self._offset(key_id, size)
        while offset < size:
            length = min(_PART, size - offset)
            headers = {
                "Content-Type": "application/offset+octet-stream",
                "Content-Length": str(length),
                "Upload-Offset": str(offset),
            }
            try:
                self._request(
                    "PATCH",
                    f"/v2/keys/{key_id}",
                    content=self._parts(path, offset, length, size),
                    headers=headers,
                    accept=(204,),
                )
                offset, failures = offset + length, 0
            except _ConnectionLostError:
                failures += 1
                if failures == _ATTEMPTS:
                    raise
                time.sleep(0.2 * 2**failures)
                offset = self._offset(key_id, size)

    def _parts(self, path: Path, offset: int, length: int, size: int) -> Iterator[bytes]:
        with path.open("rb") as file:
            file.seek(offset)
            for start in range(0, length, _READ):
                yield file.read(min(_READ, length - start))
                self._progress("uploading", min(offset + start + _READ, offset + length), size)

    def _offset(self, key_id: str, size: int) -> int:
        _, headers = self._request("HEAD", f"/v2/keys/{key_id}")
        text = headers.get("upload-offset", "")
        if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) > size:
            raise RemoteError("the server reports an impossible Upload-Offset")
        return int(text)

    def _key_state(self, key_id: str) -> str:
        data, headers = self._request("GET", f"/v2/keys/{key_id}", accept=(200, 404))
        if headers["x-status"] == "404":
            return "unknown"
        return str(parse_json(data).get("state"))

    def _wait_ready(self, key_id: str) -> None:
        pause = 0.02
        while True:
            status = self._json("GET", f"/v2/keys/{key_id}")
            if status.get("state") == "ready":
                return
            if status.get("state") != "validating":
                raise RemoteError(
                    f"the server refused the keys: {str(status.get('reason') or status.get('state'))[:500]}"
                )
            self._progress("server checks keys", 0, 1)
            time.sleep(pause)
            pause = min(1.0, 1.5 * pause)

    def _infer(self, bundle: Bundle, key_id: str, body: bytes) -> tuple[bytes, dict[str, float]]:
        request_id = secrets.token_hex(16)
        headers = {
            "Content-Type": "application/octet-stream",
            "Key-Id": key_id,
            "Bundle-Digest": bundle.digest,
            "Request-Id": request_id,
        }
        p = bundle.checked_parameters()
        limit = ciphertexts_limit(p, bundle.output_ciphertexts, bundle.output_members)
        data, answer = self._request(
            "POST", f"/v2/models/{bundle.name}/infer", content=body, headers=headers, limit=limit
        )
        if answer.get("request-id") != request_id or answer.get("bundle-digest") != bundle.digest:
            raise RemoteError("the server's answer belongs to another request or model")
        times = re.findall(
            r"\b(queue|evaluate);dur=([0-9]{1,12}(?:\.[0-9]{1,6})?)", answer.get("server-timing", "")
        )
        return data, {name: float(milliseconds) / 1000 for name, milliseconds in times}

    def _json(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        return parse_json(self._request(method, path, **request)[0])

    def _request(
        self,
        method: str,
        path: str,
        *,
        limit: int = _MAX_JSON,
        accept: tuple[int, ...] = (200,),
        **request: Any,
    ) -> tuple[bytes, dict[str, str]]:
        """One exchange -> body of at most `limit` bytes, headers in lower case plus "x-status"."""
        try:
            with self._http.stream(method, path, **request) as response:
                data = bytearray()
                for part in response.iter_raw():
                    data += part
                    if len(data) > limit:
                        raise RemoteError(
                            f"the server's answer is longer than the {limit} bytes that it may have"
                        )
                headers = {key.lower(): value for key, value in response.headers.items()} | {
                    "x-status": str(response.status_code)
                }
        except httpx.ConnectError:
            raise RemoteError(
                f"cannot connect to {self.url}; start the server with `he-serve serve`, or check the address"
            ) from None
        except httpx.TimeoutException:
            raise _ConnectionLostError(f"{self.url} did not answer in time; try again later") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _ConnectionLostError(
                f"the connection to {self.url} failed: {type(error).__name__}; try again"
            ) from None
        if response.status_code not in accept:
            raise refusal(response.status_code, bytes(data))
        return bytes(data), headers


class _ConnectionLostError(RemoteError):
    """A connection that broke: worth another try."""


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_READ):
            digest.update(part)
    return digest.hexdigest()
