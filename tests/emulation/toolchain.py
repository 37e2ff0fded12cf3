"""NVIDIA's tools, where something installed brings them: ptxas, nvdisasm, nvcc."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .ptx import Kernel


class ToolError(RuntimeError):
    """A tool is missing, or refused its input."""


@lru_cache(None)
def tools(name: str) -> tuple[str, ...]:
    """Every version of a tool that is at hand: on PATH, in $CUDA_HOME, Triton's, the nvidia-* packages' of PyPI."""
    found = [shutil.which(name), os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", name)]
    for site in map(Path, sys.path):
        for folder in (site / "triton/backends/nvidia/bin", *sorted(site.glob("nvidia/*/bin"))):
            found += sorted(map(str, folder.glob(name + "*")))
    return tuple(dict.fromkeys(path for path in found if path and os.access(path, os.X_OK)))


def has(*names: str) -> bool:
    return all(tools(name) for name in names)


def run(name: str, *args: str, prefer: Callable[[str], object] = lambda path: 0) -> tuple[str, str]:
    """The output of a tool, and its path: the first version, least by `prefer`, that knows its input's architecture."""
    complaint = "not found on PATH, in $CUDA_HOME, in an installed triton or in an nvidia-* package"
    for path in sorted(tools(name), key=prefer):
        process = subprocess.run([path, *args], capture_output=True, text=True)
        if process.returncode == 0:
            return process.stdout + process.stderr, path
        complaint = (process.stderr or process.stdout).strip()
    raise ToolError(f"{name}: {complaint}")


@lru_cache(None)
def version(path: str) -> str:
    """Of a tool of NVIDIA's, such as "13.0.88"."""
    output = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V(\d+\.\d+\.\d+)", output).group(1)


@dataclass(frozen=True)
class Resources:
    """What ptxas says of a kernel: registers per thread, bytes per thread that spill, bytes of static shared memory.

    Attributes:
        assembler: the version of ptxas; others may need other numbers.
    """

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    static_shared: int
    assembler: str


def assemble(kernel: Kernel, arch: str) -> tuple[Resources, bytes]:
    """Its resources and its cubin, annotated with PTX instruction indices, for an architecture such as "sm_90".

    ToolError if ptxas is missing or the kernel's PTX does not run there.
    """
    return _assemble(kernel.annotated, kernel.name, _target(kernel, arch), kernel.producer)


@lru_cache(256)
def _assemble(ptx: str, entry: str, arch: str, producer: str) -> tuple[Resources, bytes]:
    def other_than_producer_would_use(path: str) -> tuple[bool, bool]:
        blackwell = int(re.sub(r"\D", "", arch)) >= 100  # for which Triton brings an assembler of its own
        return ("triton" in path) != (producer == "triton"), path.endswith("blackwell") != blackwell

    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        args = ("-v", "-lineinfo", f"-arch={arch}", "-e", entry, str(source), "-o", str(cubin))
        output, path = run("ptxas", *args, prefer=other_than_producer_would_use)
        image = cubin.read_bytes()
    report = output[output.find(f"entry function '{entry}'") :]

    def number(pattern: str) -> int:
        match = re.search(pattern, report)
        return int(match.group(1)) if match else 0

    if not number(r"Used (\d+) registers"):
        raise ToolError(f"ptxas: no line with the registers of {entry} in its output: {output}")
    return Resources(
        registers=number(r"Used (\d+) registers"),
        spill_stores=number(r"(\d+) bytes spill stores"),
        spill_loads=number(r"(\d+) bytes spill loads"),
        stack=number(r"(\d+) bytes stack frame"),
        static_shared=number(r"(\d+) bytes smem"),
        assembler=version(path),
    ), image


def _target(kernel: Kernel, arch: str) -> str:
    """The architecture to assemble for: the kernel's own where its PTX is tied to one, as "sm_90a" is."""
    number = int(re.sub(r"\D", "", kernel.target))
    if kernel.target[-1] in "af":
        if f"sm_{number}" != arch:
            raise ToolError(f"PTX for {kernel.target} runs on no other architecture, so not on {arch}")
        return kernel.target
    if number > int(arch.removeprefix("sm_")):
        raise ToolError(f"PTX for {kernel.target} does not run on {arch}")
    return arch


def disassemble(cubin: bytes) -> str:
    """With the line numbers that `Kernel.annotated` holds."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return run("nvdisasm", "-g", "-c", file.name)[0]


def compile_cuda(source: Path, arch: str = "sm_80", *flags: str) -> str:
    """PTX of a .cu file."""
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder, "kernel.ptx")
        run("nvcc", "-std=c++20", f"-arch={arch}", *flags, "-ptx", str(source), "-o", str(ptx))
        return ptx.read_text()
