"""The measurement: contenders of one case take turns in one process until the case's time is spent.

In each round every contender has one turn, in a new random order: a pause, one call that is not timed, then for some
milliseconds samples of one or several calls each, on a rotation of the data's copies. What disturbs the machine for a
while disturbs everyone.
"""

import gc
import itertools
import math
import os
import random
import re
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch

from . import limits
from .cases import Case, Problem, one_thread, quick, registry
from .checks import Check, WrongResult
from .clocks import Call, Clock, clock_of
from .contenders import COMPILING, CONTENDERS, OURS, Contender
from .machine import Machine, describe
from .process import core_seconds
from .rows import Row

SAMPLE_SECONDS = 0.0005  # calls that are shorter are timed several at once
TURN_SECONDS = 0.008
MIN_ROUNDS = 6


@dataclass(frozen=True)
class Options:
    """What to run. `seconds` is the time for each contender on each case, `cores` the most threads of the whole run."""

    device: str
    cores: int
    seconds: float
    quick: bool = False
    filter: str = ""
    contenders: tuple[str, ...] = tuple(CONTENDERS)

    def cases(self, threads: int) -> list[Case]:
        cases = registry(self.device)
        cases = cases if threads == self.cores else one_thread(cases)
        cases = quick(cases) if self.quick else cases
        return [case for case in cases if re.search(self.filter, case.name)]


@dataclass
class Outcome:
    """Rows, and what did not become one: contenders that failed or were wrong, in words."""

    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass
class Entrant:
    """A contender that has passed the check of a case, and its samples in seconds per call."""

    contender: Contender
    call: Call
    copies: Iterator[int]
    calls_per_sample: int
    samples: list[float] = field(default_factory=list)

    def next_copies(self, count: int) -> list[int]:
        return list(itertools.islice(self.copies, count))

    def take_sample(self, clock: Clock) -> None:
        self.samples.append(clock.time(self.call, self.next_copies(self.calls_per_sample)))


@dataclass
class Measurement:
    """One case: who was timed, what kept others from it in words, and the share of the cores that others took."""

    entrants: list[Entrant]
    problems: list[str]
    others_share: float = 0.0


def run(options: Options, threads: int) -> Outcome:
    """Measure the cases on `threads` threads, to which this process must have been pinned (see process.py)."""
    torch.set_num_threads(threads)
    clock = clock_of(options.device)
    machine = describe(clock.device, options.cores)
    limit = limits.measure(clock)
    outcome, cases = Outcome(), options.cases(threads)
    for number, case in enumerate(cases, 1):
        contenders = [CONTENDERS[name] for name in options.contenders]
        measurement = measure(case, contenders, clock, threads, options.seconds)
        rows = tabulate(case, threads, measurement, limit, machine)
        outcome.rows += rows
        outcome.problems += measurement.problems
        title = f"[{threads} thread{'s' * (threads > 1)}, {number}/{len(cases)}] {case.name}"
        _progress(title, rows, measurement.problems)
    return outcome


def compile_kernels(options: Options, part: int) -> None:
    """Have one of `cores` parts of the cases computed once by those who compile for each: the caches on disk keep it.

    On a GPU this takes longer than the measurement if it has to wait for each case in turn.
    """
    device = clock_of(options.device).device
    for case in options.cases(options.cores)[part :: options.cores]:
        problem = Problem(case, device, 1, cache_bytes=0)
        for contender in (CONTENDERS[name] for name in options.contenders if name in COMPILING):
            if contender.takes(case, device) and not contender.missing():
                with suppress(Exception):  # which the measurement meets again and reports
                    contender.prepare(problem)(0)


