"""The HTTP interface: Open Inference Protocol v2, extended by evaluation keys and encrypted inference.

This file translates between HTTP and the key store, the registry and the executor; it is the only one that knows FastAPI.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from ckks.errors import HeError
from ckks.wire import ciphertexts_limit
from ckks.wire_keys import key_file_size
from he_serve import __version__, bodies
from he_serve.keystore import KeyRecord
from he_serve.metrics import CONTENT_TYPE as METRICS_TYPE
from he_serve.observe import Observe
from he_serve.problems import CONTENT_TYPE as PROBLEM_TYPE
from he_serve.problems import RequestError, busy
from he_serve.registry import Deployed
from he_serve.server import CIPHERTEXT_TYPE, NewKey, PrimeSet, Server
from he_serve.settings import Settings

_log = logging.getLogger("he_serve")
_MAX_JSON = 4096
_KINDS = {404: "not-found", 405: "method-not-allowed"}


def _metadata(model: Deployed) -> dict[str, Any]:
    """Model metadata as the protocol has it; what a client computes with is the bundle."""
    bundle, p = model.bundle, model.parameters
    return {
        "name": bundle.name,
        "versions": [model.digest],
        "platform": "he-serve_ckks",
        "inputs": [
            {"name": spec.name, "datatype": "FP64", "shape": spec.packing.shape} for spec in bundle.inputs
        ],
        "outputs": [
            {"name": spec.name, "datatype": "FP64", "shape": spec.packing.shape, "labels": spec.labels}
            for spec in bundle.outputs
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
            "ciphertext_bytes": ciphertexts_limit(p, bundle.input_ciphertexts, bundle.input_members),
            "images_per_request": bundle.lanes,
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
    server = Server(settings)

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
    app.add_middleware(Observe, metrics=server.metrics)
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

    @app.post("/v2/models/{name}/client")
    async def bundle_on_primes(name: str, request: Request) -> Response:
        wanted = await _json_body(PrimeSet, request, server)
        model = await asyncio.to_thread(server.on_primes, server.model(name), wanted.parameters)
        return Response(model.bundle_bytes, media_type="application/json")

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(server.metrics.text(), media_type=METRICS_TYPE)


_Body = TypeVar("_Body", bound=BaseModel)


async def _json_body(kind: type[_Body], request: Request, server: Server) -> _Body:
    """A small JSON object. Raises RequestError."""
    bodies.require_type(request.headers, "application/json")
    length = bodies.content_length(request.headers, _MAX_JSON, "JSON body")
    data = await bodies.whole(request.stream(), length, server.settings)
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(x) for x in first["loc"]) or "body"
        raise RequestError(422, "bad-request", f"{where}: {first['msg']}") from None


def _require_ready(server: Server) -> None:
    if server.draining:
        raise busy("the server is stopping", 10)
    if not server.executor.ready_workers:
        raise busy("no evaluation worker is ready yet", 2)


def _add_key_routes(app: FastAPI, server: Server) -> None:
    @app.post("/v2/keys", status_code=201)
    async def create(request: Request, response: Response) -> dict[str, Any]:
        new = await _json_body(NewKey, request, server)
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
        await asyncio.to_thread(server.revoke, key_id)
        return Response(status_code=204)


def _add_infer_route(app: FastAPI, server: Server) -> None:
    @app.post("/v2/models/{name}/infer", response_class=Response)
    async def infer(name: str, request: Request) -> Response:
        async def left() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        result = await server.infer(name, request.headers, request.stream(), left)
        timing = (
            f"queue;dur={1000 * result.queue_seconds:.1f}, evaluate;dur={1000 * result.evaluate_seconds:.1f}"
        )
        headers = {
            "Server-Timing": timing,
            "Bundle-Digest": request.headers["bundle-digest"],  # that of the key, as infer has checked
            "Cache-Control": "no-store",
        }
        return Response(result.data, media_type=CIPHERTEXT_TYPE, headers=headers)


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
