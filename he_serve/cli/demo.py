"""`he-serve demo`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from he_serve.cli.output import Json, console, emit, note, progress, size

if TYPE_CHECKING:
    from he_serve.demo import Demonstration


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    image: Annotated[
        Path | None, typer.Argument(help="A picture of a skin lesion; default: a sample.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Classify a skin lesion and a Fashion-MNIST picture on a server that sees neither, and compare with ONNX Runtime.

    Exits 1 if a class differs or a logit is further off than the compiler promised.
    """
    from he_serve.demo import demonstrate, find_models, sample
    from he_serve.images import read_image

    folder = find_models()
    pictures = [
        ("lesion", image or sample(folder, "lesion_mel_*.png")),
        ("fashion", sample(folder, "fashion_*.png")),
    ]
    for _, picture in pictures:
        read_image(picture)  # a bad file fails now, not after the first minute
    results = []
    for name, picture in pictures:
        note(f"{name}: compiling, starting a server, making keys, encrypting {picture.name} ...")
        with progress() as report:
            results.append(demonstrate(folder, name, picture, report))
        if not as_json:
            _print(results[-1])
    if as_json:
        rows = [dataclasses.asdict(r) | {"image": str(r.image), "agrees": r.agrees} for r in results]
        emit({"agrees": all(r.agrees for r in results), "demonstrations": rows})
    if not all(r.agrees for r in results):
        raise typer.Exit(1)


def _print(result: Demonstration) -> None:
    table = Table("class", title=f"{result.model}: {result.image.name}")
    table.add_column("encrypted", justify="right")
    table.add_column("ONNX Runtime", justify="right")
    for label, encrypted, plain in zip(
        result.labels, result.encrypted_probabilities, result.plain_probabilities, strict=True
    ):
        style = "bold" if label == result.encrypted_label else None
        table.add_row(label, f"{encrypted:.4f}", f"{plain:.4f}", style=style)
    console().print(table)
    facts = Table(show_header=False)
    verdict = "same class" if result.encrypted_label == result.plain_label else "DIFFERENT CLASSES"
    facts.add_row("result", f"{result.encrypted_label}, in the clear {result.plain_label}: {verdict}")
    within = "within" if result.logit_difference <= result.promised_error else "BEYOND"
    facts.add_row(
        "largest logit difference",
        f"{result.logit_difference:.2e}, {within} the promised {result.promised_error:.2e}",
    )
    facts.add_row("security", f"{result.security_bits} bits: N = {result.n}, log2(QP) = {result.log_qp:.1f}")
    for name, count in result.sizes.items():
        facts.add_row(name, size(count))
    for name, seconds in result.timings.items():
        facts.add_row(f"time: {name}", f"{seconds:.3f} s")
    console().print(facts)
