"""What a circuit costs in seconds, as key sets, parameters and the report see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ckks.circuit import Circuit, Op, Weights
from ckks.counting import CountedValue, CountingEvaluator, sums_call
from ckks.interpreter import run
from ckks.machine import KEY_BYTE_SECONDS, Costs
from ckks.parameters import Parameters
from compiler.sizes import key_size

SWITCHING = ("decompose", "key_product", "key_switch", "mod_down")


@dataclass(frozen=True)
class Switches:
    """Seconds of rotations. single, pair: one and two hoisted ones of a linear transform; hoisted: each further one of them.

    inside: one in a linear transform that decomposes anew; alone: a ROTATE.
    """

    single: float
    pair: float
    hoisted: float
    inside: float
    alone: float

    def babies(self, hoisted: int) -> float:
        """So many rotations of one decomposition."""
        return self.pair + (hoisted - 2) * self.hoisted if hoisted > 1 else hoisted * self.single


@dataclass(frozen=True)
class Steps:
    """Seconds that a linear transform's parts take at its level. fold: a rotation of its result, and the addition. key: the upload's share.

    product: of a diagonal that fills the slots; (2 + share) / 3 of that where it takes only a share of them.
    baby, giant: what either adds to the sums, beside its rotation.
    """

    switches: Switches
    product: float
    baby: float
    giant: float
    fold: float
    key: float

    def transform(self, babies: int, giants: int, diagonals: int, share: float) -> float:
        """Seconds of a transform with so many rotations of each kind, unmoved ones not counted."""
        rotations = self.switches.babies(babies) + giants * self.switches.inside
        sums = diagonals * self.product * (2 + share) / 3 + babies * self.baby + giants * self.giant
        return rotations + sums


@dataclass(frozen=True, eq=False)
class Prices:
    """Times predicted for one machine. periods: of the weights, by name; those not named fill all slots."""

    costs: Costs
    periods: Mapping[str, int] = field(default_factory=dict)
    _switches: dict[tuple[Parameters, int], Switches] = field(default_factory=dict)

    def of_weights(self, weights: Weights) -> Prices:
        """The same prices for circuits with these weights."""
        return Prices(self.costs, {name: w.shape[-1] for name, w in weights.items()}, self._switches)

    def count(self, parameters: Parameters, circuit: Circuit) -> CountingEvaluator:
        """The evaluator that counted `circuit`."""
        evaluator = CountingEvaluator(parameters, self.periods)
        inputs = {i.name: CountedValue(i.level, i.members) for i in circuit.instructions if i.op is Op.INPUT}
        run(circuit, inputs, evaluator)
        return evaluator

    def circuit(self, parameters: Parameters, circuit: Circuit) -> float:
        """Seconds of one evaluation."""
        return self.costs.seconds(parameters, self.count(parameters, circuit).cost.calls)

    def switches(self, parameters: Parameters, level: int) -> Switches:
        """Seconds of rotations at `level`, by kind."""
        if (parameters, level) not in self._switches:
            one, two, three = (self._transform(parameters, level, n, 0) for n in (1, 2, 3))
            alone = CountingEvaluator(parameters)
            alone.rotate(CountedValue(level), 1)
            self._switches[parameters, level] = Switches(
                single=one - self._transform(parameters, level, 0, 0),
                pair=two - self._transform(parameters, level, 0, 0),
                hoisted=three - two,
                inside=self._transform(parameters, level, 0, 1) - self._transform(parameters, level, 0, 0),
                alone=self.costs.seconds(parameters, alone.cost.calls),
            )
        return self._switches[parameters, level]

    def steps(self, parameters: Parameters, level: int, result: int) -> Steps:
        """Of linear transforms at `level` whose results are folded at level `result`."""
        adding = CountingEvaluator(parameters)
        adding.add(CountedValue(result), CountedValue(result))
        row = self.costs.seconds(parameters, {sums_call(parameters, level, 64, 8, 8, 1.0): 1}) / (
            64 * 3 + 8 * 2 + 8
        )
        return Steps(
            switches=self.switches(parameters, level),
            product=3 * row,
            baby=2 * row,
            giant=row,
            fold=self.switches(parameters, result).alone + self.costs.seconds(parameters, adding.cost.calls),
            key=key_size(parameters, level) * KEY_BYTE_SECONDS,
        )

    def _transform(self, parameters: Parameters, level: int, babies: int, giants: int) -> float:
        """With so many rotations, and without its sums, which are there whatever keys there are."""
        evaluator = CountingEvaluator(parameters)
        terms = ((0, 0), *((0, b + 1) for b in range(babies)))
        hops = tuple((g + 1, 1) for g in range(giants))
        evaluator.linear_transform(CountedValue(level), "", 1.0, (*terms, (giants, 0)), (), hops)
        calls = {call: n for call, n in evaluator.cost.calls.items() if call.function in SWITCHING}
        return self.costs.seconds(parameters, calls)
