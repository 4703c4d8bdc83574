"""What commands write: results on standard output (text or one JSON object), everything else on standard error."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

Json = Annotated[bool, typer.Option("--json", help="Write one JSON object to standard output.")]
Report = Callable[[str, int, int], None]


def emit(data: dict[str, Any]) -> None:
    """One JSON object on one line of standard output."""
    sys.stdout.write(json.dumps(data) + "\n")
    sys.stdout.flush()


def console() -> Console:
    """Standard output for people."""
    return Console(highlight=False)


def note(text: str) -> None:
    """A line on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)


def fail(message: str, code: int) -> int:
    """Report an error, as JSON too where that was asked for -> the exit code."""
    if "--json" in sys.argv[1:]:
        emit({"error": message, "exit_code": code})
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {message}", markup=False)
    return code


@contextlib.contextmanager
def progress() -> Iterator[Report]:
    """A report(phase, done, all) that draws one bar per phase, on a terminal only."""
    stderr = Console(stderr=True)
    if not stderr.is_terminal:
        yield lambda phase, done, total: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=stderr, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=done, total=total)

        yield report


def size(count: float) -> str:
    """Bytes for people: 12.3 MB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
