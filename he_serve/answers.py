"""What servers answer, parsed: nothing of it is believed."""

from __future__ import annotations

import json
from typing import Any

from ckks.bundle import Bundle
from ckks.errors import HeError, RemoteError


def parse_json(data: bytes) -> dict[str, Any]:
    """A JSON object. Raises RemoteError."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise RemoteError("the server's answer is not a JSON object; is this an he-serve server?")
    return value


def parse_bundle(data: bytes, name: str) -> Bundle:
    """The bundle of model `name`, checked by our own security table. Raises RemoteError."""
    try:
        bundle = Bundle.from_bytes(data)
    except HeError as error:
        raise RemoteError(f"the server's bundle is refused: {error}") from None
    if bundle.name != name or bundle.to_bytes() != data:
        raise RemoteError(f"the server's bundle is not that of {name} in its canonical form")
    return bundle


def refusal(status: int, data: bytes) -> RemoteError:
    """A problem+json answer, or whatever else came, as an error of ours."""
    try:
        problem = parse_json(data)
        return RemoteError(f"{str(problem['title'])[:200]} ({status}): {str(problem['detail'])[:1000]}")
    except (RemoteError, KeyError):
        return RemoteError(f"the server answered with status {status}; is this an he-serve server?")
