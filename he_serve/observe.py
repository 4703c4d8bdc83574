"""The middleware around every request."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from he_serve import bodies
from he_serve.metrics import Metrics

_METHODS = ("GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS")  # other words would make metrics grow


class Observe:
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
                extra = [(b"request-id", request_id)] + (
                    [(b"connection", b"close")] if unread and scope["http_version"].startswith("1") else []
                )
                message["headers"] = [*message.get("headers", []), *extra]
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if scope["method"] in _METHODS else "other"
                self._metrics.requests.labels(method, route, str(message["status"])).inc()
            await send(message)

        await self._app(scope, tracked, observed)
