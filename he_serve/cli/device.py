"""The option --device."""

from __future__ import annotations

from typing import Annotated

import typer

from ckks.errors import DeviceError, InputError

DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|gpu|gpu:I[,gpu:J...]",
        help="Where circuits run. auto takes a GPU if there is one that can be used, gpu is gpu:0; a server's workers spread over several.",
    ),
]


def backends_for(device: str) -> tuple[tuple[str, ...], str]:
    """The backends' names (ckks.backends.make_backend), and what to tell the user of it.

    Raises InputError for a device that does not exist, DeviceError for a GPU that is not there.
    """
    if device == "cpu":
        return ("cpu",), ""
    from ckks.backends.gpu import device_index, find_library

    if device == "auto":
        try:
            find_library()
        except DeviceError as error:
            return ("cpu",), f"running on the CPU: {error}"
        return ("gpu",), "running on the GPU"
    names = tuple(device.split(","))
    for name in names:
        device_index(name)
    return names, "running on the GPU" if names == ("gpu",) else f"running on {', '.join(names)}"


def backend_for(device: str) -> tuple[str, str]:
    """As `backends_for`, of a command that runs on one device."""
    names, remark = backends_for(device)
    if len(names) > 1:
        raise InputError(f"this command runs on one device; choose one of {device}")
    return names[0], remark
