"""Instructions of each engine function under callgrind, per instruction set: a regression shows on the busiest machine.

python -m bench._instructions            count, and write results/instructions.json
python -m bench._instructions --check    count, and fail where a function grew by more than 3 %

Needs valgrind, which knows AVX2 but not AVX-512, and a C++ compiler. Counts depend on the compiler too: its version is recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from ckks.parameters import Parameters
from ckks.primes import ntt_primes, smallest_root

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "results" / "instructions.json"
FLAGS = ["-std=c++20", "-O3", "-ffp-contract=off", "-pthread"]
LANES = {"vector_avx2": ["-mavx2", "-mfma"]}
BINDINGS = ("module", "arrays")
SETS = ("avx2", "portable")
ALLOWED = 1.03


def parameters() -> Parameters:
    primes = sorted(ntt_primes(8192, 30, 6))
    return Parameters(8192, tuple(primes[:4]), tuple(primes[4:]), 2)


def build(folder: Path) -> Path:
    sources = sorted((ROOT / "ckks" / "kernels").glob("*.cpp"))
    objects = []
    for source in [s for s in sources if s.stem not in BINDINGS] + [ROOT / "bench" / "_instructions.cpp"]:
        objects.append(str(folder / f"{source.stem}.o"))
        subprocess.run(
            [compiler(), *FLAGS, *LANES.get(source.stem, []), "-c", str(source), "-o", objects[-1]],
            check=True,
        )
    program = folder / "instructions"
    subprocess.run([compiler(), *FLAGS, *objects, "-o", str(program)], check=True)
    return program


def compiler() -> str:
    return os.environ.get("CXX", "c++")


def count(program: Path, folder: Path, instructions: str) -> dict[str, int]:
    """Instructions between entry and exit of each measure_* function."""
    p = parameters()
    arguments = [str(p.degree), str(len(p.data_primes)), str(p.digit_limbs), instructions]
    for q in p.moduli:
        arguments += [str(q), str(smallest_root(p.degree, q))]
    out = folder / f"{instructions}.out"
    callgrind = ["valgrind", "--tool=callgrind", "--toggle-collect=measure_*", f"--callgrind-out-file={out}"]
    subprocess.run([*callgrind, str(program), *arguments], check=True, capture_output=True)
    listing = subprocess.run(
        ["callgrind_annotate", "--inclusive=yes", "--threshold=100", str(out)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    counts = re.findall(r"^ *([\d,]+).*:measure_(\w+)", listing, re.MULTILINE)
    return {name: int(number.replace(",", "")) for number, name in sorted(counts, key=lambda c: c[1])}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--check", action="store_true")
    check = arguments.parse_args().check
    with tempfile.TemporaryDirectory() as name:
        program = build(Path(name))
        counts = {s: count(program, Path(name), s) for s in SETS}
    version = subprocess.run(
        [compiler(), "-dumpfullversion"], check=True, capture_output=True, text=True
    ).stdout.strip()
    for function in counts[SETS[0]]:
        print(f"{function:16}" + "".join(f"{s}: {counts[s][function]:>12,}  " for s in SETS))
    if not check:
        result = {"parameters": str(parameters()), "compiler": version, "instructions": counts}
        RESULT.write_text(json.dumps(result, indent=2) + "\n")
        return
    before = json.loads(RESULT.read_text())
    grown = [
        f"{s} {function}: {before['instructions'][s][function]:,} -> {now:,}"
        for s in SETS
        for function, now in counts[s].items()
        if now > ALLOWED * before["instructions"][s][function]
    ]
    if before["compiler"] != version:
        print(f"counted with compiler {version}, recorded with {before['compiler']}")
    if grown:
        sys.exit("more instructions than recorded:\n" + "\n".join(grown))


if __name__ == "__main__":
    main()
