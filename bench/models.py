"""Whole networks against another compiler, orion-v2 (MIT, from PyPI): `python -m bench.models --json FILE`.

The same random weights, inputs and machine, alternately; both sides by the 128-bit row of the security table, each with its own precision
beside its time. Ours is the function that a server's worker runs, in process; theirs runs in processes of its own, on an interpreter of
its own (build/orion, made on the first run: some 6 GB, most of it PyTorch).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
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
from bench._evaluate import evaluate
from bench._orion import peak_rss
from ckks.bundle import Bundle
from ckks.errors import HeError
from ckks.expanded import expand_keys, map_keys
from ckks.machine import predict_layers
from ckks.modelfile import CompiledModel, save_model
from ckks.security import max_log_qp
from ckks.wire import dump_ciphertext, load_ciphertext
from ckks.wire_keys import dump_keys
from compiler.compile import compile_model
from he_serve.machine import find_machine
from he_serve.packing import pack, unpack
from he_serve.worker import load_models
from keys import SecretKey

PEER = ("orion-v2-compiler==2.1.8", "orion-v2-evaluator==2.1.8", "orion-v2-lattigo==6.2.4")
HOME = common.ROOT / "build" / "orion"
ROWS = 5  # inputs, each timed once a side or more
MEASURES = ("fast", "small")


@dataclass(frozen=True)
class Case:
    """A network, what to beat and how it is compiled. precision: of the promise, relative to the largest logit.

    peer: its example's parameters; the special primes are two bits shorter at N=2^13, where the example is above the 128-bit line.
    """

    name: str
    target: float
    precision: float
    peer: dict[str, Any]
    peer_bytes: int  # memory it takes


def _peer(log_n: int, levels: int, special: int) -> dict[str, Any]:
    return {
        "logn": log_n, "logq": [29] + [26] * levels, "logp": [special, special], "log_default_scale": 26,
        "ring_type": "conjugate_invariant",
    }  # fmt: skip


CASES = {
    case.name: case
    for case in (
        Case("lola", 8.0, 0.007, _peer(13, 5, 27), 2 << 30),
        Case("mlp", 12.0, 0.007, _peer(13, 5, 27), 2 << 30),
        Case("lenet", 8.0, 0.03, _peer(14, 7, 29), 18 << 30),
    )
}
Logits = npt.NDArray[np.float64]


class PeerError(Exception):
    """The other side's process failed."""


