"""The library's GPU backends, as the table of resources and the cost report see them: one list for both.

A `Contender` turns a case of the benchmarks into the launches that one call of the operator makes. To plug a backend
in, add it to `contenders()`: `triton_contender` makes one of a function that calls the operator on CPU tensors; a
backend with PTX of its own returns `machine.Launch`es itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import torch
from torch import Tensor

import sagd_kernels
from benchmarks.cases import WITH_BACKWARD, Case
from sagd_kernels import weights
from sagd_kernels.backends import unable
from tests.emulation.machine import Launch
from tests.emulation.toolchain import has, tools, version

PIXELS = 1 << 26  # of each tensor: enough blocks to fill every GPU several times
SQUARES = (28, 32, 64, 96, 128, 224, 256, 512)
LATENTS = (768, 16, 16)
RECTANGLES = (3, 48, 80)  # of no backend's own sizes
LARGEST_CUDA_SIDE = 1024  # of a plane, in points
FILLED_PLANES = 64
PORTABLE = 80  # mma.sync; Triton compiles matrix products for 90 and 100 to instructions that the emulator lacks


@dataclass(frozen=True)
class Contender:
    """A backend whose kernels are launched without a GPU.

    Attributes:
        launches: (case, capability, sample) -> the launches of one call as they would be on a GPU of this compute
            capability. If `sample` is None they are only compiled; else each runs its first `sample` blocks in the
            emulator, from code of an older architecture if the emulator does not model the newer one's. None where
            this GPU has no room for the kernel.
        supports: whether it has kernels for a case, on some GPU.
        missing: why it cannot be used here, "" if it can: "triton is not installed".
        toolchain: the versions of what compiles its kernels; numbers of different ones are not compared.
    """

    name: str
    launches: Callable[[Case, int, int | None], Sequence[Launch]]
    supports: Callable[[Case], bool]
    missing: Callable[[], str]
    toolchain: Callable[[], str]


def contenders() -> list[Contender]:
    """All of them, those that are missing included."""
    return [triton_contender("triton", _call_triton, _triton_supports), cuda_contender()]


def _call_triton(operands: "Operands") -> None:
    from sagd_kernels.backends import triton as backend

    case, o = operands.case, operands
    {
        "spectral_filter": lambda: backend.spectral_filter(o.input, o.weight, o.scale),
        "shaped_noise": lambda: backend.shaped_noise(o.key, case.shape, o.weight, o.scale, dtype=case.dtype),
        "add_noise": lambda: backend.add_noise(o.input, o.key, o.weight, o.scale, o.scale),
        "whitened_mse": lambda: backend.whitened_mse(o.input, o.target, o.weight, with_residual=True),
    }[case.operator]()


def _triton_supports(case: Case) -> bool:
    return unable("triton", *case.shape[-2:], case.dtype, torch.device("cuda", 0)) is None


def cases() -> list[Case]:
    """What they are compiled and costed for: every operator, mostly on square planes, in large batches."""
    shapes = [*((3, side, side) for side in SQUARES), RECTANGLES, LATENTS]
    found = [case for shape in shapes for case in _operators(shape, torch.float32)]
    return found + [case for side in (64, 256) for case in _operators((3, side, side), torch.bfloat16)]


def _operators(shape: tuple[int, int, int], dtype: torch.dtype) -> list[Case]:
    samples = -(-PIXELS // (shape[0] * shape[1] * shape[2]))
    case = {"group": "emulated", "shape": (samples, *shape), "dtype": dtype}
    return [
        Case(operator="spectral_filter", scale=True, **case),
        Case(operator="shaped_noise", scale=True, **case),
        Case(operator="add_noise", **case),
        Case(operator="whitened_mse", direction=WITH_BACKWARD, **case),
    ]


def plane(case: Case) -> str:
    """ "64x64", with the channels in front where there are many."""
    channels, height, width = case.shape[1:]
    return f"{height}x{width}" if channels < 16 else f"{channels}x{height}x{width}"


def label(case: Case) -> str:
    """A case without its batch: "shaped_noise 64x64 float32"."""
    return f"{case.what} {plane(case)} {case.dtype_name}"


@dataclass
class Operands:
    """Tensors for an operator call of a case, on the CPU.

    The batch is large and hardly touched: memory that no sampled block reaches is never given out by the system. The
    first planes are random, the others what fresh memory holds.
    """

    case: Case
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    @cached_property
    def input(self) -> Tensor:
        return self._planes()

    @cached_property
    def target(self) -> Tensor:
        return self._planes()

    @cached_property
    def weight(self) -> Tensor:
        """float32 [H, W//2+1], even."""
        return weights.power_law(*self.case.shape[-2:], alpha=-0.5)

    @cached_property
    def key(self) -> Tensor:
        return sagd_kernels.key(2025)

    @cached_property
    def scale(self) -> Tensor:
        """float32 [N], as any operator's scale of a sample."""
        return torch.rand(self.case.shape[0], generator=self.generator) + 0.5

    def _planes(self) -> Tensor:
        tensor = torch.empty(self.case.shape, dtype=self.case.dtype)
        tensor.view(-1, *self.case.shape[-2:])[:FILLED_PLANES].normal_(generator=self.generator)
        return tensor


def triton_contender(name: str, call: Callable[[Operands], object], supports: Callable[[Case], bool]) -> Contender:
    """A contender whose Triton kernels `call` launches on CPU tensors, as one call of the case's operator does."""

    def missing() -> str:
        try:
            import triton  # noqa: F401
        except ImportError:
            return "triton is not installed"
        return ""

    @lru_cache(None)
    def emulate(case: Case, sample: int) -> list[Launch]:
        from tests.emulation.triton import emulated

        with emulated(PORTABLE, sample=sample, races=False) as made:
            call(Operands(case))
        return made

    def launches(case: Case, capability: int, sample: int | None) -> list[Launch]:
        from tests.emulation.triton import compiled

        if sample is not None:
            return emulate(case, sample)
        with compiled(capability) as made:
            call(Operands(case))
        return made

    def toolchain() -> str:
        import triton

        return f"triton {triton.__version__}"

    return Contender(name, launches, supports, missing, toolchain)


def cuda_contender() -> Contender:
    """The CUDA kernels, as the library's host code launches them on CPU tensors."""

    def missing() -> str:
        return "" if has("nvcc", "ptxas") else "nvcc is not installed"

    def launches(case: Case, capability: int, sample: int | None) -> list[Launch]:
        from tests.emulation import cuda

        operators = cuda.shim_operators()
        if not operators._cuda_plan(*case.shape[-2:], cuda.device(capability).shared_per_block):
            return []
        o = Operands(case)
        function, operands = {
            "spectral_filter": lambda: (operators._cuda_spectral_filter, (o.input, o.weight, o.scale)),
            "shaped_noise": lambda: (operators._cuda_shaped_noise, (o.key, case.shape, o.weight, o.scale)),
            "add_noise": lambda: (operators._cuda_add_noise, (o.input, o.key, o.weight, o.scale, o.scale)),
            "whitened_mse": lambda: (operators._cuda_whitened_mse, (o.input, o.target, o.weight, True)),
        }[case.operator]()
        options = {"dtype": case.dtype} if case.operator == "shaped_noise" else {}
        tensors = [operand for operand in operands if isinstance(operand, Tensor)]
        emulated = cuda.emulated(capability, tensors, races=False, sample=sample)
        with cuda.compiled(capability) if sample is None else emulated as made:
            function(*operands, **options)
        return made

    def supports(case: Case) -> bool:
        return case.dtype != torch.float64 and max(case.shape[-2:]) <= LARGEST_CUDA_SIDE

    return Contender("cuda", launches, supports, missing, lambda: f"nvcc {version(tools('nvcc')[0])}")
