"""`he-serve doctor`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from he_serve.cli.output import Json, console, emit, note, progress

if TYPE_CHECKING:
    from ckks.machine import Machine
    from he_serve.doctor import Check

COLUMNS = {
    "decompose": "digits", "key_product": "key product", "key_switch": "switch", "mod_down": "mod down", "rescale": "rescale",
    "multiply_sums": "64 diag.", "element_wise": "add",
}  # fmt: skip
COLOURS = {"ok": "green", "absent": "yellow", "wrong": "bold red"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(
    threads: Annotated[
        int | None, typer.Option(min=1, help="Measure with one thread and with so many; default: all cores.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where the figures go; default: the user's cache."
        ),
    ] = None,
    state: Annotated[Path, typer.Option(help="Folder that a server will keep uploaded keys in.")] = Path(
        "he-serve-state"
    ),
    as_json: Json = False,
) -> None:
    """Check this installation, and measure what the engine's functions take on this machine.

    The compiler predicts times from these figures (`he-serve compile`, `try`): run it on the machine that will serve, while nothing
    else runs, and give the file to --machine elsewhere. Exits 1 when something is wrong.
    """
    from ckks.kernels._cpu import instruction_sets
    from ckks.machine import save_machine
    from ckks.measure import measure_machine
    from he_serve.doctor import check_installation, describe_machine
    from he_serve.machine import machine_file

    most = threads or len(os.sched_getaffinity(0))
    checks = check_installation(state, most)
    healthy = all(c.status != "wrong" for c in checks)
    if not as_json:
        _print_checks(checks)
    where, machine = output or machine_file(), None
    if healthy:  # figures of a broken engine are worth nothing
        with progress() as report:
            machine = measure_machine(
                tuple(sorted({1, most})),
                describe_machine(),
                f"{describe_machine()}, {instruction_sets()[0]}",
                lambda done, total: report("measuring", done, total),
            )
        save_machine(where, machine)
    if as_json:
        emit(
            {
                "healthy": healthy,
                "checks": [{"name": c.name, "status": c.status, "found": c.found} for c in checks],
                "file": None if machine is None else str(where),
                "machine": None if machine is None else machine.model_dump(mode="json"),
            }
        )
    elif machine is not None:
        _print_machine(machine)
        note(f"written to {where}")
    if not healthy:
        raise typer.Exit(1)


def _print_checks(checks: list[Check]) -> None:
    table = Table("check", "", "found")
    for c in checks:
        table.add_row(c.name, f"[{COLOURS[c.status]}]{c.status}", c.found)
    console().print(table)


def _print_machine(machine: Machine) -> None:
    """Per number of threads, a table: for each ring degree the call of most rows, sums of 8 by 8 diagonals."""
    console().print(f"{machine.description}; {machine.instructions}")
    for threads, samples in machine.threads.items():
        title = f"Milliseconds a call, {threads} thread{'s' * (threads > 1)}; memory {machine.bandwidth[threads] / 1e9:.1f} GB/s"
        table = Table("N", "limbs", *COLUMNS.values(), title=title, title_justify="left")
        for kind, degree in sorted({(s.primes, s.log_degree) for s in samples}):
            some = [s for s in samples if (s.primes, s.log_degree) == (kind, degree)]
            rows = max(s.rows for s in some)
            largest = {
                s.function: s
                for s in some
                if s.rows == rows and (s.function != "multiply_sums" or s.width == 8)
            }
            times = (f"{largest[function].seconds * 1e3:.3g}" for function in COLUMNS)
            table.add_row(f"2^{degree}" + " wide" * (kind == "wide"), str(rows), *times)
        console().print(table)
