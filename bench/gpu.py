"""The GPU backend: measured where there is a device; elsewhere PREDICTED from what its kernels count.

python -m bench.gpu [--json FILE] [--device auto|none]. A prediction is a sum over kernels of the longer of two times: moving the
kernel's words at the memory's full bandwidth, and issuing its arithmetic at the full rates. It knows no caches, which make a device
faster, and no latencies and no cost of launches, which make it slower.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from bench import _common as common
from bench._stand_in import StandIn, ignore
from ckks.backends import make_backend
from ckks.backends.device import Device, Work
from ckks.backends.gpu import GpuBackend, open_device
from ckks.encoded import EncodedWeights
from ckks.errors import DeviceError
from ckks.evaluator import CkksEvaluator
from ckks.interpreter import run
from ckks.modelfile import CompiledModel
from ckks.packed import Packed, packed_bytes
from ckks.parameters import Parameters
from ckks.primes import ntt_primes
from ckks.types import Ciphertext, EvaluationKeys, KeyNeeds, KeySwitchKey

# Instructions of sm_80, counted in the machine code of loops unrolled to different lengths (sm_89 and sm_90: the same within two).
BUTTERFLY, SUM, REDUCTION = 27, 18, 31
# On doubles, counted in the source (doubles.cuh), where each is one instruction: 8 and a third of `settled`; 4 and two that make doubles of
# words; 8 and three that make a residue of a double. What is not FP64 is not counted.
DOUBLE_BUTTERFLY, DOUBLE_SUM, DOUBLE_REDUCTION = 9, 6, 11


@dataclass(frozen=True)
class Model:
    """A device's figures: bytes a second of memory, 32-bit integer instructions and FP64 instructions a second, and where they are from.

    Integer instructions: 64 per clock and multiprocessor for compute capabilities 8.0, 8.9 and 9.0 (CUDA C++ Programming Guide, throughput
    of native arithmetic instructions), so a half (8.0) or a quarter (others) of the datasheet's FP32 figure, which counts an FMA twice.
    FP64 instructions: half of the datasheet's FP64 figure (not that of tensor cores), or None where kernels compute on integers only.
    """

    name: str
    bandwidth: float
    instructions: float
    doubles: float | None
    source: str


MODELS = (
    Model(
        "A100 SXM 80 GB",
        2.039e12,
        19.5e12 / 2,
        9.7e12 / 2,
        "NVIDIA A100 Tensor Core GPU datasheet: 2,039 GB/s, 19.5 TFLOPS FP32, 9.7 TFLOPS FP64",
    ),
    Model(
        "H100 SXM 80 GB",
        3.35e12,
        67e12 / 4,
        34e12 / 2,
        "NVIDIA H100 Tensor Core GPU datasheet: 3.35 TB/s, 67 TFLOPS FP32, 34 TFLOPS FP64",
    ),
    Model(
        "RTX 4090",
        1.008e12,
        82.6e12 / 4,
        None,
        "NVIDIA Ada GPU architecture whitepaper: 1,008 GB/s, 82.6 TFLOPS FP32, FP64 at 1/64 of that",
    ),
)
# What others have published. None of it is one of the operations below at the same parameters: it shows where the field is.
PUBLISHED = (
    "Cheddar, CKKS bootstrapping: A100 80 GB 40.0 ms, H100 31.2 ms (both PCIe), RTX 4090 31.6 ms (README of scale-snu/cheddar-fhe)",
    "HEonGPU, CKKS bit bootstrapping, N=2^16: RTX 4090 115.88 ms (heongpu.readthedocs.io, appendix)",
    "FIDESlib, CKKS bootstrapping: at least 70 times OpenFHE with AVX (abstract of arXiv 2507.04775)",
    "Phantom: no bootstrapping, and no figure that could be traced to a source is given here (eprint.iacr.org/2023/049)",
)


def parameters(log_degree: int, limbs: int, bits: int, digits: int) -> Parameters:
    """`limbs` data primes in `digits` digits, and special primes of 48 bits, as the compiler chooses them, to cover a digit."""
    degree, per_digit = 1 << log_degree, -(-limbs // digits)
    specials = -(-per_digit * bits // 47)
    special = ntt_primes(degree, 48, specials)
    return Parameters(degree, ntt_primes(degree, bits, limbs, special), special, per_digit)


# Within 128 bits of security: the table of ckks/security.py.
SETS = ((14, 8, 35, 3), (15, 15, 40, 3), (16, 28, 45, 4))


def predicted(work: dict[str, Work], model: Model) -> float:
    """Seconds. work: counted on a device that computes on doubles if the model does."""
    total = 0.0
    for done in work.values():
        count = BUTTERFLY * done.products + SUM * done.sums + REDUCTION * done.reductions
        doubles = DOUBLE_BUTTERFLY * done.double_products + DOUBLE_SUM * done.double_sums
        doubles += DOUBLE_REDUCTION * done.double_reductions
        arithmetic = count / model.instructions + (doubles / model.doubles if model.doubles else 0.0)
        total += max(8 * done.words / model.bandwidth, arithmetic)
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


@lru_cache(maxsize=4)
def compiled(name: str) -> tuple[CompiledModel, EncodedWeights]:
    """A committed model, and its weights as they are encoded once for all devices."""
    from compiler.compile import compile_model

    folder = common.ROOT / "models"
    rows = np.load(folder / "samples" / f"{name}.npz")["x"].astype(np.float64)
    model = compile_model(folder / f"{name}.onnx", calibration=rows[:32], name=name)
    backend = make_backend(model.bundle.checked_parameters(), "cpu", common.cores())
    return model, EncodedWeights(backend, model.weights)


def model_run(device: Device, name: str) -> tuple[Parameters, Callable[[], Any]]:
    """A committed model's whole circuit, keys and weights on the device."""
    model, weights = compiled(name)
    p, spec = model.bundle.checked_parameters(), model.bundle.input
    evaluator = CkksEvaluator(GpuBackend(p, device), zero_keys(p, model.bundle.key_needs()), weights)
    polys = np.zeros((2, spec.level + 1, p.degree), dtype=np.uint64)
    inputs = {spec.name: evaluator.upload(Ciphertext(polys, spec.level, spec.scale))}
    return p, lambda: run(model.circuit, dict(inputs), evaluator)


