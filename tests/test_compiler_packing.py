"""Layouts and diagonals as properties: matrix by diagonals equals the dense product in every slot of every copy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_array

from ckks.counting import CountedValue, CountingEvaluator
from ckks.errors import ModelError
from ckks.machine import default_machine
from compiler import diagonals as dg
from compiler.diagonals import Split
from compiler.layouts import Layout, blocks, candidates, power_of_two, turned_copies
from compiler.matrices import windows
from compiler.parameters import Modulus, digit_choices
from compiler.prices import Prices, Steps

SLOTS = 1024
COSTS = Prices(default_machine().costs()).steps(digit_choices(1 << 14, Modulus(27, 37, 7))[0], 4, 3)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Any distinct slots below any period."""
    period = 1 << draw(st.integers(0, 7))
    size = draw(st.integers(1, min(period, 24)))
    seed = draw(st.integers(0, 99))
    return Layout("random", np.random.default_rng(seed).permutation(period)[:size].astype(np.int64), period)


@st.composite
def inputs(draw: st.DrawFn) -> Layout:
    """Layouts of an input: any, or one whose period holds copies, each turned further."""
    layout = draw(layouts())
    copies = 1 << draw(st.integers(0, 3))
    if copies == 1:
        return layout
    return Layout("turned", layout.slots, layout.period * copies, None, copies, 1 << draw(st.integers(0, 4)))


