"""One request as a worker process of the server evaluates it, without HTTP and without its queue."""

from __future__ import annotations

from pathlib import Path

from ckks.types import EvaluationKeys
from ckks.wire import load_ciphertexts
from he_serve.worker import Loaded, start


def evaluate(model: Loaded, keys: EvaluationKeys, request: bytes | Path) -> bytes:
    """The wire bytes of a request, or a file of them -> those of its answer. Raises InputError."""
    bundle = model.bundle
    inputs = load_ciphertexts(request, model.parameters, bundle.input_ciphertexts, bundle.input_members)
    (answer,) = start(model, keys, [inputs], lambda: False).wait()
    return answer
