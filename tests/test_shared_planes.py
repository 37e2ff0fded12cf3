"""Threads share large planes where there are too few for all of them; the results do not tell, to the bit."""

import ctypes
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import DTYPES, assert_operator_close, random_weight, weight_dtype

import sagd_kernels as sagd

KEY = sagd.fold_in(sagd.key(2025), 7)
OPERATORS = ["spectral_filter", "shaped_noise", "add_noise", "whitened_mse"]
each_operator = pytest.mark.parametrize("operator", OPERATORS)
THREADS = (2, 3, 4, 7)

# Planes that threads share: square, odd, prime, with rows or columns that strips do not divide.
SIZES = [(1, 256, 256), (1, 225, 321), (1, 479, 263), (1, 509, 128), (1, 96, 700), (3, 384, 250)]


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def arguments(operator, size, dtype, weight=None):
    """(positional, keyword) arguments of an operator on planes of that size."""
    planes, scale = torch.randn(size).to(dtype), torch.tensor(0.7)
    weight = random_weight(*size[-2:], dtype=weight_dtype(dtype)) if weight is None else weight
    return {
        "spectral_filter": ((planes, weight, scale), {}),
        "shaped_noise": ((KEY, size, weight, scale), {"plane_offset": 5, "dtype": dtype}),
        "add_noise": ((planes, KEY, weight, scale, -scale), {"plane_offset": 5}),
        "whitened_mse": ((planes, planes.flip(-1, -2) / 2, weight), {}),
    }[operator]


def apply(operator, args, kwargs):
    """Every tensor that the operator computes, the residual of whitened_mse among them."""
    if operator == "whitened_mse":
        return torch.ops.sagd._whitened_mse(*args, True)
    result = getattr(torch.ops.sagd, operator)(*args, **kwargs)
    return result if isinstance(result, tuple) else (result,)


def assert_same_bits(results, expected):
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(result, wanted, rtol=0, atol=0, equal_nan=True)


def assert_threads_do_not_matter(operator, args, kwargs):
    with threads(1):
        expected = apply(operator, args, kwargs)
    for count in THREADS:
        with threads(count):
            assert_same_bits(apply(operator, args, kwargs), expected)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_operator
def test_results_do_not_depend_on_the_number_of_threads(operator, dtype, size, poisoned_memory):
    assert_threads_do_not_matter(operator, *arguments(operator, size, dtype))