def measure(case: Case, contenders: Iterable[Contender], clock: Clock, threads: int, seconds: float) -> Measurement:
    """The contenders that compute the case, timed. Those that are not installed are passed by.

    A peer that fails is a problem in words; a failure of the library itself is raised. Nobody whose result is wrong is
    timed, and without the library nobody is.
    """
    problem = Problem(case, clock.device, threads, limits.cache_bytes(clock.device))
    check, entrants, problems = Check(problem), [], []
    for contender in contenders:
        if not contender.takes(case, clock.device) or contender.missing():
            continue
        try:
            call = contender.prepare(problem)
            check(call, contender.noise)
        except WrongResult as error:
            problems.append(f"{contender.name} is wrong on {case.name}: {error}")
            continue
        except Exception as error:
            if contender.name == OURS:
                raise
            problems.append(f"{contender.name} failed on {case.name}: {type(error).__name__}: {error}")
            continue
        entrants.append(_calibrated(contender, call, clock, problem.copies))
    if any(entrant.contender.name == OURS for entrant in entrants):
        return Measurement(entrants, problems, _take_turns(entrants, clock, seconds))
    return Measurement([], problems)


def _calibrated(contender: Contender, call: Call, clock: Clock, copies: int) -> Entrant:
    entrant = Entrant(contender, call, itertools.cycle(range(copies)), 1)
    one_call = min(clock.time(call, entrant.next_copies(1)) for _ in range(3))
    entrant.calls_per_sample = max(1, math.ceil(SAMPLE_SECONDS / one_call))
    return entrant


def _take_turns(entrants: list[Entrant], clock: Clock, seconds: float) -> float:
    """Fill the entrants' samples; returns the share of the cores' time that others took meanwhile."""
    order, shuffle = list(entrants), random.Random(0).shuffle
    start, (worked, own) = time.perf_counter(), core_seconds()
    end = start + seconds * len(entrants)
    with _no_garbage_collection():
        rounds = 0
        while rounds < MIN_ROUNDS or time.perf_counter() < end:
            shuffle(order)
            for entrant in order:
                time.sleep(clock.settle)
                turn = time.perf_counter() + TURN_SECONDS
                clock.time(entrant.call, entrant.next_copies(1))
                entrant.take_sample(clock)
                while time.perf_counter() < turn:
                    entrant.take_sample(clock)
            rounds += 1
    worked_now, own_now = core_seconds()
    available = (time.perf_counter() - start) * len(os.sched_getaffinity(0))
    others = ((worked_now - worked) - (own_now - own)) / available
    return min(max(others, 0.0), 1.0)  # the kernel counts in ticks of 10 ms


@contextmanager
def _no_garbage_collection():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def tabulate(case: Case, threads: int, measurement: Measurement, limit: limits.Limits, machine: Machine) -> list[Row]:
    """One row for each contender of a case."""
    medians = {entrant.contender.name: statistics.median(entrant.samples) for entrant in measurement.entrants}
    copy_seconds = limits.one_pass_bytes(case) / limit.bytes_per_second
    peak_seconds = limits.transform_flops(case) / limit.flops_per_second
    rows = []
    for entrant in measurement.entrants:
        name, median = entrant.contender.name, medians[entrant.contender.name]
        low, _, high = statistics.quantiles(entrant.samples, n=4, method="inclusive")
        rows.append(
            Row(
                case=case.name,
                group=case.group,
                what=case.what,
                size=case.size,
                dtype=case.dtype_name,
                weight=case.weight,
                cache=case.cache,
                threads=threads,
                contender=name,
                median_us=median * 1e6,
                min_us=min(entrant.samples) * 1e6,
                p25_us=low * 1e6,
                p75_us=high * 1e6,
                samples=len(entrant.samples),
                others_share=measurement.others_share,
                ns_per_pixel=median * 1e9 / case.pixels,
                gb_per_s=limits.one_pass_bytes(case) / median * 1e-9,
                share_of_copy=copy_seconds / median,
                share_of_peak=peak_seconds / median,
                speedup=median / medians[OURS],
                extra_bytes=None,
                copy_gb_per_s=limit.bytes_per_second * 1e-9,
                peak_gflop_per_s=limit.flops_per_second * 1e-9,
                **machine._asdict(),
            )
        )
    return rows


def _progress(title: str, rows: list[Row], problems: list[str]) -> None:
    ours = [f"{row.median_us:.0f} us" for row in rows if row.contender == OURS]
    others = [f"{row.contender} {row.speedup:.1f}x" for row in rows if row.contender != OURS]
    print(f"{title}: {', '.join(ours + others)}", file=sys.stderr, flush=True)
    for problem in problems:
        print(f"  {problem}", file=sys.stderr, flush=True)
