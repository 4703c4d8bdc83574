"""From an operation on both sides to a row: alternate, check every slot, refuse what is not comparable."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import Any

from bench import _common as common
from ckks.parameters import Parameters

Clock = Callable[[], float]

SPREAD = 4  # two runs of the same noise differ by no more in the worst slot


@dataclass(frozen=True, eq=False)
class Case:
    """One operation on both sides: how long it takes (mean seconds over at least so many, by that clock), and its largest error."""

    name: str
    ours: Callable[[float, Clock], float]
    ours_error: Callable[[], float]
    other: Callable[[float, Clock], float]
    other_error: Callable[[], float]
    target: float | None = None
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """Who is compared, on what. promised_error: what both must reach. threads: ours, then the other's."""

    parameters: Parameters
    other: str
    other_version: str
    threads: tuple[int, int]
    promised_error: float
    other_log_qp: float

    @property
    def clock(self) -> Clock:
        """On one thread each processor time of the process, which other work disturbs least; else the time that passes."""
        return process_time if self.threads == (1, 1) else perf_counter


def compare_cases(
    pair: Pair,
    cases: Iterable[Case],
    refused: list[str],
    say: Callable[[str], None],
    *,
    pairs: int,
    least_s: float,
    budget_s: float = 60.0,
) -> list[common.Row]:
    """A row per case; those that must not be compared are told in `refused`, with both errors."""
    rows = []
    for case in cases:
        say(f"{pair.other}, N={pair.parameters.degree}, {pair.threads[0]} threads: {case.name}")
        errors = case.ours_error(), case.other_error()  # both sides are warm after this
        try:
            _require_comparable(*errors)
            timings = common.alternate_timed(
                lambda _, case=case: case.ours(least_s, pair.clock),
                lambda _, case=case: case.other(least_s, pair.clock),
                pairs=pairs,
                budget_s=budget_s,
            )
            row = common.compare(
                timings,
                name=case.name,
                parameters=pair.parameters,
                other=pair.other,
                other_version=pair.other_version,
                ours_error=errors[0],
                other_error=errors[1],
                promised_error=pair.promised_error,
                target=case.target,
                more={
                    "threads": pair.threads[0],
                    "other_threads": pair.threads[1],
                    "clock": pair.clock.__name__,
                    "log_qp": round(pair.parameters.log_qp, 2),
                    "other_log_qp": round(pair.other_log_qp, 2),
                    **case.more,
                },
            )
        except common.UnfairComparisonError as error:
            told = f"errors {errors[0]:.2g} (ours), {errors[1]:.2g} ({pair.other})"
            refused.append(f"{case.name}, {pair.parameters}: {error}; {told}")
        else:
            rows.append(row)
    return rows


def promised_error(degree: int, scale: float) -> float:
    """What every result must reach, for values up to 1: a key switch without centred digits leaves up to some 2^7 N in the worst slot."""
    return 2.0**9 * degree / scale


def print_rows(title: str, rows: list[common.Row]) -> None:
    """The table of a suite: medians, the ratio with its range over pairs, and whether the target was met."""
    time, lines = common.seconds, []
    for r in rows:
        threads = f"{r.more['threads']}, {r.more['other_threads']}"
        ratio = f"{r.ratio:.2f} ({r.ratio_min:.2f}..{r.ratio_max:.2f})"
        target = "" if r.target is None else f"{r.target:.2g} {'met' if r.ratio >= r.target else 'missed'}"
        who, errors = r.other.partition(",")[0], f"{r.ours_error:.0e} {r.other_error:.0e}"
        lines.append(
            [
                r.name,
                str(r.more["shape"]),
                who,
                threads,
                time(r.ours_s),
                time(r.other_s),
                ratio,
                target,
                errors,
            ]
        )
    columns = ["operation", "N, limbs", "other", "threads", "ours", "other's", "ratio", "target", "errors"]
    common.print_table(title, columns, lines)


def _require_comparable(ours_error: float, other_error: float) -> None:
    """Refuse a time bought with precision. The other may be less precise, as libraries are that do not centre digits or round."""
    if not ours_error <= SPREAD * other_error:
        raise common.UnfairComparisonError("ours is less precise")