def cases(device: Device, models: tuple[str, ...]) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Parameters, name and what is done: operations, then models, with a few arrays in memory at a time."""
    for numbers in SETS:
        p = parameters(*numbers)
        for name, operation in operations(device, p).items():
            yield str(p), name, operation
    for name in models:
        p, operation = model_run(device, name)
        yield str(p), f"{name}, whole prediction", operation


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


def nowhere(doubles: bool) -> Device:
    """Counts, and computes nothing."""
    return Device(StandIn(ignore, guarded=False), "no device", 1 << 40, doubles=doubles)


def rows_of(device: Device | None, models: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row per operation and model. device: to measure on."""
    rows: list[dict[str, Any]] = []
    for where, name, operation in cases(on := nowhere(doubles=False), models):
        work = counted(on, operation)
        row = {"name": name, "parameters": where, "launches": sum(done.launches for done in work.values())}
        row |= {
            "bytes": moved(work),
            "predicted_s": {m.name: predicted(work, m) for m in MODELS if not m.doubles},
        }
        rows.append(row)
    for row, (_, _, operation) in zip(rows, cases(on := nowhere(doubles=True), models), strict=True):
        work = counted(on, operation)
        row["bytes_on_doubles"] = moved(work)
        row["predicted_s"] |= {m.name: predicted(work, m) for m in MODELS if m.doubles}
    if device is not None:
        for row, (_, _, operation) in zip(rows, cases(device, models), strict=True):
            row["measured_s"] = measured(device, operation)
            row["bytes_per_s"] = row["bytes_on_doubles" if device.doubles else "bytes"] / row["measured_s"]
    return rows


def moved(work: dict[str, Work]) -> int:
    """Bytes to and from memory."""
    return 8 * sum(done.words for done in work.values())


def show(rows: list[dict[str, Any]], device: Device | None) -> None:
    """The tables, for people."""
    names = [model.name for model in MODELS]
    lines = [
        [
            r["name"],
            r["parameters"],
            str(r["launches"]),
            *(common.size(r[b]) for b in ("bytes", "bytes_on_doubles")),
        ]
        + [common.seconds(r["predicted_s"][name]) for name in names]
        + ([common.seconds(r["measured_s"]), f"{r['bytes_per_s'] / 1e9:.0f} GB/s"] if device else [])
        for r in rows
    ]
    title = "PREDICTED, not measured: from counted bytes and instructions"
    arithmetic = (f"{m.name}, {'doubles' if m.doubles else 'integers'}" for m in MODELS)
    columns = ["operation", "parameters", "launches", "bytes", "on doubles", *arithmetic]
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
    rows = rows_of(device, tuple(options.models))
    show(rows, device)
    if options.json is not None:
        kind, name = ("prediction", "no device") if device is None else ("measurement", device.name)
        content = {"kind": kind, "device": name, "commit": common.commit(), "rows": rows}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
