"""Ring, primes and scales for a program: the cheapest that keep the promised precision."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from ckks.bundle import MAX_PARTS
from ckks.circuit import Circuit, Weights
from ckks.errors import ModelError
from ckks.machine import KEY_BYTE_SECONDS, Costs
from ckks.parameters import MAX_LOG_DEGREE, MIN_LOG_DEGREE, Parameters
from compiler.condition import Program
from compiler.graph import Array, Graph
from compiler.keysets import Keys, choose, compose
from compiler.lanes import interleave
from compiler.levels import Levels, assign_levels
from compiler.lower import Scales, lower
from compiler.pack import Choices, Packing, choices, pack
from compiler.parameters import FAST_BITS, MAX_SCALE_BITS, MIN_SCALE_BITS, Modulus, digit_choices, fits
from compiler.precision import Ends, promised_errors
from compiler.prices import Prices, Steps
from compiler.sizes import key_bytes
from compiler.throughput import lower_stacks, stack

OUTPUT_MARGIN = (
    3  # bits: inputs outside the calibration data may give larger values, which must not wrap around
)
VALUE_BITS = 22, 14  # see _value_bits
# Slots that a part of a tensor takes at most: those of the largest ring. With fewer, all vectors repeat within a ciphertext, and small
# networks take many parts: for tests.
MAX_PART_SLOTS = 1 << (MAX_LOG_DEGREE - 1)
Progress = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Demands:
    """errors: the largest that may be promised for each output, in its units. lanes: images a ciphertext. stacked: the batch layout."""

    errors: tuple[float, ...]
    keys: Keys
    security: int
    lanes: int
    stacked: bool
    costs: Costs


@dataclass(frozen=True, eq=False)
class Compiled:
    """plain: the circuit with a key for every rotation."""

    parameters: Parameters
    plain: Circuit
    circuit: Circuit
    weights: Weights
    packing: Packing
    ends: Ends
    promised: tuple[float, ...]

    def excess(self, demands: Demands) -> float:
        """The largest promise over what is demanded."""
        return max(p / e for p, e in zip(self.promised, demands.errors, strict=True))


@dataclass(frozen=True, eq=False)
class _Way:
    """A ring, levels and a packing to find the scales for."""

    graph: Graph
    program: Program
    rows: Array
    demands: Demands
    degree: int
    levels: Levels
    packing: Packing

    def modulus(self, scale_bits: int) -> Modulus | None:
        return _modulus(self.program, self.levels, scale_bits, self.degree, self.demands.security)


def fit_parameters(graph: Graph, program: Program, rows: Array, demands: Demands, say: Progress) -> Compiled:
    """The best of the rings that keep the promise, each with the smallest scale. Raises ModelError when none does.

    Smaller rings are better, but for tensors that take several ciphertexts there: then the next ring is weighed against it. On a ring,
    outputs that are not rescaled are better, as everything is a level lower; next best is to have them computed of tidy values, which
    costs rotations but much less precision.
    """
    unscaled, scaled = (assign_levels(program, way) for way in (True, False))
    ways = [(unscaled, False), (unscaled, True)] if unscaled.unscaled else []
    elements = max(math.prod(t.shape) for t in program.tensors)
    rings: list[Compiled] = []
    refused: ModelError | None = None
    for log_degree in range(MIN_LOG_DEGREE, MAX_LOG_DEGREE + 1):
        degree = 1 << log_degree
        slots = min(degree // 2, MAX_PART_SLOTS) // demands.lanes
        if elements > MAX_PARTS * slots and not demands.stacked:
            continue
        given: Choices | None = None
        for levels, tidy in [*ways, (scaled, False)]:
            usable = _usable(program, levels, degree, demands)
            if not usable or (demands.stacked and tidy):
                continue
            say(f"packing for N=2^{log_degree}")
            try:
                if demands.stacked:
                    packing = stack(program)
                else:
                    given = given or choices(program, slots)
                    packing = pack(given, levels, tidy, _steps(program, levels, degree, usable[0], demands))
            except ModelError as error:  # more ciphertexts a tensor need more weights
                refused = error
                continue
            way = _Way(graph, program, rows, demands, degree, levels, packing)
            found = _smallest_scale(way, usable, say)
            if found is not None:
                rings.append(found)
                break
        else:
            continue
        whole = all(layout.parts == 1 for layout in rings[-1].packing.layouts.values())
        if whole or degree // 2 >= MAX_PART_SLOTS:
            break
    if refused is not None and not rings:
        raise refused
    if rings:
        return min(rings, key=lambda ring: _price(ring, demands))
    raise ModelError(
        f"no parameters of {demands.security}-bit security fit {scaled.top} levels, tensors of up to {elements} elements "
        f"{'' if demands.lanes == 1 else f'for {demands.lanes} images '}and this precision; use fewer activations, "
        f"a smaller picture{'' if demands.lanes == 1 else ' or batch'}, a larger precision or a larger budget for keys"
    )


def _usable(program: Program, levels: Levels, degree: int, demands: Demands) -> list[int]:
    """The scales, in bits, that leave a ring secure."""
    bits = range(MIN_SCALE_BITS, MAX_SCALE_BITS + 1)
    return [b for b in bits if _modulus(program, levels, b, degree, demands.security) is not None]


def _steps(
    program: Program, levels: Levels, degree: int, scale_bits: int, demands: Demands
) -> Callable[[int, int], Steps]:
    """Costs of linear transforms, for packing: by the fastest digits for the least scale."""
    modulus, prices = _modulus(program, levels, scale_bits, degree, demands.security), Prices(demands.costs)
    assert modulus is not None  # the scale is usable
    offered = digit_choices(degree, modulus, demands.security)
    if not offered:
        raise ModelError(f"no primes were found for N={degree} and scales of 2^{scale_bits}")
    p = min(offered, key=lambda x: prices.switches(x, x.max_level).inside)
    return functools.cache(lambda level, result: prices.steps(p, level, result))


def _price(compiled: Compiled, demands: Demands) -> float:
    """What rings are compared by: bytes of keys for `small`, else seconds, with the upload's share."""
    size = key_bytes(compiled.parameters, compiled.circuit)
    if demands.keys == "small":
        return size
    prices = Prices(demands.costs).of_weights(compiled.weights)
    return prices.circuit(compiled.parameters, compiled.circuit) + size * KEY_BYTE_SECONDS


