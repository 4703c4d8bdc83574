"""OpenFHE's side, seen from here: its own Python, its own process, requests and answers as JSON lines (see bench/_openfhe_side.py)."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import _common as common
from bench._cases import Clock
from ckks.parameters import Parameters
from ckks.primes import ntt_primes
from ckks.security import REQUIRED_BITS, security_bits

NAME = "OpenFHE, through its Python wheel; own keys"
VERSION = "1.6.1.0.22.4"  # as the Makefile installs it
INTERPRETER = "HE_SERVE_PYTHON310"
_VENV = Path("build", "openfhe-venv")


@dataclass(frozen=True)
class Setting:
    """What OpenFHE is asked for: it finds the primes. digits: dnum."""

    degree: int
    limbs: int
    first_bits: int
    scale_bits: int
    digits: int = 3


class OpenFheError(Exception):
    """The other process failed; the text says how."""


class Process:
    """Another process that answers one JSON line with another."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @staticmethod
    @contextmanager
    def start(python: Path, module: str, threads: int) -> Iterator[Process]:
        """Run a module of this checkout on `threads` threads until the block ends."""
        command = [str(python), "-m", module]
        # Threads that wait by spinning take the cores from whoever else runs: a rotation took 15 times as long on a busy machine.
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
        pipe, root = subprocess.PIPE, common.ROOT
        with subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=root
        ) as process:
            yield Process(process)

    def ask(self, what: str, **details: Any) -> dict[str, Any]:
        """One request and its answer. Raises OpenFheError."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": what} | details) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise OpenFheError("the other library's process is gone") from None
        answer = json.loads(self._process.stdout.readline() or '{"failed": "the process ended"}')
        if "failed" in answer:
            raise OpenFheError(f"the other library could not {what}: {answer['failed']}")
        return dict(answer)


class OpenFheSide:
    """An OpenFHE process with a context for `setting`, and our parameters to go with it. Raises OpenFheError, UnfairComparisonError."""

    def __init__(self, process: Process, setting: Setting) -> None:
        self.ask = process.ask
        found = self.ask("prepare", **vars(setting))
        self.parameters = matching(setting, found["data_primes"], found["special_primes"])
        self.log_qp = math.log2(math.prod(found["data_primes"] + found["special_primes"]))

    @staticmethod
    @contextmanager
    def start(python: Path, setting: Setting, threads: int) -> Iterator[OpenFheSide]:
        """Run one on `threads` threads until the block ends."""
        with Process.start(python, "bench._openfhe_side", threads) as process:
            yield OpenFheSide(process, setting)

    def time(self, name: str, least_s: float, clock: Clock) -> float:
        """Mean seconds of a prepared operation over at least `least_s` seconds, by the other process's own clock of that kind."""
        return float(self.ask("time", name=name, least_s=least_s, clock=clock.__name__)["seconds"])

    def error(self, name: str) -> float:
        """Largest error of a prepared operation over all slots that matter."""
        return float(self.ask("error", name=name)["error"])

    def peak(self) -> int:
        """Peak memory of the other process so far, bytes."""
        return int(self.ask("peak")["bytes"])


def matching(setting: Setting, data: list[int], special: list[int]) -> Parameters:
    """Our parameters for a comparison: OpenFHE's data primes and digits, and special primes whose product has the size of OpenFHE's.

    OpenFHE takes 60-bit special primes and few of them; we take as many as a digit has limbs. Raises UnfairComparisonError.
    """
    if security_bits(setting.degree, math.prod(data + special)) < REQUIRED_BITS:
        raise common.UnfairComparisonError(f"OpenFHE's {setting} is below {REQUIRED_BITS} bits by our table")
    digit_limbs = -(-setting.limbs // setting.digits)
    bits = round(math.log2(math.prod(special)) / digit_limbs)
    return Parameters(
        setting.degree,
        tuple(data),
        ntt_primes(setting.degree, bits, digit_limbs, tuple(data)),
        digit_limbs,
    )


def find_python() -> Path | None:
    """A Python with OpenFHE's wheel and this checkout, made beside the build on first use; None where no interpreter is named.

    Raises OpenFheError when it cannot be made.
    """
    if INTERPRETER not in os.environ:
        return None
    command = ["make", "--silent", "openfhe", f"OPENFHE={_VENV}"]
    done = subprocess.run(command, cwd=common.ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OpenFheError(f"cannot make {_VENV.name} from {INTERPRETER}: {done.stderr.strip()[-500:]}")
    return common.ROOT / _VENV / "bin" / "python"
