"""Request bodies from strangers: a declared length, checked before a byte is read; a time-out per chunk; a minimum rate."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Mapping

from he_serve.problems import RequestError
from he_serve.settings import Settings

DRAIN_BYTES, DRAIN_SECONDS = 8 << 20, 2.0


def content_length(headers: Mapping[str, str], limit: int, what: str) -> int:
    """The declared body length, which must be 1..limit. Raises RequestError 411, 400 or 413."""
    text = headers.get("content-length")
    if text is None:
        raise RequestError(411, "length-required", f"{what}: send a Content-Length header")
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise RequestError(400, "bad-header", "Content-Length must be a number of bytes")
    if int(text) > limit:
        raise RequestError(413, "too-large", f"{what}: at most {limit} bytes, got {int(text)}")
    return int(text)


def require_type(headers: Mapping[str, str], expected: str) -> None:
    """Raise RequestError 415 unless the body is declared as `expected`, uncompressed."""
    given = headers.get("content-type", "").split(";")[0].strip().lower()
    if given != expected:
        raise RequestError(415, "content-type", f"send Content-Type: {expected}, got {given[:100] or 'none'}")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError(
            415, "content-encoding", "bodies must not be compressed; leave Content-Encoding out"
        )


async def chunks(stream: AsyncIterator[bytes], length: int, settings: Settings) -> AsyncIterator[bytes]:
    """The parts of a body of exactly `length` bytes. Raises RequestError 408 if it is slow, 400 if it ends early or runs on."""
    start, received = time.monotonic(), 0
    while True:
        try:
            part = await asyncio.wait_for(anext(stream), settings.chunk_timeout)
        except StopAsyncIteration:
            break
        except (asyncio.TimeoutError, TimeoutError):
            raise RequestError(
                408, "slow-body", f"no data for {settings.chunk_timeout:g} s; connection closed"
            ) from None
        received += len(part)
        late = time.monotonic() - start - settings.chunk_timeout
        if late > 0 and received < late * settings.minimum_rate:
            raise RequestError(
                408, "slow-body", f"the body must arrive at {settings.minimum_rate:g} bytes/s or faster"
            )
        if received > length:
            raise RequestError(
                400, "length-mismatch", f"the body is longer than its Content-Length of {length} bytes"
            )
        if part:
            yield part
    if received != length:
        raise RequestError(400, "length-mismatch", f"the body ended after {received} of {length} bytes")


async def whole(stream: AsyncIterator[bytes], length: int, settings: Settings) -> bytes:
    """A body of exactly `length` bytes, which the caller has bounded."""
    parts = bytearray()
    async for part in chunks(stream, length, settings):
        parts += part
    return bytes(parts)


async def discard(stream: AsyncIterator[bytes]) -> None:
    """Read the rest of a refused body, within bounds: closing a socket with unread data resets it, and the answer would be lost."""

    async def read() -> None:
        received = 0
        async for part in stream:
            received += len(part)
            if received > DRAIN_BYTES:
                return

    with contextlib.suppress(Exception):
        await asyncio.wait_for(read(), DRAIN_SECONDS)
