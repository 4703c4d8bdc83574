"""Evaluation in worker processes: a bounded queue in front, one supervisor task per worker that respawns it when it dies or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from he_serve import frames
from he_serve.problems import RequestError, busy
from he_serve.settings import Settings

_log = logging.getLogger("he_serve.executor")
_MAX_BACKOFF = 30.0
_STOP_SECONDS = 2.0


@dataclass(frozen=True)
class Result:
    """The answer's wire bytes, the seconds of evaluation and the seconds spent waiting for a worker."""

    data: bytes
    evaluate_seconds: float
    queue_seconds: float


@dataclass(eq=False)
class _Job:
    header: frames.Header
    payload: bytes
    future: asyncio.Future[Result]
    queued: float
    abandoned: asyncio.Event = field(default_factory=asyncio.Event)


class Executor:
    """Made and used within one event loop; `start` it first, `stop` it last."""

    def __init__(self, settings: Settings, models: list[Path]) -> None:
        self._settings = settings
        self._models = models
        self._queue: asyncio.Queue[_Job] = asyncio.Queue(settings.queue)
        self._supervisors: list[asyncio.Task[None]] = []
        self.ready_workers = 0
        self.loading_peak = 0  # bytes, of the worker that took most memory to load its models

    @property
    def waiting(self) -> int:
        """Jobs that no worker has taken yet."""
        return self._queue.qsize()

    async def start(self) -> None:
        """Start the workers; they become ready later (`ready_workers`)."""
        self._supervisors = [asyncio.create_task(self._supervise(i)) for i in range(self._settings.workers)]

    async def stop(self) -> None:
        """End all workers; jobs still waiting fail."""
        for task in self._supervisors:
            task.cancel()
        await asyncio.gather(*self._supervisors, return_exceptions=True)
        while not self._queue.empty():
            _fail(self._queue.get_nowait(), busy("the server is stopping", 10))

    async def evaluate(self, model: str, primes: str, keys: Path, ciphertext: bytes | Path) -> Result:
        """Run `model` on wire bytes, or on a file of them. primes: as in KeyRecord.

        Raises RequestError: 503 queue full, 422 bad ciphertext, 500 worker died, 504 too slow.

        Cancelling the call cancels the job: before it starts, or between two operations of the circuit.
        """
        loop = asyncio.get_running_loop()
        header = {"model": model, "primes": primes, "keys": str(keys)}
        payload = b""
        if isinstance(ciphertext, Path):
            header["file"] = str(ciphertext)
        else:
            payload = ciphertext
        job = _Job(header, payload, loop.create_future(), loop.time())
        try:
            self._queue.put_nowait(job)
        except asyncio.QueueFull:
            raise busy("all workers are busy and the queue is full; try again later", 5) from None
        try:
            return await job.future
        finally:
            job.abandoned.set()

    async def _supervise(self, index: int) -> None:
        backoff = 0.5
        while True:
            process = await self._spawn()
            was_ready = False
            try:
                assert process.stdout is not None
                ready, _ = await asyncio.wait_for(
                    frames.read_async(process.stdout), self._settings.worker_start_timeout
                )
                self.loading_peak = max(self.loading_peak, ready["peak_memory"])
                _log.info("worker %d is ready (process %d)", index, process.pid)
                was_ready, backoff = True, 0.5
                self.ready_workers += 1
                while (job := await self._next_job(process)) is not None and await self._run(process, job):
                    pass
            except (EOFError, OSError, ValueError, asyncio.TimeoutError, TimeoutError):
                pass
            except asyncio.CancelledError:
                # The server stops: an idle worker ends by itself at the end of its input.
                assert process.stdin is not None
                process.stdin.close()
                with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                    await asyncio.wait_for(process.wait(), _STOP_SECONDS)
                raise
            finally:
                self.ready_workers -= was_ready
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
            _log.error("worker %d ended (code %s); starting another", index, process.returncode)
            if not was_ready:
                await asyncio.sleep(backoff)
                backoff = min(2 * backoff, _MAX_BACKOFF)

    async def _spawn(self) -> asyncio.subprocess.Process:
        threads = str(self._settings.threads)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "he_serve.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the server: it ends its workers itself
            env=os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
        )
        assert process.stdin is not None
        config = {
            "models": [str(path) for path in self._models],
            "backend": self._settings.backend,
            "threads": self._settings.threads,
            "mapped_keys": self._settings.mapped_keys,
            "prime_sets": self._settings.prime_sets,
            "encoded": str(self._settings.encoded),
        }
        process.stdin.write(frames.dump(config))
        return process

    async def _next_job(self, process: asyncio.subprocess.Process) -> _Job | None:
        """The next job that somebody still waits for; None if the idle worker dies first, so that no job is lost on it."""
        while True:
            job_task = asyncio.create_task(self._queue.get())
            end_task = asyncio.create_task(process.wait())
            try:
                await asyncio.wait({job_task, end_task}, return_when=asyncio.FIRST_COMPLETED)
                if not job_task.done():
                    return None
                job = job_task.result()
                if not job.abandoned.is_set():
                    return job
            finally:
                job_task.cancel()
                end_task.cancel()

    async def _run(self, process: asyncio.subprocess.Process, job: _Job) -> bool:
        """Do one job. False if the worker cannot be used any more."""
        assert process.stdin is not None and process.stdout is not None
        loop = asyncio.get_running_loop()
        started = loop.time()
        reply = asyncio.create_task(
            _exchange(process.stdin, process.stdout, frames.dump(job.header, job.payload))
        )
        leave = asyncio.create_task(job.abandoned.wait())
        try:
            await asyncio.wait(
                {reply, leave}, timeout=self._settings.evaluate_timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if not reply.done():
                limit = f"{self._settings.evaluate_timeout:g} s"
                _fail(
                    job,
                    RequestError(
                        504, "evaluation-timeout", f"the evaluation took longer than {limit} and was stopped"
                    ),
                )
                process.stdin.write(frames.dump({"cancel": True}))
                await asyncio.wait({reply}, timeout=self._settings.cancel_grace)
                return reply.done() and reply.exception() is None
            header, payload = reply.result()
            _settle(job, header, payload, started - job.queued)
            return True
        except (EOFError, OSError, ValueError):
            _fail(
                job,
                RequestError(
                    500,
                    "worker-died",
                    "the evaluation process died on this request and is starting again; try again",
                ),
            )
            return False
        except asyncio.CancelledError:
            _fail(job, busy("the server is stopping", 10))
            raise
        finally:
            reply.cancel()
            leave.cancel()


async def _exchange(
    sink: asyncio.StreamWriter, source: asyncio.StreamReader, message: bytes
) -> tuple[frames.Header, bytes]:
    sink.write(message)
    await sink.drain()
    return await frames.read_async(source)


def _fail(job: _Job, problem: RequestError) -> None:
    if not job.future.done():
        job.future.set_exception(problem)


def _settle(job: _Job, header: frames.Header, payload: bytes, queue_seconds: float) -> None:
    if header["status"] == "done":
        if not job.future.done():
            job.future.set_result(Result(payload, header["seconds"], queue_seconds))
    elif header["status"] == "bad":
        _fail(job, RequestError(422, "bad-ciphertext", header["detail"]))
    elif header["status"] == "revoked":
        _fail(job, RequestError(404, "unknown-key", "this key was revoked"))
    else:
        _fail(
            job,
            RequestError(
                500, "evaluation-failed", "the evaluation failed inside the server; its log has the reason"
            ),
        )
