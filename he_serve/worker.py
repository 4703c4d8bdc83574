"""An evaluation process: loads every model once, maps key files, evaluates what the server sends.

It talks to the server in frames over standard input and output. Between two operations of a circuit it looks at its input: a cancel
message stops the job, the end of the stream ends the process (the server is gone). On a GPU the next job is launched before the answer to
the last one is waited for, so that copies and computation overlap.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ckks.backends import Backend, Fetched, backend_for, encoding_backend, make_backend
from ckks.bundle import Bundle
from ckks.circuit import Circuit, Instruction
from ckks.encoded import EncodedWeights, encoded_file
from ckks.errors import DeviceMemoryError, HeError, InputError
from ckks.evaluator import CkksEvaluator
from ckks.expanded import map_keys
from ckks.interpreter import Step
from ckks.modelfile import CompiledModel, load_model
from ckks.parameters import Parameters
from ckks.rebase import rebase_model
from ckks.types import Ciphertext, EvaluationKeys
from ckks.wire import dump_ciphertexts, load_ciphertexts
from he_serve import frames
from he_serve.inbox import Inbox

_log = logging.getLogger("he_serve.worker")

UNDER_WAY = 2  # jobs on a GPU: one is computed while the next is copied there and the answer of the last is copied back
_POLL = 0.0005  # seconds between two looks at the device, with nothing else to do
TOGETHER = 8  # requests of one client in a job on a GPU


class JobCancelledError(HeError):
    """The server wants no answer to the running job any more."""


@dataclass(eq=False)
class Loaded:
    """A model ready to run. encoded: the file of its encoded weights, if processes share them.

    together: requests in one evaluation, fewer once they did not fit into a GPU's memory.
    """

    bundle: Bundle
    circuit: Circuit
    parameters: Parameters
    backend: Backend
    weights: EncodedWeights
    encoded: Path | None
    together: int

    @staticmethod
    def prepare(model: CompiledModel, backend: Backend, threads: int, folder: Path | None) -> Loaded:
        """Encode the weights of a model, or map them from `folder` if they are there. Raises EvaluationError."""
        weights = EncodedWeights(encoding_backend(backend, threads), model.weights)
        path = None if folder is None else encoded_file(folder, model.bundle)
        start = time.perf_counter()
        if path is None:
            weights.prepare(model.circuit)
        else:
            weights.prepare_shared(model.circuit, path)
        _log.info(
            "%s: %.0f MB of encoded weights in %.2f s; peak memory %.0f MB",
            model.bundle.name,
            weights.nbytes / 1e6,
            time.perf_counter() - start,
            _peak_memory() / 1e6,
        )
        stacks = any(ins.members for ins in model.circuit.instructions)
        together = TOGETHER if backend.name == "gpu" and not stacks else 1
        return Loaded(model.bundle, model.circuit, backend.parameters, backend, weights, path, together)


class MappedKeys:
    """The most recently used key files, mapped. Their pages belong to the page cache; what is bounded here is address space and files."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._maps: OrderedDict[Path, EvaluationKeys] = OrderedDict()

    def get(self, path: Path, parameters: Parameters) -> EvaluationKeys:
        """The keys in `path`. Revoked ones (their file is gone) are let go first, so that their disk space comes back."""
        for other in [p for p in self._maps if not p.exists()]:
            del self._maps[other]
        if path not in self._maps:
            self._maps[path] = map_keys(path, parameters)
        self._maps.move_to_end(path)
        while len(self._maps) > self._capacity:
            self._maps.popitem(last=False)
        return self._maps[path]


def load_models(
    paths: list[str], backend_name: str, threads: int, encoded: Path | None = None
) -> dict[str, Loaded]:
    """Load and encode every model; models of equal parameters share a backend.

    encoded: a folder through which processes share encoded weights; without one they are this process's own.
    """
    backends: dict[tuple[str, str], Backend] = {}
    models: dict[str, Loaded] = {}
    for path in paths:
        model = load_model(Path(path))
        p = model.bundle.checked_parameters()
        key = p.digest, backend_for(backend_name, model.circuit)
        if key not in backends:
            backends[key] = make_backend(p, key[1], threads)
        models[model.bundle.name] = Loaded.prepare(model, backends[key], threads, encoded)
    return models