class Peer:
    """One process of the other side; `ask` sends a command and waits for its answer."""

    def __init__(self, role: str, folder: Path, threads: int) -> None:
        command = [str(HOME / "bin" / "python"), str(common.ROOT / "bench" / "_orion.py"), role, str(folder)]
        environment = os.environ | {"GOMAXPROCS": str(threads), "OMP_NUM_THREADS": str(threads)}
        self._log = (folder / f"{role}.log").open("w+")
        self._process = subprocess.Popen(
            command,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:  # closes the pipes and waits
            self._process.kill()
        self._log.close()

    def read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise PeerError(f"the other side ended: {self._log.read()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, **command: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self.read()


@dataclass(frozen=True, eq=False)
class Ours:
    """Our side, ready: `run` evaluates one row, `logits` decrypts its last answer."""

    model: CompiledModel
    compile_s: float
    keygen_s: float
    key_bytes: int
    request_bytes: int
    run: Callable[[int], None]
    logits: Callable[[int], Logits]


def prepare(case: Case, keys: str, rows: npt.NDArray[np.float32], folder: Path, threads: int) -> Ours:
    """Compile, make keys, encrypt, load. Raises HeError."""
    onnx, path = folder / f"{case.name}.onnx", folder / f"{case.name}.hem"
    networks.save_onnx(case.name, onnx)
    start = perf_counter()
    model = compile_model(
        onnx,
        calibration=networks.inputs(64, seed=3).astype(np.float64),
        precision=case.precision,
        keys="small" if keys == "small" else "fast",
        name=case.name,
    )
    compile_s = perf_counter() - start
    save_model(path, model)
    bundle, parameters = model.bundle, model.bundle.checked_parameters()
    uploaded, expanded = folder / "keys", folder / "expanded"
    start = perf_counter()
    secret = SecretKey.generate(parameters)
    dump_keys(uploaded, secret.evaluation_keys(bundle.key_needs()))
    keygen_s = perf_counter() - start
    expand_keys(uploaded, expanded, parameters, bundle.key_needs())
    requests = [_request(bundle, secret, row) for row in rows]
    loaded = load_models([str(path)], "cpu", threads)[case.name]
    mapped = map_keys(expanded, parameters)
    answers: dict[int, bytes] = {}

    def run(row: int) -> None:
        answers[row] = evaluate(loaded, mapped, requests[row])

    def logits(row: int) -> Logits:
        spec = bundle.output
        ciphertext = load_ciphertext(answers[row], parameters, spec.level, spec.scale)
        return unpack(secret.decrypt(ciphertext), spec.packing).reshape(-1)

    return Ours(model, compile_s, keygen_s, uploaded.stat().st_size, len(requests[0]), run, logits)


def _request(bundle: Bundle, secret: SecretKey, row: npt.NDArray[np.float32]) -> bytes:
    spec = bundle.input
    slots = pack(row.astype(np.float64), spec.packing)
    return dump_ciphertext(secret.parameters, secret.encrypt(slots, spec.level, spec.scale))


def start_peer(
    case: Case, rows: npt.NDArray[np.float32], folder: Path, threads: int
) -> tuple[Peer, Peer, dict[str, Any]]:
    """The other side's client and server, ready to decrypt and evaluate, and what they say of themselves. Raises PeerError."""
    np.savez(folder / "weights.npz", **networks.weights(case.name))
    np.savez(folder / "inputs.npz", x=rows)
    plan = {"layers": networks.NETWORKS[case.name], "parameters": case.peer}
    (folder / "network.json").write_text(json.dumps(plan))
    with Peer("compile", folder, threads) as compiler:
        about = compiler.read()
    client = Peer("client", folder, threads)
    about |= client.read()
    server = Peer("serve", folder, threads)
    return client, server, about | server.read()


def measure(case: Case, keys: str, threads: int, pairs: int, say: Callable[[str], None]) -> common.Row:
    """One row: a network with one kind of keys. Raises HeError, PeerError, UnfairComparisonError."""
    rows = networks.inputs(ROWS)
    _require_peer_secure(case)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="he-serve-bench-")))
        say("the other side compiles and makes keys")
        client, server, about = start_peer(case, rows, folder, threads)
        stack.enter_context(client)
        stack.enter_context(server)
        say("compiling and making keys")
        _forget_peak()
        ours = prepare(case, keys, rows, folder, threads)
        prepared = peak_rss()
        _forget_peak()
        say("evaluating")
        last: dict[str, Any] = {}

        def other(pair: int) -> None:
            last.update(server.ask(row=pair % ROWS))

        mine = lambda pair: ours.run(pair % ROWS)  # noqa: E731
        for i in range(ROWS):  # warms up, and answers every row
            mine(i)
            other(i)
        timings = common.alternate(mine, other, pairs=pairs, budget_s=120.0)
        memory = peak_rss()
        found = np.stack([ours.logits(i) for i in range(ROWS)])
        theirs = np.stack([client.ask(row=i)["logits"] for i in range(ROWS)])
        plain = _plain(folder / f"{case.name}.onnx", rows)
    largest = float(np.abs(plain).max())
    error, other_error = (float(np.abs(x - plain).max()) for x in (found, theirs))
    parameters = ours.model.bundle.checked_parameters()
    model = ours.model
    predicted = predict_layers(find_machine().costs(threads), parameters, model.circuit, model.weights)
    common.require_secure(parameters)
    common.require_precise(case.name, error, ours.model.bundle.promised_error)
    return common.Row(
        name=case.name if keys == "fast" else f"{case.name}, small keys",
        parameters=str(parameters),
        ours_s=statistics.median(timings.ours),
        ours_version=version("he-serve"),
        other="orion-v2, " + json.dumps(about["parameters"]),
        other_version=about["version"],
        other_s=statistics.median(timings.other),
        ratio=statistics.median(timings.ratios),
        ratio_min=min(timings.ratios),
        ratio_max=max(timings.ratios),
        ours_error=error,
        other_error=other_error,
        target=case.target if keys == "fast" else None,
        more={
            "pairs": len(timings.ours),
            "ours_relative_error": error / largest,
            "other_relative_error": other_error / largest,
            "promised_error": ours.model.bundle.promised_error,
            "largest_logit": largest,
            "ours_log_qp": round(parameters.log_qp, 2),
            "other_log_qp": _log_qp(case),
            "ours_key_bytes": ours.key_bytes,
            "other_key_bytes": about["key_bytes"],
            "ours_rotation_keys": len(ours.model.bundle.rotations),
            "other_rotation_keys": about["rotation_keys"],
            "ours_request_bytes": ours.request_bytes,
            "other_request_bytes": about["ciphertext_bytes"],
            "ours_peak_rss_bytes": memory,
            "ours_compile_peak_rss_bytes": prepared,
            "other_peak_rss_bytes": last["peak_rss_bytes"],
            "ours_compile_s": ours.compile_s,
            "other_compile_s": about["compile_s"],
            "ours_keygen_s": ours.keygen_s,
            "other_keygen_s": about["keygen_s"],
            "predicted_s": sum(predicted.values()),
            "predicted_error": ours.model.report["predicted_error"],
            "operations": ours.model.report["operations"],
        },
    )


