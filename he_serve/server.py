"""What a server does with requests, without the HTTP framework: models, keys and their validation, inference."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ckks.encoded import encoded_file
from ckks.expanded import expanded_bytes
from ckks.wire import ciphertexts_limit
from ckks.wire_keys import key_file_size
from he_serve import bodies
from he_serve.executor import Executor, Result
from he_serve.keystore import KeyRecord, KeyStore, sync_file
from he_serve.metrics import Metrics
from he_serve.problems import RequestError, busy
from he_serve.registry import Deployed, load_registry
from he_serve.settings import Settings
from he_serve.validate import validate

CIPHERTEXT_TYPE = "application/octet-stream"
_UPLOAD_CHUNK = "application/offset+octet-stream"
Left = Callable[[], Awaitable[None]]


class NewKey(BaseModel):
    """The body of POST /v2/keys: what is about to be uploaded."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: Annotated[str, Field(max_length=100)]
    bundle_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=1, le=1 << 50)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


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
        )
        self.keys = KeyStore(settings)
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
        """Remove the encoded weights of models that are no longer deployed."""
        folder = self.settings.encoded
        folder.mkdir(exist_ok=True)
        kept = {encoded_file(folder, m.bundle).stem for m in self.models.values()}
        for path in folder.iterdir():
            if path.stem not in kept:
                path.unlink()

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
        return self.keys.create(new.model, model.digest, new.size, new.sha256, reserved)

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
                model = self.models.get(record.model)
                if model is None or model.digest != record.bundle_digest:
                    self.keys.finish(
                        record.id, "the model has another bundle now; fetch it and make keys for it"
                    )
                else:
                    await validate(record, self.keys, model, self.settings)
                outcome = next((r.state for r in self.keys.records() if r.id == record.id), "revoked")
                self.metrics.validated.labels(outcome).inc()

        running = asyncio.create_task(task())
        self._validations.add(running)
        running.add_done_callback(self._validations.discard)

    def checked_key(self, name: str, headers: Mapping[str, str]) -> KeyRecord:
        """The key that an inference on model `name` names, if it may be used. Raises RequestError."""
        model, digest = self.model(name), headers.get("bundle-digest", "")
        if not headers.get("key-id") or not digest:
            raise RequestError(400, "missing-header", "send the headers Key-Id and Bundle-Digest")
        record = self.keys.get(headers["key-id"])
        if record.model != name:
            raise RequestError(409, "other-model", f"this key was made for the model {record.model}")
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
        return record

    async def infer(
        self, name: str, headers: Mapping[str, str], stream: AsyncIterator[bytes], left: Left
    ) -> Result:
        """Evaluate a model on the ciphertexts in a request's body; `left` returns if the client goes. Raises RequestError."""
        if self.draining:
            raise busy("the server is stopping", 10)
        bodies.require_type(headers, CIPHERTEXT_TYPE)
        record, model = self.checked_key(name, headers), self.models[name]
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
        job = asyncio.create_task(self.executor.evaluate(name, self.keys.expanded_path(record.id), data))
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
