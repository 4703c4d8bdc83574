"""CUDA sources compiled as CuPy compiles them, by NVRTC, with no GPU and no driver: what each kernel takes of a multiprocessor."""

from __future__ import annotations

import ctypes
import glob
import importlib.util
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

# Volta to Blackwell. NVRTC 13 has dropped sm_70, so the wheel of CUDA 12 does it.
ARCHITECTURES = ("sm_70", "sm_80", "sm_90", "sm_100", "sm_120")
# What CuPy (cupy/cuda/compiler.py, releases 13 and 14) adds to the options of every module.
_BY_CUPY = ("-ftz=true", "--device-as-default-execution-space")


class MissingNvrtcError(Exception):
    """NVRTC is not installed."""


@dataclass(frozen=True)
class Usage:
    """Registers of a thread, bytes of static shared memory of a block, bytes of registers spilled to memory by a thread."""

    registers: int
    shared_bytes: int
    spilled_bytes: int


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    found = importlib.util.find_spec("nvidia")
    folders = list(found.submodule_search_locations or []) if found else []
    names = [name for folder in folders for name in glob.glob(f"{folder}/cuda_nvrtc/lib/libnvrtc.so.12")]
    if not names:
        raise MissingNvrtcError(
            "NVRTC of CUDA 12 is missing: pip install nvidia-cuda-nvrtc-cu12 (extra gpu-build)"
        )
    return ctypes.CDLL(names[0])


def compile_kernels(source: str, architecture: str, options: tuple[str, ...]) -> dict[str, Usage]:
    """Machine code of `source`, thrown away -> what ptxas says of each kernel. Raises ValueError with the compiler's messages."""
    nvrtc, program = _library(), ctypes.c_void_p()
    _require(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None))
    try:
        wanted = [*options, *_BY_CUPY, f"--gpu-architecture={architecture}", "--ptxas-options=-v"]
        array = (ctypes.c_char_p * len(wanted))(*(option.encode() for option in wanted))
        failed = nvrtc.nvrtcCompileProgram(program, len(wanted), array)
        log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if failed:
        raise ValueError(log)
    return parse(log)


def parse(log: str) -> dict[str, Usage]:
    """The figures of `ptxas -v`."""
    usage = {}
    for part in log.split("Compiling entry function '")[1:]:
        spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers, shared = re.search(r"Used (\d+) registers", part), re.search(r"(\d+) bytes smem", part)
        if spilled is None or registers is None:
            raise ValueError(f"ptxas says nothing of registers: {part}")
        usage[part.split("'")[0]] = Usage(
            int(registers[1]), int(shared[1]) if shared else 0, int(spilled[1]) + int(spilled[2])
        )
    return usage


def _text(size: Any, get: Any, program: ctypes.c_void_p) -> str:
    length = ctypes.c_size_t()
    _require(size(program, ctypes.byref(length)))
    buffer = ctypes.create_string_buffer(length.value)
    _require(get(program, buffer))
    return buffer.value.decode()


def _require(result: int) -> None:
    if result:
        raise RuntimeError(f"NVRTC failed with code {result}")
