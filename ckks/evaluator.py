"""CKKS operations on ciphertexts, over any backend; holds evaluation keys and weights, never a secret key."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ckks import linear, stacks
from ckks.backends import Backend, Fetched
from ckks.circuit import Circuit, Hops, Weights
from ckks.encoded import EncodedWeights
from ckks.errors import EvaluationError
from ckks.interpreter import Step, run
from ckks.types import Ciphertext, EvaluationKeys, Residues, require_same


class CkksEvaluator:
    """Implements ckks.interpreter.Evaluator on Ciphertext: NTT domain, residues in [0, q).

    One EncodedWeights over the same parameters can serve many evaluators (one per client's keys).
    Operations raise EvaluationError when operands do not fit, MissingKeyError when a key is not there.
    """

    def __init__(
        self,
        backend: Backend,
        keys: EvaluationKeys,
        weights: Weights | EncodedWeights,
        together: bool = False,
    ) -> None:
        """together: what has an axis more than a ciphertext is not a stack of tensor elements (ckks.stacks) but several requests, on
        which all operations work one by one. On a GPU only.
        """
        if keys.parameters != backend.parameters:
            raise EvaluationError(
                "the evaluation keys belong to other parameters; make keys from this model's bundle"
            )
        self.backend = backend
        self.keys = keys
        self.weights = weights if isinstance(weights, EncodedWeights) else EncodedWeights(backend, weights)
        self.parameters = backend.parameters
        self._together = together

    def upload(self, a: Ciphertext) -> Ciphertext:
        """`a` where the backend computes; what is computed from it stays there."""
        return self._like(a, self.backend.upload(a.polys))

    def download(self, a: Ciphertext) -> Ciphertext:
        """`a` in NumPy arrays."""
        return self._like(a, self.backend.download(a.polys))

    def fetch(self, a: Ciphertext) -> Fetched[Ciphertext]:
        """Starts a `download`, beside what is computed later."""
        found = self.backend.fetch(a.polys)
        return Fetched(lambda: self._like(a, found.wait()), found.done)

    def repeat(
        self, circuit: Circuit, inputs: dict[str, Ciphertext], before_step: Step | None = None
    ) -> dict[str, Ciphertext]:
        """ckks.interpreter.run on uploaded inputs; no steps are taken for what a device recorded and plays back."""
        return self.backend.repeat(
            circuit, self.keys, inputs, lambda values: run(circuit, values, self, before_step)
        )

    def add(self, a: Ciphertext, b: Ciphertext) -> Ciphertext:
        """a + b: same level, scale and number of polynomials."""
        return self._like(a, self.backend.add(a.polys, self._match(a, b), self.parameters.data_rows(a.level)))

    def subtract(self, a: Ciphertext, b: Ciphertext) -> Ciphertext:
        """a - b: same level, scale and number of polynomials."""
        return self._like(
            a, self.backend.subtract(a.polys, self._match(a, b), self.parameters.data_rows(a.level))
        )

    def add_plain(self, a: Ciphertext, weight: str) -> Ciphertext:
        """a + weight; the weight is encoded at a's level and scale."""
        if self._is_stack(a):
            constants = self.weights.integers.constants(weight, a.level, a.scale)
            return self._like(a, stacks.add_constants(self.backend, a.polys, constants))
        polys = a.polys.copy()
        plain, rows = self.weights.vector(weight, a.level, a.scale), self.parameters.data_rows(a.level)
        polys[..., 0, :, :] = self.backend.add(a.polys[..., 0, :, :], plain, rows)
        return self._like(a, polys)

    def multiply_plain(self, a: Ciphertext, weight: str, weight_scale: float) -> Ciphertext:
        """a * weight, slot by slot: a's level, scale a.scale * weight_scale."""
        if self._is_stack(a):
            constants = self.weights.integers.constants(weight, a.level, weight_scale)
            polys = stacks.multiply_constants(self.backend, a.polys, constants)
            return Ciphertext(polys, a.level, a.scale * weight_scale)
        plain = self.weights.vector(weight, a.level, weight_scale)
        polys = self.backend.multiply(a.polys, plain, self.parameters.data_rows(a.level))
        return Ciphertext(polys, a.level, a.scale * weight_scale)

    def multiply(self, a: Ciphertext, b: Ciphertext) -> Ciphertext:
        """a * b as three polynomials: the common level, scale a.scale * b.scale."""
        _require_two(a)
        _require_two(b)
        if a.level != b.level:
            raise EvaluationError(
                f"cannot multiply levels {a.level} and {b.level}; drop the higher one first"
            )
        if a.polys.shape != b.polys.shape:
            raise EvaluationError("cannot multiply stacks of different sizes")
        if self._is_stack(a):
            polys = stacks.multiply(self.backend, a.polys, b.polys, a.level)
        else:
            polys = self.backend.tensor(a.polys, b.polys, self.parameters.data_rows(a.level))
        return Ciphertext(polys, a.level, a.scale * b.scale)

    def relinearise(self, a: Ciphertext) -> Ciphertext:
        """Three polynomials -> two, same level and scale."""
        if a.polys.shape[-3] != 3:
            raise EvaluationError(f"relinearisation takes three polynomials, got {a.polys.shape[-3]}")
        key = self.keys.relinearisation_at(a.level)
        if self._is_stack(a):
            return self._like(a, stacks.relinearise(self.backend, a.polys, key, a.level))
        moved = a.polys[..., :2, :, :]
        polys = self.backend.key_switch(a.polys[..., 2, :, :], key, a.level, moved=moved, divided=True)
        return self._like(a, polys)

    def rescale(self, a: Ciphertext) -> Ciphertext:
        """Divide by the prime of a's level: one level down, scale a.scale / q_level."""
        if a.level == 0:
            raise EvaluationError("cannot rescale at level 0: no prime is left; give the circuit more levels")
        polys = self.backend.rescale(a.polys, a.level)
        return Ciphertext(polys, a.level - 1, a.scale / self.parameters.data_primes[a.level])

    def drop_level(self, a: Ciphertext, level: int) -> Ciphertext:
        """The same value and scale modulo fewer primes."""
        if not 0 <= level <= a.level:
            raise EvaluationError(f"cannot go from level {a.level} to level {level}")
        return Ciphertext(a.polys[..., : level + 1, :].copy(), level, a.scale)

    def rotate(self, a: Ciphertext, steps: int) -> Ciphertext:
        """Slots to the left by `steps` (any sign), same level and scale."""
        return self.rotate_many(a, (steps,))[0]

    def rotate_many(self, a: Ciphertext, steps: Iterable[int]) -> list[Ciphertext]:
        """Rotations of one ciphertext, from a single decomposition."""
        self._require_one(a)
        wanted = [s % self.parameters.slots for s in steps]
        rotated = linear.rotations(self.backend, self.keys, a, set(wanted) - {0}, divided=True)
        return [self._like(a, rotated[step]) if step else a for step in wanted]

    def linear_transform(
        self,
        a: Ciphertext,
        weight: str,
        weight_scale: float,
        terms: linear.Terms,
        baby_hops: Hops = (),
        giant_hops: Hops = (),
    ) -> Ciphertext:
        """A matrix by diagonals (terms, hops: ckks.circuit.Instruction): a's level, scale a.scale * weight_scale."""
        self._require_one(a)
        hops = baby_hops, giant_hops
        return linear.linear_transform(
            self.backend, self.keys, self.weights, a, weight, weight_scale, terms, *hops
        )

    def matrix(
        self, operands: Sequence[Ciphertext], weight: str, weight_scale: float, members: int, products: int
    ) -> Ciphertext:
        """weight [members][inputs] times stacks of two or three polynomials each: their level, scale times weight_scale."""
        a = operands[0]
        if any(x.polys.ndim != 4 or x.polys.shape[1] != a.polys.shape[1] for x in operands):
            raise EvaluationError("a matrix maps stacks of ciphertexts with as many polynomials each")
        for x in operands[1:]:
            require_same(a, x)
        encoded = self.weights.integers.matrix(weight, a.level, weight_scale)
        rows = self.parameters.data_rows(a.level)
        polys = self.backend.matrix([x.polys for x in operands], encoded[:2], encoded[2:], members, rows)
        return Ciphertext(polys, a.level, a.scale * weight_scale)

    def _match(self, a: Ciphertext, b: Ciphertext) -> Residues:
        require_same(a, b)
        if a.polys.shape != b.polys.shape:
            raise EvaluationError(
                f"operands have shapes {a.polys.shape[:-2]} and {b.polys.shape[:-2]}; relinearise first, and match stacks"
            )
        return b.polys

    def _is_stack(self, a: Ciphertext) -> bool:
        return a.polys.ndim == 4 and not self._together

    def _require_one(self, a: Ciphertext) -> None:
        _require_two(a)
        if self._is_stack(a):
            raise EvaluationError("this operation takes one ciphertext, not a stack")

    @staticmethod
    def _like(a: Ciphertext, polys: Residues) -> Ciphertext:
        return Ciphertext(polys, a.level, a.scale)


def _require_two(a: Ciphertext) -> None:
    if a.polys.shape[-3] != 2:
        raise EvaluationError(
            f"this operation takes two polynomials, got {a.polys.shape[-3]}; relinearise first"
        )
