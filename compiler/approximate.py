"""Approximation: activation functions become polynomials over ranges taken from calibration data.

Whatever is computed of one tensor element by element and needs an activation function is one curve and is fitted as a whole: x * sigmoid(x)
or x * (1 + erf(x / sqrt 2)) / 2 costs one polynomial. Depths are chosen by one tolerance for all layers, as loose as the error of the
network's outputs on the calibration rows allows; layers are fitted in order, each on what the fits before it give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev

from ckks.errors import ModelError
from compiler.fit import MAX_DEPTH, Polynomial, density, fit, grid
from compiler.graph import (
    Array,
    Elementwise,
    Fitted,
    Graph,
    Linear,
    Node,
    Nonlinear,
    Product,
    Source,
    Sum,
    operands,
)

Flags = npt.NDArray[np.bool_]

MARGIN = 0.15  # added to the calibrated range on each side, in half widths, at least; see `interval`
UPPER_SHARE = 1 / 4  # of the rows, whose extremes show how fast rare ones grow
RARE = 1000  # one row in so many may lie beyond an end of an interval, if extremes go on as they began
MIN_ROWS = 32  # fewer say too little of what others may bring
SEARCH_ROWS = 256  # choose the degrees; all rows then choose intervals and coefficients
SEARCH_BUDGET = 0.9  # of the budget, where more rows come after those of the search
MAX_DEGREE = 31
MAX_STEPS = 64  # calls of functions in a curve; the next step begins another, so that they nest no deeper
MAX_LOOSENED = 12  # layers; with more, one tolerance serves all
TOLERANCES = (
    0.5,
    0.35,
    0.25,
    0.18,
    0.12,
    0.08,
    0.05,
    0.03,
    0.02,
    0.01,
    0.0,
)  # relative rms error of a layer's fit
DEFAULT_ERROR = 0.1
HOPELESS = 0.5  # relative rms error of a fit: no polynomial of MAX_DEPTH levels follows such a function


@dataclass(frozen=True)
class Override:
    """What a user fixed for a layer or an operator: the degree, the interval [-bound, bound]."""

    degree: int | None = None
    bound: float | None = None


@dataclass(frozen=True, eq=False)
class Fit:
    """One fit, for the report. seen: the calibrated range; low, high: the interval; given: by an override, not by the rows."""

    layer: str
    operators: tuple[str, ...]
    seen: tuple[float, float]
    low: float
    high: float
    given: bool
    polynomial: Polynomial
    weights: Array
    function: Callable[[Array], Array]


@dataclass(frozen=True, eq=False)
class Approximation:
    """The graph without Nonlinear nodes. error: of the worst output, the rms of its error on the calibration rows over its
    standard deviation. rows: real ones that the intervals come from."""

    graph: Graph
    fits: tuple[Fit, ...]
    error: float
    budget: float
    rows: int

    @property
    def levels(self) -> int:
        """Of all fits together."""
        return sum(f.polynomial.depth for f in self.fits)

    @property
    def outside_bound(self) -> float | None:
        """A bound on the chance that an input brings a value outside an interval; None where no rows give intervals.

        Whatever the distribution, the next of n + 1 rows drawn alike exceeds the extremes of the others on either side with
        probability at most 2 / (n + 1) (order statistics: David and Nagaraja 2003, section 2.1), for each layer; the intervals'
        margins are not counted.
        """
        layers = sum(not f.given for f in self.fits)
        return min(2 * layers / (self.rows + 1), 1.0) if layers and self.rows else None


@dataclass(frozen=True, eq=False)
class _Curve:
    """A node as function(root), element by element, in so many steps; operators: the activation functions in it, each once; layer:
    the last one's name."""

    root: int
    function: Callable[[Array], Array]
    operators: tuple[str, ...] = ()
    layer: str = ""
    steps: int = 0

    @property
    def named(self) -> str:
        """For messages."""
        return f"{self.layer!r} ({', '.join(self.operators)})"


