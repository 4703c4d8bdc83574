"""One evaluation process as the server talks to it: several jobs may be under way, each with a number."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

from he_serve import frames


class Link:
    """Made for a process that is ready. `ended` is set when it has no more to say; whoever waits for an answer then gets an EOFError."""

    def __init__(self, process: asyncio.subprocess.Process, ready: frames.Header) -> None:
        """ready: what the process said when it was (he_serve.worker)."""
        assert process.stdin is not None and process.stdout is not None
        self.ready = ready
        self.ended = asyncio.Event()
        self._process, self._sink, self._source = process, process.stdin, process.stdout
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[tuple[frames.Header, bytes]]] = {}
        self._writing = asyncio.Lock()
        self._reader = asyncio.create_task(self._read())

    def number(self) -> int:
        """A number that no other job has."""
        return next(self._numbers)

    async def exchange(
        self, number: int, header: frames.Header, payload: bytes
    ) -> tuple[frames.Header, bytes]:
        """Send a job and wait for its answer. Raises EOFError, OSError."""
        if self.ended.is_set():
            raise EOFError("the evaluation process has ended")
        answer: asyncio.Future[tuple[frames.Header, bytes]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            async with self._writing:
                self._sink.write(frames.dump({**header, "number": number}, payload))
                await self._sink.drain()
            return await answer
        finally:
            del self._waiting[number]

    def cancel(self, number: int) -> None:
        """Ask for no answer to a job any more; one comes nevertheless."""
        self._sink.write(frames.dump({"cancel": number}))

    def kill(self) -> None:
        """End the process: it cannot be used any more."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self.close()

    def close(self) -> None:
        """Listen no longer."""
        self._reader.cancel()
        self._end()

    async def _read(self) -> None:
        try:
            while True:
                header, payload = await frames.read_async(self._source)
                answer = self._waiting.get(header["number"])
                if answer is not None and not answer.done():
                    answer.set_result((header, payload))
        except (EOFError, OSError, ValueError):
            self._end()

    def _end(self) -> None:
        self.ended.set()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(EOFError("the evaluation process has ended"))
