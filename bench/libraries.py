"""Whole models on our engine, with keys of each library, beside the libraries' own evaluators: `python -m bench.libraries --json FILE`.

One compiled circuit a model. Ours runs it with the compiler's key-switching primes, with SEAL's kind (one limb a digit, one special prime)
and with OpenFHE's (its 60-bit special primes; keys drawn by OpenFHE on Python 3.10). OpenFHE's own evaluator runs the same circuit;
TenSEAL's CKKSVector runs the network as its tutorial writes such networks; ONNX Runtime runs it in the clear.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from rich.console import Console

from bench import _common as common
from bench import _networks as networks
from bench import _openfhe as openfhe
from bench._orion import peak_rss
from ckks.backends import make_backend
from ckks.encoded import EncodedWeights
from ckks.errors import HeError
from ckks.evaluator import CkksEvaluator
from ckks.expanded import expand_keys, map_keys
from ckks.interpreter import run
from ckks.modelfile import CompiledModel, save_model
from ckks.parameters import Parameters
from ckks.primes import ntt_primes
from ckks.wire import dump_ciphertexts, load_ciphertexts
from ckks.wire_keys import dump_keys
from compiler.compile import compile_model
from he_serve.packing import joined, pack_inputs, unpack
from keys import SecretKey

ROWS = 3
ROUNDS, BUDGET_S = (
    7,
    60.0,
)  # each model: rounds of one run a side, until the budget is spent; never fewer than two
LEAST_S = 0.1  # ours and plaintext are repeated for so long
SLOW_S = 15.0  # a side that takes longer runs once
LENET_BYTES = 14 << 30
VECTORS = "TenSEAL's vectors"
Logits = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A committed model, or one of bench/_networks."""

    name: str
    committed: bool
    precision: float


CASES = (
    Case("digits", True, 1e-3),
    Case("lola", False, 0.01),
    Case("lesion", True, 1e-3),
    Case("lenet", False, 0.03),
)


@dataclass
class Side:
    """What is timed: `seconds(row)` runs one row; `logits(row)` is its last result. more: sizes, as they go into the report."""

    name: str
    version: str
    parameters: str
    seconds: Callable[[int], float]
    logits: Callable[[int], Logits]
    target: float | None = None
    more: dict[str, Any] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)


def _repeated(call: Callable[[], object]) -> float:
    return common.repeat(call, LEAST_S)


def _ours(
    name: str,
    model: CompiledModel,
    parameters: Parameters,
    rows: list[Logits],
    folder: Path,
    threads: int,
    client: openfhe.Process | None,
) -> Side:
    """Our engine over `parameters`, which share the circuit's data primes.

    client: the process whose OpenFHE holds the key; None: SEAL holds it, here.
    """
    common.require_secure(parameters)
    bundle, levels = model.bundle, model.bundle.input_ciphertexts
    folder.mkdir()
    uploaded, expanded = folder / "keys", folder / "expanded"
    requests: list[bytes] = []
    if client is None:
        start = perf_counter()
        secret = SecretKey.generate(parameters)
        dump_keys(uploaded, secret.evaluation_keys(bundle.key_needs()))
        keygen_s = perf_counter() - start
        for row in rows:
            slots = pack_inputs({bundle.input.name: row}, bundle)
            fresh = {name: secret.encrypt(part, *levels[name]) for name, part in slots.items()}
            requests.append(dump_ciphertexts(parameters, fresh))
    else:
        answer = client.ask("client", parameters=parameters.to_json(), folder=str(folder))
        keygen_s = answer["keygen_s"]
        requests = [(folder / f"request-{i}").read_bytes() for i in range(len(rows))]
    expand_keys(uploaded, expanded, parameters, bundle.key_needs())
    backend = make_backend(parameters, "cpu", threads)
    weights = EncodedWeights(backend, model.weights)
    weights.prepare(model.circuit)
    evaluator = CkksEvaluator(backend, map_keys(expanded, parameters), weights)
    answers: dict[int, bytes] = {}

    def evaluate(row: int) -> None:
        """From the bytes of a request to those of its answer, as a server's worker does."""
        fresh = load_ciphertexts(requests[row], parameters, levels)
        answers[row] = dump_ciphertexts(parameters, run(model.circuit, fresh, evaluator))

    def logits(row: int) -> Logits:
        if client is not None:
            (folder / "answer").write_bytes(answers[row])
            return np.array(client.ask("answer", file=str(folder / "answer"))["logits"])
        result = load_ciphertexts(answers[row], parameters, bundle.output_ciphertexts)
        slots = joined({name: secret.decrypt(part) for name, part in result.items()}, bundle.output)
        return unpack(slots, bundle.output.packing).ravel()

    more = {
        "key_bytes": uploaded.stat().st_size,
        "request_bytes": len(requests[0]),
        "keygen_s": keygen_s,
        "encoded_bytes": weights.nbytes,
        "log_qp": round(parameters.log_qp, 2),
    }
    made = version("he-serve")
    return Side(name, made, str(parameters), lambda row: _repeated(lambda: evaluate(row)), logits, more=more)


