"""The GPU backend: measured where there is a device; elsewhere PREDICTED from what its kernels count.

python -m bench.gpu [--json FILE] [--device auto|none]. A prediction is a sum over kernels of the longer of two times: moving the
kernel's words at the memory's full bandwidth, and issuing its integer instructions at the full rate. It knows no caches, which make a
device faster, and no latencies and no cost of launches, which make it slower.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from bench import _common as common
from bench._stand_in import StandIn, ignore
from ckks.backends import encoding_backend
from ckks.backends.device import Device, Work
from ckks.backends.gpu import GpuBackend, open_device
from ckks.encoded import EncodedWeights
from ckks.errors import DeviceError
from ckks.evaluator import CkksEvaluator
from ckks.interpreter import run
from ckks.packed import Packed, packed_bytes
from ckks.parameters import Parameters
from ckks.primes import ntt_primes
from ckks.types import Ciphertext, EvaluationKeys, KeyNeeds, KeySwitchKey

# Instructions of sm_80, counted in the machine code of loops unrolled to different lengths (sm_89 and sm_90: the same within two).
BUTTERFLY, SUM, REDUCTION = 27, 18, 31


@dataclass(frozen=True)
class Model:
    """A device's figures: bytes a second of memory, 32-bit integer instructions a second, and where they are from.

    Integer instructions: 64 per clock and multiprocessor for compute capabilities 8.0, 8.9 and 9.0 (CUDA C++ Programming Guide, throughput
    of native arithmetic instructions), so a half (8.0) or a quarter (others) of the datasheet's FP32 figure, which counts an FMA twice.
    """

    name: str
    bandwidth: float
    instructions: float
    source: str


MODELS = (
    Model("A100 SXM 80 GB", 2.039e12, 19.5e12 / 2, "NVIDIA A100 datasheet: 2,039 GB/s, 19.5 TFLOPS FP32"),
    Model("H100 SXM 80 GB", 3.35e12, 67e12 / 4, "NVIDIA H100 datasheet: 3.35 TB/s, 67 TFLOPS FP32"),
    Model("RTX 4090", 1.008e12, 82.6e12 / 4, "NVIDIA Ada whitepaper: 1,008 GB/s, 82.6 TFLOPS FP32"),
)
# What others have published. None of it is one of the operations below at the same parameters: it shows where the field is.
PUBLISHED = (
    "Cheddar, CKKS bootstrapping: A100 80 GB 40.0 ms, H100 31.2 ms, RTX 4090 31.6 ms (README of scale-snu/cheddar-fhe)",
    "HEonGPU, CKKS bit bootstrapping, N=2^16: RTX 4090 115.88 ms (heongpu.readthedocs.io, appendix)",
    "FIDESlib, CKKS bootstrapping: at least 70 times OpenFHE with AVX (abstract of arXiv 2507.04775)",
    "Phantom: no figure that could be traced to a source is given here",
)


def parameters(log_degree: int, limbs: int, bits: int, digits: int) -> Parameters:
    """`limbs` data primes in `digits` digits, and special primes of 60 bits to cover a digit."""
    degree, per_digit = 1 << log_degree, -(-limbs // digits)
    specials = -(-per_digit * bits // 59)
    special = ntt_primes(degree, 60, specials)
    return Parameters(degree, ntt_primes(degree, bits, limbs, special), special, per_digit)


# Within 128 bits of security: the table of ckks/security.py.
SETS = ((14, 8, 35, 3), (15, 15, 40, 3), (16, 28, 45, 4))


def predicted(work: dict[str, Work], model: Model) -> float:
    """Seconds."""
    total = 0.0
    for done in work.values():
        count = BUTTERFLY * done.products + SUM * done.sums + REDUCTION * done.reductions
        total += max(8 * done.words / model.bandwidth, count / model.instructions)
    return total


def zero_keys(p: Parameters, needs: KeyNeeds) -> EvaluationKeys:
    """Keys of the right shapes: time does not depend on values."""

    def key(level: int) -> KeySwitchKey:
        moduli = tuple(p.moduli[r] for r in p.extended_rows(level))
        shape = (len(p.digits(level)), 2, packed_bytes(moduli, p.degree))
        return KeySwitchKey(Packed(np.zeros(shape, dtype=np.uint8), moduli, p.degree), level)

    galois = {p.galois_element(steps): key(level) for steps, level in needs.rotations.items()}
    return EvaluationKeys(p, None if needs.relinearisation is None else key(needs.relinearisation), galois)


def operations(device: Device, p: Parameters) -> dict[str, Callable[[], Any]]:
    """What is timed, at the highest level, everything on the device."""
    level, b = p.max_level, GpuBackend(p, device)
    keys = zero_keys(p, KeyNeeds(level, {1: level}))
    evaluator = CkksEvaluator(b, keys, {})
    a = evaluator.upload(Ciphertext(np.zeros((2, level + 1, p.degree), dtype=np.uint64), level, 2.0**30))
    rows, key = p.data_rows(level), keys.rotation(1, level)
    digits = b.decompose(a.polys[1], level)
    wide = b.key_product(digits, key, level)
    return {
        "forward transform, one polynomial": lambda: b.forward(a.polys[0], rows),
        "decompose + mod-up": lambda: b.decompose(a.polys[1], level),
        "key product, automorphism": lambda: b.key_product(digits, key, level, 3, a.polys[:1]),
        "mod-down": lambda: b.mod_down(wide, level),
        "rotate": lambda: evaluator.rotate(a, 1),
        "multiply + relinearise": lambda: evaluator.relinearise(evaluator.multiply(a, a)),
        "rescale": lambda: evaluator.rescale(a),
    }


def model_run(device: Device, name: str) -> tuple[Parameters, Callable[[], Any]]:
    """A committed model's whole circuit, keys and weights on the device."""
    from compiler.compile import compile_model

    folder = common.ROOT / "models"
    rows = np.load(folder / "samples" / f"{name}.npz")["x"].astype(np.float64)
    model = compile_model(folder / f"{name}.onnx", calibration=rows[:32], name=name)
    p, spec = model.bundle.checked_parameters(), model.bundle.input
    b = GpuBackend(p, device)
    weights = EncodedWeights(encoding_backend(b, common.cores()), model.weights)
    evaluator = CkksEvaluator(b, zero_keys(p, model.bundle.key_needs()), weights)
    polys = np.zeros((2, spec.level + 1, p.degree), dtype=np.uint64)
    inputs = {spec.name: evaluator.upload(Ciphertext(polys, spec.level, spec.scale))}
    return p, lambda: run(model.circuit, dict(inputs), evaluator)


