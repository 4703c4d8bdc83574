"""`he-serve predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from he_serve.cli.keys import DEFAULT_STORE, DEFAULT_URL, Model, Plain, Store, Url, passphrase
from he_serve.cli.output import Json, console, emit, progress


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("predict")(predict)


def predict(
    source: Annotated[
        Path, typer.Argument(metavar="IMAGE|X.npz", help="A picture, or rows as array x of an .npz.")
    ],
    url: Url = DEFAULT_URL,
    model: Model = None,
    key_store: Store = DEFAULT_STORE,
    plain: Plain = False,
    as_json: Json = False,
) -> None:
    """Have a picture (or rows of numbers) classified without showing it to the server."""
    from he_serve.client import Client
    from he_serve.images import read_image, read_rows

    inputs: list[Any] = list(read_rows(source)) if source.suffix == ".npz" else [read_image(source)]
    with (
        progress() as report,
        Client(
            url, model=model, key_store=key_store, passphrase=passphrase(plain), progress=report
        ) as client,
    ):
        predictions = [client.predict(x) for x in inputs]
    if as_json:
        rows = [
            {"label": p.label, "probabilities": p.probabilities, "timings": p.timings} for p in predictions
        ]
        emit({"model": client.bundle().name, "predictions": rows})
        return
    for p in predictions:
        console().print(f"{p.label} ({p.timings['round_trip']:.2f} s)", style="bold", markup=False)
        for label, probability in sorted(p.probabilities.items(), key=lambda item: -item[1]):
            console().print(f"  {probability:8.4f}  {label}", markup=False)
