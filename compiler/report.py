"""The report that travels with a compiled model: what was packed how, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckks.bundle import Bundle
from ckks.circuit import Circuit, Instruction, Op, Weights
from ckks.encoded import encoded_bytes
from ckks.expanded import expanded_bytes
from ckks.linear import GIANTS_AT_ONCE
from ckks.machine import Costs, Machine, predict_layers
from ckks.parameters import Parameters
from ckks.security import SOURCE
from compiler.approximate import Approximation
from compiler.condition import AffineTensor, Program
from compiler.fit import grid
from compiler.layouts import Layout
from compiler.pack import Packing
from compiler.prices import Prices
from compiler.sizes import ciphertext_bytes, key_bytes

CURVE_POINTS = 129  # of a fit in the report


def make_report(
    circuit: Circuit,
    weights: Weights,
    parameters: Parameters,
    program: Program,
    packing: Packing,
    bundle: Bundle,
    approximation: Approximation,
    machine: Machine,
    seconds: float,
) -> dict[str, Any]:
    """Free-form JSON: layers, steps, activation fits, operation counts, bytes, security, times predicted for `machine`."""
    steps = _steps(circuit, weights, parameters, machine.costs())
    cost = Prices(machine.costs()).of_weights(weights).count(parameters, circuit).cost
    weight_bytes = encoded_bytes(circuit, {k: w.shape for k, w in weights.items()}, parameters)
    expanded = expanded_bytes(parameters, circuit.key_needs())
    working = circuit.working_bytes() + _inner_bytes(circuit, parameters)
    limbs = [p.bit_length() for p in parameters.moduli]
    return {
        "layers": _layers(circuit, program, packing),
        "steps": steps,
        "threads": 1,
        "predicted_seconds": sum(step["predicted_seconds"] for step in steps),
        "predicted_seconds_by_threads": {
            str(t): machine.costs(t).seconds(parameters, cost.calls) for t in sorted(machine.threads)
        },
        "prediction": f"counted calls of the engine at the times measured on {machine.source}",
        "activations": _activations(approximation),
        "operations": dict(sorted(cost.operations.items())),
        "limb_transforms": cost.ntts,
        "limb_products": cost.products,
        "parameters": str(parameters),
        "n": parameters.degree,
        "log_qp": round(parameters.log_qp, 2),
        "prime_bits": {
            "data": limbs[: len(parameters.data_primes)],
            "special": limbs[len(parameters.data_primes) :],
        },
        "digit_limbs": parameters.digit_limbs,
        "security": {"bits": parameters.security_bits, "source": SOURCE},
        "levels": max(spec.level for spec in bundle.inputs),
        "rotation_keys": len(bundle.rotations),
        "key_bytes": key_bytes(parameters, circuit),
        "expanded_key_bytes": expanded,
        "weight_bytes": weight_bytes,
        "images_per_request": bundle.lanes,
        "working_bytes": working,
        "server_bytes": weight_bytes + working + expanded,
        "ciphertext_bytes": sum(
            spec.packing.parts * ciphertext_bytes(parameters, spec.level, spec.packing.members)
            for spec in bundle.inputs
        ),
        "promised_error": bundle.promised_error,
        "largest_calibrated_output": max(program.largest_outputs),
        "compile_seconds": round(seconds, 3),
    }


MAX_OUTSIDE = 0.05  # without a word of the operator


@dataclass(frozen=True)
class Budgets:
    """What a deployment may cost at most; None: no limit. accuracy_drop: lost to polynomials on the validation rows, as a share.

    outside: share of inputs that may bring a value outside an activation's interval, where its polynomial goes anywhere, by a bound:
    from validation rows if there were any, else from the number of calibration rows. latency: seconds of one evaluation, measured if
    it was, else predicted. key_bytes: uploaded by a client. memory: bytes on the server with one client's keys.
    """

    accuracy_drop: float | None = None
    outside: float = MAX_OUTSIDE
    latency: float | None = None
    key_bytes: int | None = None
    memory: int | None = None


def add_budgets(report: dict[str, Any], budgets: Budgets) -> None:
    """Set report["budgets"]: the budgets that were given, each with its limit, its value and whether it is met."""
    rows: list[tuple[str, str, float, float]] = []
    if budgets.accuracy_drop is not None:
        found = report["validation"]
        drop = found["accuracy"] - found["polynomial"]["accuracy"]
        rows.append(("accuracy drop", "share", budgets.accuracy_drop, drop))
    measured = report.get("validation", {}).get("outside", {}).get("bound")
    bound = report["activations"]["outside_bound"]
    if report["activations"]["fits"] and (measured, bound) != (None, None):
        kind = (
            f"from {report['activations']['rows']} calibration rows"
            if measured is None
            else "from validation rows"
        )
        value = bound if measured is None else measured
        rows.append((f"inputs outside a fitted interval, bound {kind}", "share", budgets.outside, value))
    if budgets.latency is not None:
        kind = "measured" if "measured_seconds" in report else "predicted"
        seconds = report[f"{kind}_seconds"]
        rows.append((f"latency, {kind}, threads: {report['threads']}", "s", budgets.latency, seconds))
    if budgets.key_bytes is not None:
        rows.append(("key bytes", "bytes", budgets.key_bytes, report["key_bytes"]))
    if budgets.memory is not None:
        rows.append(("server memory with one client", "bytes", budgets.memory, report["server_bytes"]))
    report["budgets"] = [
        {"name": name, "unit": unit, "limit": limit, "value": value, "met": value <= limit}
        for name, unit, limit, value in rows
    ]


def add_measurement(
    report: dict[str, Any], measured: Mapping[str, float], predicted: Mapping[str, float], threads: int
) -> None:
    """Put an evaluation's times by layer, and what was predicted for as many threads, into the report's steps."""
    report["threads"] = threads
    report["measured_seconds"] = sum(measured.values())
    report["predicted_seconds"] = sum(predicted.values())
    for step in report["steps"]:
        step["measured_seconds"] = measured.get(step["layer"], 0.0)
        step["predicted_seconds"] = predicted[step["layer"]]


def _layers(circuit: Circuit, program: Program, packing: Packing) -> list[dict[str, Any]]:
    if packing.stacked:
        return _stacked_layers(circuit)
    transforms = iter(i for i in circuit.instructions if i.op is Op.LINEAR_TRANSFORM)
    rows: list[dict[str, Any]] = []
    for tensor in program.tensors:
        for transform in packing.transforms.get(id(tensor), ()):
            ins = next(transforms)
            assert isinstance(tensor, AffineTensor)  # only these have transforms
            source, target = packing.layouts[id(transform.activation.tensor)], packing.layouts[id(tensor)]
            rows.append(
                {
                    "layer": tensor.layer,
                    "activation": transform.activation.function.value,
                    "level": ins.level,
                    "layout_in": _place(source, transform.source),
                    "layout_out": _place(target, transform.target),
                    "diagonals": len(ins.terms),
                    "babies": len({b for _, b in ins.terms} - {0}),
                    "giants": len({g for g, _ in ins.terms} - {0}),
                    "folds": len(transform.folds),
                }
            )
    return rows


def _place(layout: Layout, part: int) -> str:
    where = f", part {part} of {layout.parts}" if layout.parts > 1 else ""
    return f"{layout.name}, period {layout.period}{where}"


def _stacked_layers(circuit: Circuit) -> list[dict[str, Any]]:
    """Of the throughput layout: a layer may be several matrices."""
    rows: dict[str, dict[str, Any]] = {}
    for ins in circuit.instructions:
        if ins.op is Op.MATRIX:
            row = rows.setdefault(ins.layer, {"layer": ins.layer, "level": ins.level, "products": 0})
            row["products"] += ins.products
    return list(rows.values())


def _steps(circuit: Circuit, weights: Weights, parameters: Parameters, costs: Costs) -> list[dict[str, Any]]:
    """Per layer in order of evaluation (its activation apart): levels, operations, and the time that `costs` predict."""
    predicted = predict_layers(costs, parameters, circuit, weights)
    rows: dict[str, dict[str, Any]] = {}
    for ins in circuit.instructions:
        if ins.op in (Op.INPUT, Op.OUTPUT):
            continue
        start = max(circuit.instructions[o].level for o in ins.operands)
        new = {"layer": ins.layer, "level_before": start, "operations": 0, "rotations": 0}
        row = rows.setdefault(ins.layer, new)
        row["level_after"] = ins.level
        row["operations"] += 1
        row["rotations"] += _rotations(ins)
        row["predicted_seconds"] = predicted[ins.layer]
    return list(rows.values())


def _rotations(ins: Instruction) -> int:
    babies, giants = {b for _, b in ins.terms} - {0}, {g for g, _ in ins.terms} - {0}
    return len(babies) + len(giants) + (ins.op is Op.ROTATE)


def _activations(approximation: Approximation) -> dict[str, Any]:
    rows = []
    for f in approximation.fits:
        p, t = f.polynomial, grid()[:: (len(grid()) - 1) // (CURVE_POINTS - 1)]
        x = (f.low + f.high) / 2 + (f.high - f.low) / 2 * t
        fitted = np.polynomial.chebyshev.chebval(t, p.coefficients[:, 0])
        exact = f.function(x[:, None])[:, 0]  # of the first element, where they differ
        rows.append(
            {
                "layer": f.layer,
                "operators": list(f.operators),
                "calibrated_range": list(f.seen),
                "interval": [f.low, f.high],
                "degree": len(p.coefficients) - 1,
                "levels": p.depth,
                "method": p.method,
                "largest_error": p.worst,
                "rms_error": p.rms,
                "relative_rms_error": p.relative,
                "histogram": f.weights.tolist(),
                "x": x.tolist(),
                "function": exact.tolist(),
                "polynomial": fitted.tolist(),
            }
        )
    return {
        "output_error": approximation.error,
        "budget": approximation.budget,
        "rows": approximation.rows,
        "outside_bound": approximation.outside_bound,
        "fits": rows,
    }


def _inner_bytes(circuit: Circuit, parameters: Parameters) -> int:
    """Bytes of polynomials inside the widest operation: the rotations of a matrix's input, their sums, one key switch."""
    most = 0
    for ins in circuit.instructions:
        babies, giants = {b for _, b in ins.terms}, {g for g, _ in ins.terms}
        pairs = len(babies) + min(len(giants), GIANTS_AT_ONCE) + 3
        digits = len(parameters.digits(ins.level))
        most = max(most, (2 * pairs + digits) * len(parameters.extended_rows(ins.level)))
    return most * parameters.degree * 8
