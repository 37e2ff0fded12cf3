"""Every barrier of the CUDA kernels is there, and needed: ThreadSanitizer watches the kernels with and without it."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cuda_shim.build import ROOT, SHIM, build_sanitized

CSRC = ROOT / "csrc"
BARRIER = re.compile(r"(__syncthreads|__syncwarp|cluster_barrier|wait_for_plane<.*>)\(\);")
BARRIERS = [
    (path.name, match.start())
    for path in sorted((CSRC / "cuda").glob("*.h"))
    for match in BARRIER.finditer(path.read_text())
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the fibers under ThreadSanitizer are tried on x86-64"),
]


def races(directory: Path, csrc: Path = CSRC) -> str:
    """What ThreadSanitizer, or the shim, has to say about the kernels in csrc; empty if nothing."""
    program = directory / "races"
    build_sanitized(SHIM / "races.cpp", program, csrc)
    # addresses as ThreadSanitizer wants them, whatever the kernel's randomisation
    command = [*(["setarch", "-R"] if shutil.which("setarch") else []), program]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode == 0) == (result.stdout == "ran\n" and not result.stderr)
    return result.stderr


def test_no_two_threads_meet_in_memory_without_a_barrier(tmp_path):
    assert races(tmp_path) == ""


@pytest.mark.parametrize(("name", "position"), BARRIERS)
def test_without_any_one_barrier_there_is_a_race(tmp_path, name, position):
    csrc = tmp_path / "csrc"
    shutil.copytree(CSRC, csrc)
    source = csrc / "cuda" / name
    text = source.read_text()
    source.write_text(text[:position] + BARRIER.sub("{}", text[position:], count=1))
    assert races(tmp_path, csrc) != ""