def counted(device: Device, operation: Callable[[], Any]) -> dict[str, Work]:
    """What one operation does."""
    operation()  # tables and copies are made on the first run
    device.work.clear()
    operation()
    return {kernel: Work(**asdict(work)) for kernel, work in device.work.items()}


def measured(device: Device, operation: Callable[[], Any], least_s: float = 0.5) -> float:
    """Seconds of one operation on a real device, from Python: launches included."""
    wait = device.library.cuda.Stream.null.synchronize
    operation()
    wait()
    start, runs = perf_counter(), 0
    while perf_counter() - start < least_s:
        for _ in range(20):
            operation()
        wait()
        runs += 20
    return (perf_counter() - start) / runs


def rows_of(device: Device, real: bool, models: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row per operation and model."""
    cases = [
        (str(p), name, operation)
        for p in (parameters(*numbers) for numbers in SETS)
        for name, operation in operations(device, p).items()
    ]
    for name in models:
        p, operation = model_run(device, name)
        cases.append((str(p), f"{name}, whole prediction", operation))
    rows = []
    for where, name, operation in cases:
        work = counted(device, operation)
        moved = 8 * sum(done.words for done in work.values())
        row: dict[str, Any] = {"name": name, "parameters": where, "bytes": moved}
        row["launches"] = sum(done.launches for done in work.values())
        row["predicted_s"] = {model.name: predicted(work, model) for model in MODELS}
        if real:
            row["measured_s"] = measured(device, operation)
            row["bytes_per_s"] = moved / row["measured_s"]
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]], device: Device | None) -> None:
    """The tables, for people."""
    names = [model.name for model in MODELS]
    lines = [
        [r["name"], r["parameters"], str(r["launches"]), common.size(r["bytes"])]
        + [common.seconds(r["predicted_s"][name]) for name in names]
        + ([common.seconds(r["measured_s"]), f"{r['bytes_per_s'] / 1e9:.0f} GB/s"] if device else [])
        for r in rows
    ]
    title = "PREDICTED, not measured: from counted bytes and instructions"
    columns = ["operation", "parameters", "launches", "bytes", *names]
    if device is not None:
        title, columns = f"{device.name}, measured beside predictions", [*columns, "measured", "reached"]
    common.print_table(title, columns, lines)
    for model in MODELS:
        print(f"{model.name}: {model.source}")
    print("Published by others, not measured here and not the same operations:")
    for line in PUBLISHED:
        print(f"  {line}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", choices=("auto", "none"), default="auto")
    parser.add_argument("--models", nargs="*", default=("digits", "lesion"))
    options = parser.parse_args()
    device: Device | None = None
    try:
        device = open_device() if options.device == "auto" else None
    except DeviceError as error:
        print(f"NOTHING IS MEASURED: {error}")
    used = device or Device(StandIn(ignore, guarded=False), "no device", 1 << 40)
    rows = rows_of(used, device is not None, tuple(options.models))
    show(rows, device)
    if options.json is not None:
        kind = "prediction" if device is None else "measurement"
        content = {"kind": kind, "device": used.name, "commit": common.commit(), "rows": rows}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