def _modulus(program: Program, levels: Levels, scale_bits: int, degree: int, security: int) -> Modulus | None:
    """The data chain for this scale, None if none is secure. Outputs that are not rescaled get the largest base prime that is fast."""
    least = scale_bits + 1 + OUTPUT_MARGIN + math.ceil(math.log2(program.largest))
    most = max(least, FAST_BITS - 1) if levels.unscaled else least
    chains = (Modulus(scale_bits, base, levels.top) for base in range(most, least - 1, -1))
    return next((chain for chain in chains if fits(degree, chain, security)), None)


def _scales(program: Program, modulus: Modulus, values: float) -> Scales:
    """Outputs that are not rescaled get all the room that the base prime has. values: bits of what they are computed of."""
    room = modulus.base_bits - 1 - OUTPUT_MARGIN
    unscaled = tuple(2.0**room / max(x, 1e-12) for x in program.largest_outputs)
    # A square of numbers of this scale has, rescaled by a prime of scale_bits, the scale 2^values.
    return Scales(2.0**modulus.scale_bits, unscaled, 2.0 ** ((modulus.scale_bits + values) / 2))


def _smallest_scale(way: _Way, usable: list[int], say: Progress) -> Compiled | None:
    """Search the scale: the error halves with every bit, so that one simulation predicts where the target lies."""
    best: Compiled | None = None
    low, high = usable[0], usable[-1]

    def tried(bits: int, values: int) -> Compiled | None:
        say(f"simulating noise at scale 2^{bits}")
        modulus = way.modulus(bits)
        return None if modulus is None else _at_scale(way, modulus, min(values, bits))

    bits, values = low if way.levels.unscaled else min(max(30, low), high), high
    if way.levels.last:
        found_bits = _value_bits(way, usable, tried)
        if found_bits is None:
            return None
        values = found_bits
    least = math.inf
    while low <= high:
        found = tried(bits, values)
        excess = math.inf if found is None else found.excess(way.demands)
        if excess <= 1:
            best, high = found, bits - 1
        elif found is not None and excess > least:
            break  # values at a larger scale leave less for weights: it gets no better
        else:
            low = bits + 1
        least = min(least, excess)
        step = math.ceil(math.log2(excess)) if found is not None else 1
        bits = min(max(bits + step, low), high)
    return best


def _value_bits(way: _Way, usable: list[int], tried: Callable[[int, int], Compiled | None]) -> int | None:
    """The scale in bits of the values that outputs without rescaling are computed of; None if no such scale can keep the promise.

    The product of their scale and that of their weights is given. Where one side's rounding prevails, the error halves or doubles
    with every bit: two simulations, at a scale that adds little error of its own, tell where the two meet.
    tried(bits, values): at a scale, with values at another one.
    """
    first = way.modulus(usable[0])
    alike = [
        b for b in usable if b <= 30 and (m := way.modulus(b)) and first and m.base_bits == first.base_bits
    ]
    bits = max(alike, default=usable[0])
    errors = []
    for values in VALUE_BITS:
        found = tried(bits, values)
        if found is None or found.excess(way.demands) <= 1:
            return None if found is None else values
        errors.append(found.excess(way.demands))
    if math.sqrt(2 * errors[0] * errors[1] / 2 ** (VALUE_BITS[0] - VALUE_BITS[1])) > 1:
        return None
    return round((sum(VALUE_BITS) + math.log2(errors[1] / errors[0])) / 2)


def _at_scale(way: _Way, modulus: Modulus, values: float) -> Compiled | None:
    program, demands, packing = way.program, way.demands, way.packing
    offered = digit_choices(way.degree, modulus, demands.security)
    if not offered:
        return None
    names = tuple(output.name for output in way.graph.outputs)

    def lowered(parameters: Parameters) -> tuple[Circuit, Weights]:
        make = lower_stacks if packing.stacked else lower
        single = make(program, packing, way.levels, parameters, _scales(program, modulus, values), names)
        return interleave(*single, demands.lanes)

    circuit, weights = lowered(offered[0])
    chosen = choose(circuit, offered, demands.keys, Prices(demands.costs).of_weights(weights))
    if chosen is None:
        return None
    plain, weights = lowered(chosen.parameters)
    circuit = compose(plain, chosen)
    inputs = sorted(program.inputs, key=lambda t: t.start)
    layouts = {key: replace(layout, lanes=demands.lanes) for key, layout in packing.layouts.items()}
    ends = Ends(
        tuple((t.name, layouts[id(t)]) for t in inputs),
        tuple((n, layouts[id(t)]) for n, t in zip(names, program.outputs, strict=True)),
    )
    promised = promised_errors(circuit, weights, chosen.parameters, way.rows, ends)
    return Compiled(chosen.parameters, plain, circuit, weights, packing, ends, promised)
