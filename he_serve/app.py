"""The HTTP interface: Open Inference Protocol v2, extended by evaluation keys and encrypted inference.

This file translates between HTTP and the key store, the registry and the executor; it is the only one that knows FastAPI.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ckks.errors import HeError
from ckks.wire import ciphertext_limit, key_file_size
from he_serve import __version__, bodies
from he_serve.executor import Executor, Result
from he_serve.keystore import KeyRecord, KeyStore, expanded_size, sync_file
from he_serve.metrics import CONTENT_TYPE as METRICS_TYPE
from he_serve.metrics import Metrics
from he_serve.problems import CONTENT_TYPE as PROBLEM_TYPE
from he_serve.problems import RequestError, busy
from he_serve.registry import Deployed, load_registry
from he_serve.settings import Settings
from he_serve.validate import validate

_log = logging.getLogger("he_serve")
_BINARY = "application/octet-stream"
_UPLOAD_CHUNK = "application/offset+octet-stream"
_MAX_JSON = 4096
_KINDS = {404: "not-found", 405: "method-not-allowed"}


class NewKey(BaseModel):
    """The body of POST /v2/keys: what is about to be uploaded."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: Annotated[str, Field(max_length=100)]
    bundle_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=1, le=1 << 50)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Server:
    """The state behind the routes; lives within one event loop."""

    def __init__(self, settings: Settings, models: Mapping[str, Deployed]) -> None:
        self.settings, self.models = settings, models
        self.executor = Executor(settings, [m.path for m in models.values()])
        self.metrics = Metrics(lambda: self.executor.waiting, lambda: self.executor.ready_workers)
        self.keys = KeyStore(settings)
        self.draining = False
        self._writing: set[str] = set()
        self._validations: set[asyncio.Task[None]] = set()
        self._one_validation = asyncio.Semaphore(1)

    async def start(self) -> None:
        """Start the workers and take up validations that a restart interrupted."""
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
        reserved = new.size + expanded_size(model.parameters, model.needs)
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

    async def infer(self, name: str, request: Request) -> Result:
        """Evaluate a model on the ciphertext in a request's body. Raises RequestError."""
        if self.draining:
            raise busy("the server is stopping", 10)
        headers = request.headers
        bodies.require_type(headers, _BINARY)
        record, model = self.checked_key(name, headers), self.models[name]
        limit = ciphertext_limit(model.parameters, model.bundle.input.level)
        length = bodies.content_length(headers, limit, "ciphertext")
        data = await bodies.whole(request.stream(), length, self.settings)
        job = asyncio.create_task(self.executor.evaluate(name, self.keys.expanded_path(record.id), data))
        leave = asyncio.create_task(_disconnected(request.receive))
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


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _metadata(model: Deployed) -> dict[str, Any]:
    """Model metadata as the protocol has it; what a client computes with is the bundle."""
    bundle, p = model.bundle, model.parameters
    return {
        "name": bundle.name,
        "versions": [model.digest],
        "platform": "he-serve_ckks",
        "inputs": [{"name": bundle.input.name, "datatype": "FP64", "shape": bundle.input.packing.shape}],
        "outputs": [
            {
                "name": bundle.output.name,
                "datatype": "FP64",
                "shape": bundle.output.packing.shape,
                "labels": bundle.output.labels,
            }
        ],
        "parameters": {
            "description": bundle.description,
            "bundle_digest": model.digest,
            "parameters_digest": p.digest,
            "security_bits": p.security_bits,
            "degree": p.degree,
            "log_qp": round(p.log_qp, 2),
            "promised_error": bundle.promised_error,
            "key_file_bytes": key_file_size(p, model.needs)[1],
            "ciphertext_bytes": ciphertext_limit(p, bundle.input.level),
        },
    }


def _key_status(server: Server, record: KeyRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "model": record.model,
        "bundle_digest": record.bundle_digest,
        "state": record.state,
        "reason": record.reason,
        "size": record.size,
        "offset": server.keys.offset(record),
        "created": round(record.created, 3),
    }


def create_app(settings: Settings) -> FastAPI:
    """The application. Raises HeError if a model or the state folder cannot be used; workers start with its lifespan."""
    models = load_registry(settings.models)
    server = Server(settings, models)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await server.start()
        try:
            yield
        finally:
            await server.stop()

    app = FastAPI(title="he-serve", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.server = server
    _add_protocol_routes(app, server)
    _add_key_routes(app, server)
    _add_infer_route(app, server)
    app.add_exception_handler(RequestError, _on_problem)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_bug)
    app.add_middleware(_Observe, metrics=server.metrics)
    return app


