"""Packing: a layout for every tensor, and for every matrix between two tensors its diagonals, baby steps and giant steps.

Layouts, splits and rotation keys are chosen together by a beam search along the network under the cost model of compiler/prices.py:
the state is the layouts chosen so far and the keys they need, so that layers come to share keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array

from ckks.bundle import MAX_PARTS
from ckks.errors import ModelError
from compiler import diagonals as dg
from compiler.blocks import Blocks, block_diagonals, find_blocks
from compiler.condition import (
    Activation,
    AffineTensor,
    Function,
    InputTensor,
    ProductTensor,
    Program,
    Tensor,
)
from compiler.diagonals import Split
from compiler.graph import Array
from compiler.layouts import Layout, blocks, candidates, sparser, turned_copies
from compiler.levels import Levels
from compiler.prices import Steps

BEAM = 48
OPTIONS = 4  # splits kept per pair of layouts during the search
MAX_DIAGONAL_VALUES = 1 << 27  # 1 GiB of float64 in all


@dataclass(frozen=True, eq=False)
class Transform:
    """One block of a matrix in slots: from part `source` of the activation to part `target` of the result, folded.

    terms and diagonals as in ckks.circuit.Instruction.
    """

    activation: Activation
    source: int
    target: int
    diagonals: Array
    terms: tuple[tuple[int, int], ...]
    folds: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Packing:
    """By id of tensor: its layout, its transforms (in the order of its terms), and its parts that something uses.

    stacked: the throughput layout (compiler/throughput.py), where elements are members of a stack and there are no transforms.
    """

    layouts: Mapping[int, Layout]
    transforms: Mapping[int, tuple[Transform, ...]]
    parts: Mapping[int, tuple[int, ...]]
    stacked: bool = False


@dataclass(frozen=True, eq=False)
class _Edge:
    """A matrix between two layout groups."""

    target: AffineTensor
    activation: Activation
    matrix: coo_array
    source_group: int
    target_group: int


@dataclass(frozen=True, eq=False)
class Choices:
    """What there is to choose from: layouts by group, and edges. blocks: by edge and the numbers of its two layouts, where known."""

    program: Program
    slots: int
    groups: Mapping[int, int]
    layouts: Mapping[int, list[Layout]]
    edges: list[_Edge]
    blocks: dict[tuple[int, int, int], Blocks]

    def found(self, edge: int, source: int, target: int) -> Blocks:
        """The blocks of an edge between two of its layouts."""
        key = edge, source, target
        if key not in self.blocks:
            e = self.edges[edge]
            self.blocks[key] = find_blocks(
                e.matrix, self.layouts[e.source_group][source], self.layouts[e.target_group][target]
            )
        return self.blocks[key]


@dataclass(frozen=True)
class _State:
    cost: float
    choice: tuple[int, ...]
    keys: frozenset[int]


def choices(program: Program, slots: int) -> Choices:
    """For ciphertexts of `slots` slots. Raises ModelError when a tensor does not fit."""
    groups = _groups(program)
    return Choices(program, slots, groups, _candidates(program, groups, slots), _edges(program, groups), {})


def pack(given: Choices, levels: Levels, tidy: bool, costs: Callable[[int, int], Steps]) -> Packing:
    """The cheapest chain of layouts. costs(level, level of the result): of linear transforms.

    tidy: what outputs without rescaling are computed of has nothing in slots without an element. Raises ModelError for too many weights.
    """
    layouts = {
        g: [
            c
            for c in range(len(found))
            if not (tidy and g in _before_unscaled(given, levels)) or found[c].fold is None
        ]
        for g, found in given.layouts.items()
    }
    prices = [_edge_costs(e, levels, costs) for e in given.edges]
    order = sorted(layouts)
    position = {g: i for i, g in enumerate(order)}
    options: dict[tuple[int, int, int], list[Split]] = {}
    states = [_State(0.0, (), frozenset())]
    for i, g in enumerate(order):
        due = [
            (k, e)
            for k, e in enumerate(given.edges)
            if max(position[e.source_group], position[e.target_group]) == i
        ]
        grown = []
        for state in states:
            for c in layouts[g]:
                choice = (*state.choice, c)
                cost, keys = state.cost, state.keys
                for k, e in due:
                    pair = k, choice[position[e.source_group]], choice[position[e.target_group]]
                    found = given.found(*pair)
                    if pair not in options:
                        period = given.layouts[e.source_group][pair[1]].period
                        options[pair] = _options(found, period, given.slots, prices[k])
                    step, keys = _price(found, options[pair], prices[k], keys)
                    cost += step
                grown.append(_State(cost, choice, keys))
        states = sorted(grown, key=lambda s: s.cost)[:BEAM]
    chosen = dict(zip(order, states[0].choice, strict=True))
    return _finish(given, prices, chosen)


def _edge_costs(edge: _Edge, levels: Levels, costs: Callable[[int, int], Steps]) -> Steps:
    """Folds come after the rescale, but for outputs (compiler/lower.py)."""
    level, result = levels.operand(edge.target), levels.tensors[id(edge.target)]
    return costs(level, result if result else level)


def _before_unscaled(given: Choices, levels: Levels) -> set[int]:
    """The groups of tensors that outputs without rescaling are computed of."""
    return {e.source_group for e in given.edges if id(e.target) in levels.unscaled}


def _groups(program: Program) -> dict[int, int]:
    """Tensor id -> group: factors of a product and the product itself must share one layout."""
    group = {id(t): i for i, t in enumerate(program.tensors)}
    for t in program.tensors:
        if isinstance(t, ProductTensor):
            joined = {group[id(x)] for x in (t, t.left, t.right)}
            group = {k: min(joined) if g in joined else g for k, g in group.items()}
    return group


def _candidates(program: Program, groups: dict[int, int], slots: int) -> dict[int, list[Layout]]:
    found: dict[int, list[Layout]] = {}
    for t in program.tensors:
        if groups[id(t)] not in found:
            layouts = candidates(t.shape, slots)
            if len(t.shape) == 2 and _may_be_untidy(program, t):
                layouts += blocks(t.shape[1], slots)
            # Nobody makes such copies of a factor or a product, which share the input's layout.
            if isinstance(t, InputTensor) and list(groups.values()).count(groups[id(t)]) == 1:
                layouts += turned_copies(math.prod(t.shape), _wide_consumers(program, t), slots)
            if t in program.outputs and math.prod(t.shape) < slots:
                layouts += sparser(math.prod(t.shape), slots)
            if not layouts:
                raise ModelError(
                    f"{program.layer_of(t)!r}: a tensor of shape {t.shape} needs more than {MAX_PARTS} "
                    f"ciphertexts of {slots} slots; make it smaller"
                )
            found[groups[id(t)]] = layouts
    return found


def _wide_consumers(program: Program, tensor: Tensor) -> list[int]:
    """Elements of the tensors that dense layers make of `tensor`."""
    return [
        math.prod(t.shape)
        for t in program.tensors
        if isinstance(t, AffineTensor) and len(t.shape) == 2 and any(a.tensor is tensor for a, _ in t.terms)
    ]


def _may_be_untidy(program: Program, tensor: Tensor) -> bool:
    """Whether values in slots without an element do no harm: they meet zero weights, or grow no further than by a square."""
    if not isinstance(tensor, AffineTensor) or tensor in program.outputs:
        return False
    for t in program.tensors:
        if isinstance(t, ProductTensor) and tensor in (t.left, t.right):
            return False
        if isinstance(t, AffineTensor):
            uses = [a for a, _ in t.terms if a.tensor is tensor]
            if any(a.function is Function.POLYNOMIAL for a in uses):
                return False
    return True


def _edges(program: Program, groups: Mapping[int, int]) -> list[_Edge]:
    return [
        _Edge(t, activation, coo_array(matrix), groups[id(activation.tensor)], groups[id(t)])
        for t in program.tensors
        if isinstance(t, AffineTensor)
        for activation, matrix in t.terms
    ]


def _options(found: Blocks, period: int, slots: int, costs: Steps) -> list[Split]:
    few = sum(map(len, found.steps)) <= 2048
    sizes = dg.coarse_sizes(period) if few else [1 << (period.bit_length() // 2)]
    return dg.splits(found.steps, period, slots, set(), sizes, costs, found.offsets[0].period / slots)[
        :OPTIONS
    ]


def _price(
    found: Blocks, options: list[Split], costs: Steps, keys: frozenset[int]
) -> tuple[float, frozenset[int]]:
    """The cheapest option given the keys so far, and the keys with it."""
    folds = frozenset(found.folds)
    best = min(options, key=lambda s: s.cost - costs.key * len(s.rotations & keys))
    cost = (
        best.cost
        - costs.key * len(best.rotations & keys)
        + costs.fold * len(folds) * len({q for _, q in found.parts})
        + costs.key * len(folds - keys)
    )
    return cost, keys | best.rotations | folds


def _finish(given: Choices, prices: list[Steps], picked_layouts: dict[int, int]) -> Packing:
    """Diagonals for the chosen layouts; splits are searched again finely, each given the keys of all the others."""
    program, edges, groups, slots = given.program, given.edges, given.groups, given.slots
    chosen = {g: given.layouts[g][c] for g, c in picked_layouts.items()}
    found = [
        given.found(k, picked_layouts[e.source_group], picked_layouts[e.target_group])
        for k, e in enumerate(edges)
    ]
    if sum(len(o.steps) * o.period for f in found for o in f.offsets) > MAX_DIAGONAL_VALUES:
        raise ModelError(
            "the packed weights would take more than 1 GiB; make the dense layers or the picture smaller"
        )
    picked: list[Split | None] = [None] * len(edges)
    for _ in range(2):
        for k, e in enumerate(edges):
            others = {r for i, s in enumerate(picked) if s and i != k for r in s.rotations} | {
                r for f in found for r in f.folds
            }
            period, share = chosen[e.source_group].period, found[k].offsets[0].period / slots
            picked[k] = dg.splits(
                found[k].steps, period, slots, others, dg.fine_sizes(period), prices[k], share
            )[0]
    transforms: dict[int, list[Transform]] = {}
    for e, f, split in zip(edges, found, picked, strict=True):
        source, target = chosen[e.source_group], chosen[e.target_group]
        assert split is not None  # every edge was picked above
        blocks_of = zip(f.parts, f.steps, block_diagonals(e.matrix, source, target, f), strict=True)
        for (p, q), offsets, values in blocks_of:
            steps = dg.terms(offsets, split, source.period, slots)
            transforms.setdefault(id(e.target), []).append(
                Transform(e.activation, p, q, values, steps, f.folds)
            )
    layouts = {id(t): chosen[groups[id(t)]] for t in program.tensors}
    for t in program.tensors:
        if isinstance(t, AffineTensor):
            missing = set(range(layouts[id(t)].parts)) - {x.target for x in transforms[id(t)]}
            # A part that is its bias alone is still a ciphertext: zero times another one.
            zeros = [Transform(t.terms[0][0], 0, q, np.zeros((1, 1)), ((0, 0),), ()) for q in sorted(missing)]
            transforms[id(t)] += zeros
    return _pruned(program, layouts, transforms)


def _pruned(program: Program, layouts: dict[int, Layout], transforms: dict[int, list[Transform]]) -> Packing:
    """Without what computes parts that nothing reads."""
    used: dict[int, set[int]] = {id(t): set() for t in program.tensors}
    used |= {id(t): set(range(layouts[id(t)].parts)) for t in program.outputs}
    kept: dict[int, tuple[Transform, ...]] = {}
    for t in reversed(program.tensors):  # consumers before operands
        if isinstance(t, AffineTensor):
            kept[id(t)] = tuple(x for x in transforms[id(t)] if x.target in used[id(t)])
            for x in kept[id(t)]:
                used[id(x.activation.tensor)].add(x.source)
        elif isinstance(t, ProductTensor):
            used[id(t.left)] |= used[id(t)]
            used[id(t.right)] |= used[id(t)]
    return Packing(layouts, kept, {k: tuple(sorted(parts)) for k, parts in used.items()})
