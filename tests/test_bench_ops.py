"""The comparisons of primitives: their circuits compute what they say, both sides are checked, and unequal precision is refused."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import small_parameters, wide_parameters

from bench import _common as common
from bench import _openfhe as openfhe
from bench import _seal as seal
from bench import matvec, ops
from bench._cases import Case, Pair, compare_cases
from bench._floor import Floor
from bench._ours import HOISTED, Ours, operations
from ckks.kernels._cpu import instruction_sets
from ckks.primes import ntt_primes
from ckks.types import Slots

PAIR = Pair(small_parameters(), "another", "1", (2, 1), promised_error=1e-3, other_log_qp=100.0)
TINY_SEAL = seal.Setting(1 << 12, 2, 38, 29, 38)
TINY_OPENFHE = openfhe.Setting(1 << 13, 3, 40, 30)

needs_openfhe = pytest.mark.skipif(
    openfhe.INTERPRETER not in os.environ, reason=f"{openfhe.INTERPRETER} names no Python 3.10"
)


def case(name: str, ours_error: float, other_error: float) -> Case:
    return Case(
        name, lambda *_: 1.0, lambda: ours_error, lambda *_: 4.0, lambda: other_error, 3.0, {"shape": "s"}
    )


def compare(*cases: Case) -> tuple[list[common.Row], list[str]]:
    refused: list[str] = []
    rows = compare_cases(PAIR, cases, refused, lambda _: None, pairs=3, least_s=0.1)
    return rows, refused


def test_a_row_says_who_ran_on_how_many_threads_and_moduli() -> None:
    (row,), refused = compare(case("rotate", 1e-6, 1e-5))
    assert not refused and (row.name, row.ratio, row.target) == ("rotate", 4.0, 3.0)
    assert row.more["threads"] == 2 and row.more["other_threads"] == 1 and row.more["pairs"] == 3
    assert row.more["other_log_qp"] == 100.0 and row.more["clock"] == "perf_counter"
    assert PAIR.clock is perf_counter and replace(PAIR, threads=(1, 1)).clock is process_time


@pytest.mark.parametrize("errors", [(1e-5, 1e-6), (2e-3, 2e-3), (1e-6, 2e-3), (float("nan"), 1e-6)])
def test_speed_bought_with_precision_is_refused_and_both_errors_told(errors: tuple[float, float]) -> None:
    rows, (told,) = compare(case("worse", *errors), case("fine", 1e-6, 1e-6))
    assert [row.name for row in rows] == ["fine"]
    assert "worse" in told and all(f"{error:.2g}" in told for error in errors)


def apply(transform: matvec.Transform, slots: int) -> Slots:
    """The transform in the clear, as bench.matvec.Transform defines it."""
    x = np.tile(transform.x, slots // len(transform.x))
    y = np.zeros(slots)
    for row, (giant, baby) in zip(transform.diagonals, transform.terms, strict=True):
        y += np.tile(row, slots // len(row)) * np.roll(x, -giant - baby)
    return y + sum((np.roll(y, -step) for step in transform.folds), np.zeros(slots))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(0, 3), st.integers(0, 5), st.booleans())
def test_both_layouts_multiply_by_the_matrix(
    log_size: int, log_blocks: int, log_babies: int, packed: bool
) -> None:
    size, blocks, babies = 1 << log_size, 1 << min(log_blocks, log_size), 1 << log_babies
    rng = np.random.default_rng(log_size)
    matrix, vector = rng.uniform(-1, 1, (size, size)), rng.uniform(-1, 1, size)
    slots = size * blocks
    if packed:
        transform = matvec.packed_transform(matrix, vector, slots, babies)
        assert len(transform.diagonals) == size // blocks
        result = matrix @ vector
        assert np.array_equal(transform.clear[::blocks], result)
        assert np.isnan(transform.clear).sum() == slots - size
    else:
        transform = matvec.full_transform(matrix, vector, babies)
        assert np.array_equal(transform.clear, matrix @ vector)
    off = apply(transform, slots) - np.tile(transform.clear, slots // len(transform.clear))
    assert np.nanmax(np.abs(off)) < 1e-12
    assert 0 not in transform.steps and max(transform.steps, default=0) < slots


def test_our_side_computes_both_layouts() -> None:
    p, rng, scale = wide_parameters(), np.random.default_rng(3), 2.0**30
    small, large = rng.uniform(-1, 1, (32, 32)) / 6, rng.uniform(-1, 1, (512, 512)) / 23
    transforms = {
        "full": matvec.full_transform(small, rng.uniform(-1, 1, 32), 8),
        "packed": matvec.packed_transform(large, rng.uniform(-1, 1, 512), p.slots, 8),
    }
    steps = set().union(*(t.steps for t in transforms.values()))
    ours = Ours(p, 1, steps, {name: t.diagonals for name, t in transforms.items()})
    for name, t in transforms.items():
        result = matvec.run_ours(ours, t, name, ours.encrypt(t.x, scale))
        assert result.level == p.max_level - 1
        assert matvec.ours_error(ours, t, result) < 1e-4
        wrong = matvec.Transform(t.x, t.diagonals, t.terms, t.folds, t.clear + 0.01)
        assert 0.0099 < matvec.ours_error(ours, wrong, result) < 0.0101


def test_every_primitive_of_ours_gives_what_it_is_checked_against() -> None:
    p, scale = wide_parameters(), 2.0**30
    x, y = np.random.default_rng(5).uniform(-1, 1, (2, p.slots))
    ours = Ours(p, 2, HOISTED, {"y": y})
    made = operations(ours, x, y, ours.encrypt(x, scale), ours.encrypt(y, scale))
    for name, (call, finish, clear) in made.items():
        call()
        assert ours.error(finish(), clear) < 1e-4, name
        assert ours.error(finish(), np.roll(clear, 1)) > 0.1, name
    assert set(made) >= {name for _, targets in (*ops.OPENFHE, *ops.SEAL) for name in targets}


def test_seal_runs_on_the_same_keys_and_ciphertexts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "PAIRS", 3)
    monkeypatch.setattr(ops, "LEAST_S", 0.0)
    refused: list[str] = []
    targets: ops.Targets = {"rotate": 3.5, "multiply + relinearise": 3.5, "rescale": 6.0}
    rows = ops.against_seal(TINY_SEAL, targets, 2, refused, lambda _: None)
    assert not refused and [row.name for row in rows] == list(targets)
    for row in rows:
        assert row.more["other_threads"] == 1 and row.more["other_log_qp"] == row.more["log_qp"]
        assert row.ours_s > 0 and row.other_s > 0 and row.target == targets[row.name]
    by_name = {row.name: row for row in rows}
    # Nothing random lies between the two: SEAL's product and quotient are ours, bit for bit.
    assert by_name["rescale"].ours_error == pytest.approx(by_name["rescale"].other_error, rel=0.5)


def test_the_ntt_is_held_against_a_floor_below_it() -> None:
    refused: list[str] = []
    rows = ops.against_floor(refused)
    floors = [Floor.build(1 << 14, whole) for whole in (False, instruction_sets()[0] == "avx512ifma")]
    floor = floors[-1]
    if floor is None:
        assert "compiler" in refused[0]
        return
    (row,) = rows
    assert row.ours_error == 0.0 and 0 < row.ratio < 1
    # 114,688 butterflies of 5 or 8 operations on 2 to 8 lanes, 1 to 4 a cycle, at 1 to 6 GHz.
    assert 114_688 * 5 / (8 * 4) / 6e9 < row.other_s < 114_688 * 8 / (2 * 1) / 1e9
    assert floors[0] is not None and floor.seconds(0.01) < 1.2 * floors[0].seconds(
        0.01
    )  # the fewer operations, the faster
    larger = replace(floor, degree=1 << 15).seconds(0.01)
    assert larger / floor.seconds(0.01) == pytest.approx(2 * 15 / 14, rel=0.5)


def test_without_an_interpreter_openfhe_is_left_out_and_with_a_wrong_one_it_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(openfhe, "_VENV", tmp_path / "venv")
    monkeypatch.delenv(openfhe.INTERPRETER, raising=False)
    assert openfhe.find_python() is None
    monkeypatch.setenv(openfhe.INTERPRETER, str(tmp_path / "python"))
    with pytest.raises(openfhe.OpenFheError, match=openfhe.INTERPRETER):
        openfhe.find_python()


def test_a_process_that_dies_is_reported() -> None:
    # This Python has no openfhe: the other process ends while it starts.
    with (
        pytest.raises(openfhe.OpenFheError),
        openfhe.OpenFheSide.start(Path(sys.executable), TINY_OPENFHE, 1),
    ):
        pytest.fail("it cannot have started")


def test_our_parameters_follow_openfhes_primes_and_refuse_weak_ones() -> None:
    setting = openfhe.Setting(1 << 14, 8, 42, 36)
    data = list(ntt_primes(1 << 14, 42, 1) + ntt_primes(1 << 14, 36, 7))
    special = list(ntt_primes(1 << 14, 60, 3))
    p = openfhe.matching(setting, data, special[:2])
    assert p.data_primes == tuple(data) and p.digit_limbs == len(p.special_primes) == 3
    assert abs(p.log_qp - math.log2(math.prod(data + special[:2]))) < 0.1
    with pytest.raises(common.UnfairComparisonError, match="128"):
        openfhe.matching(setting, data, special)


@needs_openfhe
@pytest.mark.openfhe
@pytest.mark.slow
def test_openfhe_agrees_on_every_primitive_and_both_compositions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ops, "PAIRS", 3)
    monkeypatch.setattr(ops, "LEAST_S", 0.0)
    python = openfhe.find_python()
    assert python is not None
    refused: list[str] = []
    targets: ops.Targets = dict.fromkeys(name for _, targets in ops.OPENFHE for name in targets)
    rows = ops.against_openfhe(python, TINY_OPENFHE, targets, 1, refused, lambda _: None)
    assert not refused and {row.name for row in rows} == set(targets)
    rng = np.random.default_rng(3)
    matrix, vector = rng.uniform(-1, 1, (256, 256)) / 16, rng.uniform(-1, 1, 256)
    transform = matvec.packed_transform(matrix, vector, TINY_OPENFHE.degree // 2, 8)
    np.savez(tmp_path / "t.npz", **vars(transform))
    with openfhe.OpenFheSide.start(python, TINY_OPENFHE, 1) as side:
        for extended in (False, True):
            side.ask("matvec", name="m", file=str(tmp_path / "t.npz"), extended=extended)
            assert side.error("m") < 0.1
            assert side.time("m", 0.0, process_time) > 0 and side.peak() > 0
        with pytest.raises(openfhe.OpenFheError, match="KeyError"):
            side.error("unknown")


@pytest.mark.slow
def test_the_suite_runs_without_openfhe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(openfhe.INTERPRETER, raising=False)
    monkeypatch.setattr(ops, "PAIRS", 3)
    monkeypatch.setattr(ops, "LEAST_S", 0.0)
    monkeypatch.setattr(ops, "SEAL", ((TINY_SEAL, {"rotate": 3.5}),))
    path = tmp_path / "ops.json"
    monkeypatch.setattr(sys, "argv", ["ops", "--json", str(path), "--threads", "1"])
    assert ops.main() == 0
    content = json.loads(path.read_text())
    assert [row["other"].split(",")[0] for row in content["rows"]][-1] == "SEAL"
