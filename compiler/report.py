"""The report that travels with a compiled model: what was packed how, and what it costs."""

from __future__ import annotations

from typing import Any

from ckks.bundle import Bundle
from ckks.circuit import Circuit, Op
from ckks.parameters import Parameters
from ckks.security import SOURCE
from compiler.condition import AffineTensor, Program
from compiler.pack import Packing
from compiler.parameters import ciphertext_bytes, count, key_bytes


def make_report(
    circuit: Circuit,
    parameters: Parameters,
    program: Program,
    packing: Packing,
    bundle: Bundle,
    seconds: float,
) -> dict[str, Any]:
    """Free-form JSON: layers, operation counts, bytes, security."""
    cost = count(parameters, circuit).cost
    limbs = [p.bit_length() for p in parameters.moduli]
    return {
        "layers": _layers(circuit, program, packing),
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
        "levels": bundle.input.level,
        "rotation_keys": len(bundle.rotations),
        "key_bytes": key_bytes(parameters, circuit),
        "ciphertext_bytes": ciphertext_bytes(parameters, bundle.input.level),
        "promised_error": bundle.promised_error,
        "largest_calibrated_output": program.largest_output,
        "compile_seconds": round(seconds, 3),
    }


def _layers(circuit: Circuit, program: Program, packing: Packing) -> list[dict[str, Any]]:
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
                    "layout_in": f"{source.name}, period {source.period}",
                    "layout_out": f"{target.name}, period {target.period}",
                    "diagonals": len(ins.terms),
                    "babies": len({b for _, b in ins.terms} - {0}),
                    "giants": len({g for g, _ in ins.terms} - {0}),
                    "folds": len(transform.folds),
                }
            )
    return rows
