"""Requests that overlap on a device: bit for bit what the CPU computes, whatever runs early or late; and every wait is needed.

The stand-in runs work as late as it may, or some streams as early as they may (bench/_streams.py), and hands memory on as CuPy's pools do.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import sys
from collections import deque
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cuda_shim import Shim
from test_backends import residues
from toy import make_parameters

from bench._stand_in import StandIn
from ckks.backends import Backend, Values, device, gpu_recordings
from ckks.backends.cpu import CpuBackend
from ckks.backends.device import Device
from ckks.backends.gpu import GpuBackend, open_device
from ckks.errors import DeviceError
from ckks.packed import pack
from ckks.types import Ciphertext, EvaluationKeys, KeySwitchKey, Residues

SHIM = Shim()
P = make_parameters(4096, (36, 30), (36,))
LEVEL, ROWS, SHAPE = 1, P.extended_rows(1), (3, P.degree)
CPU = CpuBackend(P, 1)
ALL = 1000
# Streams of the stand-in: 1 computes, 2 copies to the device, 3 from it.
AHEAD: tuple[dict[int, float], ...] = (
    {},
    {2: ALL},
    {1: ALL, 2: ALL},
    {1: 0.2, 2: ALL},
    {1: ALL, 2: ALL, 3: ALL},
)


def noise(seed: int, *leading: int) -> Residues:
    return residues(P, ROWS, *leading, seed=seed)


KEYS = [EvaluationKeys(P, KeySwitchKey.from_residues(P, noise(seed, 2, 2), LEVEL), {}) for seed in (1, 2)]
MATRIX = pack(noise(3, 2), tuple(P.moduli[r] for r in ROWS))
BIASES = noise(4, 2)


def model(backend: Backend, keys: EvaluationKeys, values: Values) -> Values:
    """A little of everything that a circuit does on a device, without the slow transforms: a key, a matrix, biases, two outputs."""
    x = values.pop("x").polys
    key = keys.relinearisation_at(LEVEL)
    switched = backend.key_product(x, key, LEVEL)
    y = backend.multiply_sums([switched, x], MATRIX, [[(0, 0), (1, 1)]], ROWS)[0].copy()
    for bias in BIASES:
        y[0] = backend.add(y[0], bias, ROWS)
    return {
        name: Ciphertext(polys, LEVEL, 1.0) for name, polys in (("y", y), ("z", backend.tensor(y, x, ROWS)))
    }


REQUESTS = [(who, noise(10 + i, 2)) for i, who in enumerate([0, 0, 1, 0, 1, 1, 0, 1])]
EXPECTED = [model(CPU, KEYS[who], {"x": Ciphertext(x, LEVEL, 1.0)}) for who, x in REQUESTS]


def served(backend: GpuBackend, depth: int = 2) -> list[dict[str, np.ndarray]]:
    """The answers to REQUESTS, `depth` of them under way at a time, as a worker does it."""
    answers: list[dict[str, np.ndarray]] = []
    under_way: deque[dict[str, Any]] = deque()

    def finish() -> None:
        answers.append({name: found.wait() for name, found in under_way.popleft().items()})

    for who, x in REQUESTS:
        polys = x.copy()
        sent = {"x": Ciphertext(backend.upload(polys), LEVEL, 1.0)}
        polys[...] = 1  # the caller's array is the caller's again
        keys = KEYS[who]
        found = backend.repeat(model, keys, sent, lambda values, keys=keys: model(backend, keys, values))
        under_way.append({name: backend.fetch(value.polys) for name, value in found.items()})
        del sent, found
        if len(under_way) == depth:
            finish()
    while under_way:
        finish()
    return answers


def right(answers: list[dict[str, np.ndarray]]) -> bool:
    return all(
        np.array_equal(got[name], value.polys)
        for got, expected in zip(answers, EXPECTED, strict=True)
        for name, value in expected.items()
    )


def backend_on(library: StandIn, kind: type[Device] = Device, cache: int = 1 << 30) -> GpuBackend:
    return GpuBackend(P, kind(library, "stand-in", cache))


@pytest.mark.parametrize("ahead", AHEAD)
def test_overlapping_requests(ahead: dict[int, float]) -> None:
    for graphs in (True, False):
        backend = backend_on(StandIn(SHIM, ahead=ahead, graphs=graphs))
        assert right(served(backend)) and right(served(backend, depth=3))


@pytest.mark.gpu
def test_overlapping_requests_on_a_device() -> None:
    try:
        on = open_device()
    except DeviceError as error:
        pytest.skip(f"NOT RUN ON A GPU: {error}")
    backend = GpuBackend(P, Device(on.library, on.name, on.cache.budget))
    assert right(served(backend)) and right(served(backend, depth=3))
    before = sum(work.launches for work in backend.device.work.values())
    assert all(right(served(backend, depth=3)) for _ in range(20))
    assert sum(work.launches for work in backend.device.work.values()) == before  # all from graphs


def changed(module: ModuleType, before: str, after: str) -> ModuleType:
    """A module with one piece of its text changed."""
    assert module.__file__ is not None
    text = Path(module.__file__).read_text(encoding="utf-8")
    assert text.count(before) == 1, before
    made = ModuleType("mutant")
    sys.modules["mutant"] = made
    exec(compile(text.replace(before, after), "mutant", "exec"), made.__dict__)
    return made


_TO_GPU = "        self._after(self.stream, self._uploads)\n"
_END = "        graph = self.stream.end_capture()\n"
_CONSTANT = "        self._taken.arrays.append(array)\n"
MUTANTS: tuple[tuple[ModuleType, str, str], ...] = (
    # Waits of streams for one another.
    (device, _TO_GPU + "        array =", "        array ="),
    (device, "        self._after(self._downloads, self.stream)\n", ""),
    (device, _END + _TO_GPU, _END),
    # Waits of the host.
    (device, "            done.synchronize()\n", ""),
    (device, "            event.synchronize()\n            pinned -= size", "            pinned -= size"),
    # What is held while it is in use.
    (device, "        self._hold(staged, self.stream)\n", ""),
    (device, "            self._hold(pinned, stream, piece.size)\n", ""),
    (device, "self._hold((source, pinned), self._downloads)", "self._hold(pinned, self._downloads)"),
    (device, "self._flights[stream].append((event, what, pinned))", "pass"),
    (device, _CONSTANT + "        return array\n\n    def send", "        return array\n\n    def send"),
    # Memory in the order of its own stream.
    (device, "array = self.copy(staged)  #", "array = staged  #"),
    (
        device,
        "        with self._uploading():\n            array =",
        "        if True:\n            array =",
    ),
    (device, "        finally:\n            self.stream.use()\n", "        finally:\n            pass\n"),
    (gpu_recordings, "with cuda.using_allocator(pool.malloc):", "if True:"),
    (gpu_recordings, "polys=device.copy(c.polys)", "polys=c.polys"),
    # What a graph plays.
    (gpu_recordings, "recording.inputs[name].polys[...] = c.polys", "pass"),
    (
        gpu_recordings,
        'name = ("graph", id(program), id(keys), shapes)',
        'name = ("graph", id(program), shapes)',
    ),
)


def noticed(number: int) -> bool:
    """Whether a mutant computes something else, or is refused by the stand-in, with some streams ahead."""
    module = MUTANTS[number][0]
    made = changed(*MUTANTS[number])
    for graphs, ahead in itertools.product((True, False), AHEAD):
        if not graphs:  # as little pinned memory as makes the host wait for it
            made.__dict__["_PINNED"] = made.__dict__["_PIECE"] = 1 << 16
        library = StandIn(SHIM, ahead=ahead, graphs=graphs)
        backend = backend_on(library, made.Device)
        if module is gpu_recordings:
            backend._recordings = made.Recordings(backend.device)
        try:
            if not right(served(backend, depth=3)):
                return True
        except AssertionError:
            return True
    return False


@pytest.mark.parametrize("number", range(len(MUTANTS)))
@pytest.mark.filterwarnings("ignore:.*multi-threaded")
def test_every_wait_is_needed(number: int) -> None:
    # In a process of its own: kernels follow addresses that a mutant may have left unwritten.
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        try:
            os._exit(0 if noticed(number) else 1)
        finally:
            os._exit(2)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or status == 0, {256: "nobody noticed", 512: "it could not be judged"}[
        status
    ]
