"""What the tests share: the tolerance rule, the sizes, and arguments for every operator."""

import ctypes
import math
import platform

import pytest
import torch
from torch import Tensor

import sagd_kernels as sagd
from sagd_kernels import reference
from sagd_kernels.backends import composite

# Planes [H, W]: trivial, tiny, odd, prime (dense, Rader's and Bluestein's transforms), non-square, mixed radices.
SIZES = [
    (1, 1), (1, 7), (7, 1), (2, 2), (1, 2), (3, 5), (8, 8), (16, 16), (27, 31), (28, 28), (32, 32), (48, 80),
    (37, 53), (61, 67), (64, 64), (96, 96), (100, 100), (107, 97), (128, 128), (131, 34), (160, 24), (224, 224),
    (240, 36), (256, 256),
]  # fmt: skip
LARGE_SIZES = [(384, 384), (512, 512), (1024, 1024), (479, 263)]
REFERENCE_ERROR = 1e-15
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OPERATORS = ["spectral_filter", "shaped_noise", "add_noise", "whitened_mse"]
each_operator = pytest.mark.parametrize("operator", OPERATORS)


# The tensors are small: on a busy machine, waiting for a second thread takes longer than the work.
torch.set_num_threads(1)


def pytest_report_header() -> str:
    return f"sagd_kernels: CPU kernels for {torch.ops.sagd._cpu_isa()}"


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """||actual - expected|| / ||expected||; infinite where anything is not finite."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if not torch.isfinite(actual).all():
        return math.inf
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-300)).item()


def assert_close(actual: Tensor, expected: Tensor, composite: Tensor, *, factor: float = 2) -> None:
    """The tolerance rule: at most twice (`factor`) the error of the composite of torch.fft at the same dtype.

    `expected` is the float64 reference. A rounding of the result's dtype is always allowed, and the reference's own
    roundings; where there are few values, whose errors scatter too much for a ratio, a few roundings of the dtype that
    is computed in. The comparison first proves that it can fail: a zeroed result must not pass.
    """
    assert actual.dtype == composite.dtype, f"dtype {actual.dtype}, expected {composite.dtype}"
    rounding = torch.finfo(composite.dtype).eps
    limit = factor * max(relative_error(composite, expected), rounding) + REFERENCE_ERROR
    if expected.numel() < 64:
        limit += 4 * torch.finfo(weight_dtype(composite.dtype)).eps
    assert relative_error(torch.zeros_like(expected), expected) > limit, "the comparison would accept zeros"
    error = relative_error(actual, expected)
    assert error <= limit, f"relative error {error:.2e}, limit {limit:.2e}"


def outputs(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Every tensor that an operator returns."""
    return result if isinstance(result, tuple) else (result,)


def arguments(operator: str, size, dtype=torch.float32, *, planes=None, weight=None, key=None, scales=None):
    """(positional, keyword) arguments of an operator on planes of that size: random ones where none are given."""
    planes = torch.randn(size).to(dtype) if planes is None else planes
    weight = random_weight(*size[-2:], dtype=weight_dtype(dtype)) if weight is None else weight
    key = sagd.fold_in(sagd.key(2025), 7) if key is None else key
    samples = size[0] if len(size) > 2 else 1
    scales = (torch.linspace(0.2, 1.1, samples), torch.linspace(-0.7, 1.3, samples)) if scales is None else scales
    return {
        "spectral_filter": ((planes, weight, scales[-1]), {}),
        "shaped_noise": ((key, size, weight, scales[-1]), {"plane_offset": 5, "dtype": dtype}),
        "add_noise": ((planes, key, weight, *scales), {"plane_offset": 5}),
        "whitened_mse": ((planes, planes.flip(-1, -2) / 2, weight), {}),
    }[operator]


def apply_composite(operator: str, *args, **kwargs):
    """The operator as its composite of torch.fft, with the operator's own arguments."""
    if operator == "whitened_mse":
        return composite.whitened_mse(*args, with_residual=False)[0]
    return getattr(composite, operator)(*args, **kwargs)


def apply_reference(operator: str, *args, dtype: torch.dtype | None = None, **kwargs):
    """The operator's float64 definition, with the operator's own arguments."""
    return getattr(reference, operator)(*args, **kwargs)


def assert_operator_close(operator: str, *args, **kwargs):
    """Applies `sagd_kernels.<operator>`, holds every output against the reference by the tolerance rule, returns it."""
    result = getattr(sagd, operator)(*args, **kwargs)
    expected = apply_reference(operator, *args, **kwargs)
    peer = apply_composite(operator, *args, **kwargs)
    if isinstance(result, Tensor):
        assert_close(result, expected, peer)
    else:
        for parts in zip(result, expected, peer, strict=True):
            assert_close(*parts)
    return result


def step(x: Tensor, key: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """All operators, one after the other."""
    noisy, noise = sagd.add_noise(x, key, weight, scale, 1 - scale)
    restored = sagd.spectral_filter(noisy, weight, scale) + sagd.shaped_noise(key, x.shape, weight, plane_offset=7)
    return sagd.whitened_mse(restored, noise, weight)


def random_weight(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """A positive half-plane weight [..., H, W//2+1] from (..., H, W), not symmetric in any way."""
    generator = torch.Generator().manual_seed(seed)
    size = (*shape[:-1], shape[-1] // 2 + 1)
    return torch.rand(size, generator=generator, dtype=torch.float64).add(0.25).to(dtype)


def weight_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a weight for planes of that dtype, which is the one that operators compute in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@pytest.fixture
def key() -> Tensor:
    return sagd.fold_in(sagd.key(2025), 7)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def compile_once():
    """torch.compile(fullgraph=True, dynamic=True) of a function, which may be compiled in its first call alone."""
    torch._dynamo.reset()

    def compile(function, backend="aot_eager"):
        compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)

        def call(*args):
            result = compiled(*args)
            torch.compiler.set_stance("fail_on_recompile")
            return result

        return call

    yield compile
    torch.compiler.set_stance("default")


@pytest.fixture
def poisoned_memory():
    """Fresh memory holds huge numbers or NaN, so that a value which a kernel leaves unwritten is seen."""
    libc, m_perturb = ctypes.CDLL(None), -6
    libc.mallopt(m_perturb, 0x80)  # glibc then hands out memory full of 0x7f: 3.4e38 in float32
    # torch's wheels for AArch64 allocate with mimalloc, which has no such switch
    assert platform.machine() == "aarch64" or (torch.empty(10000) > 3e38).all()
    yield
    libc.mallopt(m_perturb, 0)
