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
    """The verdict on every PROCESSES-th mutant from `first` on. One that crashes its process or does not end is caught too."""
    verdicts: dict[int, str] = {}
    command = [sys.executable, str(TESTS / "gpu_mutants.py")]
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent)}
    while first < len(mutants()):
        process = subprocess.Popen(
            [*command, str(first), str(PROCESSES)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        try:
            out, errors = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            out, errors = process.communicate()
        # A process that fails as Python does has not judged anything.
        assert process.returncode <= 0, errors
        for line in out.splitlines():
            number, verdict = line.split()
            verdicts[int(number)] = verdict
            first = int(number) + PROCESSES
        if process.returncode:
            verdicts[first] = "caught"
            first += PROCESSES
    return verdicts


def test_every_mutant_is_caught() -> None:
    with ThreadPoolExecutor(PROCESSES) as pool:
        verdicts = {n: v for found in pool.map(judge, range(PROCESSES)) for n, v in found.items()}
    everything = mutants()
    assert sorted(verdicts) == list(range(len(everything)))
    assert sum(m.after.strip() == "" for m in everything) == 4  # all barriers
    assert [everything[n] for n, verdict in verdicts.items() if verdict != "caught"] == []
