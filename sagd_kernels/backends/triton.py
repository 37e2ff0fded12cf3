"""The operators by Triton's kernels, for CUDA tensors: which calls they take, and the launches.

A plane of up to 128 x 128 is one program of triton_kernels.py, or one of several of a program of triton_small.py; one
of up to 512 x 512 is many tiles of triton_tiles.py.
Arguments have been checked, as for the composite; planes are such that `unable` is None.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..spectral import whitening
from . import triton_kernels as kernels
from . import triton_small as small
from . import triton_tiles as tiles

OPTIONS = {"enable_fp_fusion": True, "num_stages": 1}  # Triton's defaults for these change with its version

WHOLE = 32  # the largest height or width of planes of which a program takes several
LARGEST = 128  # the largest height or width of a plane that one program takes
LARGEST_IN_TILES = 512
L2_BYTES = 40 << 20  # of an A100, where there is no device to ask
CHUNK = 16  # lines of a plane at a time
TILE = 16  # lines of a larger plane that a program transforms, and of a step of a product
ROWS, SAMPLES = 32, 128  # of a larger plane that a program of the last launch computes, and their mirror images


class Plan(NamedTuple):
    """How planes that one program takes are computed: slots of the axes' half bases, samples of a row, rows or row
    frequencies at a time, warps of the filter and of noise."""

    MH: int
    MW: int
    NW: int
    CHUNK: int
    filter_warps: int
    noise_warps: int


class TilesPlan(NamedTuple):
    """How larger planes are computed: slots of the axes' half bases, in whole TILEs; powers of two that hold them."""

    MH: int
    MW: int
    TH: int
    TW: int


