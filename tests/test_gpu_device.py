"""What is said where no GPU can be used."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from cuda_shim import Shim
from test_backends import residues
from toy import make_parameters

from bench._stand_in import StandIn, ignore
from ckks.backends import make_backend
from ckks.backends.gpu import find_library, open_device, opened
from ckks.errors import DeviceError, DeviceMemoryError, InputError, ParameterError
from he_serve.cli.device import backend_for, backends_for

SHIM = Shim()


def pretend(monkeypatch: pytest.MonkeyPatch, library: StandIn) -> None:
    """CuPy is `library`."""
    monkeypatch.setitem(sys.modules, "cupy", library)
    opened.cache_clear()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "sees no CUDA device"), (RuntimeError("driver version is insufficient"), "driver version")],
)
def test_no_device(monkeypatch: pytest.MonkeyPatch, count: Any, text: str) -> None:
    library = StandIn(ignore)

    def devices() -> int:
        if isinstance(count, Exception):
            raise count
        return int(count)

    library.cuda.runtime.getDeviceCount = devices
    pretend(monkeypatch, library)
    for call in (find_library, open_device, lambda: backend_for("gpu")):
        with pytest.raises(DeviceError, match=text):
            call()
    name, remark = backend_for("auto")
    assert name == "cpu" and "running on the CPU" in remark and text in remark


def test_no_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match=r"CuPy is missing.*pip install 'he-serve"):
        backend_for("gpu")
    assert backend_for("cpu") == ("cpu", "")


def test_a_device_is_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, StandIn(ignore, memory=1 << 30))
    assert backend_for("auto")[0] == backend_for("gpu")[0] == "gpu"
    p = make_parameters(4096, (30, 30), (40,))
    first, second = make_backend(p, "gpu"), make_backend(p, "gpu")
    assert first.device is second.device is open_device()  # type: ignore[attr-defined]
    assert open_device().name == "stand-in" and open_device().cache.budget == 1 << 29


@pytest.mark.parametrize(("ratio", "doubles"), [(2, True), (32, False), (64, False)])
def test_the_device_chooses_its_arithmetic(
    monkeypatch: pytest.MonkeyPatch, ratio: int, doubles: bool
) -> None:
    """FP64 at half the rate of FP32, as in data centres, or at a small part of it, as on consumer cards."""
    sources, library = [], StandIn(lambda source: sources.append(source) or ignore(source))
    library.cuda.runtime.deviceGetAttribute = lambda attribute, device: {87: ratio}[attribute]
    pretend(monkeypatch, library)
    assert open_device().doubles is doubles
    assert sources[0].startswith(f"#define DOUBLES {int(doubles)}\n")


def test_devices_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    library = StandIn(SHIM, memory=1 << 30, devices=2)
    pretend(monkeypatch, library)
    assert backends_for("gpu:0,gpu:1")[0] == ("gpu:0", "gpu:1")
    assert "gpu:1" in backends_for("gpu:1")[1]
    for name in ("gpu:2", "gpu:0,gpu:9"):
        with pytest.raises(
            DeviceError, match=r"there is no device gpu:[29]: the driver sees gpu:0 to gpu:1; .*nvidia-smi"
        ):
            backends_for(name)
    for name in ("tpu", "gpu:", "gpu:x", "gpu,cpu", "", "gpu:00001"):
        with pytest.raises(ParameterError, match=r"no device is called .*; use auto, cpu, gpu, or gpu:0"):
            backends_for(name)
    with pytest.raises(InputError, match="one device; choose one of gpu:0,gpu:1"):
        backend_for("gpu:0,gpu:1")


def test_two_devices_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its own memory, streams and cache; the stand-in refuses what mixes them."""
    library = StandIn(SHIM, memory=1 << 30, devices=2)
    pretend(monkeypatch, library)
    p = make_parameters(4096, (30, 30), (40,))
    both = [make_backend(p, name) for name in ("gpu:0", "gpu:1")]
    names = [b.device.name for b in both]  # type: ignore[attr-defined]
    assert names == ["stand-in", "stand-in (gpu:1)"]
    x, rows = residues(p, (0, 1), 2), (0, 1)
    expected = make_backend(p, "reference").forward(x, rows)
    for _ in range(2):
        on = [b.upload(x) for b in both]
        found = [b.fetch(b.forward(a, rows)) for b, a in zip(both, on, strict=True)]
        assert all(np.array_equal(f.wait(), expected) for f in found)


def test_one_device_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    library = StandIn(SHIM, memory=1 << 30, devices=2)
    pretend(monkeypatch, library)
    p = make_parameters(4096, (30, 30), (40,))
    both, rows = [make_backend(p, name) for name in ("gpu:0", "gpu:1")], (0, 1)
    x = residues(p, rows, 64)
    held = both[1].upload(x)
    library.memory = library.used_on(1) - x.nbytes // 2  # also when what was sent from is let go
    with pytest.raises(DeviceMemoryError, match=r"stand-in \(gpu:1\): no room for 4 MB more.*--device cpu"):
        both[1].forward(held, rows)
    expected = make_backend(p, "reference").forward(x[:2], rows)
    assert np.array_equal(both[0].forward(x[:2], rows), expected)
    assert np.array_equal(both[1].forward(x[:2], rows), expected)


def test_kernels_that_do_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: str) -> Any:
        raise RuntimeError("no NVRTC")

    pretend(monkeypatch, StandIn(fail))
    with pytest.raises(DeviceError, match=r"stand-in: the kernels cannot be compiled: no NVRTC"):
        open_device()


@pytest.fixture(autouse=True)
def _forget() -> Any:
    yield
    opened.cache_clear()
