"""Mutants of the CUDA sources, and whether the checks notice them: `python gpu_mutants.py FIRST STEP`.

It prints one line per mutant: its number, and `caught` or `survived`. A mutant may write anywhere or never end: each has a process.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import gpu_checks as checks
import test_gpu_doubles as doubles
from cuda_shim import ORDERS, Shim
from test_backends import parameters

from bench._stand_in import StandIn
from ckks.backends.device import SOURCES, Device, kernel_source, source_file
from ckks.backends.gpu import GpuBackend

Check = Callable[[GpuBackend], None]

# What is replaced in code, one occurrence at a time.
_BARRIER = (r"__syncthreads\(\);", "")
_PATTERNS = (
    (r">= m\b", "> m"),  # residues that equal the modulus
    (r"(\w+) < ([^;<]+)(?=; \+\+| *; \w+ \+=)", r"\1 + 1 < \2"),  # loops: one round less
    (r" - 1\b", " - 2"),
    (r" \+ 1\b", " + 2"),
    (r"\blog_(step|distance) ([-+])= k\b", r"log_\1 \2= k + 1"),
    (r"2 \* q\b", "2 * q + 1"),
    (r"at / 4 \+ 2", "at / 4 + 1"),
    (r"at % 4", "at % 2"),
    (
        r"kProducts = 7",
        "kProducts = 16",
    ),  # sums that are reduced too late; 8 would do, for primes that are not next to 2^60
    (r"\bsources \+ (?=i\b)", "1 + sources + "),
    # Doubles: too many products, bounds that are not kept, parts that are lost, numbers that are not whole.
    (r"kProducts = 8", "kProducts = 32"),  # 16 happen to come out right
    (r"stage == \d", "stage == 3"),
    (r"number == 1", "number == 3"),
    (r"number & 3", "number & 7"),
    (r"small < 0", "small <= 0"),
    (r"0x1\.8p52", "0x1p52"),
    (r", (-h|l)\)", ", 0)"),
    (r", s\.low\)", ", 0)"),
    (r"grid, reduced\(s\)", "grid, 0"),
    (r"-rint\(", "-("),
    (r"kBits = 49", "kBits = 48"),
)


@dataclass(frozen=True)
class Mutant:
    """One changed line of one file."""

    file: str
    line: int
    before: str
    after: str


def code(line: str) -> str:
    """A line without its comment."""
    return line.split("//")[0]


def mutants() -> list[Mutant]:
    """All of them, in a fixed order; the barriers first."""
    return [*_changed((_BARRIER,)), *_changed(_PATTERNS)]


def _changed(patterns: tuple[tuple[str, str], ...]) -> Iterator[Mutant]:
    for file in SOURCES:
        for number, line in enumerate(source_file(file).split("\n"), start=1):
            for pattern, replacement in patterns:
                for found in re.finditer(pattern, code(line)):
                    after = line[: found.start()] + found.expand(replacement) + line[found.end() :]
                    yield Mutant(file, number, line, after)


def source(mutant: Mutant) -> str:
    """What the mutant's checks need, with its line in place."""
    kernels = {
        "ntt.cuh": ("ntt.cu",),
        "ntt.cu": ("ntt.cu",),
        "packed.cuh": ("elementwise.cu",),
        "elementwise.cu": ("elementwise.cu",),
        "doubles.cuh": ("ntt.cu", "elementwise.cu"),
    }.get(mutant.file, ("ntt.cu", "elementwise.cu", "keyswitch.cu"))
    files = tuple(file for file in SOURCES if file.endswith(".cuh") or file in kernels)
    original = source_file(mutant.file)
    lines = original.split("\n")
    assert lines[mutant.line - 1] == mutant.before
    lines[mutant.line - 1] = mutant.after
    whole = kernel_source(_on_doubles(mutant), files) + (doubles.KERNELS if _on_doubles(mutant) else "")
    assert whole.count(original) == 1
    return whole.replace(original, "\n".join(lines))


def _on_doubles(mutant: Mutant) -> bool:
    return mutant.file == "doubles.cuh"


def _transforms(b: GpuBackend) -> None:
    checks.check_transforms(b, b.parameters)


def _element_wise(b: GpuBackend) -> None:
    checks.check_element_wise(b, b.parameters)


def _sums(b: GpuBackend) -> None:
    checks.check_sums(b, b.parameters)


def _matrix(b: GpuBackend) -> None:
    checks.check_matrix(b, b.parameters)


def _ties(b: GpuBackend) -> None:
    checks.check_ties(b, b.parameters)


def _key_switching(b: GpuBackend) -> None:
    checks.check_key_switching(b, b.parameters)
    checks.check_division(b, b.parameters)


def _edges(b: GpuBackend) -> None:
    for q in doubles.PRIMES:
        doubles.check_products(b.device, q, 8.0)
        doubles.check_sums(b.device, q, 64)
        for kind, bound in doubles.ROUNDS:
            doubles.check_rounds(b.device, q, kind, bound)


# The quickest first.
_CHECKS: dict[str, tuple[tuple[str, Check], ...]] = {
    "modular.cuh": (
        ("60_bits", _sums),
        ("60_bits", _element_wise),
        ("60_bits", _transforms),
        ("60_bits", _ties),
        ("60_bits", _key_switching),
    ),
    "doubles.cuh": (
        ("49_bits", _edges),
        ("49_bits", _transforms),
        ("49_bits", _sums),
        ("49_bits", _element_wise),
    ),
    "packed.cuh": (("20_and_49_bits", _sums), ("40_bits", _sums)),
    "ntt.cuh": (("60_bits", _transforms), ("30_bits", _transforms)),
    "ntt.cu": (("60_bits", _transforms),),
    "elementwise.cu": (("60_bits", _matrix), ("60_bits", _sums), ("60_bits", _element_wise)),
    "keyswitch.cu": (
        ("30_bits_pairs", _ties),
        ("60_bits_triples", _ties),
        ("30_bits_pairs", _key_switching),
    ),
}


def caught(mutant: Mutant) -> bool:
    """Whether a check fails, in any order of the threads."""
    shim = Shim(level="-O0")
    try:
        device = Device(StandIn(shim), "mutant", 1 << 30, source(mutant), doubles=_on_doubles(mutant))
        for order in ("forward", "reverse", "shuffled"):
            assert order in ORDERS
            shim.order = order
            for name, check in _CHECKS[mutant.file]:
                check(GpuBackend(parameters(name), device))
    except AssertionError:
        return True
    return False


def judged(mutant: Mutant, limit_s: int = 60) -> str:
    """The verdict of a process of its own; one that crashes, or does not end within limit_s, has caught its mutant too."""
    child = os.fork()
    if child == 0:
        signal.alarm(limit_s)
        code = 2
        try:
            code = 0 if caught(mutant) else 1
        except Exception:
            traceback.print_exc()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 2:
        raise RuntimeError(f"nothing was judged of {mutant}")
    return "survived" if code == 1 else "caught"


def main() -> None:
    first, step = (int(a) for a in sys.argv[1:])
    everything = mutants()
    for number in range(first, len(everything), step):
        print(number, judged(everything[number]), flush=True)


if __name__ == "__main__":
    main()
