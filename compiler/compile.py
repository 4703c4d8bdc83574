"""The whole compiler as one function: an ONNX file in, a compiled model out."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from ckks.bundle import Bundle, InputSpec, OutputSpec, RotationKey
from ckks.bundle import Packing as SlotPacking
from ckks.circuit import Op, part_names
from ckks.errors import ModelError
from ckks.machine import Machine, default_machine
from ckks.modelfile import CompiledModel, circuit_bytes, sha256, weight_bytes
from ckks.parameters import MAX_LOG_DEGREE
from ckks.security import MAX_LOG_QP, REQUIRED_BITS
from ckks.verify import verify
from compiler.approximate import DEFAULT_ERROR, Override, approximate
from compiler.condition import condition
from compiler.fitting import OUTPUT_MARGIN, Compiled, Demands, Progress, fit_parameters
from compiler.fold import fold
from compiler.graph import Array, Graph, Shape
from compiler.keysets import Keys, tradeoff
from compiler.layouts import Layout
from compiler.maxpool import average_for_max, effect, untouched_outputs
from compiler.onnx_import import load_onnx, logits_model
from compiler.operators import build_graph
from compiler.precision import evaluate, predicted_error
from compiler.prices import Prices
from compiler.report import make_report
from compiler.rows import Rows, flat_rows, with_ranges
from compiler.validation import labelled_rows, validate

DEFAULT_PRECISION = 1e-3
MIN_PRECISION = 2.0**-18  # four times what a float32 model computes to
RANDOM_ROWS = 64
MAX_CALIBRATION_ROWS, MIN_CALIBRATION_ROWS = (
    1024,
    64,
)  # that are used; of large networks fewer, by the next line
MAX_CALIBRATION_VALUES = 1 << 26  # of the widest tensor, all rows together: 512 MB
MAX_BATCH = 1 << (MAX_LOG_DEGREE - 1)
# Of the largest calibrated output: a polynomial that leaves its interval soon gives more, and clients refuse that.
OUTLYING = 2.0
SlotLayout = Literal["latency", "batch"]


def compile_model(
    onnx_path: Path,
    *,
    calibration: Rows | None = None,
    own_rows: bool = False,
    precision: float = DEFAULT_PRECISION,
    maxpool: Literal["average"] | None = None,
    keys: Keys = "fast",
    security: int = REQUIRED_BITS,
    batch: int = 1,
    layout: SlotLayout = "latency",
    activations: Mapping[str, Override] | None = None,
    activation_error: float = DEFAULT_ERROR,
    validation: tuple[Rows, npt.NDArray[Any]] | None = None,
    machine: Machine | None = None,
    name: str,
    progress: Progress | None = None,
) -> CompiledModel:
    """Compile a trained ONNX model for encrypted inputs.

    calibration: rows as the model's input, [rows][*shape], or a mapping of such arrays by input name; None: uniform
    random values in the declared range, which for pictures may be far from real ones and make the promise loose. own_rows: they
    are the very rows to be evaluated, so that few will do for the intervals of activations too.
    precision: the largest promised error of a logit, relative to the largest calibrated |logit| of its output.
    maxpool: replace max pooling, with the effect in the report.
    keys: "fast"; "small", few keys for up to 2.5 times the time; or the bytes that a client's keys may take, for the
    fastest circuit within them. security: 128, 192 or 256 bits. batch: images in one ciphertext, a power of two.
    layout: "latency", or "batch" for one slot per image and one ciphertext per tensor element, thousands of images a request.
    activations: what is fixed of their approximation, by layer or operator; activation_error: how far their polynomials
    may move the outputs (compiler/approximate.py). validation: rows and their classes, for the accuracies in the report.
    machine: whose times are predicted, one thread of it; None: the committed figures (ckks/machine.json).
    name: of letters, digits, dots, dashes. progress(stage) is called before each stage.
    Raises ModelError naming the node and the remedy; never a set below the security asked for.
    """
    start = time.perf_counter()
    say = progress or (lambda stage: None)
    if not MIN_PRECISION <= precision < 1:
        raise ModelError(
            f"precision must be at least {MIN_PRECISION:.1e} and below 1 (relative to the largest logit), got {precision}"
        )
    if security not in MAX_LOG_QP:
        raise ModelError(f"security must be one of {sorted(MAX_LOG_QP)} bits, got {security}")
    if isinstance(keys, int) and keys < 1:
        raise ModelError(f"a budget for keys must be a positive number of bytes, got {keys}")
    if not 1 <= batch <= MAX_BATCH or batch & (batch - 1):
        raise ModelError(f"a batch must be a power of two up to {MAX_BATCH}, got {batch}")
    if layout == "batch" and batch > 1:
        raise ModelError("the batch layout fills all slots with images; leave the batch size out")
    say("reading")
    model = load_onnx(onnx_path)
    replaced: list[str] = []
    if maxpool == "average":
        model, replaced = average_for_max(model)
    with np.errstate(all="ignore"):  # overflow shows as infinite values, which every stage refuses
        graph = build_graph(model)
        rows = _calibration_rows(graph, calibration)
        graph = graph if calibration is None else with_ranges(graph, rows)
        labelled = None if validation is None else labelled_rows(*validation, graph)
        say("approximating activations")
        approximation = approximate(
            graph,
            rows,
            calibrated=calibration is not None,
            own_rows=own_rows,
            overrides=activations,
            budget=activation_error,
        )
        say("folding")
        program = condition(fold(approximation.graph), rows)
    for source in graph.sources:
        if source.name not in {t.name for t in program.inputs}:
            raise ModelError(f"input {source.name!r} meets zero weights only; remove it from the model")
    errors = tuple(precision * max(largest, 1e-12) for largest in program.largest_outputs)
    machine = machine or default_machine()
    demands = Demands(errors, keys, security, batch, layout == "batch", machine.costs())
    compiled = fit_parameters(graph, program, rows, demands, say)
    say("verifying")
    try:
        bundle = _bundle(name, graph, compiled, program.largest_outputs, bool(approximation.fits))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(x) for x in first["loc"])
        raise ModelError(f"the model cannot be described to clients: {where}: {first['msg']}") from None
    verify(compiled.circuit, bundle, compiled.weights)
    circuit, weights, p = compiled.circuit, compiled.weights, compiled.parameters
    ends = compiled.ends
    say("predicting the error")
    predicted = predicted_error(circuit, weights, p, rows, ends)
    seconds = time.perf_counter() - start
    report = make_report(
        circuit, weights, p, program, compiled.packing, bundle, approximation, machine, seconds
    )
    report["predicted_error"] = predicted
    report["calibration"] = (
        f"{len(rows)} {'random rows in the declared range' if calibration is None else 'rows given'}"
    )
    report["key_tradeoff"] = tradeoff(compiled.plain, p, Prices(machine.costs()).of_weights(weights))
    report["key_choice"] = [report["key_bytes"], report["predicted_seconds"]]
    if replaced:
        say("measuring the replacement")
        outputs = evaluate(circuit, weights, p, rows, ends)
        before = untouched_outputs(logits_model(onnx_path), rows, model.inputs)
        report["maxpool"] = effect(before, replaced, outputs)
    if labelled is not None:
        say("validating")
        untouched = untouched_outputs(logits_model(onnx_path), labelled.x, model.inputs) if replaced else None
        with np.errstate(all="ignore"):
            report["validation"] = validate(
                graph, approximation.graph, circuit, weights, p, ends, labelled, rows, untouched
            )
    return CompiledModel(bundle, circuit, weights, report)


def _calibration_rows(graph: Graph, calibration: Rows | None) -> Array:
    """Calibration rows flat, float64 [rows][elements]. Raises ModelError for rows that are not inputs of the model."""
    if calibration is not None:
        widest = max(math.prod(node.shape) for node in graph.nodes)
        most = min(max(MAX_CALIBRATION_VALUES // widest, MIN_CALIBRATION_ROWS), MAX_CALIBRATION_ROWS)
        return flat_rows(graph, calibration, "calibration", most)
    draw = np.random.default_rng(0)
    return np.concatenate(
        [draw.uniform(s.low, s.high, (RANDOM_ROWS, math.prod(s.shape))) for s in graph.sources], axis=1
    )


def _bundle(
    name: str, graph: Graph, compiled: Compiled, largest_outputs: tuple[float, ...], fitted: bool
) -> Bundle:
    """fitted: some activation is a polynomial over an interval."""
    beyond = OUTLYING if fitted else 2.0**OUTPUT_MARGIN
    circuit, ends = compiled.circuit, compiled.ends
    needs = circuit.key_needs()
    found = {(i.op, i.name): i for i in circuit.instructions if i.op in (Op.INPUT, Op.OUTPUT)}
    inputs, outputs = [], []
    slots = partial(_stacked, lanes=circuit.slots) if compiled.packing.stacked else _slots
    for source, (_, layout) in zip(graph.sources, ends.inputs, strict=True):
        first = found[Op.INPUT, part_names(source.name, layout.parts)[0]]
        inputs.append(
            InputSpec(
                name=source.name, packing=slots(layout, source.shape), low=source.low, high=source.high,
                level=first.level, scale=first.scale,
            )
        )  # fmt: skip
    each = zip(graph.outputs, ends.outputs, compiled.promised, largest_outputs, strict=True)
    for o, (_, layout), promised, largest in each:
        last = found[Op.OUTPUT, part_names(o.name, layout.parts)[0]]
        outputs.append(
            OutputSpec(
                name=o.name, packing=slots(layout, graph.nodes[o.node].shape), labels=list(o.labels),
                level=last.level, scale=last.scale, post=o.post, promised_error=promised, largest=beyond * max(largest, 1e-12),
            )
        )  # fmt: skip
    return Bundle(
        kind="he-serve bundle",
        schema_version=3,
        name=name,
        description=graph.description,
        parameters=compiled.parameters.to_json(),
        inputs=inputs,
        outputs=outputs,
        relinearisation_level=needs.relinearisation,
        rotations=[RotationKey(steps=s, level=level) for s, level in needs.rotations.items()],
        circuit_digest=sha256(circuit_bytes(circuit)),
        weights_digest=sha256(weight_bytes(compiled.weights)),
    )


def _stacked(layout: Layout, shape: Shape, lanes: int) -> SlotPacking:
    return SlotPacking(shape=list(shape[1:]) or [1], slots=[0], period=1, lanes=lanes, stacked=True)


def _slots(layout: Layout, shape: Shape) -> SlotPacking:
    return SlotPacking(
        shape=list(shape[1:]) or [1],
        slots=layout.slots.tolist(),
        period=layout.period,
        parts=layout.parts,
        copies=layout.copies,
        shift=layout.shift,
        lanes=layout.lanes,
    )