def _process(name: str, made: str, process: openfhe.Process, loaded: dict[str, Any], target: float) -> Side:
    """A side in a process of its own."""
    return Side(
        name,
        made,
        loaded.pop("parameters"),
        lambda row: float(process.ask("run", row=row)["seconds"]),
        lambda row: np.array(process.ask("logits", row=row)["logits"]),
        target,
        loaded,
    )


def _sides(
    case: Case, folder: Path, threads: int, python: Path | None, stack: ExitStack, say: Callable[[str], None]
) -> tuple[CompiledModel, list[Side], dict[str, openfhe.Process]]:
    """The compiled model, every side of a case ready to run (ours first), and the processes of the others."""
    onnx, rows, calibration = _inputs(case, folder)
    np.savez(folder / "rows.npz", x=rows)
    flat = [row.astype(np.float64) for row in rows]
    say("compiling")
    model = compile_model(onnx, calibration=calibration, precision=case.precision, name=case.name)
    save_model(folder / "model.hem", model)
    parameters = model.bundle.checked_parameters()
    say("keys of ours")
    sides = [_ours("ours, hybrid keys from SEAL", model, parameters, flat, folder / "hybrid", threads, None)]
    data = parameters.data_primes
    try:
        one = ntt_primes(parameters.degree, data[0].bit_length() + 1, 1, data)
        seals = Parameters(parameters.degree, data, one, 1)
        if seals != parameters:
            sides.append(
                _ours("ours, SEAL's own kind of keys", model, seals, flat, folder / "seal", threads, None)
            )
    except HeError:
        say("no room for SEAL's kind of keys")
    processes: dict[str, openfhe.Process] = {}
    if python is not None:
        say("OpenFHE makes keys")
        process = stack.enter_context(openfhe.Process.start(python, "bench._openfhe_models", threads))
        loaded = process.ask("load", model=str(folder / "model.hem"), rows=str(folder / "rows.npz"))
        special, primes = tuple(loaded.pop("special_primes")), tuple(loaded.pop("data_primes"))
        # At OpenFHE's key-switching primes, if they leave the circuit's ring secure; else at our own.
        limbs = -(-len(data) // loaded["digits"])
        theirs = Parameters(parameters.degree, data, special, limbs) if primes == data else parameters
        name = "ours, keys from OpenFHE"
        sides.append(_ours(name, model, theirs, flat, folder / "openfhe", threads, process))
        sides.append(_process("OpenFHE's evaluator", openfhe.VERSION, process, loaded, 6.0))
        processes["OpenFHE's evaluator"] = process
    say("TenSEAL makes keys")
    process = stack.enter_context(
        openfhe.Process.start(Path(sys.executable), "bench._tenseal_models", threads)
    )
    loaded = process.ask("load", onnx=str(onnx), rows=str(folder / "rows.npz"), threads=threads)
    sides.append(_process(VECTORS, version("tenseal"), process, loaded, 10.0))
    processes[VECTORS] = process
    sides.append(_plaintext(onnx, rows, threads))
    return model, sides, processes


def _inputs(case: Case, folder: Path) -> tuple[Path, npt.NDArray[np.float32], Logits]:
    """The ONNX file, the rows that are run, and others for calibration."""
    if case.committed:
        samples = np.load(common.ROOT / "models" / "samples" / f"{case.name}.npz")["x"].astype(np.float32)
        return common.ROOT / "models" / f"{case.name}.onnx", samples[:ROWS], samples[ROWS:].astype(np.float64)
    path = folder / f"{case.name}.onnx"
    networks.save_onnx(case.name, path)
    return path, networks.inputs(ROWS), networks.inputs(64, seed=3).astype(np.float64)


def _plaintext(onnx: Path, rows: npt.NDArray[np.float32], threads: int) -> Side:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])

    def evaluate(row: int) -> Logits:
        return np.asarray(session.run(None, {"image": rows[row][None]})[0], dtype=np.float64).ravel()

    return Side(
        "ONNX Runtime, in the clear",
        onnxruntime.__version__,
        "none",
        lambda row: _repeated(lambda: evaluate(row)),
        evaluate,
    )


