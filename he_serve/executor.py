"""Evaluation in worker processes: a bounded queue in front, one supervisor task per worker that respawns it when it dies or hangs.

A worker gets one job at a time, or what it says when it is ready: on a GPU, a second one while the first runs, and waiting requests for the
same model with the same keys together.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from he_serve import frames
from he_serve.link import Link
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
    model: str
    primes: str
    keys: Path
    ciphertext: bytes | Path
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
        job = _Job(model, primes, keys, ciphertext, loop.create_future(), loop.time())
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
            process = await self._spawn(self._settings.backends[index % len(self._settings.backends)])
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
                await self._feed(Link(process, ready))
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

    async def _spawn(self, backend: str) -> asyncio.subprocess.Process:
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
            "backend": backend,
            "threads": self._settings.threads,
            "mapped_keys": self._settings.mapped_keys,
            "prime_sets": self._settings.prime_sets,
            "encoded": str(self._settings.encoded),
        }
        process.stdin.write(frames.dump(config))
        return process

    async def _feed(self, link: Link) -> None:
        """Give jobs to a worker until it ends."""
        running: set[asyncio.Task[None]] = set()
        try:
            while (jobs := await self._next_jobs(link)) is not None:
                task = asyncio.create_task(self._run(link, jobs))
                running.add(task)
                task.add_done_callback(running.discard)
                while len(running) >= link.ready["under_way"]:
                    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            for task in running:
                task.cancel()
            raise
        finally:
            link.close()
            await asyncio.gather(*running, return_exceptions=True)

    async def _next_jobs(self, link: Link) -> list[_Job] | None:
        """The next job that somebody still waits for, and those that can go with it; None if the worker ends first."""
        while not link.ended.is_set():
            job_task = asyncio.create_task(self._queue.get())
            end_task = asyncio.create_task(link.ended.wait())
            try:
                await asyncio.wait({job_task, end_task}, return_when=asyncio.FIRST_COMPLETED)
                if not job_task.done():
                    return None  # so that no job is lost on a worker that died idle
                job = job_task.result()
                if not job.abandoned.is_set():
                    return [job, *self._alike(job, link.ready["together"][job.model] - 1)]
            finally:
                job_task.cancel()
                end_task.cancel()
        return None

    def _alike(self, first: _Job, most: int) -> list[_Job]:
        """Take up to `most` jobs for the same model and keys out of the queue; the others keep their order."""
        taken: list[_Job] = []
        for job in [self._queue.get_nowait() for _ in range(self._queue.qsize())] if most else []:
            alike = (job.model, job.keys) == (first.model, first.keys) and not job.abandoned.is_set()
            if alike and len(taken) < most:
                taken.append(job)
            else:
                self._queue.put_nowait(job)
        return taken

    async def _run(self, link: Link, jobs: list[_Job]) -> None:
        """Do jobs together. A worker that cannot be used any more is ended."""
        loop = asyncio.get_running_loop()
        started, number = loop.time(), link.number()
        sizes = [len(job.ciphertext) if isinstance(job.ciphertext, bytes) else None for job in jobs]
        bodies = [
            {"file": str(job.ciphertext)} if size is None else {"size": size}
            for job, size in zip(jobs, sizes, strict=True)
        ]
        first = jobs[0]
        header = {"model": first.model, "primes": first.primes, "keys": str(first.keys), "bodies": bodies}
        payload = b"".join(job.ciphertext for job in jobs if isinstance(job.ciphertext, bytes))
        reply = asyncio.create_task(link.exchange(number, header, payload))
        leave = asyncio.create_task(_all_abandoned(jobs))
        try:
            await asyncio.wait(
                {reply, leave}, timeout=self._settings.evaluate_timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if not reply.done():
                limit = f"{self._settings.evaluate_timeout:g} s"
                text = f"the evaluation took longer than {limit} and was stopped"
                for job in jobs:
                    _fail(job, RequestError(504, "evaluation-timeout", text))
                link.cancel(number)
                await asyncio.wait({reply}, timeout=self._settings.cancel_grace)
                if not reply.done():
                    link.kill()
                return
            answer, found = reply.result()
            at = 0
            for job, result in zip(jobs, answer["results"], strict=True):
                size = result.get("size", 0)
                _settle(job, result, found[at : at + size], answer["seconds"], started - job.queued)
                at += size
        except (EOFError, OSError, ValueError):
            text = "the evaluation process died on this request and is starting again; try again"
            for job in jobs:
                _fail(job, RequestError(500, "worker-died", text))
            link.kill()
        except asyncio.CancelledError:
            for job in jobs:
                _fail(job, busy("the server is stopping", 10))
            raise
        finally:
            reply.cancel()
            leave.cancel()


async def _all_abandoned(jobs: list[_Job]) -> None:
    for job in jobs:
        await job.abandoned.wait()


def _fail(job: _Job, problem: RequestError) -> None:
    if not job.future.done():
        job.future.set_exception(problem)


def _settle(job: _Job, header: frames.Header, payload: bytes, seconds: float, queue_seconds: float) -> None:
    if header["status"] == "done":
        if not job.future.done():
            job.future.set_result(Result(payload, seconds, queue_seconds))
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