def plan(height: int, width: int) -> Plan | TilesPlan | None:
    """None where planes are too large for these kernels."""
    if max(height, width) > LARGEST_IN_TILES:
        return None
    if max(height, width) > LARGEST:
        MH, MW = (TILE * triton.cdiv(n // 2 + (n % 32 != 0), TILE) for n in (height, width))
        return TilesPlan(MH, MW, triton.next_power_of_2(MH), triton.next_power_of_2(MW))
    rows, columns = (max(16, triton.next_power_of_2(-(-n // 2))) for n in (height, width))
    samples = max(16, triton.next_power_of_2(width))
    filter_warps = min(4, max(1, rows * columns // 512))
    noise_warps = max(1, min(samples // 16, rows * samples // 512))  # a warp has 16 rows of a product at least
    return Plan(rows, columns, samples, CHUNK, filter_warps, noise_warps)


def unable(height: int, width: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why these kernels cannot compute planes of this size and dtype on a CUDA device, if they cannot."""
    if torch.version.hip:
        return "the Triton kernels are for NVIDIA's GPUs"
    if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < (8, 0):
        return "the Triton kernels need compute capability 8.0"
    if dtype == torch.float64:
        return "the Triton kernels compute in float32"
    if plan(height, width) is None:
        return f"the Triton kernels take planes of up to {LARGEST_IN_TILES} x {LARGEST_IN_TILES}"
    return None


def describe(height: int, width: int, dtype: torch.dtype, device: torch.device) -> str:
    """What the kernels do with planes of this size and dtype, for people to read."""
    p, passes = plan(height, width), _passes(dtype)
    products = "one product of float16" if passes == 1 else "three products of float16 for each of float32"
    if isinstance(p, TilesPlan):
        return f"axis by axis, in half bases of {p.TH} and {p.TW} slots, {TILE} lines to a program; {products}"
    if max(height, width) <= WHOLE:
        return f"whole, several planes to a program; {products}"
    filter = f"likewise, warps: {p.filter_warps}"
    noise = f"in quadrants of {p.MH} x {p.MW}, {p.CHUNK} rows at a time, warps: {p.noise_warps}"
    return f"noise {noise}; filter {filter}; {products}"


# ---- the operators ---------------------------------------------------------------------------------------------------


def spectral_filter(input: Tensor, weight: Tensor, scale: Tensor | None = None) -> Tensor:
    output = _contiguous_like(input)
    _filter(input, weight, scale=scale, output=output)
    return output


def shaped_noise(key, size, weight, scale=None, *, plane_offset=0, dtype=None) -> Tensor:
    output = weight.new_empty(size, dtype=dtype or weight.dtype)
    _noise(key, weight, plane_offset, scale=scale, output=output)
    return output


def add_noise(input, key, weight, signal_scale, noise_scale, *, plane_offset=0) -> tuple[Tensor, Tensor]:
    noisy, noise = _contiguous_like(input), _contiguous_like(input)
    _noise(key, weight, plane_offset, scale=noise_scale, output=noise, noisy=noisy, input=input, signal=signal_scale)
    return noisy, noise


def whitened_mse(input: Tensor, target: Tensor, weight: Tensor, with_residual: bool) -> tuple[Tensor, Tensor]:
    whitened = _contiguous_like(input) if with_residual else None
    plane_loss = weight.new_empty(input.shape[:-2])
    if max(input.shape[-2:]) > LARGEST:
        weight = whitening(weight, input.shape[-1])  # to the tiles' kernels a weight like any other
    _filter(input, weight, target=target, output=whitened, plane_loss=plane_loss)
    return plane_loss.mean(), whitened if with_residual else input.new_empty(0)


def _contiguous_like(input: Tensor) -> Tensor:
    return torch.empty_like(input, memory_format=torch.contiguous_format)


# ---- launches --------------------------------------------------------------------------------------------------------


def _filter(input, weight, *, output, scale=None, target=None, plane_loss=None) -> None:
    *batch, height, width = input.shape
    if math.prod(batch) == 0:
        return
    input, target, weight = _addressable(input), _addressable(target), _dense(weight)
    grid = _grid(
        batch,
        output=_contiguous_strides(batch),
        input=_plane_strides(input, batch),
        target=_plane_strides(target, batch),
        scale=_scale_strides(scale, batch),
        weight=_plane_strides(weight, batch),
    )
    if grid is None:
        scale = None if scale is None else _expand_left(scale, batch)
        target = None if target is None else target.contiguous()
        args = input.contiguous(), _expand_right(weight, batch)
        return _filter(*args, output=output, scale=scale, target=target, plane_loss=plane_loss)
    axes, strides = grid
    p, passes = plan(height, width), _passes(input.dtype if target is None else torch.float32)
    if isinstance(p, TilesPlan):
        return _filter_in_tiles(axes, strides, p, passes, output, plane_loss, input, target, scale, weight)
    planes = (
        output, plane_loss, strides["output"], input, strides["input"], target, strides["target"],
        scale, strides["scale"], weight, strides["weight"],
    )  # fmt: skip
    constants = {"H": height, "W": width, "DENSE": _dense_rows(input, target), "PASSES": passes}
    if max(height, width) <= WHOLE:
        rows, columns = _hartley_basis(height, input.device), _hartley_basis(width, input.device)
        constants |= {"MH": rows.shape[-1], "MW": columns.shape[-1], "SHARED": strides["weight"][0] == 0}
        each = _planes_of_program(axes, input.device)
        grid = triton.cdiv(axes[0], each), *axes[1:]
        _launch(small.whole_filter_kernel, grid, *planes, columns, rows, axes[0], each, **constants, num_warps=1)
    else:
        rows, columns = _basis(height, p.MH, input.device)[1], _whole_basis(width, p.MW, p.NW, input.device)
        constants |= {"MH": p.MH, "MW": p.MW, "NW": p.NW, "CHUNK": p.CHUNK}
        _launch(kernels.filter_kernel, axes, *planes, columns, rows, **constants, num_warps=p.filter_warps)


def _noise(key, weight, plane_offset, *, scale, output, noisy=None, input=None, signal=None) -> None:
    *batch, height, width = output.shape
    if math.prod(batch) == 0:
        return
    lead, key = key.ndim - 1, key.contiguous()
    input, weight = _addressable(input), _dense(weight)
    grid = _grid(
        batch,
        output=_contiguous_strides(batch),
        input=_plane_strides(input, batch),
        signal=_scale_strides(signal, batch),
        scale=_scale_strides(scale, batch),
        key=[*key.stride()[:-1], *[0] * (len(batch) - lead)],
        number=[*[0] * lead, *_contiguous_strides(batch[lead:])],
        weight=_plane_strides(weight, batch),
    )
    if grid is None:
        scale = None if scale is None else _expand_left(scale, batch)
        if input is not None:
            input, signal = input.contiguous(), _expand_left(signal, batch)
        weight = _expand_right(weight, batch)
        return _noise(key, weight, plane_offset, scale=scale, output=output, noisy=noisy, input=input, signal=signal)
    axes, strides = grid
    p, passes = plan(height, width), _passes(output.dtype)
    if isinstance(p, TilesPlan):
        return _noise_in_tiles(
            axes, strides, p, passes, output, noisy, input, signal, scale, key, plane_offset, weight
        )  # fmt: skip
    args = (
        output, noisy, strides["output"], input, strides["input"], signal, strides["signal"], scale, strides["scale"],
        key, strides["key"], plane_offset, strides["number"], weight, strides["weight"],
    )  # fmt: skip
    constants = {"H": height, "W": width, "DENSE": _dense_rows(input), "PASSES": passes}
    if max(height, width) <= WHOLE:
        MH, MW = (8 if n <= 16 else 16 for n in (height, width))
        rows, columns = _whole_basis(height, MH, 2 * MH, weight.device), _whole_basis(width, MW, 2 * MW, weight.device)
        together = _planes_of_tile(MH, MW, height, width, strides)
        each = together * triton.cdiv(_planes_of_program(axes, weight.device), together)
        constants |= {"MH": MH, "MW": MW, "PLANES": together, "SHARED": strides["weight"][0] == 0}
        grid = triton.cdiv(axes[0], each), *axes[1:]
        # With fewer registers ptxas spills, left alone it takes all, which leaves half as many warps.
        constants |= {"maxnreg": 144} if max(MH, MW) == 16 else {}
        _launch(small.whole_noise_kernel, grid, *args, columns, rows, axes[0], each, **constants, num_warps=1)
    else:
        rows, columns = _basis(height, p.MH, weight.device)[0], _whole_basis(width, p.MW, p.NW, weight.device)
        constants |= {"MH": p.MH, "MW": p.MW, "NW": p.NW, "CHUNK": p.CHUNK}
        # Left alone, ptxas spills for 16 warps on some GPUs; with this limit there are 12.
        constants |= {"maxnreg": 168} if p.noise_warps == 4 else {}
        _launch(kernels.noise_kernel, axes, *args, columns, rows, **constants, num_warps=p.noise_warps)


def _launch(kernel, grid, *args, **constants) -> None:
    kernel[grid](*args, **constants, **OPTIONS)


def _passes(dtype: torch.dtype) -> int:
    """Products for each product, by the dtype of the result: three keep float32's precision, one tf32's."""
    return 1 if dtype == torch.bfloat16 or torch.backends.cuda.matmul.fp32_precision == "tf32" else 3


def _kept(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`make`, whose last argument is a device, with its results kept for good: CUDA graphs go on reading them.

    The result is complete before another stream can read it. Under a capture there is none until the graph runs, so it
    belongs to that graph alone.
    """
    known: dict[tuple, Tensor] = {}

    @functools.wraps(make)
    def kept(*args) -> Tensor:
        if args in known:
            return known[args]
        made, device = make(*args), args[-1]
        if device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():
                return made
            torch.cuda.current_stream(device).synchronize()
        return known.setdefault(args, made)

    return kept


@_kept
def _basis(length: int, slots: int, device: torch.device) -> Tensor:
    """An axis's cosines and sines, each the sum of two float16: [frequency x sample or its transpose, cosine or sine,
    high or low part, slots, slots]."""
    exact = _cosines_and_sines(length, slots, slots, device)
    exact[:, :, (length + 1) // 2 :] = 0
    return _in_halves(torch.stack([exact, exact.mT]))


@_kept
def _whole_basis(length: int, slots: int, samples: int, device: torch.device) -> Tensor:
    """The same at all samples: [cosine or sine, high or low part, slots, samples]."""
    return _in_halves(_cosines_and_sines(length, slots, samples, device))


def _cosines_and_sines(length: int, slots: int, samples: int, device: torch.device) -> Tensor:
    """Those of frequencies in slots at the first samples of an axis: float64 [cosine or sine, slots, samples]."""
    k = torch.arange(slots, device=device, dtype=torch.float64)[:, None]
    m = torch.arange(samples, device=device, dtype=torch.float64)[None, :]
    inside = m < length
    angle = (2 * torch.pi / length) * k * (m + 0.5)
    cosine = torch.where(inside & (2 * k < length), angle.cos(), 0)
    sine = torch.where(inside & (2 * k <= length), angle.sin(), 0)
    if length % 32 == 0 or length == 2 * slots:  # Nyquist's sine goes to slot 0
        sine[0], sine[length // 2 :] = torch.where(inside[0], 1 - 2 * (m[0] % 2), 0), 0
    return torch.stack([cosine, sine])


def _in_halves(matrices: Tensor) -> Tensor:
    """Matrices [..., rows, columns] as sums of two float16: [..., high or low part, rows, columns]."""
    high = matrices.half()
    return torch.stack([high, (matrices - high).half()], dim=-3)


@_kept
def _hartley_basis(length: int, device: torch.device) -> Tensor:
    """cas(2 pi k m / length) as the sum of two float16: [high or low part, slots, slots], a power of two of slots."""
    slots = max(16, triton.next_power_of_2(length))
    k = torch.arange(length, device=device)
    angle = (2 * torch.pi / length) * (k[:, None] * k % length).double()
    exact = torch.zeros(slots, slots, device=device, dtype=torch.float64)
    exact[:length, :length] = angle.cos() + angle.sin()
    return _in_halves(exact)


# ---- launches for larger planes --------------------------------------------------------------------------------------


class _Workspace:
    """What the launches have in common: the programs of a plane with their constants, and device memory for the lines
    of as many planes as the L2 cache has room for."""

    def __init__(self, p: TilesPlan, height: int, width: int, planes: int, passes: int, device: torch.device) -> None:
        self.rows, self.columns = _basis(height, p.TH, device), _basis(width, p.TW, device)
        rows, samples = min(ROWS, p.TH), min(SAMPLES, p.TW)
        self.forward_tiles = triton.cdiv(triton.cdiv(height, 2), TILE)
        self.column_tiles = p.MW // TILE
        self.inverse_tiles = 2 * triton.cdiv(triton.cdiv(height, 2), rows) * triton.cdiv(triton.cdiv(width, 2), samples)
        common = {"H": height, "W": width, "MH": p.MH, "MW": p.MW, "TILE": TILE, "PASSES": passes}
        self.forward = {**common, "TW": p.TW, "num_warps": _warps(4 * TILE * p.TW)}
        self.by_columns = {**common, "TH": p.TH, "num_warps": _warps(4 * TILE * p.TH)}
        self.inverse = {**common, "TW": p.TW, "ROWS": rows, "SAMPLES": samples, "num_warps": _warps(2 * rows * samples)}
        lines = 4, 1 if passes == 1 else 2, p.MH, p.MW
        l2_planes = max(1, _l2_bytes(device) // (2 * math.prod(lines)))
        self.planes = triton.cdiv(planes, triton.cdiv(planes, l2_planes))
        self.lines = torch.empty(self.planes, *lines, device=device, dtype=torch.float16)
        self.row_factors = torch.empty(self.planes, p.MH // TILE, device=device)
        self.column_factors = torch.empty(self.planes, p.MW // TILE, device=device)


def _filter_in_tiles(axes, strides, p, passes, output, plane_loss, input, target, scale, weight) -> None:
    work = _Workspace(p, *input.shape[-2:], math.prod(axes), passes, input.device)
    tile_loss = None if plane_loss is None else plane_loss.new_empty(*plane_loss.shape, work.column_tiles)
    for first in range(0, math.prod(axes), work.planes):
        planes = min(work.planes, math.prod(axes) - first)
        _launch(
            tiles.rows_forward_kernel, (planes, work.forward_tiles),
            work.lines, work.row_factors, first, axes, input, strides["input"], target, strides["target"],
            work.columns[1], **work.forward,
        )  # fmt: skip
        _launch(
            tiles.columns_filter_kernel, (planes, work.column_tiles),
            work.lines, work.column_factors, tile_loss, work.row_factors, first, axes, strides["output"],
            weight, strides["weight"], work.rows, OUTPUT=output is not None, **work.by_columns,
        )  # fmt: skip
        if output is not None:
            _rows_inverse(work, planes, first, axes, strides, output, scale=scale)
    if tile_loss is not None:
        torch.sum(tile_loss, -1, out=plane_loss)


def _noise_in_tiles(axes, strides, p, passes, output, noisy, input, signal, scale, key, plane_offset, weight) -> None:
    work = _Workspace(p, *output.shape[-2:], math.prod(axes), passes, weight.device)
    for first in range(0, math.prod(axes), work.planes):
        planes = min(work.planes, math.prod(axes) - first)
        _launch(
            tiles.columns_noise_kernel, (planes, work.column_tiles),
            work.lines, work.column_factors, first, axes, key, strides["key"], plane_offset, strides["number"],
            weight, strides["weight"], work.rows[1], **work.by_columns,
        )  # fmt: skip
        operands = {"noisy": noisy, "input": input, "signal": signal, "scale": scale}
        _rows_inverse(work, planes, first, axes, strides, output, **operands)


def _rows_inverse(work, planes, first, axes, strides, output, *, scale, noisy=None, input=None, signal=None) -> None:
    _launch(
        tiles.rows_inverse_kernel, (planes, work.inverse_tiles),
        output, noisy, first, axes, strides["output"], work.lines, work.column_factors, input, strides.get("input"),
        signal, strides.get("signal"), scale, strides["scale"], work.columns[0], **work.inverse,
    )  # fmt: skip


def _warps(sums: int) -> int:
    """For so many sums of a program: 32 registers of a thread hold them, 64 where that would take more than 8 warps, of
    which each reads the same factors from shared memory."""
    return min(8, max(1, sums // 1024))


def _planes_of_tile(MH: int, MW: int, height: int, width: int, strides: dict[str, Sequence[int]]) -> int:
    """How many planes draw together: as many as have an orbit of Nyquist's row and column for each thread of a warp, or
    one, where planes along the grid's first axis have keys or weights of their own, or numbers too far apart."""
    planes, orbits = 16 // max(MH, MW), (height // 2 + 1) * (width // 2 + 1)
    alike = strides["key"][0] == strides["weight"][0] == 0
    return planes if alike and planes * strides["number"][0] * orbits < 2**32 else 1


def _planes_of_program(axes, device: torch.device) -> int:
    """How many planes, one after another, while there are enough programs to fill a GPU."""
    return min(8, max(1, math.prod(axes) // (16 * _multiprocessors(device))))


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 108


def _l2_bytes(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else L2_BYTES


# ---- batches: every operand as strides along the same few dimensions -------------------------------------------------


def _contiguous_strides(sizes: Sequence[int]) -> list[int]:
    return [math.prod(sizes[d + 1 :]) for d in range(len(sizes))]


def _plane_strides(tensor: Tensor | None, batch: Sequence[int]) -> list[int]:
    """Strides along the batch, to which the tensor's leading dimensions broadcast from the right; then of a plane."""
    if tensor is None:
        return [0] * (len(batch) + 2)
    *lead, row, column = (0 if n == 1 else s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return [*[0] * (len(batch) - len(lead)), *lead, row, column]


def _scale_strides(scale: Tensor | None, batch: Sequence[int]) -> list[int]:
    """Strides along the batch, to which the scale's dimensions broadcast from the left."""
    strides = [] if scale is None else [0 if n == 1 else s for n, s in zip(scale.shape, scale.stride(), strict=True)]
    return (strides + [0] * len(batch))[: len(batch)]


def _addressable(planes: Tensor | None) -> Tensor | None:
    """Planes within which the kernels' 32-bit offsets reach every element; a copy where strides are too large."""
    if planes is None:
        return None
    reach = sum((n - 1) * s for n, s in zip(planes.shape[-2:], planes.stride()[-2:], strict=True))
    return planes if reach < 2**31 else planes.contiguous()


def _dense_rows(*planes: Tensor | None) -> bool:
    """Whether the kernels know the strides within all these planes when they are compiled."""
    return all(x is None or x.stride()[-2:] == (x.shape[-1], 1) for x in planes)


def _dense(weight: Tensor) -> Tensor:
    """A weight whose planes are contiguous, wherever they stand; a copy where they are not."""
    return weight if weight[(0,) * (weight.ndim - 2)].is_contiguous() else weight.contiguous()


def _expand_left(scale: Tensor, batch: Sequence[int]) -> Tensor:
    """The scale with a factor of its own for each plane."""
    return scale.reshape(scale.shape[: len(batch)] + (1,) * (len(batch) - scale.ndim)).expand(batch).contiguous()


def _expand_right(planes: Tensor, batch: Sequence[int]) -> Tensor:
    return planes.expand(*batch, -1, -1).contiguous()


def _grid(batch: Sequence[int], **operands: list[int]) -> tuple[tuple[int, ...], dict[str, tuple[int, ...]]] | None:
    """The batch as CUDA's grid of three axes, the longest first, and each operand's strides along them (and beyond).

    Neighbouring dimensions that every operand steps through alike become one. None if more than three are left, which
    takes a scale, a weight, keys and an input that all broadcast differently, or an input of odd strides.
    """
    dims = []  # (size, strides of the operands)
    for d, size in enumerate(batch):
        strides = [operand[d] for operand in operands.values()]
        if size == 1:
            continue
        if dims and all(outer == inner * size for outer, inner in zip(dims[-1][1], strides, strict=True)):
            dims[-1] = (dims[-1][0] * size, strides)
        else:
            dims.append((size, strides))
    if len(dims) > 3:
        return None
    dims.sort(key=lambda dim: -dim[0])
    dims += [(1, [0] * len(operands))] * (3 - len(dims))
    return tuple(size for size, _ in dims), {
        name: (*(strides[i] for _, strides in dims), *operand[len(batch) :])
        for i, (name, operand) in enumerate(operands.items())
    }
