"""`he-serve try`."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ckks.errors import InputError
from he_serve.cli.device import DeviceOption, backend_for
from he_serve.cli.models import (
    Activation,
    ActivationError,
    Batch,
    Calibrate,
    MachineFile,
    MaxPool,
    Page,
    Precision,
    SlotLayout,
    model_name,
    read_activations,
    read_calibration,
    read_layout,
    read_maxpool,
    write_page,
)
from he_serve.cli.output import Json, console, emit, note, progress, size

if TYPE_CHECKING:
    from ckks.types import Slots
    from he_serve.images import Rows


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("try")(try_command)


def try_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx|MODEL.hem")],
    source: Annotated[
        Path, typer.Option("--input", metavar="X.npz", help="Rows to run: array x, or one array per input.")
    ],
    calibrate: Calibrate = None,
    precision: Precision = 1e-3,
    maxpool: MaxPool = None,
    batch: Batch = 1,
    layout: SlotLayout = "latency",
    activation: Activation = None,
    activation_error: ActivationError = 0.1,
    machine: MachineFile = None,
    page: Page = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the evaluation; default: all cores.")
    ] = None,
    device: DeviceOption = "auto",
    as_json: Json = False,
) -> None:
    """Compile, make keys, encrypt, evaluate and decrypt here, and compare with the circuit in the clear and with ONNX Runtime.

    Without --calibrate the rows themselves calibrate. Exits 1 unless every logit is within the promised error.
    """
    from ckks.machine import predict_layers
    from ckks.modelfile import load_model
    from he_serve.images import read_rows
    from he_serve.machine import find_machine
    from he_serve.trial import try_model

    if model.suffix not in (".onnx", ".hem"):
        raise InputError(f"{model}: give an ONNX model (.onnx) or a compiled one (.hem)")
    rows, (backend, remark) = read_rows(source), backend_for(device)
    original: Callable[[Rows], Slots] | None = None
    compile_s: float | None = None
    figures, count = find_machine(machine), threads or len(os.sched_getaffinity(0))
    with progress() as report:
        if model.suffix == ".hem":
            compiled = load_model(model)
        else:
            from compiler.compile import compile_model
            from he_serve.plaintext import run_onnx

            start = time.perf_counter()
            compiled = compile_model(
                model,
                calibration=rows if calibrate is None else read_calibration(calibrate),
                own_rows=calibrate is None,
                precision=precision,
                maxpool=read_maxpool(maxpool),
                batch=batch,
                layout=read_layout(layout),
                activations=read_activations(activation),
                activation_error=activation_error,
                machine=figures,
                name=model_name(model),
                progress=lambda phase: report(phase, 0, 1),
            )
            compile_s = time.perf_counter() - start

            original = functools.partial(run_onnx, model)

        if remark:
            note(remark)
        parameters = compiled.bundle.checked_parameters()
        predicted = predict_layers(figures.costs(count), parameters, compiled.circuit, compiled.weights)
        result = try_model(compiled, rows, original, count, report, backend)
    result["compile_s"] = compile_s
    if backend == "cpu":  # what the figures are of
        result["predicted_s"] = sum(predicted.values())
    if page is not None:
        from compiler.report import add_measurement

        if "steps" not in compiled.report:
            raise InputError(f"{model}: has no report of the compiler; compile it again, or leave --report")
        add_measurement(compiled.report, result["layers_s"], predicted, count)
        write_page(page, compiled)
    if as_json:
        emit(result)
    else:
        table = Table(
            title=f"{model.name}: {'agrees' if result['agrees'] else 'DISAGREES'}", show_header=False
        )
        for key, value in result.items():
            if key == "layers_s":
                continue
            table.add_row(
                key,
                size(value)
                if key.endswith("_bytes")
                else f"{value:.4g}"
                if isinstance(value, float)
                else str(value),
            )
        console().print(table)
    if not result["agrees"]:
        raise typer.Exit(1)
