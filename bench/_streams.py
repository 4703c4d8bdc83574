"""Streams, events and graphs of the stand-in: what is launched runs LATER, when somebody waits for it.

A stream is a queue. By default nothing in it runs until a wait (of the host, or of a stream that runs) asks for it, so work that relies on
luck instead of an event is done too late, and shows as wrong bits. Streams that are `ahead` run earlier, as far as their waits allow:
that shows what must not be done too soon. The names and arguments are CuPy's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

Work = Callable[[], None]
PATIENCE = 50


class Point:
    """A place in a stream: what an event was recorded at."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.reached = stream, False


class Schedule:
    """All streams of a library.

    ahead: how many pieces of work some streams do whenever anything is queued anywhere, on average. Streams are numbered as they are made;
    0 is the null stream of the first device.
    """

    def __init__(self, ahead: Mapping[int, float]) -> None:
        self.ahead, self.streams = ahead, list[Stream]()
        self._due = dict.fromkeys(ahead, 0.0)
        self.device = 0
        self.nulls = [Stream(self, device=0)]
        self.current = dict[int, Stream]()

    def stream(self) -> Stream:
        """The current stream of the current device."""
        return self.current.get(self.device, self.nulls[self.device])

    def submitted(self) -> None:
        """Let those run that run ahead."""
        for number, count in self.ahead.items():
            self._due[number] += count
            self.streams[number].advance(int(self._due[number]))
            self._due[number] %= 1

    def drain(self) -> None:
        """Everything that was launched is done, as cudaFree makes sure of."""
        for stream in self.streams:
            stream.run()


class Event:
    """As cupy.cuda.Event."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self.point: Point | None = None
        self._asked = 0

    @property
    def done(self) -> bool:
        # Who asks again and again has waited long enough.
        self._asked += 1
        if self._asked > PATIENCE:
            self.synchronize()
        return self.point is None or self.point.reached

    def synchronize(self) -> None:
        if self.point is not None:
            self.point.stream.run(self.point)


class Graph:
    """As cupy.cuda.Graph."""

    def __init__(self, works: list[Work]) -> None:
        self.works = works

    def launch(self, stream: Stream) -> None:
        for work in self.works:
            stream.submit(work)


class Stream:
    """As cupy.cuda.Stream."""

    def __init__(self, schedule: Schedule, device: int) -> None:
        self._schedule, self.device_id = schedule, device
        self.number = len(schedule.streams)
        schedule.streams.append(self)
        self._queue: deque[Work | Point | tuple[Point]] = deque()
        self._capture: list[Work] | None = None
        self._broken = False

    def submit(self, work: Work) -> None:
        """Queue work, or record it."""
        if self._capture is not None:
            self._capture.append(work)
            return
        self._queue.append(work)
        self._schedule.submitted()

    def run(self, until: Point | None = None) -> None:
        """Do what is queued, up to a point, and what it waits for in other streams."""
        while self._queue and not (until is not None and until.reached):
            self._next()

    def advance(self, count: int) -> None:
        """Do so much of what is queued, up to a wait for what has not happened."""
        for _ in range(count):
            if not self._queue or (isinstance(self._queue[0], tuple) and not self._queue[0][0].reached):
                return
            self._next()

    def _next(self) -> None:
        item = self._queue.popleft()
        if isinstance(item, Point):
            item.reached = True
        elif not isinstance(item, tuple):
            item()
        elif not item[0].reached:
            item[0].stream.run(item[0])

    def use(self) -> Stream:
        if self.device_id != self._schedule.device:
            raise RuntimeError(
                "the device that the stream is created on does not match with the current device"
            )
        self._schedule.current[self.device_id] = self
        return self

    def record(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        self._not_capturing("an event recorded in a capture cannot be waited for outside")
        event.point = Point(self)
        self._queue.append(event.point)
        self._schedule.submitted()
        return event

    def wait_event(self, event: Event) -> None:
        self._not_capturing("a capture cannot wait for an event from outside")
        if event.point is not None:
            self._queue.append((event.point,))
            self._schedule.submitted()

    def synchronize(self) -> None:
        self._not_capturing("operation not permitted when stream is capturing")
        self.run()

    def begin_capture(self, mode: int | None = None) -> None:
        if self in self._schedule.nulls:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        self._capture, self._broken = [], False

    def end_capture(self) -> Graph:
        assert self._capture is not None, "no capture was begun"
        graph, self._capture = Graph(self._capture), None
        if self._broken:
            raise RuntimeError("cudaErrorStreamCaptureInvalidated")
        return graph

    def is_capturing(self) -> bool:
        return self._capture is not None

    def _not_capturing(self, reason: str) -> None:
        if self._capture is not None:
            self._broken = True
            raise RuntimeError(reason)
