"""`he-serve serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from he_serve.cli.device import DeviceOption, backends_for
from he_serve.cli.output import Json, emit, note


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve")(serve)


def serve(
    models: Annotated[Path, typer.Option(help="Folder of compiled models (*.hem).")],
    state: Annotated[Path, typer.Option(help="Folder for uploaded keys, kept over restarts.")] = Path(
        "he-serve-state"
    ),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes any free one.")] = 8000,
    workers: Annotated[
        int | None, typer.Option(help="Evaluation processes; default: one, or one on each device.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads per evaluation process.")] = 1,
    weights_memory: Annotated[
        int | None,
        typer.Option(
            metavar="BYTES", help="Refuse to start if the encoded weights of all models take more than this."
        ),
    ] = None,
    prime_sets: Annotated[
        int,
        typer.Option(
            help="Prime sets chosen by clients (OpenFHE's own) to keep encoded weights for; 0: models' own only."
        ),
    ] = 4,
    evaluate_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds after which an evaluation is stopped.")
    ] = 300.0,
    device: DeviceOption = "auto",
    as_json: Json = False,
) -> None:
    """Serve compiled models until interrupted. With --json, one object with the URL is written once connections are accepted."""
    from he_serve.serve import serve as run
    from he_serve.settings import Settings

    backends, remark = backends_for(device)
    settings = Settings(
        models=models,
        state=state,
        host=host,
        port=port,
        workers=len(backends) if workers is None else workers,
        threads=threads,
        weights_memory=weights_memory,
        prime_sets=prime_sets,
        evaluate_timeout=evaluate_timeout,
        backends=backends,
    )

    if remark:
        note(remark)

    def listening(url: str) -> None:
        note(f"serving {models} on {url}")
        if as_json:
            emit({"url": url})

    run(settings, listening)
