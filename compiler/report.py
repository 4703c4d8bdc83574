"""The report that travels with a compiled model: what was packed how, and what it costs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ckks.bundle import Bundle
from ckks.circuit import Circuit, Instruction, Op, Weights
from ckks.counting import CountedValue, CountingEvaluator
from ckks.encoded import encoded_bytes
from ckks.expanded import expanded_bytes
from ckks.interpreter import run
from ckks.parameters import Parameters
from ckks.security import SOURCE
from compiler.approximate import Approximation
from compiler.condition import AffineTensor, Program
from compiler.fit import grid
from compiler.layouts import Layout
from compiler.pack import Packing
from compiler.parameters import ciphertext_bytes, cost_seconds, count, key_bytes, working_bytes

CURVE_POINTS = 129  # of a fit in the report


def make_report(
    circuit: Circuit,
    weights: Weights,
    parameters: Parameters,
    program: Program,
    packing: Packing,
    bundle: Bundle,
    approximation: Approximation,
    seconds: float,
) -> dict[str, Any]:
    """Free-form JSON: layers, steps, activation fits, operation counts, bytes, security."""
    steps = _steps(circuit, parameters)
    cost = count(parameters, circuit).cost
    limbs = [p.bit_length() for p in parameters.moduli]
    return {
        "layers": _layers(circuit, program, packing),
        "steps": steps,
        "predicted_seconds": sum(step["predicted_seconds"] for step in steps),
        "prediction": "one thread; counted limb transforms and products at the unit costs measured for the default engine",
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
        "expanded_key_bytes": expanded_bytes(parameters, circuit.key_needs()),
        "weight_bytes": encoded_bytes(circuit, weights, parameters),
        "images_per_request": bundle.lanes,
        "working_bytes": working_bytes(parameters, circuit),
        "ciphertext_bytes": sum(
            spec.packing.parts * ciphertext_bytes(parameters, spec.level, spec.packing.members)
            for spec in bundle.inputs
        ),
        "promised_error": bundle.promised_error,
        "largest_calibrated_output": max(program.largest_outputs),
        "compile_seconds": round(seconds, 3),
    }


def add_budgets(report: dict[str, Any], max_accuracy_drop: float | None, max_key_bytes: int | None) -> None:
    """Set report["budgets"]: the budgets that were given, each with its limit, its value and whether it is met."""
    rows: list[tuple[str, float, float]] = []
    if max_accuracy_drop is not None:
        found = report["validation"]
        rows.append(("accuracy drop", max_accuracy_drop, found["accuracy"] - found["polynomial"]["accuracy"]))
    if max_key_bytes is not None:
        rows.append(("key bytes", max_key_bytes, report["key_bytes"]))
    report["budgets"] = [
        {"name": name, "limit": limit, "value": value, "met": value <= limit} for name, limit, value in rows
    ]


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


def _steps(circuit: Circuit, parameters: Parameters) -> list[dict[str, Any]]:
    """Per layer in order of evaluation (its activation apart): levels, operations, and the time the counts predict."""
    evaluator = CountingEvaluator(parameters)
    totals: list[float] = []  # before each instruction, and at the end
    run(
        circuit,
        {i.name: CountedValue(i.level, i.members) for i in circuit.instructions if i.op is Op.INPUT},
        evaluator,
        lambda i, ins: totals.append(cost_seconds(parameters, evaluator.cost)),
    )
    totals.append(cost_seconds(parameters, evaluator.cost))
    rows: dict[str, dict[str, Any]] = {}
    for i, ins in enumerate(circuit.instructions):
        if ins.op in (Op.INPUT, Op.OUTPUT):
            continue
        start = max(circuit.instructions[o].level for o in ins.operands)
        row = rows.setdefault(
            ins.layer,
            {
                "layer": ins.layer,
                "level_before": start,
                "operations": 0,
                "rotations": 0,
                "predicted_seconds": 0.0,
            },
        )
        row["level_after"] = ins.level
        row["operations"] += 1
        row["rotations"] += _rotations(ins)
        row["predicted_seconds"] += totals[i + 1] - totals[i]
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
    return {"output_error": approximation.error, "budget": approximation.budget, "fits": rows}
