"""Messages between the server and its evaluation processes: a JSON header and raw bytes, both with their length first. No pickle."""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any, BinaryIO

Header = dict[str, Any]
_LENGTHS = struct.Struct("<IQ")
MAX_HEADER_BYTES = 1 << 20
MAX_PAYLOAD_BYTES = (
    1 << 30
)  # both ends are ours: this only turns a broken pipe into an error instead of a huge allocation


def dump(header: Header, payload: bytes = b"") -> bytes:
    """One message."""
    text = json.dumps(header).encode()
    return _LENGTHS.pack(len(text), len(payload)) + text + payload


def _lengths(data: bytes) -> tuple[int, int]:
    header, payload = _LENGTHS.unpack(data)
    if header > MAX_HEADER_BYTES or payload > MAX_PAYLOAD_BYTES:
        raise ConnectionError("broken message between server and worker")
    return header, payload


def read(stream: BinaryIO) -> tuple[Header, bytes]:
    """The next message of a blocking, unbuffered stream. Raises EOFError at its end."""
    header, payload = _lengths(_exactly(stream, _LENGTHS.size))
    return json.loads(_exactly(stream, header)), _exactly(stream, payload)


async def read_async(stream: asyncio.StreamReader) -> tuple[Header, bytes]:
    """The next message. Raises asyncio.IncompleteReadError (an EOFError) at the end of the stream."""
    header, payload = _lengths(await stream.readexactly(_LENGTHS.size))
    return json.loads(await stream.readexactly(header)), await stream.readexactly(payload)


def _exactly(stream: BinaryIO, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = stream.read(count - len(parts))
        if not part:
            raise EOFError("the other end closed the pipe")
        parts += part
    return bytes(parts)
