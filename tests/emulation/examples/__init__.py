"""Small kernels whose counts are known by hand, and how to get them, for the tests of the emulator."""

from functools import lru_cache
from pathlib import Path

import pytest

from .. import Kernel, entries, toolchain

FOLDER = Path(__file__).parent
HEADER = ".version 8.0\n.target sm_80\n.address_size 64\n"


@lru_cache(None)
def cuda(file: str, arch: str = "sm_80", *flags: str) -> str:
    """PTX of an example, compiled once."""
    if not toolchain.has("nvcc"):
        pytest.skip("nvcc is not installed: the CUDA examples cannot be compiled")
    return toolchain.compile_cuda(FOLDER / file, arch, *flags)


def kernel(part: str, source: str | None = None) -> Kernel:
    """The only kernel whose name contains `part`, of kernels.cu or of a module's text."""
    source = source or cuda("kernels.cu")
    (name,) = [name for name in entries(source) if part in name]
    return Kernel(source, name)


def needs(*names: str) -> None:
    for name in names:
        if not toolchain.has(name):
            pytest.skip(f"{name} is not installed: it comes with triton and with nvcc")


def single(body: str, *params: str) -> str:
    """A kernel `k` with these parameters, registers of every type and a thread's number in %r0 and times 4 in %rd0."""
    declared = ", ".join(f".param .{param}" for param in params)
    return f"""{HEADER}.visible .entry k({declared}) {{
        .reg .b32 %r<32>; .reg .f32 %f<32>; .reg .b64 %rd<32>; .reg .pred %p<8>; .reg .b16 %h<8>;
        .shared .align 16 .b8 tile[512];
        mov.u32 %r0, %tid.x;
        mul.wide.u32 %rd0, %r0, 4;
        {body}
        ret;
    }}"""


# A float for each thread.
COPY = f"""{HEADER}.visible .entry copy(.param .u64 x, .param .u64 y) {{
    .reg .b32 %r<8>; .reg .f32 %f<2>; .reg .b64 %rd<8>;
    ld.param.u64 %rd1, [x]; ld.param.u64 %rd2, [y];
    mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mov.u32 %r3, %tid.x;
    mad.lo.s32 %r4, %r1, %r2, %r3; mul.wide.s32 %rd3, %r4, 4;
    add.s64 %rd4, %rd1, %rd3; add.s64 %rd5, %rd2, %rd3;
    ld.global.f32 %f1, [%rd4]; st.global.f32 [%rd5], %f1; ret; }}"""
