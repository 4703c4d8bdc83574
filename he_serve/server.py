"""What a server does with requests, without the HTTP framework: models, keys and their validation, inference."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ckks.encoded import encoded_file
from ckks.errors import HeError, ParameterError
from ckks.expanded import expanded_bytes
from ckks.parameters import Parameters
from ckks.wire import ciphertexts_limit
from ckks.wire_keys import key_file_size
from he_serve import bodies
from he_serve.executor import Executor, Result
from he_serve.keystore import KeyRecord, KeyStore, State, sync_file
from he_serve.metrics import Metrics
from he_serve.problems import RequestError, busy
from he_serve.registry import Deployed, load_registry
from he_serve.settings import Settings
from he_serve.validate import validate

CIPHERTEXT_TYPE = "application/octet-stream"
_UPLOAD_CHUNK = "application/offset+octet-stream"
_KEPT_SETS = 16  # of those that clients ask about; a bundle and a circuit each
Left = Callable[[], Awaitable[None]]


class NewKey(BaseModel):
    """The body of POST /v2/keys: what is about to be uploaded. parameters: a prime set of the client's choice (see PrimeSet)."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: Annotated[str, Field(max_length=100)]
    bundle_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=1, le=1 << 50)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    parameters: dict[str, Any] | None = None


class PrimeSet(BaseModel):
    """The body of POST /v2/models/{name}/client: the parameters that a client wants a model on."""

    model_config = ConfigDict(extra="forbid", strict=True)
    parameters: dict[str, Any]


