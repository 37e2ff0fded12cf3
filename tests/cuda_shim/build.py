"""Compiles the CUDA kernels for the CPU, with the compiler that built the library."""

import fcntl
import os
import shlex
import subprocess
import sys
from pathlib import Path

import ninja
import torch

ROOT = Path(__file__).parents[2]
SHIM = ROOT / "tests" / "cuda_shim"
FLAGS = f"-std=c++20 -O1 -fPIC -I{SHIM} -I{{csrc}} -Wall -Wextra -Werror"
TORCH = Path(torch.__file__).parent
BINDINGS = (
    f"-DTORCH_TARGET_VERSION=0x020a000000000000 -isystem {TORCH / 'include'} "
    "-DSAGD_CUDA_LIBRARY=sagd_shim -DSAGD_CUDA_KEY=CPU"
)


def compiler() -> str:
    return os.environ.get("CXX") or "g++"


def build_library() -> Path:
    """The operators torch.ops.sagd_shim._cuda_*: the private CUDA operators of the library, on CPU tensors."""
    directory = ROOT / "build" / "cuda_shim"
    directory.mkdir(parents=True, exist_ok=True)
    csrc = ROOT / "csrc"
    sources = {source: f"-x c++ {source}" for source in sorted((csrc / "cuda").glob("*.cu"))}
    sources |= {source: str(source) for source in (SHIM / "shim.cpp", SHIM / "stream.cpp")}
    sources[csrc / "bindings_cuda.cpp"] = f"{BINDINGS} {csrc / 'bindings_cuda.cpp'}"
    with (directory / "lock").open("w") as lock:  # of processes that build at the same time, one does
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (directory / "build.ninja").open("w") as file:
            graph = ninja.Writer(file)
            flags = FLAGS.format(csrc=csrc)
            graph.rule(
                "compile", f"{compiler()} -MD -MF $out.d {flags} -c $source -o $out", depfile="$out.d", deps="gcc"
            )
            graph.rule("link", f"{compiler()} -shared -Wl,-z,defs $in -L{TORCH / 'lib'} -ltorch_cpu -ldl -o $out")
            for source, command in sources.items():
                graph.build(f"{source.stem}.o", "compile", str(source), variables={"source": command})
            graph.build("shim.so", "link", [f"{source.stem}.o" for source in sources])
        run(os.path.join(ninja.BIN_DIR, "ninja"), "-C", directory, "--quiet")
    return directory / "shim.so"


def build_sanitized(source: Path, output: Path, csrc: Path = ROOT / "csrc") -> None:
    """A program that runs kernels under ThreadSanitizer, from this or another copy of the kernels' sources."""
    command = [*shlex.split(compiler()), *FLAGS.format(csrc=csrc).split(), "-g"]
    shim = output.with_name("shim.o")
    if not shim.exists():
        run(*command, "-DSHIM_FOR_THREAD_SANITIZER", "-c", SHIM / "shim.cpp", "-o", shim)
    # -rdynamic: kernels have names at run time
    run(*command, "-fsanitize=thread", "-rdynamic", source, shim, "-o", output, "-ldl")


def run(*command: object) -> None:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode:
        sys.stderr.write(result.stdout + result.stderr)
        raise RuntimeError(f"{command[0]} failed with {result.returncode}; its messages are above")