class PrimeSets:
    """The most recently used models on prime sets that clients chose. Their weights were encoded when the first such key was checked."""

    def __init__(self, models: dict[str, Loaded], capacity: int, backend_name: str, threads: int) -> None:
        self._models, self._capacity = models, capacity
        self._backend_name, self._threads = backend_name, threads
        self._loaded: OrderedDict[tuple[str, str], Loaded] = OrderedDict()

    def get(self, name: str, primes: str) -> Loaded:
        """Model `name` on the prime set `primes` (JSON), or on its own for "". Sets whose last key was revoked are let go first."""
        if not primes:
            return self._models[name]
        for gone in [k for k, m in self._loaded.items() if m.encoded is not None and not m.encoded.exists()]:
            del self._loaded[gone]
        key = name, primes
        if key not in self._loaded:
            self._loaded[key] = self._load(*key)
        self._loaded.move_to_end(key)
        while len(self._loaded) > max(self._capacity, 1):
            self._loaded.popitem(last=False)
        return self._loaded[key]

    def _load(self, name: str, primes: str) -> Loaded:
        base, p = self._models[name], Parameters.from_json(json.loads(primes))
        compiled = CompiledModel(base.bundle, base.circuit, base.weights.weights, {})
        model = rebase_model(compiled, p)
        backend = make_backend(p, backend_for(self._backend_name, model.circuit), self._threads)
        folder = None if base.encoded is None else base.encoded.parent
        return Loaded.prepare(model, backend, self._threads, folder)


