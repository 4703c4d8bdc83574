"""`he-serve compile` and `he-serve inspect`."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from ckks.errors import InputError
from he_serve.cli.output import Json, console, emit, note, progress, size

if TYPE_CHECKING:
    from ckks.bundle import InputSpec, OutputSpec
    from ckks.machine import Machine
    from ckks.modelfile import CompiledModel
    from compiler.approximate import Override

Onnx = Annotated[Path, typer.Argument(metavar="MODEL.onnx")]
Compiled = Annotated[Path, typer.Argument(metavar="MODEL.hem")]
Calibrate = Annotated[
    Path | None, typer.Option(metavar="X.npz", help="Typical inputs: array x, or one array per input.")
]
MaxPool = Annotated[
    str | None,
    typer.Option(
        metavar="average", help="Replace max pooling by average pooling; the report says what it changes."
    ),
]
Activation = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=degree:D,range:R",
        help="Fix the polynomial of a layer or an operator, e.g. relu=degree:4,range:8; may be repeated.",
    ),
]
ActivationError = Annotated[
    float,
    typer.Option(
        help="Largest relative rms error of the outputs that polynomials for activations may cause."
    ),
]
Batch = Annotated[
    int, typer.Option(metavar="B", help="Images in one ciphertext, a power of two: nearly the cost of one.")
]
SlotLayout = Annotated[
    str,
    typer.Option(
        "--layout",
        metavar="latency|batch",
        help="batch: one slot an image, thousands of images a request, for offline screening.",
    ),
]
MachineFile = Annotated[
    Path | None,
    typer.Option(
        "--machine",
        metavar="FILE",
        help="Figures of the machine that will serve, from `he-serve doctor` there; default: this user's.",
    ),
]
Page = Annotated[
    Path | None, typer.Option("--report", metavar="OUT.html", help="Write the report as one HTML page.")
]
Precision = Annotated[float, typer.Option(help="Largest promised error, relative to the largest logit.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("compile")(compile_command)
    app.command("inspect")(inspect)


def read_calibration(path: Path | None) -> Any:
    """The calibration rows, or None."""
    from he_serve.images import read_rows

    return None if path is None else read_rows(path)


def model_name(path: Path) -> str:
    """A model's name from its file's. Raises InputError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", path.stem):
        raise InputError(
            f"{path.name}: a model's name is its file's, of letters, digits and ._- only; rename the file"
        )
    return path.stem


def read_activations(texts: list[str] | None) -> dict[str, Override]:
    """The --activation options. Raises InputError."""
    from compiler.approximate import parse_override

    return dict(parse_override(text) for text in texts or [])


def read_maxpool(text: str | None) -> Literal["average"] | None:
    """The option's one value. Raises InputError."""
    if text not in (None, "average"):
        raise InputError(f"--maxpool {text}: max pooling can be replaced by `average` only")
    return None if text is None else "average"


def read_layout(text: str) -> Literal["latency", "batch"]:
    """The --layout option. Raises InputError."""
    if text not in ("latency", "batch"):
        raise InputError(f"--layout takes latency or batch, got {text!r}")
    return "batch" if text == "batch" else "latency"