def by_diagonals(
    diagonals: np.ndarray, terms: tuple[tuple[int, int], ...], folds: tuple[int, ...], x: np.ndarray
) -> np.ndarray:
    """The definition in ckks.circuit.Instruction, then the folds."""
    y = np.zeros(len(x))
    for diagonal, (giant, baby) in zip(diagonals, terms, strict=True):
        y += np.tile(diagonal, len(x) // len(diagonal)) * np.roll(x, -(giant + baby))
    for steps in folds:
        y = y + np.roll(y, -steps)
    return y


@given(
    source=inputs(),
    target=layouts(),
    density=st.floats(0.05, 1),
    size=st.integers(1, 40),
    offset=st.integers(0, 20),
)
def test_diagonals_equal_the_matrix(
    source: Layout, target: Layout, density: float, size: int, offset: int
) -> None:
    draw = np.random.default_rng(1)
    shape = len(target.slots), len(source.slots)
    matrix = draw.normal(size=shape) * (draw.uniform(size=shape) < density)
    x = draw.normal(size=shape[1])
    packed = source.spread(x)
    coo = coo_array(matrix)
    found = dg.offsets(coo, source, target)
    diagonals = dg.diagonals(coo, source, target, found)
    terms = dg.terms(
        found.steps, dg.Split(size, min(offset, size - 1), 0.0, frozenset()), source.period, SLOTS
    )
    assert len(set(terms)) == len(terms)
    y = by_diagonals(diagonals, terms, found.folds, np.tile(packed, SLOTS // source.period))
    expected = np.zeros(target.period)
    expected[target.slots] = matrix @ x
    # Every copy, and exact zeros where no output lies: unused slots carry nothing of the model.
    assert np.abs(y.reshape(-1, target.period) - expected).max() < 1e-12
    unused = np.setdiff1d(np.arange(target.period), target.slots)
    assert not y.reshape(-1, target.period)[:, unused].any()


@given(source=inputs(), size=st.integers(1, 40), choice=st.integers(0, 20), split=st.integers(1, 40))
def test_blocks_compute_other_outputs_in_every_copy(
    source: Layout, size: int, choice: int, split: int
) -> None:
    """Right where an element lies; what is left in other slots is not looked at."""
    draw = np.random.default_rng(2)
    options = blocks(size, SLOTS)
    target = options[choice % len(options)]
    assert len(set(target.slots.tolist())) == size and target.slots.max() < target.period == SLOTS
    matrix = draw.normal(size=(size, len(source.slots)))
    x = draw.normal(size=len(source.slots))
    packed = source.spread(x)
    found = dg.offsets(coo_array(matrix), source, target)
    diagonals = dg.diagonals(coo_array(matrix), source, target, found)
    terms = dg.terms(found.steps, dg.Split(split, 0, 0.0, frozenset()), source.period, SLOTS)
    y = by_diagonals(diagonals, terms, found.folds, np.tile(packed, SLOTS // source.period))
    assert np.abs(y[target.slots] - matrix @ x).max() < 1e-12


def test_copies_of_a_short_input_divide_the_diagonals() -> None:
    """100 x 980 over 4096 slots: 32 diagonals and five folds; one copy of the input takes 128."""
    matrix, source = coo_array(np.ones((100, 980))), Layout("a", np.arange(980), 1024)
    target = next(b for b in blocks(100, 4096) if b.fold == (32, 1024))
    found = dg.offsets(matrix, source, target)
    assert len(found.steps) == 32 and found.folds == (32, 64, 128, 256, 512)
    assert len(dg.offsets(matrix, source, Layout("b", np.arange(100), 128)).steps) == 128


def test_turned_copies_divide_the_diagonals_and_leave_a_tidy_result() -> None:
    """128 x 784 over 4096 slots: 32 diagonals, and sums that fold into every copy of the result."""
    (source,) = turned_copies(784, [128], 4096)
    assert (source.copies, source.shift, source.period) == (4, 32, 4096)
    found = dg.offsets(coo_array(np.ones((128, 784))), source, Layout("dense", np.arange(128), 128))
    assert found.steps.tolist() == list(range(32)) and found.folds == (128, 256, 512, 1024, 2048)
    assert turned_copies(784, [2], 4096) == turned_copies(3000, [128], 4096) == []


@given(source=layouts(), target=layouts())
def test_splits_name_the_rotations_they_need(source: Layout, target: Layout) -> None:
    matrix = coo_array(np.ones((len(target.slots), len(source.slots))))
    found = dg.offsets(matrix, source, target)
    for split in dg.splits([found.steps], source.period, SLOTS, set(), dg.fine_sizes(source.period), COSTS):
        terms = dg.terms(found.steps, split, source.period, SLOTS)
        assert {step for term in terms for step in term} - {0} == split.rotations
        assert all(
            (sum(t) - step) % source.period == 0 for t, step in zip(terms, found.steps.tolist(), strict=True)
        )


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4).map(lambda s: (1, *s)),
    limit=st.sampled_from([16, 256, 4096]),
)
def test_candidate_layouts_are_layouts(shape: tuple[int, ...], limit: int) -> None:
    for layout in candidates(shape, limit):
        assert layout.period <= limit and layout.period == power_of_two(layout.period)
        assert len(set(layout.slots.tolist())) == math.prod(shape) == len(layout.slots)
        assert layout.slots.min() >= 0 and layout.slots.max() < layout.period * layout.parts
        parts = [layout.part(k) for k in range(layout.parts)]
        # Every part holds something, and all parts together every element.
        assert all(len(elements) and place.parts == 1 for elements, place in parts)
        assert sorted(np.concatenate([elements for elements, _ in parts])) == list(range(len(layout.slots)))
        assert layout.parts == 1 or layout.period == limit


def test_padded_planes_make_convolutions_cheap() -> None:
    """By count, a 3x3 kernel over 16 planes takes 9 offsets times 16 plane distances."""
    planes = next(c for c in candidates((1, 16, 14, 14), 8192) if c.name == "planes")
    wider = next(c for c in candidates((1, 32, 14, 14), 8192) if c.name == "planes")
    from compiler.matrices import convolution

    window = windows((1, 16, 14, 14), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), (0, 0))
    matrix = coo_array(convolution(np.ones((32, 16, 3, 3)), 1, window, 16 * 196))
    found = dg.offsets(matrix, planes, wider)
    assert len(found.steps) == 144 and found.period == 8192 and not found.folds
    best = dg.splits([found.steps], 4096, 8192, set(), dg.fine_sizes(4096), COSTS)[0]
    assert len(best.rotations) <= 24


def test_a_wide_dense_layer_folds() -> None:
    """64 outputs of 8192 slots: one diagonal per output and log2(8192/64) folds, not thousands of diagonals."""
    matrix = coo_array(np.ones((64, 6272)))
    found = dg.offsets(matrix, Layout("a", np.arange(6272), 8192), Layout("b", np.arange(64), 64))
    assert len(found.steps) == 64 and found.folds == (64, 128, 256, 512, 1024, 2048, 4096)


def test_repeating_diagonals_are_stored_once() -> None:
    layout = Layout("a", np.arange(8), 8)
    matrix = coo_array(np.eye(8) * 3)
    assert dg.diagonals(matrix, layout, layout, dg.offsets(matrix, layout, layout)).shape == (1, 1)


def test_windows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match="does not fit"):
        windows((1, 1, 4, 4), (5, 5), (1, 1), (0, 0, 0, 0), (1, 1), (0, 0))
    with pytest.raises(ModelError, match="entries"):
        windows((1, 100, 300, 300), (9, 9), (1, 1), (4, 4, 4, 4), (1, 1), (0, 0))


def test_splits_follow_the_prices_of_their_level() -> None:
    """64 steps in a row: dear giant steps are few, cheap ones many; a key that is there already costs nothing."""
    steps = np.arange(64)

    def best(costs: Steps, keys: set[int]) -> Split:
        return dg.splits([steps], 4096, 4096, keys, dg.fine_sizes(4096), costs)[0]

    def giants(split: Split) -> int:
        return len({giant for giant, _ in dg.terms(steps, split, 4096, 4096)})

    dear = replace(COSTS, switches=replace(COSTS.switches, inside=20 * COSTS.switches.hoisted))
    cheap = replace(COSTS, switches=replace(COSTS.switches, inside=COSTS.switches.hoisted))
    assert giants(best(dear, set())) < giants(best(COSTS, set())) <= giants(best(cheap, set()))
    known = best(COSTS, set())
    assert math.isclose(best(COSTS, set(known.rotations)).cost, known.cost - COSTS.key * len(known.rotations))


def test_costs_of_a_transform_are_those_of_the_cost_model() -> None:
    """To a quarter, for shapes from a few diagonals to many."""
    p = digit_choices(1 << 14, Modulus(27, 37, 7))[0]
    prices = Prices(default_machine().costs())
    for level, size, count in [(7, 4, 16), (4, 16, 256), (1, 8, 13)]:
        terms = tuple(divmod(k, size) for k in range(count))
        terms = tuple((giant * size, baby) for giant, baby in terms)
        evaluator = CountingEvaluator(p)
        evaluator.linear_transform(CountedValue(level), "", 1.0, terms)
        babies, giants = size - 1, -(-count // size) - 1
        guess = prices.steps(p, level, level).transform(babies, giants, count, 1.0)
        assert guess == pytest.approx(prices.costs.seconds(p, evaluator.cost.calls), rel=0.25)
