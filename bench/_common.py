"""What every suite shares: who ran where, alternating timings, the rules of a fair comparison, the report and its table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.table import Table

from ckks.parameters import Parameters
from ckks.security import REQUIRED_BITS

ROOT = Path(__file__).resolve().parent.parent


class UnfairComparisonError(Exception):
    """Two sides that do not do the same work at the stated precision and security: their times must not be compared."""


@dataclass(frozen=True)
class Timings:
    """Alternating measurements of two callables, in seconds per call; entry i of both is pair i."""

    ours: list[float]
    other: list[float]

    @property
    def ratios(self) -> list[float]:
        """other / ours, pair by pair."""
        return [other / ours for ours, other in zip(self.ours, self.other, strict=True)]


@dataclass(frozen=True)
class Row:
    """One comparison. ratio: other_s / ours_s, so below 1 where ours is slower. target: the ratio to reach, None if none is set.

    The errors are the largest absolute ones over all outputs of all runs, against the same reference. more: what else a suite measured.
    """

    name: str
    parameters: str
    ours_s: float
    ours_version: str
    other: str
    other_version: str
    other_s: float
    ratio: float
    ratio_min: float
    ratio_max: float
    ours_error: float
    other_error: float
    target: float | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """One flat object: the fixed fields first, then `more`."""
        fixed = asdict(self)
        del fixed["more"]
        return fixed | self.more


def alternate(
    ours: Callable[[int], None],
    other: Callable[[int], None],
    *,
    pairs: int,
    budget_s: float = 60.0,
    least_pairs: int = 3,
    least_s: float = 0.2,
    clock: Callable[[], float] = perf_counter,
) -> Timings:
    """Time ours(i) and other(i) in turn, so that a disturbance of the machine meets both; which one goes first alternates too.

    Up to `pairs` pairs; after `least_pairs` it stops once `budget_s` seconds have passed. A side that takes less than `least_s` seconds
    is called again until they have passed, and its mean counts. Both must be warmed up by the caller.
    """
    return alternate_timed(
        lambda pair: repeat(lambda: ours(pair), least_s, clock),
        lambda pair: repeat(lambda: other(pair), least_s, clock),
        pairs=pairs,
        budget_s=budget_s,
        least_pairs=least_pairs,
        clock=clock,
    )


def repeat(call: Callable[[], object], least_s: float, clock: Callable[[], float] = perf_counter) -> float:
    """Mean seconds of a call, over as many calls as fill `least_s` seconds.

    The clock is read after 1, 10, 100 .. calls, and then when the time should be up: a reading of the processor time takes a microsecond.
    """
    start, calls, batch = clock(), 0, 1
    while True:
        for _ in range(batch):
            call()
        calls += batch
        if (elapsed := clock() - start) >= least_s:
            return elapsed / calls
        batch = max(1, min(9 * calls, int(calls * (least_s / elapsed - 1)) if elapsed > 0 else calls))


def alternate_timed(
    ours: Callable[[int], float],
    other: Callable[[int], float],
    *,
    pairs: int,
    budget_s: float = 60.0,
    least_pairs: int = 3,
    clock: Callable[[], float] = perf_counter,
) -> Timings:
    """As `alternate`, for sides that take their own time and return it in seconds per call: another process, say."""
    ours_s: list[float] = []
    other_s: list[float] = []
    start = clock()
    for pair in range(pairs):
        if pair >= least_pairs and clock() - start > budget_s:
            break
        if pair % 2 == 0:
            ours_s.append(ours(pair))
            other_s.append(other(pair))
        else:
            other_s.append(other(pair))
            ours_s.append(ours(pair))
    return Timings(ours_s, other_s)


def require_secure(parameters: Parameters) -> None:
    """Refuse a time taken below 128 bits. Raises UnfairComparisonError."""
    if parameters.security_bits < REQUIRED_BITS:
        raise UnfairComparisonError(
            f"{parameters} has {parameters.security_bits} bits of security, not {REQUIRED_BITS}"
        )


def require_precise(name: str, error: float, promised: float) -> None:
    """Refuse a time whose results are further off than promised (or not numbers). Raises UnfairComparisonError."""
    if not error <= promised:
        raise UnfairComparisonError(f"{name}: the largest error is {error:.3g}, promised was {promised:.3g}")


def machine() -> str:
    """The machine in words: processor, cores this process may use, memory, system, Python. No host name, no paths."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{cpu}, {cores()} cores, {memory:.0f} GiB, {system}"


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))


def commit() -> str:
    """The commit of the checkout, "-dirty" appended if it has changes outside results/; "unknown" outside a checkout."""
    described = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if described.returncode:
        return "unknown"
    command = ["git", "status", "--porcelain", "--", ".", ":!results"]
    changes = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return described.stdout.strip() + ("-dirty" if changes.stdout.strip() else "")


def compare(
    timings: Timings,
    *,
    name: str,
    parameters: Parameters,
    other: str,
    other_version: str,
    ours_error: float,
    other_error: float,
    promised_error: float,
    target: float | None = None,
    more: dict[str, Any] | None = None,
) -> Row:
    """The row of one comparison: medians, and the spread of the ratio over pairs. Raises UnfairComparisonError."""
    require_secure(parameters)
    require_precise(name, ours_error, promised_error)
    require_precise(f"{name} ({other})", other_error, promised_error)
    return Row(
        name=name,
        parameters=str(parameters),
        ours_s=statistics.median(timings.ours),
        ours_version=version("he-serve"),
        other=other,
        other_version=other_version,
        other_s=statistics.median(timings.other),
        ratio=statistics.median(timings.ratios),
        ratio_min=min(timings.ratios),
        ratio_max=max(timings.ratios),
        ours_error=ours_error,
        other_error=other_error,
        target=target,
        more={"pairs": len(timings.ours), **(more or {})},
    )


def parse(description: str, name: str) -> argparse.Namespace:
    """The options of a suite, checked: json (its folder exists afterwards) and threads."""
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=description)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where to write the report")
    parser.add_argument(
        "--threads", type=int, default=cores(), metavar="T", help="for both sides (all cores)"
    )
    arguments = parser.parse_args()
    if not 1 <= arguments.threads <= cores():
        parser.error(f"--threads must be 1..{cores()}, the cores of this machine")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)  # a bad path fails now, not after the run
    return arguments


def report(rows: list[Row], threads: int) -> dict[str, Any]:
    """The JSON object of a suite."""
    return {
        "machine": machine(),
        "commit": commit(),
        "threads": threads,
        "rows": [row.to_json() for row in rows],
    }


def write_report(path: Path, content: dict[str, Any]) -> None:
    """Write it as indented JSON."""
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def print_table(title: str, columns: list[str], lines: list[list[str]]) -> None:
    """A table with names to the left and figures to the right, on standard output."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)  # a log has no width of its own; 80 would cut figures
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for line in lines:
        table.add_row(*line)
    console.print(table)


def seconds(value: float) -> str:
    """A time to three significant digits in the unit that reads best."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= scale or unit == "µs":
            return f"{value / scale:.3g} {unit}"
    raise AssertionError("unreachable")


def size(count: int) -> str:
    """A number of bytes to three significant digits."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} B"
