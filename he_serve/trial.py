"""A compiled model tried in one local process without HTTP: encrypt, evaluate, decrypt, compare."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ckks.backends import encoding_backend, make_backend
from ckks.cleartext import CleartextEvaluator
from ckks.encoded import EncodedWeights
from ckks.errors import InputError
from ckks.evaluator import CkksEvaluator
from ckks.expanded import expand_keys, map_keys
from ckks.interpreter import run
from ckks.modelfile import CompiledModel
from ckks.types import Slots
from ckks.wire import dump_ciphertext, dump_keys, load_ciphertext
from he_serve.images import to_input
from he_serve.packing import pack, unpack
from keys.seal import SecretKey

Progress = Callable[[str, int, int], None]


def twin(model: CompiledModel, rows: list[Slots]) -> Slots:
    """The polynomial twin: the circuit on the slots in the clear, float64 [rows][outputs]."""
    spec, output = model.bundle.input, model.bundle.output
    evaluator = CleartextEvaluator(model.bundle.checked_parameters(), model.weights)
    results = []
    for row in rows:
        value = evaluator.encrypt(pack(row, spec.packing), spec.level, spec.scale)
        slots = run(model.circuit, {spec.name: value}, evaluator)[output.name].slots
        results.append(unpack(slots, output.packing).reshape(-1))
    return np.array(results)


def try_model(
    model: CompiledModel,
    inputs: Slots,
    original: Callable[[Slots], Slots] | None,
    threads: int,
    progress: Progress,
    backend_name: str = "cpu",
) -> dict[str, Any]:
    """Run every row of `inputs`, float64 [rows][...], encrypted; see the fields in docs of `he-serve try`.

    original: the untouched model on rows, float64 [rows][outputs]; None leaves original_error and same_class null. evaluate_s is the
    median over the rows. Raises InputError.
    """
    bundle, p = model.bundle, model.bundle.checked_parameters()
    spec, output = bundle.input, bundle.output
    rows = [to_input(row, spec) for row in inputs]
    start = time.perf_counter()
    secret = SecretKey.generate(p)
    seeded = secret.evaluation_keys(
        bundle.key_needs(), lambda done, total: progress("making keys", done, total)
    )
    keygen_s = time.perf_counter() - start
    backend = make_backend(p, backend_name, threads)
    weights = EncodedWeights(encoding_backend(backend, threads), model.weights)
    weights.prepare(model.circuit)
    logits, seconds, ciphertext_bytes = [], [], 0
    with tempfile.TemporaryDirectory(prefix="he-serve-try-") as folder:
        uploaded, expanded = Path(folder) / "keys.upload", Path(folder) / "keys"
        dump_keys(uploaded, seeded)
        key_bytes = uploaded.stat().st_size
        expand_keys(uploaded, expanded, p, bundle.key_needs())
        evaluator = CkksEvaluator(backend, map_keys(expanded, p), weights)
        for i, row in enumerate(rows):
            data = dump_ciphertext(p, secret.encrypt(pack(row, spec.packing), spec.level, spec.scale))
            ciphertext_bytes = len(data)
            ciphertext = load_ciphertext(data, p, spec.level, spec.scale)
            start = time.perf_counter()
            outputs = run(model.circuit, {spec.name: evaluator.upload(ciphertext)}, evaluator)
            result = evaluator.download(outputs[output.name])
            seconds.append(time.perf_counter() - start)
            logits.append(unpack(secret.decrypt(result), output.packing).reshape(-1))
            progress("evaluating", i + 1, len(rows))
    got = np.array(logits)
    max_error = _worst(got, twin(model, rows))
    clear = None if original is None else original(np.array(rows))
    if clear is not None and clear.shape != got.shape:
        raise InputError(
            f"the ONNX model gives {clear.shape[1]} values a row, the compiled one {got.shape[1]}"
        )
    return {
        "agrees": bool(max_error <= bundle.promised_error),
        "max_error": max_error,
        "promised_error": bundle.promised_error,
        "original_error": None if clear is None else _worst(got, clear),
        "same_class": None if clear is None else bool((got.argmax(axis=1) == clear.argmax(axis=1)).all()),
        "security_bits": p.security_bits,
        "n": p.degree,
        "log_qp": round(p.log_qp, 2),
        "key_bytes": key_bytes,
        "ciphertext_bytes": ciphertext_bytes,
        "compile_s": None,
        "keygen_s": keygen_s,
        "evaluate_s": float(np.median(seconds)),
        "rows": len(rows),
        "backend": backend_name,
        "threads": threads,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _worst(a: Slots, b: Slots) -> float:
    return float(np.abs(a - b).max())