def parse_override(text: str) -> tuple[str, Override]:
    """NAME=degree:4,range:8 -> (NAME, Override). Raises ModelError."""
    name, _, rest = text.rpartition("=")
    known = {"degree": int, "range": float}
    found: dict[str, float] = {}
    try:
        for part in rest.split(","):
            key, _, value = part.partition(":")
            found[key] = known[key](value)
    except (KeyError, ValueError):
        found = {}
    degree, bound = found.get("degree"), found.get("range")
    if not name or not found or not 2 <= (degree or 2) <= MAX_DEGREE or not 0 < (bound or 1.0) < 1e6:
        raise ModelError(
            f"{text!r} does not fix an activation; write NAME=degree:D,range:R, a layer or an operator, D from 2 to {MAX_DEGREE}"
        )
    return name, Override(None if degree is None else int(degree), bound)


def approximate(
    graph: Graph,
    rows: Array,
    *,
    calibrated: bool,
    own_rows: bool = False,
    overrides: Mapping[str, Override] | None = None,
    budget: float = DEFAULT_ERROR,
) -> Approximation:
    """Replace every activation function. rows: float64 [rows][elements], real inputs where `calibrated`, at least MIN_ROWS of them
    unless they are the only inputs there will be (own_rows).

    overrides: by layer or by operator, in any case. budget: the largest relative rms error of the outputs on the rows; where no fit
    meets it, the best one is taken. Raises ModelError.
    """
    curves = _curves(graph)
    targets = _targets(graph, curves)
    fixed = {name.lower(): o for name, o in (overrides or {}).items()}
    _check_overrides(curves, graph, targets, fixed)
    if not targets:
        return Approximation(graph, (), 0.0, budget, 0)
    for i in targets:
        if _override(graph, curves, i, fixed).bound is None:
            _check_rows(curves[i], len(rows) if calibrated else 0, own_rows)

    def attempt(tolerances: list[float], rows: Array, exact: Array) -> Approximation:
        fitted, fits, output = _fit_all(graph, curves, targets, rows, fixed, tolerances)
        error = _relative_error(graph, output, exact)
        return Approximation(fitted, fits, error, budget, len(rows) if calibrated else 0)

    few = rows[:SEARCH_ROWS]
    exact = forward(graph, few)
    aim = budget if len(few) == len(rows) else SEARCH_BUDGET * budget
    tolerances = _tolerances(lambda t: attempt(t, few, exact), len(targets), aim)
    return attempt(tolerances, rows, forward(graph, rows))


def _check_rows(curve: _Curve, rows: int, own_rows: bool) -> None:
    """Refuse an interval from too few rows: beyond its interval a polynomial goes anywhere, and nobody sees it."""
    if rows >= (1 if own_rows else MIN_ROWS):
        return
    given = (
        ""
        if not rows
        else f"; {rows} calibration rows are too few for it, {MIN_ROWS} the least and some hundreds good"
    )
    raise ModelError(
        f"node {curve.named}: its polynomial needs the range of its inputs{given}; give typical inputs "
        "with --calibrate X.npz, fix the range with --activation, or train with a polynomial activation"
    )


def _tolerances(attempt: Callable[[list[float]], Approximation], layers: int, budget: float) -> list[float]:
    """The loosest tolerance of every layer's fit that keeps the budget; the best there is where none does."""
    best = attempt([TOLERANCES[0]] * layers)
    looser = tight = TOLERANCES[0]
    for previous, tolerance in pairwise(TOLERANCES):
        if best.error <= budget or best.levels == MAX_DEPTH * layers:
            break
        tried = attempt([tolerance] * layers)
        if tried.error < best.error:
            best, tight, looser = tried, tolerance, previous
    tolerances = [tight] * layers
    if best.error > budget or tight == TOLERANCES[0] or layers > MAX_LOOSENED:
        return tolerances
    for k in range(layers):  # for some layers the looser tolerance before it may do
        kept, tolerances[k] = tolerances[k], looser
        tried = attempt(tolerances)
        if tried.error <= budget and tried.levels < best.levels:
            best = tried
        else:
            tolerances[k] = kept
    return tolerances


