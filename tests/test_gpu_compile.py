"""NVRTC compiles the CUDA sources for every architecture that is served, without spilling registers. Needs no GPU."""

from __future__ import annotations

import pytest

from bench._nvrtc import ARCHITECTURES, MissingNvrtcError, Usage, compile_kernels, parse
from ckks.backends.device import OPTIONS, THREADS, kernel_names, kernel_source


def compiled(source: str, architecture: str) -> dict[str, Usage]:
    try:
        return compile_kernels(source, architecture, OPTIONS)
    except MissingNvrtcError as error:
        pytest.skip(f"NOT COMPILED FOR A GPU: {error}")


@pytest.mark.parametrize("doubles", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_compile_without_spills(architecture: str, doubles: bool) -> None:
    source = kernel_source(doubles)
    usage = compiled(source, architecture)
    assert sorted(usage) == sorted(kernel_names(source))
    for kernel, used in usage.items():
        print(
            f"{architecture} {kernel}: {used.registers} registers, {used.shared_bytes} bytes of shared memory"
        )
        assert used.spilled_bytes == 0, kernel
        # Three blocks at least share a multiprocessor's 65536 registers; static shared memory is 48 KiB at most.
        assert used.registers * THREADS * 3 <= 65536, kernel
        assert used.shared_bytes <= 48 * 1024, kernel


def test_a_mistake_is_reported() -> None:
    with pytest.raises(ValueError, match="undefined"):
        compiled("__global__ void f() { undefined = 1; }", "sm_80")


def test_spills_are_seen() -> None:
    log = (
        "ptxas info : Compiling entry function 'f' for 'sm_70'\n8 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\n"
        "ptxas info : Used 64 registers, used 1 barriers, 18432 bytes smem\n"
    )
    assert parse(log) == {"f": Usage(64, 18432, 12)}
    with pytest.raises(ValueError):
        parse("Compiling entry function 'f'")