def _log_qp(case: Case) -> int:
    return sum(case.peer["logq"]) + sum(case.peer["logp"])


def _require_peer_secure(case: Case) -> None:
    """The table's 128-bit row for the other side too. Its secret is sparser (192 non-zeros) than the table assumes."""
    if _log_qp(case) > max_log_qp(1 << case.peer["logn"]):
        raise common.UnfairComparisonError(f"{case.name}: the other side has less than 128 bits of security")


def _plain(onnx: Path, rows: npt.NDArray[np.float32]) -> Logits:
    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    return np.stack([session.run(None, {"image": row[None]})[0].reshape(-1) for row in rows]).astype(
        np.float64
    )


def _available() -> int:
    """Bytes that the system can give to new processes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("MemAvailable"))) * 1024


def _forget_peak() -> None:
    """Start the count of this process's peak memory anew (Linux, proc(5): clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def install_peer(say: Callable[[str], None]) -> None:
    """Make the other side's interpreter if it is not there. Raises PeerError."""
    python = HOME / "bin" / "python"
    if python.exists():
        return
    if sys.version_info < (3, 11):
        raise PeerError("orion-v2 needs Python 3.11 or newer")
    say("installing the other side (some minutes)")
    venv.create(HOME, with_pip=True)
    command = [str(python), "-m", "pip", "install", "--quiet", *PEER]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        python.unlink()
        raise PeerError(f"installing it failed: {done.stderr[-1000:]}")


def _print(rows: list[common.Row], threads: int) -> None:
    time, size = common.seconds, common.size
    lines = [
        [
            r.name, time(r.ours_s), time(r.more["predicted_s"]), f"{r.more['ours_relative_error']:.1e}",
            time(r.other_s), f"{r.more['other_relative_error']:.1e}",
            f"{r.ratio:.1f} ({r.ratio_min:.1f}..{r.ratio_max:.1f})", "" if r.target is None else f"{r.target:.0f}",
            size(r.more["ours_key_bytes"]), size(r.more["other_key_bytes"]),
            size(r.more["ours_peak_rss_bytes"]), size(r.more["other_peak_rss_bytes"]),
        ]
        for r in rows
    ]  # fmt: skip
    columns = [
        "network", "ours", "predicted", "error", "orion", "error", "faster", "target", "our keys", "orion's", "our memory", "orion's",
    ]  # fmt: skip
    common.print_table(
        f"One picture, {threads} threads; errors relative to the largest logit", columns, lines
    )


def main() -> int:
    """Run the suite; 1 if a comparison was refused."""
    parser = argparse.ArgumentParser(prog="python -m bench.models", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where to write the report")
    parser.add_argument("--threads", type=int, default=1, metavar="T", help="for both sides (1)")
    parser.add_argument("--pairs", type=int, default=9, metavar="P", help="pairs of runs a row (9)")
    parser.add_argument(
        "--lenet",
        action="store_true",
        help="the third network too: the other side takes 18 GB of memory for it",
    )
    arguments = parser.parse_args()
    if not 1 <= arguments.threads <= common.cores():
        parser.error(f"--threads must be 1..{common.cores()}, the cores of this machine")
    cases = [case for case in CASES.values() if case.name != "lenet" or arguments.lenet]
    if (free := _available()) < max(case.peer_bytes for case in cases):
        parser.error(f"only {free / 2**30:.0f} GiB of memory are free, too little for the other side")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    rows = []
    try:
        with Console(stderr=True).status("starting") as status:
            install_peer(status.update)
            for case in cases:
                for keys in MEASURES:
                    say = partial(_say, status.update, f"{case.name}, {keys} keys")
                    rows.append(measure(case, keys, arguments.threads, arguments.pairs, say))
    except (common.UnfairComparisonError, HeError, PeerError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    common.write_report(arguments.json, common.report(rows, arguments.threads) | {"load_at_start": load})
    _print(rows, arguments.threads)
    return 0


def _say(update: Callable[[str], None], name: str, phase: str) -> None:
    update(f"{name}: {phase}")


if __name__ == "__main__":
    sys.exit(main())
