"""Whether this installation works: each check says what it found, and what to do where something is wrong."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

from ckks.backends import Backend, make_backend
from ckks.errors import HeError, InputError
from ckks.kernels._cpu import instruction_sets
from ckks.packed import pack
from ckks.parameters import Parameters
from ckks.primes import ntt_primes
from ckks.rehearsal import random_residues
from ckks.types import KeySwitchKey, Residues
from ckks.wire import dump_ciphertext, load_ciphertext

LEAST_MEMORY, LEAST_DISK = 1 << 30, 1 << 30  # bytes: a small model, its weights and one client's keys
EXTRAS = {
    "compile": ("onnx", "onnxruntime", "scipy"),
    "server": ("fastapi", "hypercorn", "prometheus_client"),
}


@dataclass(frozen=True)
class Check:
    """One finding. status: "wrong" is what makes the doctor say no; "absent" is an optional part that is not there."""

    name: str
    status: Literal["ok", "absent", "wrong"]
    found: str


def check_installation(state: Path, threads: int) -> list[Check]:
    """All checks; some seconds. state: the folder a server would keep uploaded keys in."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("kernels", lambda: check_kernels(threads)),
        ("secret side", check_secret_side),
        ("memory", check_memory),
        ("state folder", lambda: check_state(state)),
    ]
    found = [_run(name, check) for name, check in checks]
    for extra, packages in EXTRAS.items():
        missing = [p for p in packages if importlib.util.find_spec(p) is None]
        remedy = f"{', '.join(missing)} not installed: pip install 'he-serve[{extra}]'"
        found.append(
            Check(f"extra {extra}", "absent", remedy)
            if missing
            else Check(f"extra {extra}", "ok", "installed")
        )
    return found


def _run(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, "ok", check())
    except (HeError, OSError, ImportError) as error:
        return Check(name, "wrong", str(error))


def describe_machine() -> str:
    """Processor, cores this process may use, memory, system, Python. No host name, no paths."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            x.partition(":")[2].strip() for x in info.read_text().splitlines() if x.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{cpu}, {cores} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def check_kernels(threads: int) -> str:
    """Every instruction set of this machine against the reference, bit for bit, on primes of both families. Raises InputError."""
    from ckks.backends.cpu import CpuBackend

    sets = instruction_sets()
    for bits in (26, 50):
        data = ntt_primes(4096, bits, 1) if bits > 30 else ntt_primes(4096, bits, 2)
        p = Parameters(4096, data, ntt_primes(4096, bits + 1, 1, exclude=data), 1)
        reference = _results(make_backend(p, "reference"))
        for name in sets:
            for function, result in _results(CpuBackend(p, threads, name)).items():
                if not np.array_equal(result, reference[function]):
                    raise InputError(
                        f"{function} with {name} differs from the reference on {bits}-bit primes; build he-serve anew on this machine"
                    )
    return f"{', '.join(sets)} agree with the reference; {sets[0]} is used"


def _results(backend: Backend) -> dict[str, Residues]:
    p = backend.parameters
    level, rng = p.max_level, np.random.default_rng(0)
    extended, data = p.extended_rows(level), p.data_rows(level)

    pair, wide = random_residues(p, data, rng, 2), random_residues(p, extended, rng, 2)
    key = KeySwitchKey.from_residues(p, random_residues(p, extended, rng, len(p.digits(level)), 2), level)
    element = p.galois_element(5)
    plains = pack(wide, tuple(p.moduli[r] for r in extended))
    results = {
        "forward": backend.forward(wide, extended),
        "inverse": backend.inverse(wide, extended),
        "multiply": backend.multiply(wide, wide[1], extended),
        "tensor": backend.tensor(pair, pair, data),
        "automorphism": backend.automorphism(wide, element),
        "decompose": backend.decompose(pair[0], level),
        "key_switch": backend.key_switch(pair[0], key, level, element, pair[:1]),
        "mod_down": backend.mod_down(wide, level),
        "multiply_sums": backend.multiply_sums([wide, wide], plains, [[(0, 0), (1, 1)]], extended),
    }
    if level:
        results["rescale"] = backend.rescale(pair, level)
    return results


def check_secret_side() -> str:
    """Keys, encryption and decryption through SEAL. Raises InputError."""
    from keys.seal import SecretKey

    data = ntt_primes(4096, 40, 1)
    p = Parameters(4096, data, ntt_primes(4096, 45, 1), 1)
    secret, message = SecretKey.generate(p), np.linspace(-1, 1, p.slots)
    fresh = secret.encrypt(message, 0, 2.0**30)
    error = float(
        np.abs(secret.decrypt(load_ciphertext(dump_ciphertext(p, fresh), p, 0, 2.0**30)) - message).max()
    )
    if not error < 1e-4:
        raise InputError(f"SEAL decrypts with an error of {error:.2g}; install tenseal again")
    return f"tenseal {version('tenseal')} makes keys, encrypts and decrypts"


def check_memory() -> str:
    """Raises InputError below LEAST_MEMORY."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return "not known on this system"
    fields = dict(line.split(":", 1) for line in info.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    if free < LEAST_MEMORY:
        raise InputError(
            f"{free / 2**30:.1f} GiB free, a server needs {LEAST_MEMORY / 2**30:.0f} GiB and more"
        )
    return f"{free / 2**30:.1f} GiB free"


def check_state(folder: Path) -> str:
    """Whether uploaded keys can be written to `folder`, or to where it would be made. Raises InputError, OSError."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"\0" * 4096)
    except OSError as error:
        raise InputError(
            f"{there} is not writable ({error.strerror}); give another folder with --state"
        ) from None
    free = shutil.disk_usage(there).free
    if free < LEAST_DISK:
        raise InputError(
            f"{there} has {free / 1e9:.1f} GB left; free some, or give another folder with --state"
        )
    return f"{there} is writable, {free / 1e9:.0f} GB free"