class Server:
    """The state behind the routes; lives within one event loop."""

    def __init__(self, settings: Settings) -> None:
        """Raises HeError if a model or the state folder cannot be used."""
        self.settings, self.models = settings, load_registry(settings.models, settings.weights_memory)
        self.executor = Executor(settings, [m.path for m in self.models.values()])
        self.metrics = Metrics(
            lambda: self.executor.waiting,
            lambda: self.executor.ready_workers,
            lambda: self.executor.loading_peak,
            {name: m.encoded_bytes for name, m in self.models.items()},
            lambda: len(self._sets_of("ready")),
        )
        self.keys = KeyStore(settings)
        self._on_primes: OrderedDict[tuple[str, str], Deployed] = OrderedDict()
        self._deriving = threading.Lock()
        self.draining = False
        self._admitted = 0
        self._writing: set[str] = set()
        self._validations: set[asyncio.Task[None]] = set()
        self._one_validation = asyncio.Semaphore(1)

    async def start(self) -> None:
        """Start the workers and take up validations that a restart interrupted."""
        self._tidy_encoded()
        shutil.rmtree(self.settings.spool, ignore_errors=True)
        self.settings.spool.mkdir()
        await self.executor.start()
        for record in self.keys.records():
            if record.state == "validating":
                self._validate(record)

    async def stop(self) -> None:
        """Stop everything; interrupted validations start again with the next server."""
        for task in self._validations:
            task.cancel()
        await asyncio.gather(*self._validations, return_exceptions=True)
        await self.executor.stop()
        self.keys.close()

    def _tidy_encoded(self) -> None:
        """Remove the encoded weights of models that are no longer deployed, and those on prime sets that no key uses."""
        folder = self.settings.encoded
        folder.mkdir(exist_ok=True)
        used = [*self.models.values(), *self._sets_of("ready", "validating")]
        kept = {encoded_file(folder, m.bundle).stem for m in used}
        for path in folder.iterdir():
            if path.stem not in kept:
                path.unlink(missing_ok=True)

    def _sets_of(self, *states: State) -> list[Deployed]:
        """Models on primes of clients, those that keys in one of these states are for."""
        used = {(r.model, r.primes) for r in self.keys.records() if r.primes and r.state in states}
        found = []
        for name, primes in sorted(used):
            with contextlib.suppress(HeError):  # the model was deployed anew, and these keys are of no use
                found.append(self.on_primes(self.model(name), json.loads(primes)))
        return found

    def on_primes(self, model: Deployed, parameters: object) -> Deployed:
        """A model on a client's prime set (parsed JSON of unknown origin). Raises RequestError 422. Quick; one at a time.

        The last few are kept.
        """
        try:
            p = Parameters.from_json(parameters)
            key = model.digest, p.digest
            with self._deriving:
                if key not in self._on_primes:
                    self._on_primes[key] = model.on(p)
                while len(self._on_primes) > _KEPT_SETS + self.settings.prime_sets:
                    self._on_primes.popitem(last=False)
                self._on_primes.move_to_end(key)
                return self._on_primes[key]
        except ParameterError as error:
            raise RequestError(422, "prime-set", f"this prime set is refused: {error}") from None

    def _require_place(self, model: Deployed) -> None:
        """Raise RequestError 507 unless there may be encoded weights on the primes of `model`, beside those of keys that are ready.

        Announcing an upload takes no place; when one is complete there may be none any more.
        """
        if not model.own_primes:
            return
        others = [m for m in self._sets_of("ready") if m.digest != model.digest]
        if len(others) >= self.settings.prime_sets:
            raise RequestError(
                507,
                "prime-sets-full",
                f"the server keeps encoded weights for {self.settings.prime_sets} prime sets of clients, and all are in use; "
                "use the model's own primes, or ask its operator (--prime-sets)",
            )
        limit = self.settings.weights_memory
        if (
            limit is not None
            and sum(m.encoded_bytes for m in (*self.models.values(), *others, model)) > limit
        ):
            raise RequestError(
                507,
                "prime-sets-full",
                f"encoded weights on this prime set would take {model.encoded_bytes / 1e6:.1f} MB, more than the server has left for "
                "them; use the model's own primes, or ask its operator (--weights-memory)",
            )

    def model(self, name: str) -> Deployed:
        """A deployed model. Raises RequestError 404."""
        if name not in self.models:
            raise RequestError(
                404, "unknown-model", f"no model is called {name[:100]!r} here; GET /v2/models lists them"
            )
        return self.models[name]

    def create_key(self, new: NewKey) -> KeyRecord:
        """Begin an upload. Raises RequestError."""
        model = self.model(new.model)
        if new.parameters is not None:
            model = self.on_primes(model, new.parameters)
            self._require_place(model)
        if new.bundle_digest != model.digest:
            raise RequestError(
                409, "bundle-changed", f"{new.model} now has another bundle; fetch it and make keys for it"
            )
        least, most = key_file_size(model.parameters, model.needs)
        if not least < new.size <= most:
            raise RequestError(
                422, "key-size", f"a key file for {new.model} has {least + 1} to {most} bytes, got {new.size}"
            )
        reserved = new.size + expanded_bytes(model.parameters, model.needs)
        if model.own_primes:
            reserved += model.encoded_bytes
        return self.keys.create(new.model, model.digest, new.size, new.sha256, reserved, model.own_primes)

    def revoke(self, key_id: str) -> None:
        """Forget a key, and the encoded weights that only its prime set needed. Raises RequestError 404."""
        own = bool(self.keys.get(key_id).primes)
        self.keys.revoke(key_id)
        if own:
            self._tidy_encoded()

    def _deployed(self, record: KeyRecord) -> Deployed | None:
        """What a key was made for, if it is still deployed."""
        model = self.models.get(record.model)
        if model is not None and record.primes:
            try:
                model = self.on_primes(model, json.loads(record.primes))
            except RequestError:
                return None
        return model

    async def append(self, key_id: str, headers: Mapping[str, str], stream: AsyncIterator[bytes]) -> int:
        """Write one part of an upload to disk as it arrives -> the new offset. Raises RequestError."""
        record = self.keys.get(key_id)
        if record.state != "uploading":
            raise RequestError(
                409, "upload-complete", f"this key is {record.state}; nothing more can be uploaded to it"
            )
        bodies.require_type(headers, _UPLOAD_CHUNK)
        if key_id in self._writing:
            raise RequestError(
                409, "upload-busy", "another request is writing this upload; wait for it or drop it"
            )
        offset, given = self.keys.offset(record), headers.get("upload-offset", "")
        if given != str(offset):
            detail = f"Upload-Offset must be {offset}, the bytes received so far; ask with HEAD and go on from there"
            raise RequestError(409, "upload-offset", detail, {"Upload-Offset": str(offset)})
        length = bodies.content_length(headers, record.size - offset, "upload")
        self._writing.add(key_id)
        try:
            with self.keys.open_upload(record) as file:
                async for part in bodies.chunks(stream, length, self.settings):
                    await asyncio.to_thread(file.write, part)
                    self.metrics.received.inc(len(part))
                await asyncio.to_thread(sync_file, file)
        finally:
            self._writing.discard(key_id)
        self.keys.get(key_id)  # it may have been revoked meanwhile
        if offset + length == record.size:
            await asyncio.to_thread(self.keys.uploaded, key_id)
            self._validate(record)
        return offset + length

    def _validate(self, record: KeyRecord) -> None:
        async def task() -> None:
            async with self._one_validation:
                model = await asyncio.to_thread(self._deployed, record)
                if model is None or model.digest != record.bundle_digest:
                    self.keys.finish(
                        record.id, "the model has another bundle now; fetch it and make keys for it"
                    )
                elif (reason := await asyncio.to_thread(self._no_place, model)) is not None:
                    self.keys.finish(record.id, reason)
                else:
                    await validate(record, self.keys, model, self.settings)
                if record.primes:
                    await asyncio.to_thread(self._tidy_encoded)
                outcome = next((r.state for r in self.keys.records() if r.id == record.id), "revoked")
                self.metrics.validated.labels(outcome).inc()

        running = asyncio.create_task(task())
        self._validations.add(running)
        running.add_done_callback(self._validations.discard)

    def _no_place(self, model: Deployed) -> str | None:
        """Why there is no place for the prime set of a key by now, if there is none."""
        try:
            self._require_place(model)
        except RequestError as error:
            return error.detail
        return None

    def checked_key(self, name: str, headers: Mapping[str, str]) -> tuple[KeyRecord, Deployed]:
        """The key that an inference on model `name` names, if it may be used, and the model on its primes. Raises RequestError."""
        model, digest = self.model(name), headers.get("bundle-digest", "")
        if not headers.get("key-id") or not digest:
            raise RequestError(400, "missing-header", "send the headers Key-Id and Bundle-Digest")
        record = self.keys.get(headers["key-id"])
        if record.model != name:
            raise RequestError(409, "other-model", f"this key was made for the model {record.model}")
        model = self._deployed(record) or model
        if digest != model.digest:
            # The key proves that its bundle was deployed here once; any other digest never was, as far as this client can show.
            retired = digest == record.bundle_digest
            kind, status = ("bundle-retired", 410) if retired else ("bundle-changed", 409)
            raise RequestError(status, kind, f"{name} has another bundle; fetch it and make keys for it")
        if record.bundle_digest != digest:
            raise RequestError(
                409, "other-bundle", "this key was made for an older bundle of the model; make new keys"
            )
        if record.state == "rejected":
            raise RequestError(409, "key-rejected", f"this key was rejected: {record.reason}")
        if record.state != "ready":
            raise RequestError(
                409,
                "key-not-ready",
                f"this key is {record.state}; wait until it is ready",
                {"Retry-After": "1"},
            )
        return record, model

    async def infer(
        self, name: str, headers: Mapping[str, str], stream: AsyncIterator[bytes], left: Left
    ) -> Result:
        """Evaluate a model on the ciphertexts in a request's body; `left` returns if the client goes. Raises RequestError."""
        if self.draining:
            raise busy("the server is stopping", 10)
        bodies.require_type(headers, CIPHERTEXT_TYPE)
        record, model = self.checked_key(name, headers)
        bundle = model.bundle
        limit = ciphertexts_limit(model.parameters, bundle.input_ciphertexts, bundle.input_members)
        length = bodies.content_length(headers, limit, "ciphertext")
        # Counted before the body is read: this bounds the ciphertexts in memory, not only those in the queue.
        if self._admitted >= self.settings.workers + self.settings.queue:
            raise busy("all workers are busy and the queue is full; try again later", 5)
        self._admitted += 1
        try:
            if not bundle.input_members:
                data = await bodies.whole(stream, length, self.settings)
                return await self._evaluate(name, record, data, left)
            spooled = self.settings.spool / secrets.token_hex(16)
            try:
                with spooled.open("xb") as file:
                    async for part in bodies.chunks(stream, length, self.settings):
                        await asyncio.to_thread(file.write, part)
                return await self._evaluate(name, record, spooled, left)
            finally:
                spooled.unlink(missing_ok=True)
        finally:
            self._admitted -= 1

    async def _evaluate(self, name: str, record: KeyRecord, data: bytes | Path, left: Left) -> Result:
        """Evaluate, unless the client leaves first."""
        keys = self.keys.expanded_path(record.id)
        job = asyncio.create_task(self.executor.evaluate(name, record.primes, keys, data))
        leave = asyncio.ensure_future(left())
        try:
            await asyncio.wait({job, leave}, return_when=asyncio.FIRST_COMPLETED)
            if not job.done():
                raise RequestError(400, "client-left", "the client closed the connection")
            result = job.result()
        finally:
            job.cancel()
            leave.cancel()
        self.metrics.evaluate.labels(name).observe(result.evaluate_seconds)
        self.metrics.queued.observe(result.queue_seconds)
        return result
