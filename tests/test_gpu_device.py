"""What is said where no GPU can be used."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from toy import make_parameters

from bench._stand_in import StandIn, ignore
from ckks.backends import make_backend
from ckks.backends.gpu import find_library, open_device
from ckks.errors import DeviceError
from he_serve.cli.device import Device, backend_for


def pretend(monkeypatch: pytest.MonkeyPatch, library: StandIn) -> None:
    """CuPy is `library`."""
    monkeypatch.setitem(sys.modules, "cupy", library)
    open_device.cache_clear()


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
    for call in (find_library, open_device, lambda: backend_for(Device.GPU)):
        with pytest.raises(DeviceError, match=text):
            call()
    name, remark = backend_for(Device.AUTO)
    assert name == "cpu" and "running on the CPU" in remark and text in remark


def test_no_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match=r"CuPy is missing.*pip install 'he-serve"):
        backend_for(Device.GPU)
    assert backend_for(Device.CPU) == ("cpu", "")


def test_a_device_is_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, StandIn(ignore, memory=1 << 30))
    assert backend_for(Device.AUTO)[0] == backend_for(Device.GPU)[0] == "gpu"
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


def test_kernels_that_do_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: str) -> Any:
        raise RuntimeError("no NVRTC")

    pretend(monkeypatch, StandIn(fail))
    with pytest.raises(DeviceError, match=r"stand-in: the kernels cannot be compiled: no NVRTC"):
        open_device()


@pytest.fixture(autouse=True)
def _forget() -> Any:
    yield
    open_device.cache_clear()
