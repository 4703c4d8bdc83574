"""A compiled model tried in one local process without HTTP: encrypt, evaluate, decrypt, compare."""

from __future__ import annotations

import math
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ckks.backends import backend_for, encoding_backend, make_backend
from ckks.bundle import Bundle
from ckks.cleartext import CleartextEvaluator
from ckks.encoded import EncodedWeights
from ckks.errors import InputError
from ckks.evaluator import CkksEvaluator
from ckks.expanded import expand_keys, map_keys
from ckks.interpreter import run
from ckks.modelfile import CompiledModel
from ckks.rehearsal import Stopwatch, typical
from ckks.types import Slots
from ckks.wire import dump_ciphertexts, load_ciphertexts
from ckks.wire_keys import dump_keys
from he_serve.images import Rows, each_row, to_inputs
from he_serve.packing import in_requests, joined, pack_inputs, unpack
from keys.seal import SecretKey

Progress = Callable[[str, int, int], None]


def twin(model: CompiledModel, rows: list[dict[str, Slots]]) -> Slots:
    """The polynomial twin: the circuit on the slots in the clear, float64 [rows][outputs, one after the other]."""
    bundle = model.bundle
    evaluator = CleartextEvaluator(bundle.checked_parameters(), model.weights)
    results = []
    encrypt = evaluator.encrypt_stack if bundle.input_members else evaluator.encrypt
    for group in in_requests(rows, bundle):
        values = {
            name: encrypt(slots, *bundle.input_ciphertexts[name])
            for name, slots in pack_inputs(group, bundle).items()
        }
        found = run(model.circuit, values, evaluator)
        results.append(_flat({name: value.slots for name, value in found.items()}, bundle))
    return np.concatenate(results)[: len(rows)]


def _flat(slots: Mapping[str, Slots], bundle: Bundle) -> Slots:
    """Outputs of all lanes, float64 [lanes][outputs, one after the other]."""
    outputs = [unpack(joined(slots, o), o.packing) for o in bundle.outputs]
    return np.concatenate([x.reshape(len(x), -1) for x in outputs], axis=1)


def try_model(
    model: CompiledModel,
    inputs: Rows,
    original: Callable[[Rows], Slots] | None,
    threads: int,
    progress: Progress,
    backend_name: str = "cpu",
) -> dict[str, Any]:
    """Run every row of `inputs` (he_serve.images.read_rows) encrypted; see the fields in docs of `he-serve try`.

    original: the untouched model on rows, float64 [rows][outputs, one after the other]; None leaves original_error and same_class null.
    same_class: of every output. evaluate_s is the median over requests, each of up to images_per_request rows; layers_s: that one's parts.
    Raises InputError.
    """
    bundle, p = model.bundle, model.bundle.checked_parameters()
    rows = [to_inputs(row, bundle) for row in each_row(inputs)]
    start = time.perf_counter()
    secret = SecretKey.generate(p)
    seeded = secret.evaluation_keys(
        bundle.key_needs(), lambda done, total: progress("making keys", done, total)
    )
    keygen_s = time.perf_counter() - start
    backend_name = backend_for(backend_name, model.circuit)
    backend = make_backend(p, backend_name, threads)
    weights = EncodedWeights(encoding_backend(backend, threads), model.weights)
    weights.prepare(model.circuit)
    logits, runs, ciphertext_bytes = [], [], 0
    with tempfile.TemporaryDirectory(prefix="he-serve-try-") as folder:
        uploaded, expanded = Path(folder) / "keys.upload", Path(folder) / "keys"
        dump_keys(uploaded, seeded)
        key_bytes = uploaded.stat().st_size
        expand_keys(uploaded, expanded, p, bundle.key_needs())
        evaluator = CkksEvaluator(backend, map_keys(expanded, p), weights)
        for i, group in enumerate(in_requests(rows, bundle)):
            packed = pack_inputs(group, bundle)
            sent = {name: bundle.input_ciphertexts[name] for name in packed}
            data = dump_ciphertexts(p, {name: secret.encrypt(packed[name], *sent[name]) for name in packed})
            ciphertext_bytes = len(data)
            ciphertexts = load_ciphertexts(data, p, sent, bundle.input_members)
            watch = Stopwatch()
            sent_up = {name: evaluator.upload(ciphertexts.pop(name)) for name in list(ciphertexts)}
            outputs = run(model.circuit, sent_up, evaluator, watch.step)
            results = {name: evaluator.download(c) for name, c in outputs.items()}
            watch.stop()
            runs.append(watch.layers)
            logits.append(_flat({name: secret.decrypt(c) for name, c in results.items()}, bundle))
            progress("evaluating", min(bundle.lanes * (i + 1), len(rows)), len(rows))
    # Only the last request may be short of images.
    got = np.concatenate(logits)[: len(rows)]
    errors = np.abs(got - twin(model, rows))
    ends = np.cumsum([math.prod(o.packing.shape) for o in bundle.outputs])[:-1]
    agrees = all(
        part.max() <= o.promised_error
        for part, o in zip(np.split(errors, ends, 1), bundle.outputs, strict=True)
    )
    stacked = {spec.name: np.array([row[spec.name] for row in rows]) for spec in bundle.inputs}
    clear = (
        None if original is None else original(stacked if len(stacked) > 1 else stacked[bundle.input.name])
    )
    if clear is not None and clear.shape != got.shape:
        raise InputError(
            f"the ONNX model gives {clear.shape[1]} values a row, the compiled one {got.shape[1]}"
        )
    layers = typical(runs)
    return {
        "agrees": bool(agrees),
        "max_error": float(errors.max()),
        "predicted_error": model.report.get("predicted_error"),
        "promised_error": bundle.promised_error,
        "original_error": None if clear is None else float(np.abs(got - clear).max()),
        "same_class": None
        if clear is None
        else _same_class(np.split(got, ends, 1), np.split(clear, ends, 1)),
        "security_bits": p.security_bits,
        "n": p.degree,
        "log_qp": round(p.log_qp, 2),
        "key_bytes": key_bytes,
        "ciphertext_bytes": ciphertext_bytes,
        "compile_s": None,
        "keygen_s": keygen_s,
        "predicted_s": None,
        "evaluate_s": sum(layers.values()),
        "layers_s": layers,
        "rows": len(rows),
        "images_per_request": bundle.lanes,
        "backend": backend_name,
        "threads": threads,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _same_class(got: list[Slots], clear: list[Slots]) -> bool:
    """Whether every output [rows][elements] has its largest element in the same place, in every row."""
    return all(bool((a.argmax(axis=1) == b.argmax(axis=1)).all()) for a, b in zip(got, clear, strict=True))
