"""The parts of an evaluation process: frames, mapped keys, cancellation between operations, limits on validation."""

from __future__ import annotations

import asyncio
import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import random_ciphertext, random_keys, small_parameters
from serving import start_server

from ckks.errors import MissingKeyError, RemoteError
from ckks.expanded import expand_keys, expanded_bytes, map_keys
from ckks.modelfile import CompiledModel
from ckks.types import EvaluationKeys, KeyNeeds
from ckks.wire import dump_ciphertext, load_ciphertexts
from ckks.wire_keys import dump_keys
from he_serve import frames
from he_serve.client import Client
from he_serve.executor import Executor, _Job
from he_serve.inbox import Inbox
from he_serve.settings import Settings
from he_serve.worker import JobCancelledError, MappedKeys, load_models, start


@pytest.fixture(scope="module")
def expanded(tmp_path_factory: pytest.TempPathFactory, tiny: CompiledModel) -> Path:
    """Expanded keys of noise for tiny."""
    folder, p, needs = tmp_path_factory.mktemp("expanded"), small_parameters(), tiny.bundle.key_needs()
    dump_keys(folder / "upload", random_keys(p, needs, np.random.default_rng(4)))
    expand_keys(folder / "upload", folder / "keys", p, needs)
    return folder / "keys"


@given(
    st.dictionaries(st.text(), st.integers() | st.text()), st.binary(max_size=1000), st.binary(max_size=50)
)
def test_frames(header: dict[str, object], payload: bytes, more: bytes) -> None:
    stream = io.BytesIO(frames.dump(header, payload) + more)
    assert frames.read(stream) == (header, payload)
    assert stream.read() == more
    cut = frames.dump(header, payload)[:-1]
    with pytest.raises(EOFError):
        frames.read(io.BytesIO(cut))


def test_broken_frames_do_not_allocate() -> None:
    with pytest.raises(ConnectionError):
        frames.read(io.BytesIO(b"\xff" * 12))


def test_a_job_is_cancelled_between_operations(models_folder: Path, expanded: Path) -> None:
    p = small_parameters()
    model = load_models([str(models_folder / "tiny.hem")], "cpu", 1)["tiny"]
    data = dump_ciphertext(p, random_ciphertext(p, 2, np.random.default_rng(1)))
    request = load_ciphertexts(data, p, model.bundle.input_ciphertexts)
    steps: list[int] = []

    def cancelled() -> bool:
        steps.append(1)
        return len(steps) == 4

    with pytest.raises(JobCancelledError):
        start(model, map_keys(expanded, p), [dict(request)], cancelled)
    assert len(steps) == 4 < len(model.circuit.instructions)
    with pytest.raises(MissingKeyError):
        start(model, EvaluationKeys(p, None, {}), [dict(request)], lambda: False)


def test_mapped_keys_are_kept_within_bounds(expanded: Path, tmp_path: Path) -> None:
    p, mapped = small_parameters(), MappedKeys(2)
    paths = [tmp_path / str(i) for i in range(3)]
    for path in paths:
        path.write_bytes(expanded.read_bytes())
    first = mapped.get(paths[0], p)
    assert mapped.get(paths[0], p) is first
    mapped.get(paths[1], p)
    mapped.get(paths[2], p)
    assert mapped.get(paths[0], p) is not first
    paths[0].unlink()  # revoked: even a map that is held must not be used again
    with pytest.raises(FileNotFoundError):
        mapped.get(paths[0], p)


def test_expanded_size_is_exact(expanded: Path, tiny: CompiledModel) -> None:
    size = expanded_bytes(small_parameters(), tiny.bundle.key_needs())
    assert size < expanded.stat().st_size < size + 4096
    assert expanded_bytes(small_parameters(), KeyNeeds(None)) == 0


def test_validation_that_takes_too_long_is_a_rejection(models_folder: Path, tmp_path: Path) -> None:
    with (
        start_server(models_folder, tmp_path, validation_timeout=0.01) as server,
        Client(server.url) as client,
        pytest.raises(RemoteError, match=r"refused the keys: .*(too long|memory and time)"),
    ):
        client.ensure_keys()


def test_messages_are_read_ahead() -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb", buffering=0) as source, os.fdopen(write, "wb", buffering=0) as sink:
        inbox = Inbox(source)
        assert not inbox.waiting() and not inbox.waiting(0.001)
        for number in (1, 2):
            sink.write(frames.dump({"number": number}, bytes([number])))
        sink.write(frames.dump({"cancel": 2}))
        assert not inbox.cancelled(1) and inbox.cancelled(2)
        assert inbox.waiting() and [inbox.next() for _ in range(2)] == [
            ({"number": i}, bytes([i])) for i in (1, 2)
        ]
        assert not inbox.waiting()
        sink.close()
        with pytest.raises(EOFError):
            inbox.next()


def test_waiting_jobs_of_the_same_keys_go_together(tmp_path: Path) -> None:
    async def queue() -> None:
        executor, tasks = Executor(Settings(tmp_path, tmp_path), []), []
        for i, key in enumerate("aabacaaab"):
            tasks.append(asyncio.create_task(executor.evaluate("m", "", Path(key), bytes([i]))))
            await asyncio.sleep(0)
        tasks[1].cancel()  # nobody waits for it any more
        await asyncio.sleep(0)

        def numbers(jobs: list[_Job]) -> list[int]:
            return [job.ciphertext[0] for job in jobs if isinstance(job.ciphertext, bytes)]

        first = executor._queue.get_nowait()
        assert numbers([first]) == [0] and numbers(executor._alike(first, 0)) == []
        assert numbers(executor._alike(first, 2)) == [3, 5]
        assert executor.waiting == 6  # in their order
        assert numbers([executor._queue.get_nowait() for _ in range(6)]) == [1, 2, 4, 6, 7, 8]
        for task in tasks:
            task.cancel()

    asyncio.run(queue())