def measure(case: Case, threads: int, python: Path | None, say: Callable[[str], None]) -> list[common.Row]:
    """Every side of one model. Raises HeError, OpenFheError, UnfairComparisonError."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="he-serve-bench-")))
        model, sides, processes = _sides(case, folder, threads, python, stack, say)
        start = perf_counter()
        for round_ in range(ROUNDS):
            if round_ >= 2 and perf_counter() - start > BUDGET_S:
                break
            for side in sides if round_ % 2 == 0 else reversed(sides):
                if side.times and min(side.times) > SLOW_S:
                    continue
                say(f"round {round_ + 1}: {side.name}")
                side.times.append(side.seconds(round_ % ROWS))
                if side.times[-1] > SLOW_S:
                    start += side.times[-1]  # what runs once leaves the others their rounds
        plain = sides[-1]
        errors = {side.name: _error(side, plain) for side in sides}
        memory = {name: int(process.ask("peak")["bytes"]) for name, process in processes.items()}
    for name in (sides[0].name, VECTORS):
        common.require_precise(f"{case.name} ({name})", errors.get(name, 0.0), model.bundle.promised_error)
    return [_row(case, model, sides[0], side, errors, memory) for side in sides[1:]]


def _error(side: Side, plain: Side) -> float:
    """The worst logit over the rows that were run, against ONNX Runtime."""
    rows = range(min(len(side.times), ROWS))
    return max(float(np.abs(side.logits(row) - plain.logits(row)).max()) for row in rows)


def _row(
    case: Case,
    model: CompiledModel,
    ours: Side,
    other: Side,
    errors: dict[str, float],
    memory: dict[str, int],
) -> common.Row:
    # Round by round; a side that ran once is held against our median, not against one moment.
    mine = (
        ours.times
        if len(other.times) == len(ours.times)
        else [statistics.median(ours.times)] * len(other.times)
    )
    ratios = [theirs / m for m, theirs in zip(mine, other.times, strict=True)]
    return common.Row(
        name=case.name,
        parameters=ours.parameters,
        ours_s=statistics.median(ours.times),
        ours_version=ours.version,
        other=other.name,
        other_version=other.version,
        other_s=statistics.median(other.times),
        ratio=statistics.median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        ours_error=errors[ours.name],
        other_error=errors[other.name],
        target=other.target,
        more={
            "runs": len(other.times),
            "promised_error": model.bundle.promised_error,
            "other_parameters": other.parameters,
            "ours_peak_rss_bytes": peak_rss(),  # of this process: compiler, client and every side of ours together
            "other_peak_rss_bytes": memory.get(other.name),
            **{f"ours_{k}": v for k, v in ours.more.items()},
            **{f"other_{k}": v for k, v in other.more.items()},
        },
    )


def _print(rows: list[common.Row], threads: int) -> None:
    lines = []
    for row in rows:
        keys = row.more.get("other_key_bytes")
        lines.append(
            [
                row.name, row.other, common.seconds(row.ours_s), common.seconds(row.other_s),
                f"{row.ratio:.3g} ({row.ratio_min:.3g}..{row.ratio_max:.3g})", "" if row.target is None else f"{row.target:.0f}",
                f"{row.ours_error:.1e}", f"{row.other_error:.1e}",
                str(row.more["runs"]), common.size(row.more["ours_key_bytes"]), "" if keys is None else common.size(keys),
            ]
        )  # fmt: skip
    columns = ["model", "beside", "ours", "theirs", "faster", "target", "error", "error", "runs", "our keys", "keys"]  # fmt: skip
    common.print_table(
        f"One picture, {threads} threads; ours with the compiler's hybrid keys", columns, lines
    )


def main() -> int:
    """Run the suite; 1 if a comparison was refused."""
    parser = argparse.ArgumentParser(prog="python -m bench.libraries", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where to write the report")
    parser.add_argument("--threads", type=int, default=1, metavar="T", help="for all sides (1)")
    names = [case.name for case in CASES]
    parser.add_argument("--models", nargs="+", choices=names, default=names, help="those to run (all)")
    arguments = parser.parse_args()
    if not 1 <= arguments.threads <= common.cores():
        parser.error(f"--threads must be 1..{common.cores()}, the cores of this machine")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    load, rows = os.getloadavg()[0], []
    try:
        python = openfhe.find_python()
        if python is None:
            print(f"no comparison with OpenFHE: {openfhe.INTERPRETER} names no Python 3.10", file=sys.stderr)
        with Console(stderr=True).status("starting") as status:
            for case in CASES:
                if case.name not in arguments.models:
                    continue
                if case.name == "lenet" and _available() < LENET_BYTES:
                    print(f"lenet left out: less than {LENET_BYTES >> 30} GiB are free", file=sys.stderr)
                    continue
                rows += measure(
                    case,
                    arguments.threads,
                    python,
                    lambda phase, name=case.name: status.update(f"{name}: {phase}"),
                )
    except (common.UnfairComparisonError, HeError, openfhe.OpenFheError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    common.write_report(arguments.json, common.report(rows, arguments.threads) | {"load_at_start": load})
    _print(rows, arguments.threads)
    return 0


def _available() -> int:
    """Bytes that the system can give to new processes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("MemAvailable"))) * 1024


if __name__ == "__main__":
    sys.exit(main())