def _peak_memory() -> int:
    """Bytes, of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def start(
    model: Loaded,
    keys: EvaluationKeys,
    requests: Sequence[dict[str, Ciphertext]],
    cancelled: Callable[[], bool],
) -> Fetched[list[bytes]]:
    """Run a model on the inputs of requests, which are taken out, and fetch the wire bytes of their outputs.

    Raises InputError, JobCancelledError, DeviceMemoryError.
    """

    def before_step(_: int, __: Instruction) -> None:
        if cancelled():
            raise JobCancelledError("cancelled")

    parts: list[Fetched[list[bytes]]] = []
    left = list(requests)
    while left:
        # Powers of two: every size has a graph of its own.
        count = 1 << (min(model.together, len(left)).bit_length() - 1)
        try:
            parts.append(_launched(model, keys, left[:count], before_step))
        except DeviceMemoryError:
            if count == 1:
                raise
            model.together = count // 2
            _log.warning("%s: %d requests together do not fit into memory", model.bundle.name, count)
        else:
            del left[:count]
    return Fetched(
        lambda: [body for part in parts for body in part.wait()], lambda: all(part.done() for part in parts)
    )


def _launched(
    model: Loaded, keys: EvaluationKeys, requests: Sequence[dict[str, Ciphertext]], before_step: Step
) -> Fetched[list[bytes]]:
    """`start` for requests that go through the circuit as one."""
    count = len(requests)
    evaluator = CkksEvaluator(model.backend, keys, model.weights, together=count > 1)

    def taken(name: str) -> Ciphertext:
        if count == 1:
            return requests[0].pop(name)  # nobody else holds it: its memory goes with its last use
        polys = np.stack([request[name].polys for request in requests])
        return replace(requests[0][name], polys=polys)

    uploaded = {name: evaluator.upload(taken(name)) for name in model.bundle.input_ciphertexts}
    outputs = evaluator.repeat(model.circuit, uploaded, before_step)
    fetched = {name: evaluator.fetch(outputs.pop(name)) for name in model.bundle.output_ciphertexts}

    def wait() -> list[bytes]:
        found = {name: one.wait() for name, one in fetched.items()}
        if count == 1:
            return [dump_ciphertexts(model.parameters, found)]
        return [
            dump_ciphertexts(
                model.parameters, {name: replace(c, polys=c.polys[i]) for name, c in found.items()}
            )
            for i in range(count)
        ]

    return Fetched(wait, lambda: all(one.done() for one in fetched.values()))


@dataclass(frozen=True, eq=False)
class Job:
    """A job that was launched, on time.perf_counter at `started`. results: of each request, None where it is among `bodies`."""

    number: int
    started: float
    results: list[frames.Header | None]
    bodies: Fetched[list[bytes]]

    def answer(self) -> bytes:
        """The message to the server, once it is there."""
        found = self.bodies.wait()
        left = iter(found)
        results = [r or {"status": "done", "size": len(next(left))} for r in self.results]
        header = {"number": self.number, "seconds": time.perf_counter() - self.started, "results": results}
        return frames.dump(header, b"".join(found))


def launch(sets: PrimeSets, mapped: MappedKeys, inbox: Inbox) -> Job:
    """Begin the next job."""
    header, data = inbox.next()
    number, started, count = header["number"], time.perf_counter(), len(header["bodies"])

    def failed(status: str) -> Job:
        return Job(number, started, [{"status": status}] * count, Fetched(list))

    try:
        path, at = Path(header["keys"]), 0
        path.stat()  # not there: revoked, and no weights are to be encoded for its primes
        model = sets.get(header["model"], header["primes"])
        keys, bundle = mapped.get(path, model.parameters), model.bundle
        requests: list[dict[str, Ciphertext]] = []
        results: list[frames.Header | None] = []
        for one in header["bodies"]:
            size = one.get("size", 0)
            body = Path(one["file"]) if "file" in one else data[at : at + size]
            at += size
            try:
                requests.append(
                    load_ciphertexts(body, model.parameters, bundle.input_ciphertexts, bundle.input_members)
                )
                results.append(None)
            except InputError as error:
                results.append({"status": "bad", "detail": str(error)})
        return Job(number, started, results, start(model, keys, requests, lambda: inbox.cancelled(number)))
    except JobCancelledError:
        return failed("cancelled")
    except FileNotFoundError:
        return failed("revoked")
    except (EOFError, BrokenPipeError):
        raise
    except Exception:
        _log.exception("evaluation failed")
        return failed("failed")


def _serve(source: BinaryIO, sink: BinaryIO) -> None:
    def send(message: bytes) -> None:
        sink.write(message)
        sink.flush()

    config, _ = frames.read(source)
    models = load_models(config["models"], config["backend"], config["threads"], Path(config["encoded"]))
    sets = PrimeSets(models, config["prime_sets"], config["backend"], config["threads"])
    mapped = MappedKeys(config["mapped_keys"])
    on_gpu = any(model.backend.name == "gpu" for model in models.values())
    ready = {
        "status": "ready",
        "peak_memory": _peak_memory(),
        "under_way": UNDER_WAY if on_gpu else 1,
        "together": {name: model.together for name, model in models.items()},
    }
    send(frames.dump(ready))
    inbox = Inbox(source)
    launched: deque[Job] = deque()
    while True:
        if not launched or (len(launched) < UNDER_WAY and inbox.waiting()):
            launched.append(launch(sets, mapped, inbox))
            continue
        if len(launched) < UNDER_WAY and not launched[0].bodies.done():
            inbox.waiting(_POLL)
            continue
        job = launched.popleft()
        try:
            send(job.answer())
        except BrokenPipeError:
            raise
        except Exception:
            _log.exception("evaluation failed")
            results = [{"status": "failed"}] * len(job.results)
            send(frames.dump({"number": job.number, "seconds": 0.0, "results": results}))


def main() -> None:
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s"
    )
    # Frames own the real standard output; anything a library prints goes to standard error.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    source = os.fdopen(os.dup(0), "rb", buffering=0)
    try:
        _serve(source, sink)
    except (EOFError, BrokenPipeError):
        pass  # the server has gone
    except HeError as error:
        _log.error("cannot start: %s", error)
        sys.exit(2)


if __name__ == "__main__":
    main()
