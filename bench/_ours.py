"""Our side of the comparisons of primitives: keys, ciphertexts and an evaluator for one parameter set, with its decryption at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from ckks import linear, seeds
from ckks.backends import make_backend
from ckks.evaluator import CkksEvaluator
from ckks.parameters import Parameters
from ckks.types import Ciphertext, EvaluationKeys, KeyNeeds, KeySwitchKey, SeededKey, Slots
from keys import SecretKey

Operation = tuple[Callable[[], object], Callable[[], Ciphertext], Slots]
"""What is timed, a ciphertext made from its result, and the slots that this ciphertext should hold."""

HOISTED = (1, 2, 3, 4, 5, 6, 7, 8)
STEP = 1


class Ours:
    """A fresh secret key, or `key`, and the evaluator on `threads` threads with keys for all operations at the top level."""

    def __init__(
        self,
        parameters: Parameters,
        threads: int,
        steps: Iterable[int],
        weights: Mapping[str, Slots],
        key: SecretKey | None = None,
        keys: EvaluationKeys | None = None,
    ) -> None:
        self.parameters = p = parameters
        self.key = key or SecretKey.generate(p)
        keys = keys or _make_keys(self.key, steps)
        self.evaluator = CkksEvaluator(make_backend(p, "cpu", threads), keys, dict(weights))

    def encrypt(self, values: Slots, scale: float) -> Ciphertext:
        """A fresh symmetric ciphertext at the top level."""
        p, c = self.parameters, self.key.encrypt(values, self.parameters.max_level, scale)
        return Ciphertext(np.stack([c.b, seeds.expand(p, c.seed, 0, p.data_rows(c.level))]), c.level, c.scale)

    def error(self, result: Ciphertext, clear: Slots) -> float:
        """Largest absolute error over all slots."""
        return float(np.abs(self.key.decrypt(result) - clear).max())


def operations(ours: Ours, x: Slots, y: Slots, a: Ciphertext, b: Ciphertext) -> dict[str, Operation]:
    """The primitives by name, all at the top level, on encryptions a of x and b of y; weight "y" is y too."""
    evaluator, backend, keys = ours.evaluator, ours.evaluator.backend, ours.evaluator.keys
    level, p, product = a.level, ours.parameters, evaluator.relinearise(evaluator.multiply(a, b))
    extended = linear.rotations_times_p(backend, keys, a, {STEP})[STEP]

    def rotated_by_digits() -> Ciphertext:
        """A rotation finished by hand from the digits that the timed call returns."""
        digits = backend.automorphism(backend.decompose(a.polys[1], level), p.galois_element(STEP))
        switched = backend.mod_down(backend.key_product(digits, keys.rotation(STEP, level), level), level)
        moved = backend.automorphism(a.polys[0], p.galois_element(STEP))
        switched[0] = backend.add(switched[0], moved, p.data_rows(level))
        return Ciphertext(switched, level, a.scale)

    def checked(call: Callable[[], Ciphertext], clear: Slots) -> Operation:
        return call, call, clear

    rotated = np.roll(x, -STEP)
    return {
        "rotate": checked(lambda: evaluator.rotate(a, STEP), rotated),
        "multiply + relinearise": checked(lambda: evaluator.relinearise(evaluator.multiply(a, b)), x * y),
        "8 hoisted rotations": (
            lambda: evaluator.rotate_many(a, HOISTED),
            lambda: evaluator.rotate_many(a, HOISTED)[-1],
            np.roll(x, -HOISTED[-1]),
        ),
        "decompose + mod-up": (lambda: backend.decompose(a.polys[1], level), rotated_by_digits, rotated),
        "mod-down": (
            lambda: backend.mod_down(extended, level),
            lambda: Ciphertext(backend.mod_down(extended, level), level, a.scale),
            rotated,
        ),
        "rescale": checked(lambda: evaluator.rescale(product), x * y),
        "multiply by plaintext": checked(lambda: evaluator.multiply_plain(a, "y", b.scale), x * y),
    }


def _make_keys(key: SecretKey, steps: Iterable[int]) -> EvaluationKeys:
    p = key.parameters
    seeded = key.evaluation_keys(KeyNeeds(p.max_level, dict.fromkeys(steps, p.max_level)))

    def expanded(k: SeededKey) -> KeySwitchKey:
        halves = [seeds.expand(p, k.seed, j, p.extended_rows(k.level)) for j in range(len(k.b))]
        return KeySwitchKey.from_residues(p, np.stack([k.b, np.stack(halves)], axis=1), k.level)

    relinearisation = None if seeded.relinearisation is None else expanded(seeded.relinearisation)
    return EvaluationKeys(p, relinearisation, {g: expanded(k) for g, k in seeded.galois.items()})
