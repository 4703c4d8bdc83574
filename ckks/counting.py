"""The counting evaluator: what a circuit costs, in operations of the backend, without running it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ckks.circuit import Hops, rotation_path
from ckks.parameters import Parameters


@dataclass
class Cost:
    """operations: how often each runs. ntts: forward and inverse transforms of one limb. products: modular products of one limb."""

    operations: Counter[str] = field(default_factory=Counter)
    ntts: int = 0
    products: int = 0


@dataclass(frozen=True)
class CountedValue:
    """A value without content: its level is all that costs depend on."""

    level: int


class CountingEvaluator:
    """Evaluator[CountedValue]; the running total is `cost`. Formulas count the algorithms of ckks/evaluator.py and ckks/linear.py."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.cost = Cost()

    def _count(self, name: str, ntts: int = 0, products: int = 0, times: int = 1) -> None:
        self.cost.operations[name] += times
        self.cost.ntts += ntts * times
        self.cost.products += products * times

    def _decompose(self, level: int, times: int = 1) -> None:
        """level+1 inverse transforms; per digit, conversion and forward transforms of all rows but its own limbs."""
        p = self.parameters
        rows = level + 1 + len(p.special_primes)
        forward = sum(rows - (stop - start) for start, stop in p.digits(level))
        converted = sum((stop - start) * (rows - (stop - start)) for start, stop in p.digits(level))
        self._count("decompose", level + 1 + forward, level + 1 + converted, times)

    def _key_product(self, level: int, times: int = 1) -> None:
        p = self.parameters
        self._count("key_product", 0, 2 * len(p.digits(level)) * (level + 1 + len(p.special_primes)), times)

    def _mod_down(self, level: int, polys: int, times: int = 1) -> None:
        k = len(self.parameters.special_primes)
        self._count("mod_down", polys * (level + 1 + k), polys * (k + (k + 1) * (level + 1)), times)

    def add(self, a: CountedValue, b: CountedValue) -> CountedValue:
        self._count("add")
        return a

    def subtract(self, a: CountedValue, b: CountedValue) -> CountedValue:
        self._count("subtract")
        return a

    def add_plain(self, a: CountedValue, weight: str) -> CountedValue:
        self._count("add_plain")
        return a

    def multiply_plain(self, a: CountedValue, weight: str, weight_scale: float) -> CountedValue:
        self._count("multiply_plain", products=2 * (a.level + 1))
        return a

    def multiply(self, a: CountedValue, b: CountedValue) -> CountedValue:
        self._count("multiply", products=4 * (a.level + 1))
        return a

    def relinearise(self, a: CountedValue) -> CountedValue:
        self._count("relinearise")
        self._switch(a.level)
        return a

    def rescale(self, a: CountedValue) -> CountedValue:
        self._count("rescale", ntts=2 * (a.level + 1), products=2 * a.level)
        return CountedValue(a.level - 1)

    def drop_level(self, a: CountedValue, level: int) -> CountedValue:
        self._count("drop_level")
        return CountedValue(level)

    def rotate(self, a: CountedValue, steps: int) -> CountedValue:
        self._count("rotate")
        self._switch(a.level)
        return a

    def linear_transform(
        self,
        a: CountedValue,
        weight: str,
        weight_scale: float,
        terms: tuple[tuple[int, int], ...],
        baby_hops: Hops = (),
        giant_hops: Hops = (),
    ) -> CountedValue:
        slots = self.parameters.slots
        babies = rotation_path({b for _, b in terms}, baby_hops, slots)
        giants = rotation_path({g for g, _ in terms}, giant_hops, slots)
        hoisted = sum(parent == 0 for _, parent, _ in babies)
        alone = len(babies) - hoisted + len(giants)
        rows = a.level + 1 + len(self.parameters.special_primes)
        self._count("linear_transform")
        self._count("diagonal", products=2 * rows, times=len(terms))
        self._decompose(a.level, times=1 if babies else 0)
        self._key_product(a.level, times=len(babies) + len(giants))
        self._mod_down(a.level, 1, times=alone)
        self._decompose(a.level, times=alone)
        self._mod_down(a.level, 2)
        return a

    def _switch(self, level: int) -> None:
        self._decompose(level)
        self._key_product(level)
        self._mod_down(level, 2)
