"""What the server has sent to an evaluation process, read ahead."""

from __future__ import annotations

import select
from collections import deque
from typing import BinaryIO

from he_serve import frames


class Inbox:
    """Messages of the server: jobs in their order, cancel messages for those that are here."""

    def __init__(self, source: BinaryIO) -> None:
        """source: unbuffered. Every method raises EOFError at its end."""
        self._source = source
        self._jobs: deque[tuple[frames.Header, bytes]] = deque()
        self._cancelled: set[int] = set()

    def next(self) -> tuple[frames.Header, bytes]:
        """The next job."""
        while not self._jobs:
            self._read()
        return self._jobs.popleft()

    def waiting(self, seconds: float = 0) -> bool:
        """Whether there is a next job, or comes in so many seconds."""
        if not self._jobs:
            self._look(seconds)
        return bool(self._jobs)

    def cancelled(self, number: int) -> bool:
        """Whether nobody waits for this job any more."""
        self._look()
        return number in self._cancelled

    def _look(self, seconds: float = 0) -> None:
        while select.select([self._source], [], [], seconds)[0]:
            self._read()
            seconds = 0

    def _read(self) -> None:
        header, data = frames.read(self._source)
        if "cancel" in header:
            self._cancelled.add(header["cancel"])
        else:
            self._jobs.append((header, data))
