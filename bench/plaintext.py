"""Encrypted inference beside ONNX Runtime on the same rows and cores: `python -m bench.plaintext --json FILE`.

Every committed model is compiled, keyed and evaluated through what a deployment uses: wire format, key expansion, the worker's own
`evaluate`, the executor. Only HTTP is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnxruntime
from rich.console import Console

from bench import _common as common
from bench._evaluate import evaluate
from bench._plot import plot_phases
from ckks.bundle import Bundle
from ckks.errors import HeError, RemoteError
from ckks.expanded import expand_keys, map_keys
from ckks.modelfile import save_model
from ckks.types import Slots
from ckks.wire import dump_ciphertexts, load_ciphertexts
from ckks.wire_keys import dump_keys
from compiler.compile import compile_model
from he_serve.cli.output import size
from he_serve.executor import Executor
from he_serve.packing import joined, pack_inputs, unpack
from he_serve.settings import Settings
from he_serve.trial import twin
from he_serve.worker import load_models
from keys import SecretKey

MODELS = ("lesion", "lesion64", "fashion", "digits")
MAX_PAIRS, BUDGET_S = 9, 40.0
WORKER_START_S = 60.0
OTHER = "ONNX Runtime, CPU, float32, not encrypted"

T = TypeVar("T")
Rows = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Client:
    """What a client holds after it has made its keys, and how long its own work took, in seconds."""

    bundle: Bundle
    secret: SecretKey
    keygen_s: float

    def encrypt(self, row: Rows) -> bytes:
        """One input row -> the bytes of a request."""
        sent = self.bundle.input_ciphertexts
        packed = pack_inputs({self.bundle.input.name: row.astype(np.float64)}, self.bundle)
        ciphertexts = {name: self.secret.encrypt(packed[name], *sent[name]) for name in packed}
        return dump_ciphertexts(self.secret.parameters, ciphertexts)

    def decrypt(self, answer: bytes) -> Slots:
        """The bytes of an answer -> logits, float64 [classes]."""
        spec = self.bundle.output
        ciphertexts = load_ciphertexts(answer, self.secret.parameters, self.bundle.output_ciphertexts)
        slots = joined({name: self.secret.decrypt(c) for name, c in ciphertexts.items()}, spec)
        return unpack(slots, spec.packing).reshape(-1)


def measure(name: str, folder: Path, threads: int, say: Callable[[str], None]) -> common.Row:
    """Everything about one committed model, with `folder` for its files. Raises HeError, UnfairComparisonError."""
    onnx = common.ROOT / "models" / f"{name}.onnx"
    rows: Rows = np.load(common.ROOT / "models" / "samples" / f"{name}.npz")["x"]

    say("compiling")
    # The rows that are timed and checked are not those that the compiler saw.
    calibration = rows[MAX_PAIRS:].astype(np.float64)
    model, compile_s = _timed(lambda: compile_model(onnx, calibration=calibration, name=name))
    path = folder / f"{name}.hem"
    save_model(path, model)
    parameters = model.bundle.checked_parameters()

    say("making keys")
    uploaded, expanded = folder / "keys", folder / "expanded"
    client = _make_client(model.bundle, uploaded)
    _, expand_s = _timed(lambda: expand_keys(uploaded, expanded, parameters, model.bundle.key_needs()))
    inputs = [_timed(partial(client.encrypt, row)) for row in rows[:MAX_PAIRS]]
    requests = [request for request, _ in inputs]

    say("evaluating")
    loaded, load_s = _timed(lambda: load_models([str(path)], "cpu", threads)[name])
    evaluation_keys = map_keys(expanded, parameters)
    answers: dict[int, bytes] = {}

    def ours(pair: int) -> None:
        answers[pair] = evaluate(loaded, evaluation_keys, requests[pair])

    session = _session(onnx, threads)

    def other(pair: int) -> None:
        _run(session, rows[pair : pair + 1])

    ours(0)
    other(0)
    timings = common.alternate(ours, other, pairs=MAX_PAIRS, budget_s=BUDGET_S)
    outputs = [_timed(partial(client.decrypt, answers[pair])) for pair in sorted(answers)]

    say("throughput")
    ours_per_s = asyncio.run(_throughput(name, folder, expanded, requests, threads))
    other_per_s = len(rows) / statistics.median(_timed(lambda: _run(session, rows))[1] for _ in range(5))

    used = rows[: len(outputs)]
    decrypted = np.stack([logits for logits, _ in outputs])
    plain = _run(session, used).reshape(decrypted.shape)
    exact = twin(model, [{model.bundle.input.name: row.astype(np.float64)} for row in used])
    common.require_precise(
        f"{name} against the original model", _worst(decrypted, plain), model.bundle.promised_error
    )
    return common.compare(
        timings,
        name=name,
        parameters=parameters,
        other=OTHER,
        other_version=onnxruntime.__version__,
        ours_error=_worst(decrypted, exact),
        other_error=_worst(plain, exact),
        promised_error=model.bundle.promised_error,
        more={
            "slowdown": 1 / statistics.median(timings.ratios),
            "rows_checked": len(used),
            "same_class": int((decrypted.argmax(1) == plain.argmax(1)).sum()),
            "promised_error": model.bundle.promised_error,
            "security_bits": parameters.security_bits,
            "log_qp": round(parameters.log_qp, 2),
            "ours_per_s": ours_per_s,
            "other_per_s": other_per_s,
            "request_bytes": len(requests[0]),
            "answer_bytes": len(answers[0]),
            "key_bytes": uploaded.stat().st_size,
            "expanded_key_bytes": expanded.stat().st_size,
            "model_bytes": path.stat().st_size,
            "compile_s": compile_s,
            "keygen_s": client.keygen_s,
            "expand_keys_s": expand_s,
            "load_s": load_s,
            "encrypt_s": statistics.median(s for _, s in inputs),
            "decrypt_s": statistics.median(s for _, s in outputs),
        },
    )


def _make_client(bundle: Bundle, uploaded: Path) -> Client:
    """Keys as a new client makes them, written as it uploads them."""
    start = perf_counter()
    secret = SecretKey.generate(bundle.checked_parameters())
    dump_keys(uploaded, secret.evaluation_keys(bundle.key_needs()))
    return Client(bundle, secret, perf_counter() - start)


async def _throughput(name: str, folder: Path, keys: Path, requests: list[bytes], workers: int) -> float:
    """Answers per second of the server's executor: one single-threaded worker per core, all busy, warmed up."""
    settings = Settings(models=folder, state=folder, workers=workers, threads=1, queue=4 * workers)
    settings.encoded.mkdir()
    executor = Executor(settings, [folder / f"{name}.hem"])

    async def burst(count: int) -> None:
        await asyncio.gather(
            *(executor.evaluate(name, "", keys, requests[i % len(requests)]) for i in range(count))
        )

    await executor.start()
    try:
        give_up = perf_counter() + WORKER_START_S
        while executor.ready_workers < workers:
            if perf_counter() > give_up:
                raise RemoteError(f"the workers for {name} do not start; their own messages say why")
            await asyncio.sleep(0.05)
        await burst(workers)
        start = perf_counter()
        await burst(2 * workers)
        return 2 * workers / (perf_counter() - start)
    finally:
        await executor.stop()