def _relative_error(graph: Graph, outputs: Array, exact: Array) -> float:
    """The largest of any output: its rms error over its standard deviation."""
    worst, start = 0.0, 0
    for i in graph.ends:
        mine = slice(start, start + math.prod(graph.nodes[i].shape))
        start = mine.stop
        error = float(np.sqrt(((outputs[:, mine] - exact[:, mine]) ** 2).mean()))
        worst = max(worst, error / max(float(exact[:, mine].std()), 1e-12))
    return worst


def _curves(graph: Graph) -> list[_Curve]:
    """Every node as a curve of the tensor it is computed from element by element."""
    curves: list[_Curve] = []

    def of(i: int) -> _Curve:
        return curves[i] if curves[i].steps < MAX_STEPS else _Curve(i, lambda x: x)

    for i, node in enumerate(graph.nodes):
        curve = _Curve(i, lambda x: x)
        if isinstance(node, Elementwise):
            x = of(node.x)
            # One gain for all elements keeps one curve; before any activation, different ones start a new tensor (a BatchNorm).
            uniform = bool((node.gain == node.gain[0]).all() and (node.offset == node.offset[0]).all())
            if uniform or x.operators:
                gain, offset = (node.gain[0], node.offset[0]) if uniform else (node.gain, node.offset)
                curve = _Curve(x.root, _affine(x.function, gain, offset), x.operators, x.layer, x.steps + 1)
        elif isinstance(node, Nonlinear):
            x = of(node.x)
            names = tuple(dict.fromkeys((*x.operators, node.operator)))
            curve = _Curve(x.root, _composed(node.function, x.function), names, node.layer, x.steps + 1)
        elif isinstance(node, Sum | Product):
            x, y = of(node.x), of(node.y)
            if (
                x.root == y.root
            ):  # without an activation behind it, as in tanh-Gelu's x + 0.04 x^3, it is never fitted itself
                combine = np.add if isinstance(node, Sum) else np.multiply
                both = tuple(dict.fromkeys(x.operators + y.operators))
                function, steps = _combined(combine, x.function, y.function), x.steps + y.steps + 1
                curve = _Curve(x.root, function, both, y.layer or x.layer, steps)
        curves.append(curve)
    return curves


def _affine(f: Callable[[Array], Array], gain: Array, offset: Array) -> Callable[[Array], Array]:
    return lambda x: gain * f(x) + offset


