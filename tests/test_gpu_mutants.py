"""The checks of the CUDA kernels notice small faults in their source: removed barriers, and quantities that are off by one."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpu_mutants import mutants

TESTS = Path(__file__).resolve().parent
PROCESSES = 2


def judge(first: int) -> dict[int, str]:
    """The verdict on every PROCESSES-th mutant from `first` on."""
    command = [sys.executable, str(TESTS / "gpu_mutants.py"), str(first), str(PROCESSES)]
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return {int(number): verdict for number, verdict in map(str.split, done.stdout.splitlines())}


def test_every_mutant_is_caught() -> None:
    with ThreadPoolExecutor(PROCESSES) as pool:
        verdicts = {n: v for found in pool.map(judge, range(PROCESSES)) for n, v in found.items()}
    everything = mutants()
    assert sorted(verdicts) == list(range(len(everything)))
    assert sum(m.after.strip() == "" for m in everything) == 4  # all barriers
    assert [everything[n] for n, verdict in verdicts.items() if verdict != "caught"] == []
