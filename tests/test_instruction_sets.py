"""Every instruction set that was built keeps the promises of the operators and of the stream, on this one machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sagd_kernels as sagd

TESTS = Path(__file__).parent
UNKNOWN = "sse9"


def run(instruction_set: str, *command: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"SAGD_CPU_ISA": instruction_set, "PYTHONPATH": str(TESTS.parent)}
    return subprocess.run([sys.executable, *command], env=environment, cwd=TESTS.parent, capture_output=True, text=True)


@pytest.fixture(scope="module")
def refusal() -> str:
    """What the first use of an operator says where the environment asks for an instruction set that nobody has."""
    program = "import torch, sagd_kernels; sagd_kernels.spectral_filter(torch.ones(2, 2), torch.ones(2, 2))"
    result = run(UNKNOWN, "-c", program)
    assert result.returncode == 1  # an error, not a signal
    return result.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def available(refusal) -> list[str]:
    return refusal.split("expected one of ")[1].split(" on this processor")[0].split(", ")


def test_an_unknown_instruction_set_is_an_error_that_names_those_there_are(refusal, available):
    names = ", ".join(available)
    assert refusal == f"RuntimeError: SAGD_CPU_ISA: expected one of {names} on this processor, got {UNKNOWN}"
    assert "portable" in available and set(available) <= set(sagd.build_info()["instruction_sets"])


@pytest.mark.parametrize("instruction_set", sagd.build_info()["instruction_sets"])
def test_operators_and_stream(instruction_set, available):
    if instruction_set not in available:
        pytest.skip(f"this processor lacks {instruction_set}")
    if instruction_set == torch.ops.sagd._cpu_isa():
        pytest.skip(f"{instruction_set} is what all other tests run with")
    files = [str(TESTS / name) for name in ("test_operators.py", "test_shared_planes.py", "test_stream.py")]
    # what does not depend on the instruction set, and the largest planes, can be left out
    options = ["-x", "-p", "no:cacheprovider", "-k", "not large_planes and not philox"]
    result = run(instruction_set, "-m", "pytest", *options, *files)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"CPU kernels for {instruction_set}\n" in result.stdout
