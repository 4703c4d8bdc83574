"""Mutants of the CUDA sources, and a process that says of each whether the checks notice it: `python gpu_mutants.py FIRST STEP`.

A mutant may write anywhere or never end, hence a process of its own. It prints one line per mutant: its number, and `caught` or `survived`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import gpu_checks as checks
from cuda_shim import ORDERS, Shim
from test_backends import parameters

from bench._stand_in import StandIn
from ckks.backends.device import SOURCES, Device, source_file
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
    (r"k - block", "k - block + 1"),
    (r"size_t\(4\) <<", "size_t(5) <<"),
    (
        r"kProducts = 7",
        "kProducts = 16",
    ),  # sums that are reduced too late; 8 would do, for primes that are not next to 2^60
    (r"\bsources \+ (?=i\b)", "1 + sources + "),
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
        for number, line in enumerate(source_file(file).splitlines(), start=1):
            for pattern, replacement in patterns:
                for found in re.finditer(pattern, code(line)):
                    after = line[: found.start()] + found.expand(replacement) + line[found.end() :]
                    yield Mutant(file, number, line, after)


def source(mutant: Mutant) -> str:
    """What the mutant's checks need, with its line in place."""
    needed = {
        "modular.cuh": SOURCES,
        "packed.cuh": SOURCES,
        "ntt.cuh": ("modular.cuh", "ntt.cuh", "ntt.cu"),
        "ntt.cu": ("modular.cuh", "ntt.cuh", "ntt.cu"),
        "elementwise.cu": ("modular.cuh", "packed.cuh", "elementwise.cu"),
        "keyswitch.cu": ("modular.cuh", "packed.cuh", "ntt.cuh", "ntt.cu", "keyswitch.cu"),
    }[mutant.file]
    text = ""
    for file in needed:
        lines = source_file(file).splitlines()
        if file == mutant.file:
            assert lines[mutant.line - 1] == mutant.before
            lines[mutant.line - 1] = mutant.after
        text += "\n".join(lines) + "\n"
    return text


def _transforms(b: GpuBackend) -> None:
    checks.check_transforms(b, b.parameters)


def _element_wise(b: GpuBackend) -> None:
    checks.check_element_wise(b, b.parameters)
    checks.check_sums(b, b.parameters)


def _key_switching(b: GpuBackend) -> None:
    checks.check_division(b, b.parameters)
    checks.check_ties(b, b.parameters)
    checks.check_key_switching(b, b.parameters)


def _ties(b: GpuBackend) -> None:
    checks.check_ties(b, b.parameters)


_CHECKS: dict[str, tuple[tuple[str, Check], ...]] = {
    "ntt.cuh": (("60_bits", _transforms), ("30_bits", _transforms)),
    "ntt.cu": (("60_bits", _transforms),),
    "elementwise.cu": (("60_bits", _element_wise),),
    "keyswitch.cu": (("30_bits_pairs", _key_switching), ("60_bits_triples", _ties)),
}
_CHECKS["packed.cuh"] = (("20_and_49_bits", _element_wise), ("40_bits", _element_wise))
_CHECKS["modular.cuh"] = (("60_bits", _element_wise), ("60_bits", _transforms), ("60_bits", _key_switching))


def caught(mutant: Mutant) -> bool:
    """Whether a check fails, in any order of the threads."""
    shim = Shim(level="-O0")
    try:
        device = Device(StandIn(shim), "mutant", 1 << 30, source(mutant))
        for order in ("forward", "reverse", "shuffled"):
            assert order in ORDERS
            shim.order = order
            for name, check in _CHECKS[mutant.file]:
                check(GpuBackend(parameters(name), device))
    except AssertionError:
        return True
    return False


def main() -> None:
    first, step = (int(a) for a in sys.argv[1:])
    everything = mutants()
    for number in range(first, len(everything), step):
        verdict = "caught" if caught(everything[number]) else "survived"
        print(number, verdict, flush=True)


if __name__ == "__main__":
    main()
