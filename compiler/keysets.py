"""Rotation keys: which of a circuit's rotations get keys of their own, and how the others are composed of those.

Rotations form trees: each is reached from another by a rotation that has a key (ckks.circuit.Instruction, hops). The search starts where
every rotation has its key and takes away, one at a time, the key that costs the least time per byte it saves; every rotation that used
it is reached from its nearest neighbours with the keys that are left. The way there is the trade-off curve of upload against latency.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from ckks.circuit import Circuit, Instruction, Op, rotation_path
from ckks.parameters import Parameters
from compiler.parameters import cheapest
from compiler.prices import Prices
from compiler.sizes import key_size

SLOWEST = 2.5  # `small` stops where the predicted time would pass this multiple of `fast`
LAST_RESORT = 8.0  # and a budget in bytes here
UPLOAD_PRICE = (
    5e-8  # seconds a key byte: the second parameter set to try has fewer digits and more special primes
)
CURVE_POINTS = 24
FREE = 1.02  # `fast` takes what costs less than this: giants reached from giants cost nothing at all
MAX_HOPS = 64  # of one new connection
_BABIES, _GIANTS, _ROTATE = range(3)


Keys = Literal["fast", "small"] | int


@dataclass(frozen=True)
class KeySet:
    """One point of the curve: bytes uploaded, relinearisation included, and predicted seconds; hops by instruction (babies, giants).

    A ROTATE instruction's hops are in the first place.
    """

    bytes: int
    seconds: float
    hops: tuple[tuple[dict[int, int], dict[int, int]], ...]
    parameters: Parameters


@dataclass
class _Tree:
    """The rotations of one instruction, by kind: those of its input, of its sums, or itself. keys: step -> key of its last hop."""

    level: int
    kind: int
    targets: frozenset[int]
    keys: dict[int, int]

    def copy(self) -> _Tree:
        return _Tree(self.level, self.kind, self.targets, dict(self.keys))


class _Search:
    """Trees, and the level of every key they use."""

    def __init__(self, circuit: Circuit, parameters: Parameters, prices: Prices) -> None:
        self.parameters, self.slots, self.prices = parameters, circuit.slots, prices
        self.trees: list[_Tree] = []
        self.places: list[
            tuple[int, int]
        ] = []  # instruction, and 0 for babies and plain rotations, 1 for giants
        for i, ins in enumerate(circuit.instructions):
            for place, steps in enumerate(_steps(ins)):
                targets = frozenset(s % circuit.slots for s in steps) - {0}
                if targets:
                    kind = _ROTATE if ins.op is Op.ROTATE else (_BABIES, _GIANTS)[place]
                    self.trees.append(_Tree(ins.level, kind, targets, {s: s for s in targets}))
                    self.places.append((i, place))
        needs = circuit.key_needs()
        self.fixed = 0 if needs.relinearisation is None else key_size(parameters, needs.relinearisation)
        self.fixed_seconds = prices.circuit(parameters, circuit) - sum(map(self.tree_seconds, self.trees))

    def tree_seconds(self, tree: _Tree) -> float:
        prices = self.prices.switches(self.parameters, tree.level)
        if tree.kind == _ROTATE:
            return len(tree.keys) * prices.alone
        direct = sum(step == key for step, key in tree.keys.items()) if tree.kind == _BABIES else 0
        return prices.babies(direct) + (len(tree.keys) - direct) * prices.inside

    @staticmethod
    def levels(trees: Iterable[_Tree]) -> dict[int, int]:
        """The level of every key in use."""
        found: dict[int, int] = {}
        for tree in trees:
            for key in tree.keys.values():
                found[key] = max(tree.level, found.get(key, 0))
        return found

    def bytes(self, levels: dict[int, int]) -> int:
        return self.fixed + sum(key_size(self.parameters, level) for level in levels.values())

    def seconds(self) -> float:
        return self.fixed_seconds + sum(map(self.tree_seconds, self.trees))

    def without(self, key: int) -> list[_Tree] | None:
        """The trees when `key` is gone; None if some rotation cannot be reached any more."""
        left = set(self.levels(self.trees)) - {key}
        changed = []
        for tree in self.trees:
            if key in tree.keys.values():
                tree = tree.copy()
                if not self._reconnect(tree, key, left):
                    return None
            changed.append(tree)
        return changed

    def _reconnect(self, tree: _Tree, key: int, left: set[int]) -> bool:
        for step in sorted(s for s, k in tree.keys.items() if k == key):
            if step not in tree.keys:  # pruned with another
                continue
            path = self._path(tree, step, left)
            if path is None:
                return False
            del tree.keys[step]
            for s, k in path:
                tree.keys[s] = k
        parents = {(s - k) % self.slots for s, k in tree.keys.items()}
        while spare := [s for s in tree.keys if s not in tree.targets and s not in parents]:
            for s in spare:
                del tree.keys[s]
            parents = {(s - k) % self.slots for s, k in tree.keys.items()}
        return True

    def _path(self, tree: _Tree, step: int, left: set[int]) -> list[tuple[int, int]] | None:
        """The shortest way from the tree to `step`: breadth first from its end. Not through what hangs from `step`."""
        below = self._below(tree, step)
        came: dict[int, int] = {step: 0}  # node -> key that leads from it towards `step`
        frontier = [step]
        for _ in range(MAX_HOPS):
            grown: list[int] = []
            roots: list[int] = []
            for node in frontier:
                for k in left:
                    before = (node - k) % self.slots
                    if before in came:
                        continue
                    came[before] = k
                    if before == 0 or (before in tree.keys and before not in below):
                        roots.append(before)
                    else:
                        grown.append(before)
            if roots:
                node = min(roots)  # 0 if possible: its hops are hoisted
                path = []
                while node != step:
                    k = came[node]
                    node = (node + k) % self.slots
                    path.append((node, k))
                return path
            frontier = [n for n in grown if n not in below]
            if not frontier:
                return None
        return None

    def _below(self, tree: _Tree, step: int) -> set[int]:
        """`step` and all that is reached through it."""
        below = {step}
        for s, parent, _ in rotation_path(set(tree.keys), tuple(tree.keys.items()), self.slots):
            if parent in below:
                below.add(s)
        return below

    def point(self) -> KeySet:
        count = 1 + max((i for i, _ in self.places), default=-1)
        hops: list[tuple[dict[int, int], dict[int, int]]] = [({}, {}) for _ in range(count)]
        for tree, (i, place) in zip(self.trees, self.places, strict=True):
            hops[i][place].update({s: k for s, k in tree.keys.items() if s != k})
        return KeySet(self.bytes(self.levels(self.trees)), self.seconds(), tuple(hops), self.parameters)


def _steps(ins: Instruction) -> tuple[set[int], ...]:
    if ins.op is Op.ROTATE:
        return ({ins.steps},)
    if ins.op is Op.LINEAR_TRANSFORM:
        return {b for _, b in ins.terms}, {g for g, _ in ins.terms}
    return ()


def key_sets(circuit: Circuit, parameters: Parameters, slowest: float, prices: Prices) -> list[KeySet]:
    """The trade-off curve, fastest first: from a key for every rotation to the fewest bytes within `slowest`, in predicted seconds.

    circuit: without hops. Every point has fewer bytes than the one before.
    """
    search = _Search(circuit, parameters, prices)
    points = [search.point()]

    def price(key: int) -> tuple[float, list[_Tree] | None]:
        """Seconds per byte saved by taking `key` away."""
        trees = search.without(key)
        if trees is None:
            return float("inf"), None
        saved = search.bytes(search.levels(search.trees)) - search.bytes(search.levels(trees))
        more = sum(map(search.tree_seconds, trees)) - sum(map(search.tree_seconds, search.trees))
        return (more / saved if saved > 0 else float("inf")), trees

    queue = [(price(key)[0], key) for key in search.levels(search.trees)]
    heapq.heapify(queue)
    while queue:
        old, key = heapq.heappop(queue)
        rate, trees = price(key)
        if trees is None or rate == float("inf"):
            continue
        if (
            queue and rate > queue[0][0] * (1 + 1e-9) and rate > old
        ):  # a stale price: others may be better now
            heapq.heappush(queue, (rate, key))
            continue
        kept, search.trees = search.trees, trees
        if search.seconds() > slowest:
            search.trees = kept
            continue
        points.append(search.point())
    return points


def choose(circuit: Circuit, choices: list[Parameters], keys: Keys, prices: Prices) -> KeySet | None:
    """The key set that `keys` asks for, and its parameters; None if no set of so few bytes was found. circuit: without hops."""
    best = cheapest(choices, circuit, prices)
    seconds = prices.circuit(best, circuit)
    if keys == "fast":
        return key_sets(circuit, best, FREE * seconds, prices)[-1]
    slowest = (SLOWEST if keys == "small" else LAST_RESORT) * seconds
    candidates = dict.fromkeys((best, cheapest(choices, circuit, prices, UPLOAD_PRICE)))
    points = [point for p in candidates for point in key_sets(circuit, p, slowest, prices)]
    if keys == "small":
        return min(points, key=lambda s: s.bytes)
    return min((s for s in points if s.bytes <= keys), key=lambda s: s.seconds, default=None)


def tradeoff(circuit: Circuit, parameters: Parameters, prices: Prices) -> list[list[float]]:
    """The curve as rows of bytes and predicted seconds, at most CURVE_POINTS of them, for a report. circuit: without hops."""
    points = key_sets(circuit, parameters, LAST_RESORT * prices.circuit(parameters, circuit), prices)
    last = len(points) - 1
    kept = sorted({round(k * last / (CURVE_POINTS - 1)) for k in range(CURVE_POINTS)})
    return [[points[k].bytes, points[k].seconds] for k in kept]


def compose(circuit: Circuit, keys: KeySet) -> Circuit:
    """`circuit` with the hops of one point of its curve; a rotation without a key becomes several ROTATE instructions."""
    made: list[Instruction] = []
    index: list[int] = []  # of every old value
    for i, ins in enumerate(circuit.instructions):
        ins = replace(ins, operands=tuple(index[o] for o in ins.operands))
        first, second = keys.hops[i] if i < len(keys.hops) else ({}, {})
        if ins.op is Op.ROTATE:
            for _, _, key in rotation_path({ins.steps}, tuple(first.items()), circuit.slots):
                made.append(replace(ins, steps=key))
                ins = replace(ins, operands=(len(made) - 1,))
        else:
            hops = tuple(sorted(first.items())), tuple(sorted(second.items()))
            made.append(replace(ins, baby_hops=hops[0], giant_hops=hops[1]))
        index.append(len(made) - 1)
    return Circuit(circuit.slots, tuple(made))
