"""`he-serve predict`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from he_serve.cli.keys import (
    DEFAULT_STORE,
    DEFAULT_URL,
    KeyLibrary,
    Model,
    OwnPrimes,
    Plain,
    Store,
    Url,
    passphrase,
    read_library,
)
from he_serve.cli.output import Json, console, emit, progress


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("predict")(predict)


def predict(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGE|X.npz", help="A picture, or an .npz of rows: array x, or one array per input."
        ),
    ],
    url: Url = DEFAULT_URL,
    model: Model = None,
    key_store: Store = DEFAULT_STORE,
    plain: Plain = False,
    library: KeyLibrary = "seal",
    own_primes: OwnPrimes = False,
    as_json: Json = False,
) -> None:
    """Have a picture (or rows of numbers) classified without showing it to the server.

    Rows share requests where the model was compiled for batches.
    """
    from he_serve.client import Client
    from he_serve.images import each_row, read_image, read_rows

    inputs: list[Any] = each_row(read_rows(source)) if source.suffix == ".npz" else [read_image(source)]
    with (
        progress() as report,
        Client(
            url,
            model=model,
            key_store=key_store,
            passphrase=passphrase(plain),
            library=read_library(library),
            own_primes=own_primes,
            progress=report,
        ) as client,
    ):
        predictions = client.predict_many(inputs)
        several = len(client.bundle().outputs) > 1
    if as_json:
        rows = [{name: dataclasses.asdict(p) for name, p in found.items()} for found in predictions]
        shown = [{"outputs": row} if several else next(iter(row.values())) for row in rows]
        emit({"model": client.bundle().name, "predictions": shown})
        return
    for found in predictions:
        for name, p in found.items():
            title = f"{name}: {p.label}" if several else p.label
            console().print(
                f"{title} ({_seconds(p.timings['round_trip'], p.images)})", style="bold", markup=False
            )
            for label, probability in sorted(p.probabilities.items(), key=lambda item: -item[1]):
                console().print(f"  {probability:8.4f}  {label}", markup=False)


def _seconds(round_trip: float, images: int) -> str:
    if images == 1:
        return f"{round_trip:.2f} s"
    return f"{round_trip:.2f} s for {images} images, {1000 * round_trip / images:.3g} ms each"
