"""CKKS primitives beside SEAL and OpenFHE on equal parameters and threads: `python -m bench.ops --json FILE`.

SEAL works on the very same keys and ciphertexts. OpenFHE makes its own keys on the same data primes; it needs a Python 3.10,
named by HE_SERVE_PYTHON310. Every result that is timed is also decrypted and checked in every slot.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from bench import _common as common
from bench import _openfhe as openfhe
from bench import _seal as seal
from bench._cases import Case, Pair, compare_cases, print_rows, promised_error
from bench._floor import Floor, read_gbytes_per_s
from bench._ours import HOISTED, STEP, Operation, Ours, operations
from ckks.backends import make_backend
from ckks.kernels._cpu import instruction_sets
from ckks.parameters import Parameters
from ckks.primes import ntt_primes
from ckks.types import Slots
from keys import SecretKey

PAIRS, LEAST_S = 7, 0.1
# A transform and its floor take turns finely, so that both sides meet the same phases of the machine.
NTT_PAIRS, NTT_LEAST_S = 201, 2e-3

Targets = dict[str, float | None]
Say = Callable[[str], None]

SIX: Targets = {"rotate": 6.0, "multiply + relinearise": 6.0}
SIX_ALL = SIX | {"8 hoisted rotations": 6.0, "mod-down": 6.0, "rescale": 6.0}
OPENFHE: tuple[tuple[openfhe.Setting, Targets], ...] = (
    (
        openfhe.Setting(1 << 14, 8, 42, 36),
        SIX_ALL | {"decompose + mod-up": None, "multiply by plaintext": None},
    ),
    (openfhe.Setting(1 << 15, 15, 45, 40), SIX),
)
SEAL_TARGETS: Targets = {"rotate": 3.5, "multiply + relinearise": 3.5}
SEAL: tuple[tuple[seal.Setting, Targets], ...] = (
    (seal.Setting(1 << 13, 5, 40, 33, 41), SEAL_TARGETS),
    (seal.Setting(1 << 14, 8, 48, 40, 48), SEAL_TARGETS | {"rescale": 6.0}),
    (seal.Setting(1 << 15, 15, 48, 40, 48), SEAL_TARGETS),
)
NTT_DEGREE, NTT_TARGET = 1 << 14, 1 / 1.5


def against_openfhe(
    python: Path, setting: openfhe.Setting, targets: Targets, threads: int, refused: list[str], say: Say
) -> list[common.Row]:
    """One row per primitive. Raises OpenFheError, UnfairComparisonError."""
    say(f"OpenFHE, N={setting.degree}: making keys")
    (x, y), scale = _vectors(setting.degree), 2.0**setting.scale_bits
    with openfhe.OpenFheSide.start(python, setting, threads) as other:
        with tempfile.TemporaryDirectory(prefix="he-serve-bench-") as folder:
            file = Path(folder, "vectors.npz")
            np.savez(file, x=x, y=y)
            other.ask("operations", file=str(file), step=STEP, hoisted=HOISTED)
        ours = Ours(other.parameters, threads, HOISTED, {"y": y})
        a, b = ours.encrypt(x, scale), ours.encrypt(y, scale)

        def case(name: str, operation: Operation) -> Case:
            call, finish, clear = operation
            return Case(
                name,
                partial(common.repeat, call),
                lambda: ours.error(finish(), clear),
                partial(other.time, name),
                partial(other.error, name),
                targets[name],
                {"shape": f"2^{setting.degree.bit_length() - 1}, {setting.limbs}"},
            )

        pair = Pair(
            other.parameters,
            openfhe.NAME,
            openfhe.VERSION,
            (threads, threads),
            promised_error(setting.degree, scale),
            other.log_qp,
        )
        cases = [case(*item) for item in operations(ours, x, y, a, b).items() if item[0] in targets]
        return compare_cases(pair, cases, refused, say, pairs=PAIRS, least_s=LEAST_S)


def against_seal(
    setting: seal.Setting, targets: Targets, threads: int, refused: list[str], say: Say
) -> list[common.Row]:
    """One row per primitive, on SEAL's own keys. SEAL has no threads: it runs on one, whatever ours has."""
    say(f"SEAL, N={setting.degree}: making keys")
    p, (x, y), scale = setting.parameters(), _vectors(setting.degree), 2.0**setting.scale_bits
    key = SecretKey.generate(p)
    side = seal.SealSide(key)
    ours = Ours(p, threads, (), {"y": y}, key, side.evaluation_keys())
    a, b = ours.encrypt(x, scale), ours.encrypt(y, scale)
    theirs = side.operations(a, b)

    def case(name: str, operation: Operation) -> Case:
        call, finish, clear = operation
        return Case(
            name,
            partial(common.repeat, call),
            lambda: ours.error(finish(), clear),
            partial(common.repeat, theirs[name]),
            lambda: ours.error(side.ours(theirs[name]()), clear),
            targets[name],
            {"shape": f"2^{setting.degree.bit_length() - 1}, {setting.limbs}"},
        )

    pair = Pair(p, seal.NAME, seal.VERSION, (threads, 1), promised_error(setting.degree, scale), p.log_qp)
    cases = [case(*item) for item in operations(ours, x, y, a, b).items() if item[0] in targets]
    return compare_cases(pair, cases, refused, say, pairs=PAIRS, least_s=LEAST_S)