def compile_command(
    model: Onnx,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT.hem")],
    calibrate: Calibrate = None,
    precision: Precision = 1e-3,
    maxpool: MaxPool = None,
    keys: Annotated[
        str,
        typer.Option(metavar="fast|small|BYTES", help="What clients upload once, against time per image."),
    ] = "fast",
    batch: Batch = 1,
    layout: SlotLayout = "latency",
    security: Annotated[int, typer.Option(metavar="128|192|256", help="Bits of security.")] = 128,
    activation: Activation = None,
    activation_error: ActivationError = 0.1,
    validate: Annotated[
        Path | None,
        typer.Option(metavar="X.npz", help="Rows x and their classes y: accuracies for the report."),
    ] = None,
    page: Page = None,
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(min=0, help="Budget: accuracy lost to polynomials on --validate, 0.01 for a point."),
    ] = None,
    max_outside: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="Budget: inputs that may leave an activation's interval, bounded by --validate, else by the number of --calibrate rows.",
        ),
    ] = 0.05,
    max_key_bytes: Annotated[
        int | None, typer.Option(min=1, help="Budget: bytes of keys a client uploads.")
    ] = None,
    max_latency: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="SECONDS", help="Budget: one evaluation on one thread, measured with --validate."
        ),
    ] = None,
    max_memory: Annotated[
        int | None,
        typer.Option(min=1, metavar="BYTES", help="Budget: a server's memory with one client's keys."),
    ] = None,
    machine: MachineFile = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 when a budget is missed.")] = False,
    as_json: Json = False,
) -> None:
    """Compile an ONNX model to a CKKS circuit."""
    from ckks.modelfile import save_model
    from compiler.compile import compile_model
    from compiler.report import Budgets, add_budgets, add_measurement
    from he_serve.images import read_labelled
    from he_serve.machine import find_machine

    if max_accuracy_drop is not None and validate is None:
        raise InputError("--max-accuracy-drop needs rows to measure it on; give --validate X.npz")
    figures = find_machine(machine)
    with progress() as report:
        compiled = compile_model(
            model,
            calibration=read_calibration(calibrate),
            precision=precision,
            maxpool=read_maxpool(maxpool),
            keys=_keys(keys),
            security=security,
            batch=batch,
            layout=read_layout(layout),
            activations=read_activations(activation),
            activation_error=activation_error,
            validation=None if validate is None else read_labelled(validate),
            machine=figures,
            name=model_name(output),
            progress=lambda phase: report(phase, 0, 1),
        )
        if validate is not None and not any(i.members for i in compiled.circuit.instructions):
            measure = functools.partial(report, "measuring the evaluation")
            add_measurement(compiled.report, *_times(compiled, figures, measure), threads=1)
    budgets = Budgets(max_accuracy_drop, max_outside, max_latency, max_key_bytes, max_memory)
    add_budgets(compiled.report, budgets)
    save_model(output, compiled)
    if page is not None:
        write_page(page, compiled)
    _show(output, as_json)
    missed = [b for b in compiled.report["budgets"] if not b["met"]]
    for budget in missed:
        note(f"missed: {budget['name']} is {budget['value']:.6g}, above {budget['limit']:.6g}")
    if strict and missed:
        raise typer.Exit(1)