def _session(onnx: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, rows: Rows) -> npt.NDArray[np.float64]:
    logits: Any = session.run(None, {session.get_inputs()[0].name: rows})[0]
    return np.asarray(logits, dtype=np.float64)


def _worst(a: Slots, b: Slots) -> float:
    return float(np.abs(a - b).max())


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    start = perf_counter()
    return call(), perf_counter() - start


def _print(rows: list[common.Row], threads: int) -> None:
    time = common.seconds
    lines = [
        [
            r.name, time(r.ours_s), time(r.other_s),
            f"{1 / r.ratio:,.0f} ({1 / r.ratio_max:,.0f}..{1 / r.ratio_min:,.0f})",
            f"{r.more['ours_per_s']:.3g}", f"{r.more['other_per_s']:,.0f}",
            f"{r.ours_error:.1e}", f"{r.more['promised_error']:.1e}",
        ]
        for r in rows
    ]  # fmt: skip
    columns = ["model", "encrypted", "plain", "slowdown", "encrypted/s", "plain/s", "error", "promised"]
    common.print_table(f"One image, {threads} threads", columns, lines)
    lines = [
        [
            r.name, time(r.more["keygen_s"]), time(r.more["encrypt_s"]), time(r.more["decrypt_s"]),
            size(r.more["key_bytes"]), size(r.more["request_bytes"]), size(r.more["answer_bytes"]), time(r.more["expand_keys_s"]),
        ]
        for r in rows
    ]  # fmt: skip
    columns = ["model", "make keys", "encrypt", "decrypt", "keys", "request", "answer", "server checks keys"]
    common.print_table("The client's side", columns, lines)


def main() -> int:
    """Run the suite; 1 if a comparison was refused or could not be made."""
    parser = argparse.ArgumentParser(prog="python -m bench.plaintext", description=__doc__)
    parser.add_argument(
        "--json",
        type=Path,
        required=True,
        metavar="FILE",
        help="where to write the report; a plot goes beside it",
    )
    parser.add_argument(
        "--threads", type=int, default=common.cores(), metavar="T", help="for both sides (all cores)"
    )
    parser.add_argument(
        "--models", default=",".join(MODELS), metavar="LIST", help="which of them, separated by commas"
    )
    arguments = parser.parse_args()
    names = arguments.models.split(",")
    if unknown := set(names) - set(MODELS):
        parser.error(f"no such model: {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    if not 1 <= arguments.threads <= common.cores():
        parser.error(f"--threads must be 1..{common.cores()}, the cores of this machine")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)  # a bad path fails now, not after the run
    load = os.getloadavg()[0]
    rows = []
    try:
        with Console(stderr=True).status("starting") as status:
            for name in names:
                with tempfile.TemporaryDirectory(prefix="he-serve-bench-") as folder:
                    say = lambda phase, name=name: status.update(f"{name}: {phase}")  # noqa: E731
                    rows.append(measure(name, Path(folder), arguments.threads, say))
    except (common.UnfairComparisonError, HeError) as error:
        print(f"no result: {error}", file=sys.stderr)
        return 1
    content = common.report(rows, arguments.threads)
    # Load of the machine before we add ours: well above 0 means that somebody else's work is in these times.
    content |= {
        "load_at_start": load,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    common.write_report(arguments.json, content)
    plot_phases(content["rows"], arguments.json.with_suffix(".png"))
    _print(rows, arguments.threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
