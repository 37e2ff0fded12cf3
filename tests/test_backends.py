"""Which backend computes a call on CUDA tensors, and that `explain` says so. No GPU is needed to choose one."""

import re
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from conftest import random_weight

import sagd_kernels as sagd
from sagd_kernels import backends
from sagd_kernels.backends import composite

pytest.importorskip("triton", reason="Triton is not installed")

DEVICE = torch.device("cuda", 0)
KEY = sagd.key(0)
CALLS = {
    "spectral_filter": lambda n: (torch.randn(2, n, n), random_weight(n, n)),
    "shaped_noise": lambda n: (KEY, (2, n, n), random_weight(n, n)),
    "add_noise": lambda n: (torch.randn(2, n, n), KEY, random_weight(n, n), torch.ones(2), torch.ones(2)),
    "_whitened_mse": lambda n: (torch.randn(2, n, n), torch.randn(2, n, n), random_weight(n, n), True),
}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.delenv("SAGD_BACKEND", raising=False)
    monkeypatch.setattr(backends, "_fastest", {})
    unable = backends.unable
    unable.cache_clear()
    yield
    unable.cache_clear()


@pytest.fixture
def called(monkeypatch):
    """The backends that were called, by name; each only says that it was."""
    names = []
    for name in backends.BACKENDS:
        for operator in CALLS:
            function = operator.lstrip("_")
            monkeypatch.setattr(backends._backend(name), function, lambda *_, name=name, **__: names.append(name))
    return names


def unable_but(monkeypatch, *able):
    monkeypatch.setattr(backends, "unable", lambda name, *args: None if name in able else f"no {name} here")


@pytest.mark.parametrize("side", [16, 160])
@pytest.mark.parametrize("operator", CALLS)
def test_the_first_that_is_able_computes(operator, side, called, monkeypatch):
    order = backends.order(operator.lstrip("_"), side, side)
    assert sorted(order) == sorted(backends.BACKENDS) and order[0] == "cuda"
    filters = operator in ("spectral_filter", "_whitened_mse")
    assert order[1] == ("composite" if filters and side == 160 else "triton")
    for able in (order, order[1:], order[2:]):
        unable_but(monkeypatch, *able)
        backends.on_cuda(operator)(*CALLS[operator](side))
        assert called.pop() == able[0] and not called


def test_a_gpu_without_room_raises_the_error_that_trainers_catch(monkeypatch):
    unable_but(monkeypatch, "cuda")
    run = backends.on_cuda("spectral_filter")
    for said, kind in (
        ("empty, csrc/arguments.h:1, CUDA out of memory.", torch.OutOfMemoryError),
        ("other", RuntimeError),
    ):

        def fail(*args, said=said):
            raise RuntimeError(said)

        monkeypatch.setattr(backends._backend("cuda"), "spectral_filter", fail)
        with pytest.raises(RuntimeError, match=re.escape(said)) as error:
            run(*CALLS["spectral_filter"](16))
        assert type(error.value) is kind


def test_the_environment_forces_one(called, monkeypatch):
    run = backends.on_cuda("spectral_filter")
    unable_but(monkeypatch, "triton", "composite")
    monkeypatch.setenv("SAGD_BACKEND", "composite")
    run(*CALLS["spectral_filter"](16))
    assert called == ["composite"]
    monkeypatch.setenv("SAGD_BACKEND", "cuda")
    with pytest.raises(RuntimeError, match=r"SAGD_BACKEND.*got 'cuda'; no cuda here"):
        run(*CALLS["spectral_filter"](16))
    monkeypatch.setenv("SAGD_BACKEND", "cufft")
    with pytest.raises(RuntimeError, match="SAGD_BACKEND: expected one of cuda, triton, composite, got 'cufft'"):
        run(*CALLS["spectral_filter"](16))


