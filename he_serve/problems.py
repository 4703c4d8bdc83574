"""Failures as the server reports them: problem+json (RFC 9457) with the inference protocol's `error` string as an extra member."""

from __future__ import annotations

import json
from http import HTTPStatus

from ckks.errors import HeError

CONTENT_TYPE = "application/problem+json"


class RequestError(HeError):
    """A request that fails with `status`. kind: a short stable name, for programs; detail: what is wrong and what to do, for people."""

    def __init__(self, status: int, kind: str, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail, self.headers = status, kind, detail, headers or {}

    def to_bytes(self) -> bytes:
        """The response body."""
        return json.dumps(
            {
                "type": f"urn:he-serve:problem:{self.kind}",
                "title": HTTPStatus(self.status).phrase,
                "status": self.status,
                "detail": self.detail,
                "error": self.detail,
            }
        ).encode()


def busy(detail: str, seconds: int) -> RequestError:
    """503 with the time to wait before another try."""
    return RequestError(503, "busy", detail, {"Retry-After": str(seconds)})
