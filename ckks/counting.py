"""The counting evaluator: what a circuit costs, in operations of the backend, without running it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ckks.circuit import Hops, rotation_path
from ckks.linear import GIANTS_AT_ONCE
from ckks.parameters import Parameters

COPY = 12  # sums' worth of time for a copy by NumPy: the system clears its pages first
# Of stacks, in sums' worth of time too, fitted to circuits of the throughput layout at N=2^13: a product with a scalar, a limb that a
# matrix reads or writes, and a limb copied into a result so large that huge pages take it.
MATRIX_PRODUCT, MATRIX_LIMB, STACK_COPY = 0.21, 2.6, 4.5


class Call(NamedTuple):
    """One call of a backend function, as far as its time depends on it.

    level: of the ciphertext. width: what sets the working set beside rows and N: digits, polynomials, baby steps. ntts, words: transforms
    of one limb, and limbs of products and of weights and keys that are read once.
    """

    function: str
    level: int
    width: int
    ntts: int
    words: float


@dataclass
class Cost:
    """operations: how often each runs. ntts: forward and inverse transforms of one limb. products: modular products of one limb.

    calls: the backend's part of them, which times are predicted from (ckks/machine.py).
    """

    operations: Counter[str] = field(default_factory=Counter)
    calls: Counter[Call] = field(default_factory=Counter)
    ntts: int = 0
    products: int = 0


@dataclass(frozen=True)
class CountedValue:
    """A value without content: level, number of polynomials and size of the stack (0: none) are all that costs depend on."""

    level: int
    members: int = 0
    polys: int = 2


class CountingEvaluator:
    """Evaluator[CountedValue]; the running total is `cost`. Formulas count the algorithms of ckks/evaluator.py and ckks/linear.py.

    periods: by weight, the period of its vectors, which sets how much of it is read; a weight that is not there fills all slots.
    """

    def __init__(self, parameters: Parameters, periods: Mapping[str, int] | None = None) -> None:
        self.parameters = parameters
        self.cost = Cost()
        self._periods = periods or {}

    def _count(self, name: str, ntts: int = 0, products: int = 0, times: int = 1) -> None:
        self.cost.operations[name] += times
        self.cost.ntts += ntts * times
        self.cost.products += products * times

    def _call(self, call: Call, times: int = 1) -> None:
        if times:
            self.cost.calls[call] += times

    def _decompose(self, level: int, times: int = 1) -> Call:
        """level+1 inverse transforms; per digit, conversion and forward transforms of all rows but its own limbs."""
        call = decompose_call(self.parameters, level)
        self._count("decompose", call.ntts, int(call.words), times)
        return call

    def _key_product(self, level: int, times: int = 1) -> Call:
        call = key_product_call(self.parameters, level)
        self._count("key_product", 0, int(call.words), times)
        return call

    def _mod_down(self, level: int, polys: int, times: int = 1) -> None:
        call = mod_down_call(self.parameters, level, polys)
        self._count("mod_down", call.ntts, int(call.words), times)
        self._call(call, times)

    def _element_wise(self, name: str, a: CountedValue, limbs: float, products: int = 0) -> None:
        self._count(name, products=products, times=_times(a))
        self._call(Call("element_wise", a.level, 1, 0, limbs), _times(a))

    def add(self, a: CountedValue, b: CountedValue) -> CountedValue:
        self._element_wise("add", a, 2 * (a.level + 1))
        return a

    def subtract(self, a: CountedValue, b: CountedValue) -> CountedValue:
        self._element_wise("subtract", a, 2 * (a.level + 1))
        return a

    def add_plain(self, a: CountedValue, weight: str) -> CountedValue:
        copies = 2 * STACK_COPY if a.members else 1 + 3 * COPY
        self._element_wise("add_plain", a, (1 + copies) * (a.level + 1))
        return a

    def multiply_plain(self, a: CountedValue, weight: str, weight_scale: float) -> CountedValue:
        copies = 2 * STACK_COPY if a.members else COPY
        self._element_wise("multiply_plain", a, (2 + copies) * (a.level + 1), 2 * (a.level + 1))
        return a

    def multiply(self, a: CountedValue, b: CountedValue) -> CountedValue:
        copies = 3 * STACK_COPY if a.members else 0
        self._element_wise("multiply", a, (4 + copies) * (a.level + 1), 4 * (a.level + 1))
        return replace(a, polys=3)

    def relinearise(self, a: CountedValue) -> CountedValue:
        self._count("relinearise", times=_times(a))
        self._rotate_alone(a.level, _times(a))
        return replace(a, polys=2)

    def rescale(self, a: CountedValue) -> CountedValue:
        call = rescale_call(a.level)
        self._count("rescale", call.ntts, int(call.words), _times(a))
        self._call(call, _times(a))
        return replace(a, level=a.level - 1)

    def drop_level(self, a: CountedValue, level: int) -> CountedValue:
        self._element_wise("drop_level", a, 2 * COPY * (level + 1))
        return replace(a, level=level)

    def rotate(self, a: CountedValue, steps: int) -> CountedValue:
        self._count("rotate")
        self._rotate_alone(a.level)
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
        if hoisted > 1:
            self._call(self._decompose(a.level))
            self._call(self._key_product(a.level, hoisted), hoisted)
        else:
            self._key_switch(a.level, hoisted)
        self._mod_down(a.level, 1, alone)
        self._key_switch(a.level, alone)
        unmoved = any(b % slots == 0 for _, b in terms)
        self._call(
            Call("element_wise", a.level, 1, 0, (2 + 2 * COPY) * rows), int(unmoved)
        )  # times P, then copied
        self._sums(a.level, weight, terms)
        used = len({giant % slots for giant, _ in terms})
        self._call(Call("element_wise", a.level, 1, 0, 2 * rows), used - 1)
        self._mod_down(a.level, 2)
        return a

    def matrix(
        self, stacks: Sequence[CountedValue], weight: str, weight_scale: float, members: int, products: int
    ) -> CountedValue:
        """Products with scalars, and every limb once."""
        a = stacks[0]
        self._count("matrix")
        self._count("scalar_product", times=products)
        limbs = products * a.polys * (a.level + 1)
        self.cost.products += limbs
        touched = (sum(x.members for x in stacks) + members) * a.polys * (a.level + 1)
        self._call(Call("element_wise", a.level, 1, 0, limbs * MATRIX_PRODUCT + touched * MATRIX_LIMB))
        return CountedValue(a.level, members, a.polys)

    def _sums(self, level: int, weight: str, terms: tuple[tuple[int, int], ...]) -> None:
        slots = self.parameters.slots
        babies = len({baby % slots for _, baby in terms})  # hops on the way cost no products
        used = len({giant % slots for giant, _ in terms})
        groups = -(-used // GIANTS_AT_ONCE)
        share = self._periods.get(weight, slots) / slots
        for _ in range(groups):
            self._call(sums_call(self.parameters, level, len(terms) / groups, babies, used / groups, share))

    def _rotate_alone(self, level: int, times: int = 1) -> None:
        self._key_switch(level, times)
        self._mod_down(level, 2, times)

    def _key_switch(self, level: int, times: int) -> None:
        """Decomposition and key product in one call."""
        a, b = self._decompose(level, times), self._key_product(level, times)
        self._call(key_switch_call(a, b), times)


def _times(a: CountedValue) -> int:
    return max(a.members, 1)


def decompose_call(p: Parameters, level: int) -> Call:
    """Backend.decompose."""
    rows = level + 1 + len(p.special_primes)
    forward = sum(rows - (stop - start) for start, stop in p.digits(level))
    converted = sum((stop - start) * (rows - (stop - start)) for start, stop in p.digits(level))
    return Call("decompose", level, len(p.digits(level)), level + 1 + forward, level + 1 + converted)


def key_product_call(p: Parameters, level: int) -> Call:
    """Backend.key_product: every limb of the key is read once, for one product."""
    digits, rows = len(p.digits(level)), level + 1 + len(p.special_primes)
    return Call("key_product", level, digits, 0, 2 * digits * rows)


def key_switch_call(decompose: Call, key_product: Call) -> Call:
    """Backend.key_switch from its two parts."""
    words = decompose.words + key_product.words
    return Call("key_switch", decompose.level, decompose.width, decompose.ntts, words)


def mod_down_call(p: Parameters, level: int, polys: int) -> Call:
    """Backend.mod_down."""
    k = len(p.special_primes)
    return Call("mod_down", level, polys, polys * (level + 1 + k), polys * (k + (k + 1) * (level + 1)))


def rescale_call(level: int) -> Call:
    """Backend.rescale of two polynomials."""
    return Call("rescale", level, 2, 2 * (level + 1), 2 * level)


def sums_call(p: Parameters, level: int, terms: float, babies: int, sums: float, share: float) -> Call:
    """Backend.multiply_sums: two products a term, and one read of every weight, baby step and sum. share: of a row that weights take."""
    rows = level + 1 + len(p.special_primes)
    return Call("multiply_sums", level, babies, 0, rows * ((2 + share) * terms + 2 * babies + sums))
