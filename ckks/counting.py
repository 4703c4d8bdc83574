"""The counting evaluator: what a circuit costs, in operations of the backend, without running it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ckks.circuit import Hops, rotation_path
from ckks.parameters import Parameters

MATRIX_SHARE = (
    0.15  # measured: 0.11 ns a coefficient, where a limb product (see compiler/parameters.py) takes 0.77
)


@dataclass
class Cost:
    """operations: how often each runs. ntts: forward and inverse transforms of one limb. products: modular products of one limb."""

    operations: Counter[str] = field(default_factory=Counter)
    ntts: int = 0
    products: int = 0


@dataclass(frozen=True)
class CountedValue:
    """A value without content: level, number of polynomials and size of the stack (0: none) are all that costs depend on."""

    level: int
    members: int = 0
    polys: int = 2


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
        self._count("add", times=_times(a))
        return a

    def subtract(self, a: CountedValue, b: CountedValue) -> CountedValue:
        self._count("subtract", times=_times(a))
        return a

    def add_plain(self, a: CountedValue, weight: str) -> CountedValue:
        self._count("add_plain", times=_times(a))
        return a

    def multiply_plain(self, a: CountedValue, weight: str, weight_scale: float) -> CountedValue:
        self._count("multiply_plain", products=2 * (a.level + 1), times=_times(a))
        return a

    def multiply(self, a: CountedValue, b: CountedValue) -> CountedValue:
        self._count("multiply", products=4 * (a.level + 1), times=_times(a))
        return replace(a, polys=3)

    def relinearise(self, a: CountedValue) -> CountedValue:
        self._count("relinearise", times=_times(a))
        self._switch(a.level, _times(a))
        return replace(a, polys=2)

    def rescale(self, a: CountedValue) -> CountedValue:
        self._count("rescale", ntts=2 * (a.level + 1), products=2 * a.level, times=_times(a))
        return replace(a, level=a.level - 1)

    def drop_level(self, a: CountedValue, level: int) -> CountedValue:
        self._count("drop_level", times=_times(a))
        return replace(a, level=level)

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

    def matrix(
        self, stacks: Sequence[CountedValue], weight: str, weight_scale: float, members: int, products: int
    ) -> CountedValue:
        """A product with a scalar, summed up, costs a MATRIX_SHARE of a product of limbs."""
        a = stacks[0]
        self._count("matrix")
        self._count("scalar_product", times=products)
        self.cost.products += round(products * a.polys * (a.level + 1) * MATRIX_SHARE)
        return CountedValue(a.level, members, a.polys)

    def _switch(self, level: int, times: int = 1) -> None:
        self._decompose(level, times)
        self._key_product(level, times)
        self._mod_down(level, 2, times)


def _times(a: CountedValue) -> int:
    return max(a.members, 1)
