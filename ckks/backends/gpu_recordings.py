"""A circuit's launches recorded as a CUDA graph, and played back for the requests that follow with the same keys.

A graph is bound to addresses. Its inputs, results and everything between lie in memory of its own (a pool that serves nobody else); the
keys and weights that it reads are entries of the device's cache, and it goes when one of them goes.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

from ckks.backends import Run, Values
from ckks.backends.device import Device, NotRecordableError, Taken
from ckks.errors import DeviceMemoryError
from ckks.types import EvaluationKeys

_ATTEMPTS = (
    3  # a copy that the cache had to let go may be back by the next request; what CUDA refuses stays refused
)


@dataclass(frozen=True, eq=False)
class _Recording:
    graph: Any
    pool: Any
    inputs: Values
    outputs: Values
    taken: Taken
    program: object  # held, so that its id is not another's


class Recordings:
    """The graphs of one device, in its cache and within its budget."""

    def __init__(self, device: Device) -> None:
        self._device = device
        # How often each was run to be recorded next, or failed to be.
        self._tries: weakref.WeakKeyDictionary[EvaluationKeys, dict[Hashable, int]] = (
            weakref.WeakKeyDictionary()
        )

    def repeat(self, program: object, keys: EvaluationKeys, inputs: Values, run: Run) -> Values:
        """run(inputs): as it is the first time (which makes tables and copies), recorded the second, played back from then on.

        Where it cannot be recorded it runs as it is every time. Raises what `run` raises, DeviceMemoryError.
        """
        device = self._device
        shapes = tuple(sorted((name, c.polys.shape) for name, c in inputs.items()))
        name = ("graph", id(program), id(keys), shapes)
        found: _Recording | None = device.cache.named(name)
        if found is None:
            tries = self._tries.setdefault(keys, {})
            if not 0 < tries.setdefault(name, 0) <= _ATTEMPTS:
                tries[name] = tries[name] or 1
                return run(inputs)
            missing, found = self._record(program, inputs, run)
            uses = frozenset() if found is None else frozenset(found.taken.uses)
            if found is None or not device.cache.put(name, found, found.pool.total_bytes(), keys, uses):
                # What the cache had let go of is back after this run, which has the memory of a graph that does not fit.
                tries[name], found = tries[name] + (not missing), None
                return run(inputs)
            tries[name] = 1
        return self._play(found, inputs)

    def _record(self, program: object, inputs: Values, run: Run) -> tuple[bool, _Recording | None]:
        """Whether a copy was missing in the cache, and the recording: None where this cannot be recorded."""
        device, cuda = self._device, self._device.library.cuda
        try:
            pool = cuda.MemoryPool()
            with cuda.using_allocator(pool.malloc):
                fixed = {name: replace(c, polys=device.empty(c.polys.shape)) for name, c in inputs.items()}
                outputs, graph, taken = device.record(lambda: run(dict(fixed)))
        except NotRecordableError:
            return True, None
        except (DeviceMemoryError, RuntimeError):
            return False, None
        return False, _Recording(graph, pool, fixed, outputs, taken, program)

    def _play(self, recording: _Recording, inputs: Values) -> Values:
        device = self._device
        for name, c in inputs.items():
            recording.inputs[name].polys[...] = c.polys
        recording.graph.launch(device.stream)
        return {name: replace(c, polys=device.copy(c.polys)) for name, c in recording.outputs.items()}
