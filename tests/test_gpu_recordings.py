"""Graphs of circuits: when they are recorded, what they hold on to, and when they go."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from test_gpu_streams import CPU, KEYS, LEVEL, SHIM, backend_on, model, noise

from bench._stand_in import StandIn
from ckks.backends import Values
from ckks.backends.gpu import GpuBackend
from ckks.errors import DeviceMemoryError, EvaluationError
from ckks.types import Ciphertext, EvaluationKeys, KeySwitchKey


def ask(backend: GpuBackend, keys: EvaluationKeys, seed: int, run: Any = model) -> bool:
    """One request; whether its answer is right."""
    x = noise(seed, 2)
    sent = {"x": Ciphertext(backend.upload(x), LEVEL, 1.0)}
    found = backend.repeat(model, keys, sent, lambda values: run(backend, keys, values))
    expected = model(CPU, keys, {"x": Ciphertext(x, LEVEL, 1.0)})
    got = {name: backend.fetch(value.polys).wait() for name, value in found.items()}
    return all(np.array_equal(got[name], value.polys) for name, value in expected.items())


def launches(backend: GpuBackend) -> int:
    """Of kernels from Python, so far."""
    return sum(work.launches for work in backend.device.work.values())


def launched(backend: GpuBackend, keys: EvaluationKeys, seed: int) -> int:
    """The launches of a request that is answered right."""
    before = launches(backend)
    assert ask(backend, keys, seed)
    return launches(backend) - before


def own_keys(seed: int) -> EvaluationKeys:
    p = KEYS[0].parameters
    return EvaluationKeys(p, KeySwitchKey.from_residues(p, noise(seed, 2, 2), LEVEL), {})


def test_a_circuit_is_recorded_on_its_second_run() -> None:
    backend = backend_on(StandIn(SHIM))
    first = launched(backend, KEYS[0], 1)
    assert [launched(backend, KEYS[0], seed) for seed in (2, 3, 4)] == [first, 0, 0]
    assert [launched(backend, KEYS[1], seed) for seed in (2, 3, 4)] == [first, first, 0]
    assert launched(backend, KEYS[0], 5) == 0


def test_without_graphs_it_runs_as_it_is() -> None:
    backend = backend_on(StandIn(SHIM, graphs=False))
    first = launched(backend, KEYS[0], 1)
    assert [launched(backend, KEYS[0], seed) for seed in range(2, 8)] == [first] * 6


def test_a_graph_goes_with_the_keys_that_it_reads() -> None:
    backend, keys = backend_on(StandIn(SHIM)), own_keys(7)
    assert all(ask(backend, keys, seed) for seed in range(3))
    cache = backend.device.cache
    assert any(isinstance(name, tuple) and name[0] == "graph" for name in cache._entries)
    del keys  # revoked, and no longer mapped
    gc.collect()
    assert not any(isinstance(name, tuple) and name[0] == "graph" for name in cache._entries)
    assert len(cache.retired) == 1  # not before the device is done with it
    assert ask(backend, KEYS[0], 1) and not cache.retired


def test_a_graph_goes_when_the_cache_lets_go_of_its_keys() -> None:
    backend, clients = backend_on(StandIn(SHIM)), [own_keys(seed) for seed in range(20, 23)]
    assert [launched(backend, clients[0], seed) for seed in range(3)][-1] == 0
    cache = backend.device.cache
    cache.budget = cache.nbytes + 1000  # room for one client and no more
    for keys in (*clients[1:], *clients) * 2:
        assert launched(backend, keys, 3) > 0
        assert cache.nbytes <= cache.budget
    assert [launched(backend, clients[0], seed) for seed in range(3)][-1] == 0


def test_what_does_not_fit_is_not_recorded() -> None:
    backend = backend_on(StandIn(SHIM), cache=0)
    first = launched(backend, KEYS[0], 1)
    # It is tried, in vain, a few times.
    assert [launched(backend, KEYS[0], seed) for seed in range(2, 9)][-2:] == [first, first]
    small = backend_on(StandIn(SHIM))
    launched(small, KEYS[0], 1)
    small.device.cache.budget = small.device.cache.nbytes + 1000  # for keys and weights, not for a graph
    assert [launched(small, KEYS[0], seed) for seed in range(2, 9)][-1] == first


def test_short_memory_is_no_error_while_recording() -> None:
    library = StandIn(SHIM)
    backend = backend_on(library)
    first = launched(backend, KEYS[0], 1)
    x = noise(1, 2)
    library.memory = library.used + 7 * x.nbytes  # for a run, not for one beside a graph of its own
    assert [launched(backend, KEYS[0], seed) for seed in range(2, 9)][-1] == first
    library.memory = library.used
    with pytest.raises(DeviceMemoryError, match="stand-in: no room"):
        ask(backend, KEYS[0], 1)


def test_a_run_that_stops_while_it_is_recorded_leaves_the_device_usable() -> None:
    backend = backend_on(StandIn(SHIM))
    assert ask(backend, KEYS[0], 1)

    def stops(on: GpuBackend, keys: EvaluationKeys, values: Values) -> Values:
        model(on, keys, values)
        raise EvaluationError("cancelled")

    with pytest.raises(EvaluationError, match="cancelled"):
        ask(backend, KEYS[0], 2, stops)
    assert not backend.device.recording
    assert ask(backend, KEYS[0], 3) and launched(backend, KEYS[0], 4) == 0


def test_a_run_that_waits_is_not_recorded() -> None:
    """Bringing something to the host cannot be part of a graph."""

    def waits(on: GpuBackend, keys: EvaluationKeys, values: Values) -> Values:
        on.download(values["x"].polys)
        return model(on, keys, values)

    backend = backend_on(StandIn(SHIM))
    assert all(ask(backend, KEYS[0], seed, waits) for seed in range(6))
    assert launches(backend) > 0 and not backend.device.recording
