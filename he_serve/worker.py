"""An evaluation process: loads every model once, maps key files, evaluates one request at a time.

It talks to the server in frames over standard input and output. Between two operations of a circuit it looks at its input: a cancel
message stops the job, the end of the stream ends the process (the server is gone).
"""

from __future__ import annotations

import json
import logging
import os
import resource
import select
import sys
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ckks.backends import Backend, backend_for, encoding_backend, make_backend
from ckks.bundle import Bundle
from ckks.circuit import Circuit, Instruction
from ckks.encoded import EncodedWeights, encoded_file
from ckks.errors import HeError, InputError
from ckks.evaluator import CkksEvaluator
from ckks.expanded import map_keys
from ckks.interpreter import run
from ckks.modelfile import CompiledModel, load_model
from ckks.parameters import Parameters
from ckks.rebase import rebase_model
from ckks.types import EvaluationKeys
from ckks.wire import dump_ciphertexts, load_ciphertexts
from he_serve import frames

_log = logging.getLogger("he_serve.worker")


class JobCancelledError(HeError):
    """The server wants no answer to the running job any more."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model ready to run. encoded: the file of its encoded weights, if processes share them."""

    bundle: Bundle
    circuit: Circuit
    parameters: Parameters
    backend: Backend
    weights: EncodedWeights
    encoded: Path | None

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
        return Loaded(model.bundle, model.circuit, backend.parameters, backend, weights, path)


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


def evaluate(model: Loaded, keys: EvaluationKeys, data: bytes | Path, cancelled: Any) -> tuple[bytes, float]:
    """Run a model on the wire bytes of its inputs (or a file of them) -> wire bytes of its outputs, seconds of evaluation.

    Raises InputError.
    """
    bundle, p = model.bundle, model.parameters
    ciphertexts = load_ciphertexts(data, p, bundle.input_ciphertexts, bundle.input_members)
    evaluator = CkksEvaluator(model.backend, keys, model.weights)
    start = time.perf_counter()

    def before_step(_: int, __: Instruction) -> None:
        if cancelled():
            raise JobCancelledError("cancelled")

    uploaded = {name: evaluator.upload(ciphertexts.pop(name)) for name in list(ciphertexts)}
    outputs = run(model.circuit, uploaded, evaluator, before_step)
    results = {name: evaluator.download(outputs[name]) for name in bundle.output_ciphertexts}
    return dump_ciphertexts(p, results), time.perf_counter() - start


def _serve(source: BinaryIO, sink: BinaryIO) -> None:
    def send(header: frames.Header, payload: bytes = b"") -> None:
        sink.write(frames.dump(header, payload))
        sink.flush()

    def cancelled() -> bool:
        if not select.select([source], [], [], 0)[0]:
            return False
        frames.read(
            source
        )  # only a cancel message may come now; at the end of the stream this raises EOFError
        return True

    config, _ = frames.read(source)
    models = load_models(config["models"], config["backend"], config["threads"], Path(config["encoded"]))
    sets = PrimeSets(models, config["prime_sets"], config["backend"], config["threads"])
    mapped = MappedKeys(config["mapped_keys"])
    send({"status": "ready", "peak_memory": _peak_memory()})
    while True:
        job, data = frames.read(source)
        if "model" not in job:
            continue  # a cancel message that crossed our answer
        try:
            keys = Path(job["keys"])
            keys.stat()  # not there: revoked, and no weights are to be encoded for its primes
            model = sets.get(job["model"], job["primes"])
            body = Path(job["file"]) if "file" in job else data
            result, seconds = evaluate(model, mapped.get(keys, model.parameters), body, cancelled)
            send({"status": "done", "seconds": seconds}, result)
        except JobCancelledError:
            send({"status": "cancelled"})
        except FileNotFoundError:
            send({"status": "revoked"})
        except InputError as error:
            send({"status": "bad", "detail": str(error)})
        except (EOFError, BrokenPipeError):
            raise
        except Exception:
            _log.exception("evaluation failed")
            send({"status": "failed"})


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
