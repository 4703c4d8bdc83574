"""The demonstration: a picture classified by a server that never sees it, beside ONNX Runtime in the clear."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ckks.errors import InputError, RemoteError
from ckks.modelfile import CompiledModel, save_model
from ckks.types import Slots
from compiler.compile import compile_model
from he_serve.client import Client
from he_serve.images import read_image, read_rows, to_input
from he_serve.plaintext import run_onnx
from he_serve.prediction import softmax

Progress = Callable[[str, int, int], None]
PRECISION = 1e-3
_START_SECONDS = 300.0


@dataclass(frozen=True)
class Demonstration:
    """One picture through the whole path. timings in seconds, sizes in bytes; logits float64 [classes]."""

    model: str
    image: Path
    labels: list[str]
    encrypted_probabilities: list[float]
    plain_probabilities: list[float]
    encrypted_label: str
    plain_label: str
    logit_difference: float
    promised_error: float
    security_bits: int
    n: int
    log_qp: float
    sizes: dict[str, int]
    timings: dict[str, float]

    @property
    def agrees(self) -> bool:
        """Whether the class is the same and no logit is further off than the compiler promised."""
        return self.encrypted_label == self.plain_label and self.logit_difference <= self.promised_error


def find_models() -> Path:
    """The folder models/ of the checkout. Raises InputError."""
    folder = Path(__file__).resolve().parent.parent / "models"
    if not (folder / "samples").is_dir():
        raise InputError(
            f"the demonstration models are not at {folder}; run the demo from a checkout of the repository"
        )
    return folder


def sample(folder: Path, pattern: str) -> Path:
    """The first sample picture that matches. Raises InputError."""
    found = sorted((folder / "samples").glob(pattern))
    if not found:
        raise InputError(f"{folder}/samples holds no {pattern}; get it back with git checkout models")
    return found[0]


def demonstrate(folder: Path, name: str, image: Path, progress: Progress) -> Demonstration:
    """Compile models/NAME.onnx, serve it from a process of its own, and have `image` classified. Raises HeError."""
    picture = read_image(image)
    onnx = folder / f"{name}.onnx"
    if not onnx.is_file():
        raise InputError(f"{onnx}: no such file; get it back with git checkout models")
    start = time.perf_counter()
    model = compile_model(
        onnx,
        calibration=read_rows(folder / "samples" / f"{name}.npz"),
        precision=PRECISION,
        name=name,
        progress=lambda phase: progress(f"compiling {name}: {phase}", 0, 1),
    )
    timings = {"compile": time.perf_counter() - start}
    with tempfile.TemporaryDirectory(prefix="he-serve-demo-") as temporary:
        models = Path(temporary) / "models"
        models.mkdir()
        save_model(models / f"{name}.hem", model)
        start = time.perf_counter()
        with server(models, Path(temporary)) as url, Client(url, model=name, progress=progress) as client:
            client.wait_ready(_START_SECONDS)
            timings["server start"] = time.perf_counter() - start
            client.ensure_keys()
            setup = client.setup
            timings |= {"keygen": setup.make, "upload": setup.upload, "server validation": setup.validate}
            # Raw logits stay in this process, under keys that are thrown away with it.
            raw = client.predict_raw(picture)
            timings |= {name.replace("_", " "): seconds for name, seconds in raw.timings.items()}
    clear = run_onnx(onnx, to_input(picture, model.bundle.input)[None])[0]
    return _compare(
        model,
        image,
        raw.logits.reshape(-1),
        clear,
        timings,
        {
            "evaluation keys": setup.key_bytes,
            "ciphertext sent": raw.sent_bytes,
            "ciphertext received": raw.received_bytes,
        },
    )


def _compare(
    model: CompiledModel,
    image: Path,
    logits: Slots,
    clear: Slots,
    timings: dict[str, float],
    sizes: dict[str, int],
) -> Demonstration:
    bundle, p = model.bundle, model.bundle.checked_parameters()
    labels = bundle.output.labels or [str(i) for i in range(len(clear))]
    return Demonstration(
        model=bundle.name,
        image=image,
        labels=labels,
        encrypted_probabilities=[float(x) for x in softmax(logits)],
        plain_probabilities=[float(x) for x in softmax(clear)],
        encrypted_label=labels[int(logits.argmax())],
        plain_label=labels[int(clear.argmax())],
        logit_difference=float(np.abs(logits - clear).max()),
        promised_error=bundle.promised_error,
        security_bits=p.security_bits,
        n=p.degree,
        log_qp=p.log_qp,
        sizes=sizes,
        timings=timings,
    )


@contextlib.contextmanager
def server(models: Path, temporary: Path) -> Iterator[str]:
    """A server process on a free loopback port -> its URL; stopped at the end, whatever happens. Raises RemoteError."""
    log = temporary / "server.log"
    command = [sys.executable, "-m", "he_serve.cli", "serve", "--json", "--port", "0"]
    command += [
        "--models",
        str(models),
        "--state",
        str(temporary / "state"),
        "--threads",
        str(len(os.sched_getaffinity(0))),
    ]
    # A terminated demo must still stop its server: SIGTERM becomes an ordinary exit that runs the clean-up below.
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, start_new_session=True)
    try:
        yield _first_line(process, log)["url"]
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()
        signal.signal(signal.SIGTERM, previous)


def _first_line(process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], _START_SECONDS)
    line = process.stdout.readline() if ready else b""
    try:
        return dict(json.loads(line))
    except ValueError:
        last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it wrote nothing"]
        raise RemoteError(f"the demo's server did not start: {last[0]}") from None
