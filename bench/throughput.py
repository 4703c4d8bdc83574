"""Images per second: one image a ciphertext, lanes, and one slot per image, beside ONNX Runtime: `python -m bench.throughput --json FILE`.

Every layout is compiled, keyed and evaluated as a deployment does it, from the bytes of a request to the bytes of its answer
(`he_serve.worker.start`), in one process. Times are per image of a full request.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from ckks.errors import HeError, ModelError
from ckks.expanded import expand_keys, map_keys
from ckks.modelfile import CompiledModel, save_model
from ckks.wire import dump_ciphertexts, load_ciphertexts
from ckks.wire_keys import dump_keys
from compiler.compile import compile_model
from he_serve.packing import joined, pack_inputs, unpack
from he_serve.trial import twin
from he_serve.worker import load_models
from keys import SecretKey

COMMITTED = ("digits", "fashion")
NETWORKS = ("digits", "lola", "mlp", "fashion")
DEFAULT = NETWORKS[:3]  # fashion takes minutes a request in the batch layout, and 10 GB
PRECISION = {"digits": 1e-3, "fashion": 1e-3, "lola": 1e-2, "mlp": 1e-2}
CALIBRATION, DISTINCT = 32, 64  # rows the compiler sees; others that fill requests, over and over
PAIRS, BUDGET_S = 5, 60.0
PLAIN_BATCH = 1024
MEMORY_SHARE = 0.5  # of what is free may go into the values of an evaluation: loading and results come on top
OTHER = "ONNX Runtime, CPU, float32, not encrypted, per image of a batch"

Rows = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Network:
    """An ONNX file with a free batch axis or one of 1, calibration rows, and rows to classify."""

    name: str
    path: Path
    calibration: Rows
    rows: Rows


def network(name: str, folder: Path) -> Network:
    """A committed model with its samples, or one of bench/_networks.py with random weights and inputs."""
    if name in COMMITTED:
        rows = np.load(common.ROOT / "models" / "samples" / f"{name}.npz")["x"].astype(np.float64)
        return Network(name, common.ROOT / "models" / f"{name}.onnx", rows[:CALIBRATION], rows[CALIBRATION:])
    path = folder / f"{name}.onnx"
    networks.save_onnx(name, path)
    rows = networks.inputs(CALIBRATION + DISTINCT).astype(np.float64)
    return Network(name, path, rows[:CALIBRATION], rows[CALIBRATION:])


def layouts(net: Network, say: Callable[[str], None]) -> Iterator[tuple[str, CompiledModel]]:
    """One image, lanes as long as more of them promise less time per image, and the batch layout."""

    def compiled(**options: Any) -> CompiledModel:
        return compile_model(
            net.path, calibration=net.calibration, precision=PRECISION[net.name], name=net.name, **options
        )

    say("compiling")
    last = compiled()
    yield "one image", last
    lanes = 2
    while True:
        try:
            model = compiled(batch=lanes)
        except ModelError:
            break
        if _predicted(model) >= _predicted(last):
            break
        yield f"{lanes} lanes", model
        last, lanes = model, 2 * lanes
    model = compiled(layout="batch")
    if model.report["working_bytes"] < MEMORY_SHARE * _available():
        yield "batch layout", model
    else:
        say(f"batch layout left out: values of {common.size(model.report['working_bytes'])} do not fit")


def _predicted(model: CompiledModel) -> float:
    seconds: float = model.report["predicted_seconds"]
    return seconds / model.bundle.lanes


def measure(net: Network, layout: str, model: CompiledModel, folder: Path, threads: int) -> common.Row:
    """One row, with `folder` for its files. Raises HeError, UnfairComparisonError."""
    bundle, parameters = model.bundle, model.bundle.checked_parameters()
    spec, output, images = bundle.input, bundle.output, bundle.lanes
    path, uploaded, expanded = folder / f"{net.name}.hem", folder / "keys", folder / "expanded"
    save_model(path, model)
    secret = SecretKey.generate(parameters)
    dump_keys(uploaded, secret.evaluation_keys(bundle.key_needs()))
    expand_keys(uploaded, expanded, parameters, bundle.key_needs())
    rows = np.resize(net.rows, (images, *net.rows.shape[1:]))
    start = perf_counter()
    packed = pack_inputs({spec.name: rows}, bundle)
    sent = bundle.input_ciphertexts
    request = dump_ciphertexts(
        parameters, {name: secret.encrypt(slots, *sent[name]) for name, slots in packed.items()}
    )
    encrypt_s = perf_counter() - start
    loaded = load_models([str(path)], "cpu", threads)[net.name]
    keys = map_keys(expanded, parameters)
    body: bytes | Path = request
    if bundle.input_members:  # as the server hands it on
        body = folder / "request"
        body.write_bytes(request)
    answer = b""

    def ours(_: int) -> None:
        nonlocal answer
        answer = evaluate(loaded, keys, body)

    session, plain_rows = _session(net.path, threads), _plain_rows(net)

    def other(_: int) -> None:
        session.run(None, {session.get_inputs()[0].name: plain_rows})

    ours(0)
    other(0)
    found = common.alternate(ours, other, pairs=PAIRS, budget_s=BUDGET_S)
    timings = common.Timings([s / images for s in found.ours], [s / len(plain_rows) for s in found.other])
    start = perf_counter()
    received = load_ciphertexts(answer, parameters, bundle.output_ciphertexts, bundle.output_members)
    decrypted = {name: secret.decrypt(ciphertext) for name, ciphertext in received.items()}
    got = unpack(joined(decrypted, output), output.packing).reshape(images, -1)
    decrypt_s = perf_counter() - start
    distinct = net.rows[: min(images, len(net.rows))]
    plain = np.concatenate([_logits(session, row) for row in distinct])
    exact = twin(model, [{spec.name: row} for row in distinct])
    exact_of_all = np.resize(exact, got.shape)  # rows repeat in the order that np.resize gives them
    plain_of_all = np.resize(plain, got.shape)
    common.require_precise(
        f"{net.name}, {layout}, against the original model", _worst(got, plain_of_all), bundle.promised_error
    )
    seconds = statistics.median(timings.ours)
    return common.compare(
        timings,
        name=f"{net.name}, {layout}",
        parameters=parameters,
        other=OTHER,
        other_version=onnxruntime.__version__,
        ours_error=_worst(got, exact_of_all),
        other_error=_worst(plain, exact),
        promised_error=bundle.promised_error,
        more={
            "images_per_request": images,
            "images_per_s": 1 / seconds,
            "request_s": seconds * images,
            "predicted_s": model.report["predicted_seconds"],
            "promised_error": bundle.promised_error,
            "same_class": bool((got.argmax(1) == plain_of_all.argmax(1)).all()),
            "request_bytes_per_image": len(request) / images,
            "answer_bytes_per_image": len(answer) / images,
            "key_bytes": uploaded.stat().st_size,
            "encrypt_s_per_image": encrypt_s / images,
            "decrypt_s_per_image": decrypt_s / images,
            "working_bytes": model.report["working_bytes"],
        },
    )


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _plain_rows(net: Network) -> npt.NDArray[np.float32]:
    """As many rows as the model takes at once."""
    fixed = _session(net.path, 1).get_inputs()[0].shape[0] == 1
    shape = (1 if fixed else PLAIN_BATCH, *net.rows.shape[1:])
    return np.resize(net.rows, shape).astype(np.float32)


def _logits(session: onnxruntime.InferenceSession, row: Rows) -> Rows:
    found = session.run(None, {session.get_inputs()[0].name: row[None].astype(np.float32)})[0]
    return np.asarray(found, dtype=np.float64).reshape(1, -1)


def _worst(a: Rows, b: Rows) -> float:
    return float(np.abs(a - b).max())


def _available() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("MemAvailable"))) * 1024


def _print(rows: list[common.Row], threads: int) -> None:
    lines = [
        [
            r.name, str(r.more["images_per_request"]), common.seconds(r.more["request_s"]), f"{r.more['images_per_s']:,.3g}",
            f"{1 / r.other_s:,.0f}", f"{1 / r.ratio:,.0f} ({1 / r.ratio_max:,.0f}..{1 / r.ratio_min:,.0f})",
            common.size(round(r.more["request_bytes_per_image"])), common.size(r.more["key_bytes"]),
            f"{r.ours_error:.1e}", f"{r.more['promised_error']:.1e}",
        ]
        for r in rows
    ]  # fmt: skip
    columns = [
        "network, layout", "images", "a request", "images/s", "plain/s", "slowdown", "sent an image", "keys", "error", "promised",
    ]  # fmt: skip
    common.print_table(f"Throughput, {threads} threads", columns, lines)


def main() -> int:
    """Run the suite; 1 if a comparison was refused or could not be made."""
    parser = argparse.ArgumentParser(prog="python -m bench.throughput", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where to write the report")
    parser.add_argument("--threads", type=int, default=1, metavar="T", help="for both sides (1)")
    parser.add_argument(
        "--networks", default=",".join(DEFAULT), metavar="LIST", help=f"of {', '.join(NETWORKS)}"
    )
    arguments = parser.parse_args()
    names = arguments.networks.split(",")
    if unknown := set(names) - set(NETWORKS):
        parser.error(f"no such network: {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}")
    if not 1 <= arguments.threads <= common.cores():
        parser.error(f"--threads must be 1..{common.cores()}, the cores of this machine")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    load, rows = os.getloadavg()[0], []
    try:
        for name in names:
            with tempfile.TemporaryDirectory(prefix="he-serve-bench-") as folder:
                net = network(name, Path(folder))
                for layout, model in layouts(net, lambda phase: Console(stderr=True).print(phase)):
                    with tempfile.TemporaryDirectory(prefix="he-serve-bench-") as inner:
                        rows.append(measure(net, layout, model, Path(inner), arguments.threads))
                    Console(stderr=True).print(
                        f"{rows[-1].name}: {rows[-1].more['images_per_s']:.3g} images/s"
                    )
    except (common.UnfairComparisonError, HeError) as error:
        print(f"no result: {error}", file=sys.stderr)
        return 1
    common.write_report(arguments.json, common.report(rows, arguments.threads) | {"load_at_start": load})
    _print(rows, arguments.threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
