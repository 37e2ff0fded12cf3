"""Counts the instructions that the CPU kernels execute for a plane: ``python -m benchmarks.instructions [SIZE ...]``.

A child process runs an operator under ptrace, one instruction at a time. The difference between a call with two
planes and one with one is what a plane costs, exactly and on any load; objdump names what was executed. Needs Linux on
x86-64, binutils and the native library. Planes above 256 pixels (smaller ones are taken many at a time); 64 x 64 takes
seconds, 512 x 512 minutes.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import torch

import sagd_kernels as sagd

TRACEME, PEEKUSER, CONT, SINGLESTEP = 0, 3, 7, 9
RIP = 16 * 8  # its offset in struct user
ptrace = ctypes.CDLL(None).ptrace
ptrace.restype = ctypes.c_long
ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)

LIBRARY = Path(sagd.__file__).parent / "_C.so"
OPERATORS = {
    "spectral_filter": lambda n, planes, weight: torch.ops.sagd.spectral_filter(torch.ones(planes, n, n), weight),
    "shaped_noise": lambda n, planes, weight: torch.ops.sagd.shaped_noise(sagd.key(0), [planes, n, n], weight),
}
# The first class that matches an instruction on full vectors; the rest is "other".
VECTOR_CLASSES = {
    "fma, mul": r"vf|vmul",
    "add": r"vadd|vsub",
    "shuffle": r"vunpck|vshuf|vperm",
    "broadcast": r"v(p)?broadcast",
    "move": r"vmov",
}


def count_addresses(call) -> Counter:
    """How often each address is executed between the two stops of a child that runs `call`."""
    child = os.fork()
    if child == 0:
        ptrace(TRACEME, 0, None, None)
        os.kill(os.getpid(), signal.SIGSTOP)
        call()
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(child, 0)
    counts = Counter()
    while True:
        ptrace(SINGLESTEP, child, None, None)
        _, status = os.waitpid(child, 0)
        if os.WSTOPSIG(status) == signal.SIGSTOP:
            break
        counts[ptrace(PEEKUSER, child, RIP, None)] += 1
    ptrace(CONT, child, None, None)
    os.waitpid(child, 0)
    return counts


def instructions_of_library() -> dict[int, tuple[str, str]]:
    """Mnemonic and operands of each instruction, by its address in this process."""
    maps = Path("/proc/self/maps").read_text()
    base = min(int(line.split("-")[0], 16) for line in maps.splitlines() if line.endswith(str(LIBRARY)))
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", LIBRARY], capture_output=True, text=True, check=True
    )
    found = re.findall(r"^ *([0-9a-f]+):\t(\S+) *(.*)$", listing.stdout, re.MULTILINE)
    return {base + int(address, 16): (name, operands) for address, name, operands in found}


def classes(name: str, operands: str) -> list[str]:
    """What an instruction counts as; one that computes with a vector in memory counts as a load, too."""
    if "%zmm" not in operands:
        return ["scalar"]
    if name.startswith("vmov") and operands.split(" ")[0].endswith(")"):
        return ["store"]
    kind = next((kind for kind, pattern in VECTOR_CLASSES.items() if re.match(pattern, name)), "other")
    if "(" not in operands or kind == "broadcast":
        return [kind]
    loads = "load of a factor" if "{1to" in operands else "load"
    return [loads] if kind == "move" else [kind, loads]


def count_plane(operator: str, n: int) -> Counter:
    """Instructions by class for one plane of n x n."""
    listing = instructions_of_library()
    weight = torch.ones(n, n // 2 + 1)
    counts = Counter()
    for planes, sign in ((2, 1), (1, -1)):
        call = lambda planes=planes: OPERATORS[operator](n, planes, weight)  # noqa: E731
        call()  # plans and scratch memory are there
        for address, times in count_addresses(call).items():
            for kind in classes(*listing[address]) if address in listing else ():
                counts[kind] += sign * times
    return counts


def main() -> None:
    torch.set_num_threads(1)
    for n in [int(size) for size in sys.argv[1:]] or [32, 64, 128]:
        for operator in OPERATORS:
            counts = count_plane(operator, n)
            vectors = n * n / 16
            print(f"{operator} {n}x{n}: " + ", ".join(f"{k} {v / vectors:.2f}" for k, v in sorted(counts.items())))


if __name__ == "__main__":
    main()