def against_floor(refused: list[str]) -> list[common.Row]:
    """One forward NTT of one limb on one thread beside the time of its arithmetic alone: the ratio cannot reach 1.

    Both sides are medians of means over NTT_LEAST_S seconds of processor time, taken in turn.
    """
    floor = Floor.build(NTT_DEGREE, instruction_sets()[0] == "avx512ifma")
    if floor is None:
        refused.append("forward NTT: there is no C++ compiler to measure this machine's peak with")
        return []
    data = ntt_primes(NTT_DEGREE, 40, 1)
    p = Parameters(NTT_DEGREE, data, ntt_primes(NTT_DEGREE, 41, 1, data))
    backend = make_backend(p)
    x = np.random.default_rng(1).integers(0, data[0], (1, NTT_DEGREE), dtype=np.uint64)
    expected = make_backend(p, "reference").forward(x, (0,))

    def wrong() -> float:
        """How many values differ from the definition."""
        return float((backend.forward(x, (0,)) != expected).sum())

    case = Case(
        "forward NTT, one limb",
        partial(common.repeat, lambda: backend.forward(x, (0,))),
        wrong,
        floor.seconds,
        lambda: 0.0,
        NTT_TARGET,
        {
            "shape": f"2^{NTT_DEGREE.bit_length() - 1}, 1",
            "floor": floor.formula,
            "floor_with_reduction": floor.reduced,
            "peak_gops": floor.peak_gops(),
            "statistic": f"medians of {NTT_PAIRS} means over {NTT_LEAST_S} s, in turn",
            "read_gbytes_per_s": read_gbytes_per_s(),
        },
    )
    pair = Pair(p, "floor of the arithmetic, nothing computed", "1", (1, 1), 0.0, p.log_qp)
    return compare_cases(pair, [case], refused, lambda _: None, pairs=NTT_PAIRS, least_s=NTT_LEAST_S)


def _vectors(degree: int) -> tuple[Slots, Slots]:
    x, y = np.random.default_rng(7).uniform(-1, 1, (2, degree // 2))
    return x, y


def main() -> int:
    """Run the suite with one thread and with T; 1 if a comparison was refused."""
    arguments = common.parse(__doc__, "bench.ops")
    counts = sorted({1, arguments.threads})
    refused: list[str] = []
    rows: list[common.Row] = []
    try:
        python = openfhe.find_python()
        if python is None:
            print(f"no comparison with OpenFHE: {openfhe.INTERPRETER} names no Python 3.10", file=sys.stderr)
        with Console(stderr=True).status("starting") as status:
            rows += against_floor(refused)
            for threads in counts:
                for setting, targets in OPENFHE if python else ():
                    rows += against_openfhe(python, setting, targets, threads, refused, status.update)
                for sizes, wanted in SEAL:
                    rows += against_seal(sizes, wanted, threads, refused, status.update)
    except (common.UnfairComparisonError, openfhe.OpenFheError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    common.write_report(arguments.json, common.report(rows, arguments.threads))
    print_rows("CKKS primitives", rows)
    for text in refused:
        print(f"refused: {text}", file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
