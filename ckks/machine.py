"""What backend calls take on one machine: measured samples, and times of other calls predicted from the nearest of them.

A call's time is its work (butterflies, limb products and words read, of ckks/counting.py) times a unit cost. Unit costs differ by
function and, through caches, by ring degree, rows and width; the unit of a call is the mean of the measured ones, each weighted by the
inverse square of its distance in powers of two. Keys and weights are measured as they come, from memory: its traffic is part of the unit.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ckks.circuit import Circuit, Op, Weights
from ckks.counting import Call, CountedValue, CountingEvaluator
from ckks.errors import FormatError, InputError
from ckks.interpreter import run
from ckks.parameters import Parameters

FUNCTIONS = (
    "decompose", "key_product", "key_switch", "mod_down", "rescale", "multiply_sums", "element_wise",
)  # fmt: skip
FAST_PRIME_BITS = 49  # larger primes run on the 64-bit integer kernels (ckks/backends/cpu.py)
MAX_FILE_BYTES = 1 << 20
OVERHEAD = 1.15  # of whole circuits over the sum of their calls: colder caches, allocation, Python; seen on this repository's models
KEY_BYTE_SECONDS = (
    1e-10  # of a key byte beside the time it is read in: it is uploaded once, in 100 inferences, at 100 MB/s
)
NEAR = 0.05  # squared distance below which samples count alike


class Sample(BaseModel):
    """One measured call: seconds, and the shape that they hold for. primes: "wide" if all are above 2^49, else "fast"."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    function: str = Field(max_length=30)
    primes: Literal["fast", "wide"]
    log_degree: int = Field(ge=1, le=20)
    rows: int = Field(ge=1, le=200)
    width: int = Field(ge=1, le=10_000)
    work: float = Field(ge=1, le=1e15)
    seconds: float = Field(ge=1e-10, le=1e5)


class Machine(BaseModel):
    """Figures of one machine. threads: samples by the number of threads they were taken with.

    bandwidth: bytes a second to and from memory, by threads too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["he-serve machine"]
    version: Literal[1]
    description: str = Field(max_length=500)
    instructions: str = Field(max_length=50)
    source: str = Field(max_length=500)
    bandwidth: Mapping[int, float]
    threads: Mapping[int, tuple[Sample, ...]]

    def costs(self, threads: int = 1) -> Costs:
        """Costs with that many threads; where they were not measured, with the most below."""
        known = [t for t in self.threads if t <= threads] or list(self.threads)[:1]
        nearest = max(known)
        return Costs(self.threads[nearest], nearest)


class Costs:
    """Predicts calls with one number of threads. Raises InputError if some function has no sample."""

    def __init__(self, samples: tuple[Sample, ...], threads: int) -> None:
        self.threads = threads
        self._samples = {f: [s for s in samples if s.function == f] for f in FUNCTIONS}
        for f, found in self._samples.items():
            if {s.primes for s in found} != {"fast", "wide"}:
                raise InputError(f"the machine's figures lack {f}; measure again with `he-serve doctor`")
        self._units: dict[tuple[str, str, int, int, int], float] = {}

    def seconds(self, parameters: Parameters, calls: Mapping[Call, int]) -> float:
        """Predicted time of the calls, one after the other."""
        return sum(times * self.call_seconds(parameters, call) for call, times in calls.items())

    def call_seconds(self, p: Parameters, call: Call) -> float:
        """Predicted time of one call."""
        rows = p.extended_rows(call.level)
        shape = p.degree.bit_length() - 1, len(rows), max(call.width, 1)
        wide = sum(p.moduli[r] >> FAST_PRIME_BITS > 0 for r in rows) / len(rows)
        unit = (1 - wide) * self._unit(call.function, "fast", *shape)
        if wide:
            unit += wide * self._unit(call.function, "wide", *shape)
        return OVERHEAD * unit * work(p.degree, call)

    def _unit(self, function: str, primes: str, log_degree: int, rows: int, width: int) -> float:
        key = function, primes, log_degree, rows, width
        if key not in self._units:
            total = weight = 0.0
            for s in self._samples[function]:
                if s.primes == primes:
                    steps = s.log_degree - log_degree, math.log2(s.rows / rows), math.log2(s.width / width)
                    near = 1 / (NEAR + sum(step * step for step in steps))
                    weight += near
                    total += near * math.log(s.seconds / s.work)
            self._units[key] = math.exp(total / weight)
        return self._units[key]


def predict_layers(
    costs: Costs, parameters: Parameters, circuit: Circuit, weights: Weights
) -> dict[str, float]:
    """Seconds by layer, in order of evaluation; their sum is the evaluation's time. Layers as ckks.rehearsal.Stopwatch names them."""
    evaluator = CountingEvaluator(parameters, {name: w.shape[-1] for name, w in weights.items()})
    totals: list[float] = []  # before each instruction, and at the end

    def count(*_: object) -> None:
        totals.append(costs.seconds(parameters, evaluator.cost.calls))

    inputs = {i.name: CountedValue(i.level, i.members) for i in circuit.instructions if i.op is Op.INPUT}
    run(circuit, inputs, evaluator, count)
    count()
    layers: dict[str, float] = {}
    for ins, before, after in zip(circuit.instructions, totals, totals[1:], strict=False):
        if ins.op not in (Op.INPUT, Op.OUTPUT):
            layers[ins.layer] = layers.get(ins.layer, 0.0) + after - before
    return layers


def work(degree: int, call: Call) -> float:
    """Butterflies of its transforms, and products and words: one unit each."""
    return degree * (call.ntts * math.log2(degree) / 2 + call.words)


def load_machine(path: Path) -> Machine:
    """Read what `he-serve doctor` wrote. Raises FormatError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > MAX_FILE_BYTES:
        raise FormatError(f"{path}: too long for the figures of a machine")
    try:
        machine = Machine.model_validate_json(data)
        for threads in machine.threads:
            machine.costs(threads)
        machine.costs()
    except (ValidationError, ValueError, InputError) as error:
        first = (
            error.errors(include_url=False, include_input=False)[0]["msg"]
            if isinstance(error, ValidationError)
            else error
        )
        raise FormatError(
            f"{path}: not the figures of a machine ({first}); measure again with `he-serve doctor`"
        ) from None
    return machine


def save_machine(path: Path, machine: Machine) -> None:
    """Write it as JSON; the folder is made if it is not there. Raises InputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(machine.model_dump(mode="json")) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


@functools.cache
def default_machine() -> Machine:
    """The committed figures; `source` says what they were measured on."""
    return Machine.model_validate_json((files("ckks") / "machine.json").read_bytes())