def _times(
    compiled: CompiledModel, machine: Machine, progress: Callable[[int, int], None]
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds by layer on one thread: measured here, and predicted."""
    from ckks.machine import predict_layers
    from ckks.rehearsal import rehearse

    p = compiled.bundle.checked_parameters()
    measured = rehearse(compiled.circuit, compiled.weights, p, 1, progress)
    return measured, predict_layers(machine.costs(1), p, compiled.circuit, compiled.weights)


def write_page(path: Path, compiled: CompiledModel) -> None:
    """The report as an HTML page. Raises InputError."""
    from compiler.report_html import render

    try:
        path.write_text(render(compiled.bundle, compiled.report), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def _keys(text: str) -> Literal["fast", "small"] | int:
    """The --keys option. Raises InputError."""
    named: dict[str, Literal["fast", "small"]] = {"fast": "fast", "small": "small"}
    if text in named:
        return named[text]
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise InputError(f"--keys takes fast, small or a number of bytes, got {text!r}")
    return int(text)


def inspect(
    model: Compiled,
    circuit: Annotated[
        bool, typer.Option("--circuit", help="List the circuit, one instruction a line.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a compiled model is: parameters, security, keys, sizes, layers."""
    if circuit and not as_json:
        from ckks.modelfile import load_model

        console().print(load_model(model).circuit.dump(), markup=False, soft_wrap=True)
        return
    _show(model, as_json, circuit)


def _interface(spec: InputSpec | OutputSpec) -> dict[str, Any]:
    return {"shape": spec.packing.shape, "ciphertexts": spec.ciphertexts}


def _parts(spec: InputSpec | OutputSpec) -> str:
    return f" in {spec.packing.parts} ciphertexts" if spec.packing.parts > 1 else ""


def _show(path: Path, as_json: bool, circuit: bool = False) -> None:
    """Describe a compiled model, after checking all of it."""
    from ckks.modelfile import load_model
    from ckks.wire import ciphertexts_limit
    from ckks.wire_keys import key_file_size

    model = load_model(path)
    bundle, p = model.bundle, model.bundle.checked_parameters()
    layers: dict[str, dict[str, int]] = {}
    for ins in model.circuit.instructions:
        row = layers.setdefault(ins.layer, {"operations": 0, "diagonals": 0, "level": ins.level})
        row["operations"] += 1
        row["diagonals"] += len(ins.terms)
        row["level"] = ins.level
    data: dict[str, Any] = {
        "file": str(path),
        "name": bundle.name,
        "description": bundle.description,
        "digest": bundle.digest,
        "inputs": {s.name: _interface(s) for s in bundle.inputs},
        "outputs": {
            s.name: _interface(s) | {"labels": s.labels, "post": s.post, "promised_error": s.promised_error}
            for s in bundle.outputs
        },
        "images_per_request": bundle.lanes,
        "security_bits": p.security_bits,
        "n": p.degree,
        "log_qp": round(p.log_qp, 2),
        "parameters": str(p),
        "levels": p.max_level,
        "promised_error": bundle.promised_error,
        "predicted_error": model.report.get("predicted_error"),
        "predicted_s": model.report.get("predicted_seconds"),
        "measured_s": model.report.get("measured_seconds"),
        "server_bytes": model.report.get("server_bytes"),
        "rotation_keys": len(bundle.rotations),
        "key_bytes": key_file_size(p, bundle.key_needs())[0],
        "ciphertext_bytes": ciphertexts_limit(p, bundle.input_ciphertexts, bundle.input_members) // 2,
        "file_bytes": path.stat().st_size,
        "operations": len(model.circuit.instructions),
        "layers": [{"layer": name, **row} for name, row in layers.items()],
        "report": model.report,
    }
    if as_json:
        emit(data | ({"circuit": model.circuit.dump().splitlines()} if circuit else {}))
        return
    facts = Table(title=f"{bundle.name} ({path})", show_header=False)
    for i in bundle.inputs:
        facts.add_row(f"input {i.name}", f"{i.packing.shape} in {i.low:g}..{i.high:g}{_parts(i)}")
    for o in bundle.outputs:
        facts.add_row(
            f"output {o.name}",
            f"{o.packing.shape}{_parts(o)}: {o.post} of {', '.join(o.labels) or 'unnamed'}",
        )
        facts.add_row("promised error", f"{o.promised_error:.2e} per logit")
    facts.add_row("images per request", str(bundle.lanes))
    facts.add_row("security", f"{p.security_bits} bits: N = {p.degree}, log2(QP) = {p.log_qp:.1f}")
    facts.add_row("parameters", str(p))
    _add_predictions(facts, data)
    facts.add_row("evaluation keys", f"{size(data['key_bytes'])}, {len(bundle.rotations)} rotations")
    facts.add_row("ciphertext", f"{size(data['ciphertext_bytes'])} as sent")
    facts.add_row("file", size(data["file_bytes"]))
    facts.add_row("digest", bundle.digest)
    console().print(facts)
    steps = {step["layer"]: step for step in model.report.get("steps", ())}
    columns = ("predicted_seconds", "measured_seconds")
    shown = [c for c in columns if any(c in step for step in steps.values())]
    titles = (c.removesuffix("_seconds") for c in shown)
    table = Table("layer", "operations", "diagonals", "level after", *titles)
    for name, row in layers.items():
        times = (
            f"{1e3 * steps[name][c]:.1f} ms" if name in steps and c in steps[name] else "" for c in shown
        )
        cells = str(row["operations"]), str(row["diagonals"] or ""), str(row["level"])
        table.add_row(name or "-", *cells, *times)
    console().print(table)


def _add_predictions(facts: Table, data: dict[str, Any]) -> None:
    """What the report of a model that the compiler made says beside its promise."""
    if data["predicted_error"] is not None:
        facts.add_row("predicted error", f"{data['predicted_error']:.2e} per logit")
    for kind in ("predicted", "measured"):
        if data[f"{kind}_s"] is not None:
            threads = data["report"].get("threads", 1)
            facts.add_row(f"latency, {kind}", f"{1e3 * data[f'{kind}_s']:.1f} ms, threads: {threads}")
    if data["server_bytes"] is not None:
        facts.add_row("server memory, one client", size(data["server_bytes"]))