def _composed(f: Callable[[Array], Array], g: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda x: f(g(x))


def _combined(
    combine: Callable[[Array, Array], Array], f: Callable[[Array], Array], g: Callable[[Array], Array]
) -> Callable[[Array], Array]:
    return lambda x: combine(f(x), g(x))


def _targets(graph: Graph, curves: list[_Curve]) -> list[int]:
    """The nodes to fit, in order: curves with activation functions that something other than a further curve of their root needs."""
    needed, work, targets = set[int](), graph.ends, set[int]()
    while work:
        i = work.pop()
        if i in needed:
            continue
        needed.add(i)
        if curves[i].operators:
            targets.add(i)
            work.append(curves[i].root)
        else:
            work += operands(graph.nodes[i])
    return sorted(targets)


def _name(graph: Graph, i: int) -> str:
    node = graph.nodes[i]
    return node.name if isinstance(node, Source) else node.layer


def _names(graph: Graph, curves: list[_Curve], i: int) -> set[str]:
    """What a user may call the fit of node i: the layers and the operators in it."""
    names, work = set[str](), [i]
    while work:
        k = work.pop()
        if k != curves[i].root:
            names.add(_name(graph, k).lower())
            work += operands(graph.nodes[k])
    return names | {operator.lower() for operator in curves[i].operators}


def _override(graph: Graph, curves: list[_Curve], i: int, fixed: Mapping[str, Override]) -> Override:
    found = [fixed[name] for name in sorted(_names(graph, curves, i)) if name in fixed]
    by_layer = [fixed[curves[i].layer.lower()]] if curves[i].layer.lower() in fixed else []
    return (by_layer + found + [Override()])[0]


def _check_overrides(
    curves: list[_Curve], graph: Graph, targets: list[int], fixed: Mapping[str, Override]
) -> None:
    known = set[str]().union(*(_names(graph, curves, i) for i in targets))
    for name in fixed:
        if name not in known:
            raise ModelError(
                f"no activation to approximate is called {name!r}; there are {', '.join(sorted(known)[:20]) or 'none'}"
            )


def _fit_all(
    graph: Graph,
    curves: list[_Curve],
    targets: list[int],
    rows: Array,
    fixed: Mapping[str, Override],
    tolerances: list[float],
) -> tuple[Graph, tuple[Fit, ...], Array]:
    """The graph with every target fitted, and its outputs [rows][elements]."""
    fits: list[Fit] = []

    def fitted(i: int, values: Array) -> Fitted:
        curve = curves[i]
        found = _fit(curve, values, _override(graph, curves, i, fixed), tolerances[len(fits)])
        fits.append(found)
        center, half = (found.low + found.high) / 2, (found.high - found.low) / 2
        return Fitted(
            found.layer, curve.root, found.polynomial.coefficients, center, half, graph.nodes[i].shape
        )

    chosen = set(targets)
    nodes: list[Node] = []
    renamed: dict[int, int] = {}
    values: dict[int, Array] = {}
    live, ends = _live(graph, curves), set(graph.ends)
    last_use = {o: i for i in live for o in ([curves[i].root] if i in chosen else operands(graph.nodes[i]))}
    for i in live:
        node = fitted(i, values[curves[i].root]) if i in chosen else graph.nodes[i]
        values[i] = _value(node, values, rows)
        renamed[i] = len(nodes)
        for operand in operands(node):
            if last_use[operand] == i and operand not in ends:
                values.pop(operand, None)
        nodes.append(_renamed(node, renamed))
    outputs = tuple(replace(o, node=renamed[o.node]) for o in graph.outputs)
    result = replace(graph, nodes=tuple(nodes), outputs=outputs)
    return result, tuple(fits), np.concatenate([values[i] for i in graph.ends], axis=1)


def _live(graph: Graph, curves: list[_Curve]) -> list[int]:
    needed, work = set(range(len(graph.sources))), graph.ends
    while work:
        i = work.pop()
        if i not in needed:
            needed.add(i)
            work += [curves[i].root] if curves[i].operators else operands(graph.nodes[i])
    return sorted(needed)


def _renamed(node: Node, new: Mapping[int, int]) -> Node:
    if isinstance(node, Source):
        return node
    if isinstance(node, Sum | Product):
        return replace(node, x=new[node.x], y=new[node.y])
    return replace(node, x=new[node.x])


def forward(graph: Graph, rows: Array, outside: list[Flags] | None = None) -> Array:
    """The graph's outputs [rows][elements] on inputs [rows][elements], in float64.

    outside: collects for every fit, in order, the rows (bool [rows]) that bring a value outside its interval.
    """
    values: dict[int, Array] = {}
    ends = set(graph.ends)
    last_use = {o: i for i, node in enumerate(graph.nodes) for o in operands(node)}
    for i, node in enumerate(graph.nodes[: max(ends) + 1]):
        values[i] = _value(node, values, rows)
        if outside is not None and isinstance(node, Fitted):
            beyond = np.abs(values[node.x] - node.center) > node.half
            outside.append(np.asarray(beyond.any(axis=1)))
        for operand in operands(node):
            if last_use[operand] == i and operand not in ends:
                values.pop(operand, None)
    return np.concatenate([values[i] for i in graph.ends], axis=1)


def _value(node: Node, values: Mapping[int, Array], rows: Array) -> Array:
    if isinstance(node, Source):
        return rows[:, node.start : node.start + math.prod(node.shape)]
    x = values[node.x]
    result: Array
    if isinstance(node, Linear):
        result = x @ node.matrix.T + node.bias
    elif isinstance(node, Elementwise):
        result = node.gain * x + node.offset
    elif isinstance(node, Nonlinear):
        result = node.function(x)
    elif isinstance(node, Fitted):
        result = _evaluate(node.coefficients, (x - node.center) / node.half)
    else:
        y = values[node.y]
        result = x + y if isinstance(node, Sum) else x * y
    if not np.isfinite(result).all():
        raise ModelError(f"layer {node.layer!r}: values overflow on the calibration data; check their range")
    return result


def _evaluate(coefficients: Array, t: Array) -> Array:
    """sum_k coefficients[k] T_k(t) for t [rows][elements]."""
    result: Array = np.asarray(chebyshev.chebval(t, coefficients[:, None, :], tensor=False), np.float64)
    return result


def interval(values: Array) -> tuple[float, float]:
    """The interval for a fit, from calibrated values [rows][elements]: their range, widened on each side.

    By MARGIN of half the range, and at least so far that an extreme lies beyond an end in one row of RARE, if the extremes of rows go on
    beyond those seen as exponentially as the upper UPPER_SHARE of them does (peaks over a threshold: Pickands 1975, "Statistical
    inference using extreme order statistics"). With few rows that is far, with RARE rows nothing.
    """
    low, high = values.min(axis=1), values.max(axis=1)
    lowest, highest = float(low.min()), float(high.max())
    margin = max(MARGIN * (highest - lowest) / 2, 1e-6 * max(abs(lowest), abs(highest), 1e-6))
    return lowest - max(margin, _overshoot(-low)), highest + max(margin, _overshoot(high))


def _overshoot(extremes: Array) -> float:
    """How far above the largest of `extremes` [rows] the one in RARE rows is to be expected."""
    count = len(extremes)
    if count >= RARE:
        return 0.0
    ordered = np.sort(extremes)
    upper = max(1, round(count * UPPER_SHARE))
    excess = float(ordered[-upper:].mean() - ordered[max(count - upper - 1, 0)])
    return excess * math.log(RARE / count)


def _fit(curve: _Curve, values: Array, override: Override, tolerance: float) -> Fit:
    seen = float(values.min()), float(values.max())
    low, high = interval(values) if override.bound is None else (-override.bound, override.bound)
    weights = density(values, low, high)
    with np.errstate(all="ignore"):
        target = curve.function(((low + high) / 2 + (high - low) / 2 * grid())[:, None])
    if not np.isfinite(target).all():
        raise ModelError(
            f"node {curve.named}: is not finite on {low:.4g}..{high:.4g}, the calibrated range "
            "and a margin; keep its inputs away from there"
        )
    target = target if (target != target[:, :1]).any() else target[:, :1]
    found: Polynomial | None = None
    for depth in [0] if override.degree is not None else range(1, MAX_DEPTH + 1):
        polynomial = fit(target, weights, depth, override.degree)
        if polynomial is None:
            continue
        if found is None or polynomial.relative < found.relative:
            found = polynomial
        if polynomial.relative <= tolerance:
            break
    assert found is not None  # every depth above one gives a polynomial
    if override.degree is None and found.relative > HOPELESS:
        raise ModelError(
            f"node {curve.named}: no polynomial of degree {1 << MAX_DEPTH} follows it on "
            f"{low:.4g}..{high:.4g}; scale its inputs down"
        )
    given = override.bound is not None
    return Fit(curve.layer, curve.operators, seen, low, high, given, found, weights, curve.function)
