"""The benchmark frame: the form of its report, the arithmetic of a comparison, and what it refuses to compare."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from samples import small_parameters

from bench import _common as common
from bench._plot import PHASES, plot_phases

FIXED = {
    "name",
    "parameters",
    "ours_s",
    "ours_version",
    "other",
    "other_version",
    "other_s",
    "ratio",
    "ratio_min",
    "ratio_max",
    "ours_error",
    "other_error",
    "target",
}


@dataclass
class FakeClock:
    """Time that passes only in the calls that are timed."""

    now: float = 0.0
    log: list[tuple[str, int]] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def call(self, side: str, durations: list[float]):  # type: ignore[no-untyped-def]
        def run(pair: int) -> None:
            self.log.append((side, pair))
            self.now += durations[pair]

        return run


def row(**changes: float) -> common.Row:
    """A row from three made-up pairs."""
    errors = {"ours_error": 1e-3, "other_error": 1e-6, "promised_error": 1e-2} | changes
    return common.compare(
        common.Timings(ours=[2.0, 1.0, 4.0], other=[0.5, 0.5, 0.25]),
        name="m",
        parameters=small_parameters(),
        other="another",
        other_version="1",
        more={"kept": 7},
        **errors,
    )


def test_a_comparison_is_medians_and_the_spread_over_pairs() -> None:
    r = row()
    assert (r.ours_s, r.other_s) == (2.0, 0.5)
    assert (r.ratio, r.ratio_min, r.ratio_max) == (0.25, 0.0625, 0.5)


def test_the_report_has_the_fixed_form(tmp_path: Path) -> None:
    path = tmp_path / "suite.json"
    common.write_report(path, common.report([row()], threads=2))
    content = json.loads(path.read_text())
    assert set(content) == {"machine", "commit", "threads", "rows"} and content["threads"] == 2
    assert set(content["rows"][0]) == FIXED | {"pairs", "kept"} and content["rows"][0]["target"] is None
    assert isinstance(content["machine"], str) and str(Path.home()) not in path.read_text()


def test_pairs_alternate_and_change_their_order() -> None:
    clock = FakeClock()
    timings = common.alternate(
        clock.call("ours", [1.0, 2.0]), clock.call("other", [0.5, 0.25]), pairs=2, least_s=0.0, clock=clock
    )
    assert clock.log == [("ours", 0), ("other", 0), ("other", 1), ("ours", 1)]
    assert timings.ours == [1.0, 2.0] and timings.other == [0.5, 0.25] and timings.ratios == [0.5, 0.125]


def test_short_calls_are_repeated_and_averaged() -> None:
    clock = FakeClock()
    timings = common.alternate(
        clock.call("ours", [1.0]), clock.call("other", [0.0625]), pairs=1, least_s=0.25, clock=clock
    )
    assert clock.log.count(("ours", 0)) == 1 and clock.log.count(("other", 0)) == 4
    assert timings.other == [0.0625]


def test_a_spent_budget_ends_the_run_but_not_before_the_least_pairs() -> None:
    clock = FakeClock()
    slow = [10.0] * 9
    timings = common.alternate(
        clock.call("ours", slow),
        clock.call("other", slow),
        pairs=9,
        budget_s=1.0,
        least_pairs=3,
        least_s=0.0,
        clock=clock,
    )
    assert len(timings.ours) == len(timings.other) == 3


@pytest.mark.parametrize("error", [0.011, math.nan, math.inf])
@pytest.mark.parametrize("side", ["ours_error", "other_error"])
def test_a_result_worse_than_promised_is_not_compared(side: str, error: float) -> None:
    with pytest.raises(common.UnfairComparisonError, match="error"):
        row(**{side: error})


def test_weak_parameters_are_not_compared() -> None:
    # Parameters refuse to exist below 128 bits, so a stand-in plays another library's set.
    @dataclass(frozen=True)
    class Claimed:
        security_bits: int

    common.require_secure(small_parameters())
    with pytest.raises(common.UnfairComparisonError, match="not 128"):
        common.require_secure(Claimed(112))  # type: ignore[arg-type]


def test_the_plot_shows_every_phase_of_every_row(tmp_path: Path) -> None:
    path = tmp_path / "p.svg"
    plot_phases([{"name": n} | dict.fromkeys(PHASES, 0.01) for n in ("first model", "second model")], path)
    assert path.read_text().startswith("<?xml")
    with pytest.raises(KeyError):
        plot_phases([{"name": "incomplete"}], path)


@pytest.mark.slow
def test_the_smallest_model_runs_end_to_end(tmp_path: Path) -> None:
    path = tmp_path / "plaintext.json"
    command = [
        sys.executable,
        "-m",
        "bench.plaintext",
        "--json",
        str(path),
        "--models",
        "digits",
        "--threads",
        "1",
    ]
    done = subprocess.run(command, cwd=common.ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(path.read_text())["rows"]
    assert set(result) > FIXED and path.with_suffix(".png").stat().st_size > 0
    assert result["ours_error"] <= result["promised_error"] and result["security_bits"] >= 128
    assert result["same_class"] == result["rows_checked"] >= 3
    assert 0 < result["ratio_min"] <= result["ratio"] <= result["ratio_max"] < 1
    assert min(result[key] for key in PHASES) > 0 and result["ours_per_s"] > 0


def test_an_unknown_model_is_named() -> None:
    command = [sys.executable, "-m", "bench.plaintext", "--json", "unused.json", "--models", "digits,lesions"]
    done = subprocess.run(command, cwd=common.ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "no such model: lesions" in done.stderr