@each_operator
def test_nor_do_those_of_planes_that_are_all_shared(operator):
    """However many there are: they are too large for the caches to have one for each thread."""
    assert_threads_do_not_matter(operator, *arguments(operator, (4, 1024, 1030), torch.float32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_operator
def test_shared_planes_equal_the_reference(operator, dtype, poisoned_memory):
    args, kwargs = arguments(operator, (1, 225, 321), dtype)
    with threads(2):
        assert_operator_close(operator, *args, **kwargs)


@each_operator
def test_strides_and_a_weight_for_each_plane(operator):
    size = (3, 256, 250)
    args, kwargs = arguments(operator, size, torch.float32, random_weight(*size))
    channels_last = [
        a.movedim(0, -1).contiguous().movedim(-1, 0) if isinstance(a, torch.Tensor) and a.ndim == 3 else a for a in args
    ]
    assert_threads_do_not_matter(operator, channels_last, kwargs)
    with threads(2):
        assert_same_bits(apply(operator, channels_last, kwargs), apply(operator, args, kwargs))


@each_operator
def test_what_is_not_finite_stays_in_its_plane(operator):
    args, kwargs = arguments(operator, (2, 320, 321), torch.float32, random_weight(2, 320, 321))
    with threads(4):
        clean = apply(operator, args, kwargs)
        for tensor in args:
            if isinstance(tensor, torch.Tensor) and tensor.ndim == 3:
                tensor[0, 17, 100] = torch.nan
        spoilt = apply(operator, args, kwargs)
    for s, c in zip(spoilt, clean, strict=True):
        if c.ndim:
            assert not torch.equal(s[0], c[0])
            assert torch.equal(s[1], c[1])


# ---- who calls


@each_operator
def test_within_a_parallel_region_of_torch(operator):
    """Where torch's threads are at work already, the one that calls does it all."""
    args, kwargs = arguments(operator, (1, 256, 256), torch.float32)
    expected, results = apply(operator, args, kwargs), []

    @ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
    def body(begin, end, _):
        results.extend(apply(operator, args, kwargs) for _ in range(begin, end))

    library = ctypes.CDLL(str(next((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"))))
    sizes = [ctypes.c_int64(n) for n in (0, 4, 1)]
    with threads(2):
        assert library.torch_parallel_for(*sizes, body, None) == 0
    assert len(results) == 4
    for result in results:
        assert_same_bits(result, expected)


def test_from_several_python_threads_at_once():
    """Each shares its planes with threads of its own, all of one size, so that a mix-up of their memory would show."""
    calls = [(operator, *arguments(operator, (1, 256, 254), torch.float32)) for operator in OPERATORS] * 2
    expected, wrong, ready = [apply(*call) for call in calls], [], threading.Barrier(len(calls))
    finished = []

    def run(call, wanted):
        torch.set_num_threads(2)
        ready.wait()
        for _ in range(10):
            results = apply(*call)
            wrong.extend(r for r, w in zip(results, wanted, strict=True) if not torch.equal(r, w))
        finished.append(call)

    workers = [threading.Thread(target=run, args=pair) for pair in zip(calls, expected, strict=True)]
    with threads(2):
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert len(finished) == len(calls) and not wrong


# ---- in processes of their own


def run_program(program, **environment):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_both_threads_work_on_one_plane():
    """Otherwise all of the above would compare one thread with itself."""
    out = run_program(
        """
import os, torch, sagd_kernels as sagd

def spent(thread):  # ticks that it has run
    with open(f"/proc/self/task/{thread}/stat") as stat:
        return sum(map(int, stat.read().rpartition(")")[2].split()[11:13]))

torch.set_num_threads(2)
planes, weight = torch.randn(512, 512), torch.rand(512, 257)
others = set(os.listdir("/proc/self/task"))
sagd.spectral_filter(planes, weight)
(worker,) = set(os.listdir("/proc/self/task")) - others
before = spent(worker), spent(os.getpid())
while spent(worker) + spent(os.getpid()) < sum(before) + 40:
    sagd.spectral_filter(planes, weight)
print(spent(worker) - before[0], spent(os.getpid()) - before[1])
""",
        OMP_WAIT_POLICY="passive",
    )
    worker, caller = map(int, out.split())
    assert worker > 0.25 * caller


def test_an_error_on_any_thread_is_raised():
    """Memory runs out where threads that share a plane ask for theirs: nothing else is new in this call."""
    run_program(
        """
import resource, torch, sagd_kernels as sagd

planes, weight = torch.randn(1 << 17, 70), torch.rand(1 << 17, 36)
torch.set_num_threads(1)
expected = sagd.spectral_filter(planes, weight)
again = sagd.spectral_filter(planes, weight)
del again  # its memory is there for the next result
torch.set_num_threads(2)
sagd.spectral_filter(torch.randn(512, 512), torch.rand(512, 257))  # starts the other thread
unlimited = resource.getrlimit(resource.RLIMIT_AS)
with open("/proc/self/statm") as statm:
    used = int(statm.read().split()[0]) * resource.getpagesize()
errors = 0
for spare in range(0, 1 << 30, 1 << 22):
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, unlimited[1]))
    try:
        result = sagd.spectral_filter(planes, weight)
        break
    except (MemoryError, RuntimeError):
        errors += 1
    finally:
        resource.setrlimit(resource.RLIMIT_AS, unlimited)
assert errors > 1 and torch.equal(result, expected), errors
""",
        MALLOC_MMAP_THRESHOLD_=str(1 << 40),  # what is freed is kept
        MALLOC_TRIM_THRESHOLD_=str(1 << 40),
    )
