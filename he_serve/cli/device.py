"""The option --device."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from ckks.errors import DeviceError


class Device(str, Enum):
    """Where circuits run."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


DeviceOption = Annotated[
    Device, typer.Option(help="Where circuits run; auto takes a GPU if there is one that can be used.")
]


def backend_for(device: Device) -> tuple[str, str]:
    """The backend's name (ckks.backends.make_backend), and what to tell the user of it. Raises DeviceError for a GPU that is not there."""
    if device is Device.CPU:
        return "cpu", ""
    from ckks.backends.gpu import find_library

    try:
        find_library()
    except DeviceError as error:
        if device is Device.GPU:
            raise
        return "cpu", f"running on the CPU: {error}"
    return "gpu", "running on the GPU"