def _add_protocol_routes(app: FastAPI, server: Server) -> None:
    @app.get("/v2")
    async def server_metadata() -> dict[str, Any]:
        return {"name": "he-serve", "version": __version__, "extensions": ["he_keys", "he_infer"]}

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready() -> dict[str, bool]:
        _require_ready(server)
        return {"ready": True}

    @app.get("/v2/models")
    async def models() -> dict[str, Any]:
        return {
            "models": [{"name": m.bundle.name, "bundle_digest": m.digest} for m in server.models.values()]
        }

    @app.get("/v2/models/{name}")
    async def model_metadata(name: str) -> dict[str, Any]:
        return _metadata(server.model(name))

    @app.get("/v2/models/{name}/ready")
    async def model_ready(name: str) -> dict[str, Any]:
        server.model(name)
        _require_ready(server)
        return {"name": name, "ready": True}

    @app.get("/v2/models/{name}/client")
    async def bundle(name: str, request: Request) -> Response:
        model = server.model(name)
        headers = {"ETag": f'"{model.digest}"', "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(model.bundle_bytes, media_type="application/json", headers=headers)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(server.metrics.text(), media_type=METRICS_TYPE)


def _require_ready(server: Server) -> None:
    if server.draining:
        raise busy("the server is stopping", 10)
    if not server.executor.ready_workers:
        raise busy("no evaluation worker is ready yet", 2)


def _add_key_routes(app: FastAPI, server: Server) -> None:
    @app.post("/v2/keys", status_code=201)
    async def create(request: Request, response: Response) -> dict[str, Any]:
        bodies.require_type(request.headers, "application/json")
        length = bodies.content_length(request.headers, _MAX_JSON, "JSON body")
        data = await bodies.whole(request.stream(), length, server.settings)
        try:
            new = NewKey.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(str(x) for x in first["loc"]) or "body"
            raise RequestError(422, "bad-request", f"{where}: {first['msg']}") from None
        record = await asyncio.to_thread(server.create_key, new)
        response.headers["Location"] = f"/v2/keys/{record.id}"
        response.headers["Upload-Offset"] = "0"
        return _key_status(server, record)

    @app.patch("/v2/keys/{key_id}", status_code=204)
    async def append(key_id: str, request: Request) -> Response:
        offset = await server.append(key_id, request.headers, request.stream())
        return Response(status_code=204, headers={"Upload-Offset": str(offset)})

    @app.head("/v2/keys/{key_id}")
    async def upload_offset(key_id: str) -> Response:
        record = server.keys.get(key_id)
        offset = server.keys.offset(record)
        headers = {
            "Upload-Offset": str(offset),
            "Upload-Length": str(record.size),
            "Cache-Control": "no-store",
        }
        return Response(headers=headers)

    @app.get("/v2/keys/{key_id}")
    async def status(key_id: str, response: Response) -> dict[str, Any]:
        response.headers["Cache-Control"] = "no-store"
        return _key_status(server, server.keys.get(key_id))

    @app.delete("/v2/keys/{key_id}", status_code=204)
    async def revoke(key_id: str) -> Response:
        await asyncio.to_thread(server.keys.revoke, key_id)
        return Response(status_code=204)


def _add_infer_route(app: FastAPI, server: Server) -> None:
    @app.post("/v2/models/{name}/infer", response_class=Response)
    async def infer(name: str, request: Request) -> Response:
        result = await server.infer(name, request)
        timing = (
            f"queue;dur={1000 * result.queue_seconds:.1f}, evaluate;dur={1000 * result.evaluate_seconds:.1f}"
        )
        headers = {
            "Server-Timing": timing,
            "Bundle-Digest": server.models[name].digest,
            "Cache-Control": "no-store",
        }
        return Response(result.data, media_type=_BINARY, headers=headers)


def _problem_response(problem: RequestError) -> Response:
    return Response(problem.to_bytes(), problem.status, problem.headers, media_type=PROBLEM_TYPE)


async def _on_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _problem_response(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    problem = RequestError(
        error.status_code, _KINDS.get(error.status_code, "http"), error.detail, dict(error.headers or {})
    )
    return await _on_problem(request, problem)


async def _on_bug(_: Request, error: Exception) -> Response:
    _log.error("request failed: %s", type(error).__name__ if isinstance(error, HeError) else repr(error))
    return _problem_response(
        RequestError(500, "internal", "the server failed on this request; its log has the reason")
    )


class _Observe:
    """Middleware: counts requests by route and status, echoes Request-Id (or makes one), and reads what a refused body has left.

    Closing a socket with unread data resets it and the answer would be lost, so that the rest is read first, within bounds.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"request-id", b"")
        request_id = given if re.fullmatch(rb"[A-Za-z0-9_-]{1,64}", given) else secrets.token_hex(16).encode()
        unread = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers

        async def tracked() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def rest() -> AsyncIterator[bytes]:
            while unread:
                yield (await tracked()).get("body", b"")

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                await bodies.discard(rest())
                extra = [(b"request-id", request_id)] + ([(b"connection", b"close")] if unread else [])
                message["headers"] = [*message.get("headers", []), *extra]
                route = getattr(scope.get("route"), "path", "none")
                self._metrics.requests.labels(scope["method"], route, str(message["status"])).inc()
            await send(message)

        await self._app(scope, tracked, observed)
