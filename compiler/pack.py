"""Packing: a layout for every tensor, and for every matrix between two tensors its diagonals, baby steps and giant steps.

Layouts, splits and rotation keys are chosen together by a beam search along the network under the cost model of compiler/diagonals.py:
the state is the layouts chosen so far and the keys they need, so that layers come to share keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
from compiler.layouts import Layout, blocks, candidates, turned_copies
from compiler.levels import Levels

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
    """A matrix between two layout groups; weight: cost of a rotation at its level relative to the top level."""

    target: AffineTensor
    activation: Activation
    matrix: coo_array
    source_group: int
    target_group: int
    weight: float


@dataclass(frozen=True)
class _State:
    cost: float
    choice: tuple[int, ...]
    keys: frozenset[int]


def pack(program: Program, levels: Levels, slots: int) -> Packing:
    """Pack for ciphertexts of `slots` slots. Raises ModelError when a tensor does not fit."""
    groups = _groups(program)
    layouts = _candidates(program, groups, slots)
    edges = _edges(program, levels, groups)
    order = sorted(layouts)
    position = {g: i for i, g in enumerate(order)}
    pairs: dict[tuple[int, int, int], tuple[Blocks, list[Split]]] = {}
    states = [_State(0.0, (), frozenset())]
    for i, g in enumerate(order):
        due = [
            (k, e)
            for k, e in enumerate(edges)
            if max(position[e.source_group], position[e.target_group]) == i
        ]
        grown = []
        for state in states:
            for c in range(len(layouts[g])):
                choice = (*state.choice, c)
                cost, keys = state.cost, state.keys
                for k, e in due:
                    a, b = choice[position[e.source_group]], choice[position[e.target_group]]
                    if (k, a, b) not in pairs:
                        pairs[k, a, b] = _options(
                            e, layouts[e.source_group][a], layouts[e.target_group][b], slots
                        )
                    step, keys = _price(e, *pairs[k, a, b], keys)
                    cost += step
                grown.append(_State(cost, choice, keys))
        states = sorted(grown, key=lambda s: s.cost)[:BEAM]
    chosen = {g: layouts[g][c] for g, c in zip(order, states[0].choice, strict=True)}
    return _finish(program, edges, groups, chosen, slots)


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


def _edges(program: Program, levels: Levels, groups: dict[int, int]) -> list[_Edge]:
    edges = []
    for t in program.tensors:
        if not isinstance(t, AffineTensor):
            continue
        weight = ((levels.tensors[id(t)] + 3) / (levels.top + 2)) ** 1.5
        for activation, matrix in t.terms:
            groups_of = groups[id(activation.tensor)], groups[id(t)]
            edges.append(_Edge(t, activation, coo_array(matrix), *groups_of, weight))
    return edges


def _options(edge: _Edge, source: Layout, target: Layout, slots: int) -> tuple[Blocks, list[Split]]:
    found = find_blocks(edge.matrix, source, target)
    few = sum(map(len, found.steps)) <= 2048
    sizes = dg.coarse_sizes(source.period) if few else [1 << (source.period.bit_length() // 2)]
    return found, dg.splits(found.steps, source.period, slots, set(), sizes)[:OPTIONS]


def _price(
    edge: _Edge, found: Blocks, options: list[Split], keys: frozenset[int]
) -> tuple[float, frozenset[int]]:
    """The cheapest option given the keys so far, and the keys with it."""
    folds = frozenset(found.folds)
    best = min(options, key=lambda s: s.cost - dg.KEY_COST * len(s.rotations & keys))
    cost = (
        best.cost
        - dg.KEY_COST * len(best.rotations & keys)
        + dg.FOLD_COST * len(folds) * len({q for _, q in found.parts})
        + dg.KEY_COST * len(folds - keys)
    )
    return edge.weight * cost, keys | best.rotations | folds


def _finish(
    program: Program, edges: list[_Edge], groups: dict[int, int], chosen: dict[int, Layout], slots: int
) -> Packing:
    """Diagonals for the chosen layouts; splits are searched again finely, each given the keys of all the others."""
    found = [find_blocks(e.matrix, chosen[e.source_group], chosen[e.target_group]) for e in edges]
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
            period = chosen[e.source_group].period
            picked[k] = dg.splits(found[k].steps, period, slots, others, dg.fine_sizes(period))[0]
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