def test_benchmark_keeps_the_fastest_for_calls_of_a_kind(called, monkeypatch):
    milliseconds = {"cuda": 3.0, "triton": 1.0, "composite": 2.0}
    measured = []

    def measure(call):
        call()
        measured.append(called[-1])
        return milliseconds[called.pop()]

    unable_but(monkeypatch, *backends.BACKENDS)
    monkeypatch.setattr(backends, "_milliseconds", measure)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    run = backends.on_cuda("spectral_filter")
    run(*CALLS["spectral_filter"](16))
    assert called == ["cuda"] and not measured
    monkeypatch.setattr(sagd, "benchmark", True)
    for _ in range(2):
        run(*CALLS["spectral_filter"](16))
    assert called == ["cuda", "triton", "triton"] and measured == list(backends.BACKENDS)
    run(*CALLS["spectral_filter"](8))
    assert measured == 2 * list(backends.BACKENDS)


def test_measuring_waits_until_no_graph_is_captured(called, monkeypatch):
    unable_but(monkeypatch, *backends.BACKENDS)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(backends, "_milliseconds", lambda call: pytest.fail("measured during a capture"))
    monkeypatch.setattr(sagd, "benchmark", True)
    backends.on_cuda("spectral_filter")(*CALLS["spectral_filter"](16))
    assert called == ["cuda"] and not backends._fastest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((8,),), r"size: expected \[..., H, W\] with planes of at least 1 x 1, got \[8\]"),
        (((2, 0, 8),), r"size: .* got \[2, 0, 8\]"),
        (("ab",), r"size: .* got \['a', 'b'\]"),
        ((8,), r"size: expected ints \[..., H, W\], got int"),
        (((8, 8), torch.int32), "dtype: expected float32, float64, bfloat16 or float16, got torch.int32"),
        (((8, 8), "float32"), "dtype: expected float32, .* got 'float32'"),
        (((8, 8), torch.float32, "cpu", "filter"), "operator: expected one of spectral_filter, .* got 'filter'"),
    ],
)
def test_explain_names_what_is_wrong(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        sagd.explain(*arguments)


def test_explain_names_the_backend_and_why_no_other(monkeypatch):
    cuda = backends._backend("cuda")
    monkeypatch.setattr(cuda, "build_info", lambda: {"cuda": False})
    text = sagd.explain((4, 3, 64, 64), device="cuda")
    assert text.startswith("Triton kernels: noise in quadrants of 32 x 32")
    assert text.endswith("the library was built without CUDA kernels")
    larger = sagd.explain((512, 129), device="cuda", operator="shaped_noise")
    assert larger.startswith("Triton kernels: axis by axis")
    assert sagd.explain((512, 129), device="cuda").startswith("composite of torch.fft")
    assert "up to 512 x 512" in sagd.explain((8, 513), device="cuda", operator="shaped_noise")
    assert "the Triton kernels compute in float32" in sagd.explain((64, 64), dtype=torch.float64, device="cuda")
    assert sagd.explain((8, 8), device="meta") == "composite of torch.fft: there are no kernels for meta"


def test_a_device_without_an_index_is_the_current_one(monkeypatch):
    asked, current = [], 1

    def unable(name, height, width, dtype, device):
        asked.append(device.index)
        return None if name == "composite" else f"no {name}"

    monkeypatch.setattr(backends, "unable", unable)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    assert sagd.explain((8, 8), device="cuda").startswith("composite")
    assert set(asked) == {current}


def test_the_cuda_kernels_are_asked_for_torchs_device(monkeypatch):
    cuda, entered = backends._backend("cuda"), []

    @contextmanager
    def enter(device):
        entered.append(device.index)
        yield
        entered.pop()

    def plan(height, width, shared_bytes=-1, device=-1):
        return f"{height} x {width} on {device}"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", enter)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: entered[-1])
    monkeypatch.setattr(cuda, "_ops", SimpleNamespace(_cuda_plan=plan))
    assert cuda.describe(8, 9, torch.float32, torch.device("cuda", 3)) == "8 x 9 on 3"


def test_half_precision_takes_one_product():
    describe = backends._backend("triton").describe
    assert "one product" in describe(64, 64, torch.bfloat16, DEVICE)
    assert "three products" in describe(64, 64, torch.float32, DEVICE)


def test_the_order_changes_where_tritons_programs_end():
    assert backends.TRITON_PROGRAM == pytest.importorskip("sagd_kernels.backends.triton").LARGEST


def test_the_composite_is_able_to_do_everything():
    assert composite.unable(10**6, 1, torch.float64, DEVICE) is None
