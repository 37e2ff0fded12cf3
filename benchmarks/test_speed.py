"""The targets as pytest-benchmark sees them: `pytest benchmarks -k "shaped_noise and 64x3x64x64"`.

The same cases, contenders and checks as `python -m benchmarks`, but one after another instead of interleaved: for a
quick look and for pytest-benchmark's own comparisons. What is published comes from the runner.
"""

import itertools

import pytest
import torch

from .cases import Case, Problem, registry
from .checks import Check
from .clocks import CpuClock
from .contenders import CONTENDERS, Contender
from .limits import cache_bytes

DEVICE = CpuClock.device


def pairs() -> list:
    cases = [case for case in registry() if case.group in ("targets", "single call")]
    return [
        pytest.param(case, contender, id=f"{case.name}, {contender.name}")
        for case in cases
        for contender in CONTENDERS.values()
        if contender.takes(case, DEVICE) and contender.name != "torch.compile"
    ]


@pytest.mark.benchmark(max_time=0.1, min_rounds=5, disable_gc=True)
@pytest.mark.parametrize(("case", "contender"), pairs())
def test_speed(benchmark, case: Case, contender: Contender) -> None:
    if reason := contender.missing():
        pytest.skip(f"{contender.name}: {reason}")
    problem = Problem(case, DEVICE, torch.get_num_threads(), cache_bytes(DEVICE))
    call = contender.prepare(problem)
    Check(problem)(call, contender.noise)
    copies = itertools.cycle(range(problem.copies))
    benchmark.group = case.name
    benchmark(lambda: call(next(copies)))
