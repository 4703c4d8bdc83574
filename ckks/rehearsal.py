"""A circuit timed without anybody's keys: on residues that mean nothing, which take exactly the time of real ones."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ckks.backends import make_backend
from ckks.circuit import Circuit, Instruction, Op, Weights
from ckks.encoded import EncodedWeights
from ckks.evaluator import CkksEvaluator
from ckks.expanded import map_keys, write_keys
from ckks.interpreter import run
from ckks.parameters import Parameters
from ckks.types import Ciphertext, Residues

REPEATS = 5


class Stopwatch:
    """Times a circuit's layers: `step` goes to ckks.interpreter.run as before_step, `stop` follows it."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.layers: dict[str, float] = {}
        self._clock, self._layer = clock, ""
        self._start = clock()

    def step(self, index: int, instruction: Instruction) -> None:
        """An instruction begins; the one before it has ended."""
        self.stop()
        self._layer = "" if instruction.op in (Op.INPUT, Op.OUTPUT) else instruction.layer
        self._start = self._clock()

    def stop(self) -> None:
        """The last instruction has ended."""
        self.layers[self._layer] = self.layers.get(self._layer, 0.0) + self._clock() - self._start


def typical(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """The layers' times in the run whose total is the median of all."""
    return sorted(runs, key=lambda layers: sum(layers.values()))[len(runs) // 2]


def rehearse(
    circuit: Circuit,
    weights: Weights,
    parameters: Parameters,
    threads: int,
    progress: Callable[[int, int], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Seconds by layer of a typical one of REPEATS evaluations on the default engine; their sum is the whole evaluation's time.

    clock: what is read for seconds; a process's own time does not count what other processes do meanwhile.

    Keys lie in a mapped file, as on a server; as much disk as they take there is used meanwhile. Raises OSError if it is not there.
    """
    rng = np.random.default_rng(0)
    backend = make_backend(parameters, "cpu", threads)
    encoded = EncodedWeights(backend, weights)
    encoded.prepare(circuit)
    with tempfile.TemporaryDirectory(prefix="he-serve-rehearsal-") as folder:
        path = Path(folder) / "keys"
        _write_keys(path, circuit, parameters, rng)
        evaluator = CkksEvaluator(backend, map_keys(path, parameters), encoded)
        inputs = {
            i.name: Ciphertext(
                random_residues(
                    parameters, parameters.data_rows(i.level), rng, *((i.members, 2) if i.members else (2,))
                ),
                i.level,
                i.scale,
            )
            for i in circuit.instructions
            if i.op is Op.INPUT
        }
        runs = []
        for done in range(REPEATS + 1):
            watch = Stopwatch(clock)
            run(circuit, dict(inputs), evaluator, watch.step)
            watch.stop()
            runs.append(watch.layers)
            if progress is not None:
                progress(done + 1, REPEATS + 1)
    return typical(runs[1:])  # the first one warms up


def random_residues(p: Parameters, rows: tuple[int, ...], rng: np.random.Generator, *shape: int) -> Residues:
    """Uniform residues [*shape][row][N]: what polynomials look like to a backend; nothing is encrypted by them."""
    q = np.array([p.moduli[r] for r in rows], dtype=np.uint64)[:, None]
    return rng.integers(0, q, (*shape, len(rows), p.degree), dtype=np.uint64)


def _write_keys(path: Path, circuit: Circuit, p: Parameters, rng: np.random.Generator) -> None:
    """A file as ckks.expanded writes it, of keys that fit no secret."""

    def make(level: int) -> Residues:
        return random_residues(p, p.extended_rows(level), rng, len(p.digits(level)), 2)

    write_keys(path, p, circuit.key_needs(), lambda name, level: make(level))
