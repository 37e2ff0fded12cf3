"""The operators on planes of up to 512 x 512 as Triton kernels: the products of triton_kernels.py, tile by tile.

A plane is too large for a program, so between launches it is in device memory, transformed along its rows: its lines.
They are kept as what products take, pairs of float16, with factors of their own for every TILE of them. The host takes
as many planes at a time as let this stay in the L2 cache:

    lines   [2, 2, parts, MH, MW]   of the even and of the odd part of the columns, or of their upper and lower half;
                                    products with the cosines and with the sines along W; high and low parts, or high
                                    ones alone; by rows of a half, or by slots of k; by slots of l

Noise takes two launches: columns of a spectrum are drawn and transformed to lines, and these to rows. The filter takes
three: rows to lines; columns of lines to a spectrum, which is weighted, and back; lines to rows. A program transforms
columns in TILE slots of l, whole, so it needs no other's. An axis is padded to a power of two where sums of products
are held, and to a multiple of TILE in memory and where it is summed over.

Powers of two keep float16 in range: of what a program reads, by the largest value; of what it writes, because no sum
exceeds the largest value times their number. What is smaller by as much as that keeps its precision, which is the
floor of float16's exponents, 2^-24, under the largest number, 2^15. No plane sees another.

A product is summed in steps of 16 or 32, each step by tensor cores, which truncate, the steps in float32, which rounds:
so the error does not grow with the axis.

Cost per pixel: for each axis transformed M multiply-adds, for M slots, in 1 or 3 passes; 2 or 4 bytes of the L2 cache
to write lines and as many to read them, twice that for columns of a spectrum that are weighted; what drawing takes as
there.
"""

import triton
import triton.language as tl

from .triton_functions import (
    by_mma_sync,
    count_bins,
    draw_quadrants,
    even_and_odd,
    inverse_power_of_two,
    left_dot,
    load_parts,
    own_negative,
    plane_stream,
    power_of_two,
    product,
    right_dot,
    scale_of,
    store_parts,
)

EXPONENT = tl.constexpr(12)  # of the largest operand, so that the sum of four of them is a float16
DRAWN_EXPONENT = tl.constexpr(10)  # of the largest weight, so that the sum of two normals times it is a float16


# ---- planes and slots ------------------------------------------------------------------------------------------------


@triton.jit
def _plane(first, sizes, strides):
    """The offset of this program's plane: the one of number first + program_id(0) of a batch of three dimensions."""
    number = first + tl.program_id(0)
    rest = number // sizes[0]
    return (
        (number % sizes[0]).to(tl.int64) * strides[0]
        + (rest % sizes[1]).to(tl.int64) * strides[1]
        + (rest // sizes[1]).to(tl.int64) * strides[2]
    )


@triton.jit
def _tile(number, TILE: tl.constexpr):
    return number * TILE + tl.arange(0, TILE)


@triton.jit
def _sine_frequency(slot, N: tl.constexpr):
    """The frequency of the sine in a slot."""
    if N % 32 == 0:
        return tl.where(slot == 0, N // 2, tl.minimum(slot, N // 2))
    else:
        return tl.minimum(slot, N // 2)


@triton.constexpr_function
def _quarter(MH, MW, PASSES):
    """The size of one of the four parts of a plane's lines."""
    return (1 if PASSES == 1 else 2) * MH * MW


# ---- from rows to lines ----------------------------------------------------------------------------------------------


@triton.jit
def _load_difference(x, x_stride, target, target_stride, n, inside):
    """Samples n of rows of input - target, or of input."""
    difference = tl.load(x + n * x_stride, mask=inside, other=0.0).to(tl.float32)
    if target is not None:
        difference -= tl.load(target + n * target_stride, mask=inside, other=0.0).to(tl.float32)
    return difference


@by_mma_sync
@triton.jit(do_not_specialize=["first"])
def rows_forward_kernel(
    lines, row_factors, first, sizes, input, input_strides, target, target_strides, columns_transposed,
    H: tl.constexpr, W: tl.constexpr, MH: tl.constexpr, MW: tl.constexpr, TW: tl.constexpr, TILE: tl.constexpr,
    PASSES: tl.constexpr,
):  # fmt: skip
    """The lines of input - target, or of input, from TILE rows of each half."""
    SAMPLES: tl.constexpr = min(32, TW)  # of a step
    m = _tile(tl.program_id(1), TILE)[:, None]
    l = tl.arange(0, TW)[None, :]
    upper = 2 * m < H  # an odd height's middle is of the upper half
    lower = 2 * m < H - 1
    x_top = input + _plane(first, sizes, input_strides) + m * input_strides[3]
    x_bottom = x_top + (H - 1 - 2 * m) * input_strides[3]
    t_top = target
    t_bottom = target
    if target is not None:
        t_top = target + _plane(first, sizes, target_strides) + m * target_strides[3]
        t_bottom = t_top + (H - 1 - 2 * m) * target_strides[3]
    x_stride = input_strides[4]
    t_stride = target_strides[4]

    largest = tl.zeros((TILE, 2 * SAMPLES), tl.float32)
    for start in range(0, W, 2 * SAMPLES):
        n = start + tl.arange(0, 2 * SAMPLES)[None, :]
        top = _load_difference(x_top, x_stride, t_top, t_stride, n, upper & (n < W))
        bottom = _load_difference(x_bottom, x_stride, t_bottom, t_stride, n, lower & (n < W))
        largest = tl.maximum(largest, tl.maximum(tl.abs(top), tl.abs(bottom)))
    scale = power_of_two(tl.max(largest), EXPONENT)

    zero = tl.zeros((TILE, TW), tl.float32)
    even_cosines = zero
    even_sines = zero
    odd_cosines = zero
    odd_sines = zero
    for start in range(0, (W + 1) // 2, SAMPLES):
        n = start + tl.arange(0, SAMPLES)[None, :]
        left = 2 * n < W
        right = 2 * n < W - 1
        top_left = _load_difference(x_top, x_stride, t_top, t_stride, n, upper & left)
        top_right = _load_difference(x_top, x_stride, t_top, t_stride, W - 1 - n, upper & right)
        bottom_left = _load_difference(x_bottom, x_stride, t_bottom, t_stride, n, lower & left)
        bottom_right = _load_difference(x_bottom, x_stride, t_bottom, t_stride, W - 1 - n, lower & right)
        even_left = scale * top_left + scale * bottom_left
        even_right = scale * top_right + scale * bottom_right
        odd_left = scale * top_left - scale * bottom_left
        odd_right = scale * top_right - scale * bottom_right
        n = start + tl.arange(0, SAMPLES)[:, None]
        high, low = load_parts(columns_transposed, n, l, TW, TW, PASSES)
        even_cosines += right_dot(even_left + even_right, high, low, zero, PASSES)
        odd_cosines += right_dot(odd_left + odd_right, high, low, zero, PASSES)
        high, low = load_parts(columns_transposed + 2 * TW * TW, n, l, TW, TW, PASSES)
        even_sines += right_dot(even_left - even_right, high, low, zero, PASSES)
        odd_sines += right_dot(odd_left - odd_right, high, low, zero, PASSES)

    QUARTER: tl.constexpr = _quarter(MH, MW, PASSES)
    lines += tl.program_id(0).to(tl.int64) * (4 * QUARTER)
    inside = l < MW
    store_parts(lines, m, l, even_cosines * (1 / TW), inside, MH, MW, PASSES)
    store_parts(lines + QUARTER, m, l, even_sines * (1 / TW), inside, MH, MW, PASSES)
    store_parts(lines + 2 * QUARTER, m, l, odd_cosines * (1 / TW), inside, MH, MW, PASSES)
    store_parts(lines + 3 * QUARTER, m, l, odd_sines * (1 / TW), inside, MH, MW, PASSES)
    tl.store(row_factors + tl.program_id(0) * (MH // TILE) + tl.program_id(1), inverse_power_of_two(scale) * TW)


# ---- from lines to lines ---------------------------------------------------------------------------------------------


@triton.jit
def _columns(
    lines, even, odd, factors, rows_basis, COUNT: tl.constexpr,
    MH: tl.constexpr, MW: tl.constexpr, TH: tl.constexpr, TILE: tl.constexpr, PASSES: tl.constexpr,
):  # fmt: skip
    """Along the rows' axis, the products of cosines with lines at the offsets `even`, and of sines with those at `odd`:
    [TH, 2 TILE], sums over the first COUNT, times the factors of each TILE, if there are any."""
    k = tl.arange(0, TH)[:, None]
    zero = tl.zeros((TH, 2 * TILE), tl.float32)
    of_cosines = zero
    of_sines = zero
    for start in range(0, COUNT, TILE):
        m = start + tl.arange(0, TILE)
        factor = 1.0
        if factors is not None:
            factor = tl.load(factors + start // TILE)
        high, low = load_parts(rows_basis, k, m[None, :], TH, TH, PASSES)
        x_high, x_low = load_parts(lines + even, m[:, None], 0, MH, MW, PASSES)
        of_cosines += factor * product(high, low, x_high, x_low, zero, PASSES)
        high, low = load_parts(rows_basis + 2 * TH * TH, k, m[None, :], TH, TH, PASSES)
        x_high, x_low = load_parts(lines + odd, m[:, None], 0, MH, MW, PASSES)
        of_sines += factor * product(high, low, x_high, x_low, zero, PASSES)
    return of_cosines, of_sines


@by_mma_sync
@triton.jit(do_not_specialize=["first"])
def columns_filter_kernel(
    lines, column_factors, tile_loss, row_factors, first, sizes, loss_strides, weight, weight_strides, rows_basis,
    H: tl.constexpr, W: tl.constexpr, MH: tl.constexpr, MW: tl.constexpr, TH: tl.constexpr, TILE: tl.constexpr,
    OUTPUT: tl.constexpr, PASSES: tl.constexpr,
):  # fmt: skip
    """The lines of T_w x in the place of those of x, if OUTPUT; to `tile_loss`, where there is one, the tile's share of
    the mean over the plane of x T_w x.

    Columns of TILE slots of l stand side by side, the cosines' and the sines'. The weight mixes cc with ss and cs with
    sc, so the odd lines' are in the other order: sines first. The second transform takes its spectrum TILE rows at a
    time, which registers cannot give to a loop. So it, too, goes where the lines were, for this program alone.
    """
    HALF: tl.constexpr = (H + 1) // 2
    K_SLOTS: tl.constexpr = H // 2 + (H % 32 != 0)
    QUARTER: tl.constexpr = _quarter(MH, MW, PASSES)
    lines += tl.program_id(0).to(tl.int64) * (4 * QUARTER)
    column = tl.arange(0, 2 * TILE)[None, :]
    right = column // TILE  # 0: cc and ss; 1: cs and sc
    l = tl.program_id(1) * TILE + column % TILE
    even = right * QUARTER + l
    odd = (3 - right) * QUARTER + l
    row_factors += tl.program_id(0) * (MH // TILE)
    even_t, odd_t = _columns(lines, even, odd, row_factors, rows_basis, HALF, MH, MW, TH, TILE, PASSES)

    weight += _plane(first, sizes, weight_strides)
    k = tl.arange(0, TH)[:, None]
    k_cosine, k_sine = tl.minimum(k, H // 2), _sine_frequency(k, H)
    l_cosine, l_sine = tl.minimum(l, W // 2), _sine_frequency(l, W)
    l_even = tl.where(right == 0, l_cosine, l_sine)
    l_odd = tl.where(right == 0, l_sine, l_cosine)
    u_even, v = even_and_odd(weight, k_cosine, l_even, H, W, False)
    u_odd, _ = even_and_odd(weight, k_sine, l_odd, H, W, False)
    v = tl.where(own_negative(k, H) | own_negative(l, W), 0.0, tl.where(right == 0, -v, v))
    # A basis function's coefficient is its product with the plane over its squared length.
    norm = count_bins(k, H) * count_bins(l, W) / (H * W)
    even_y = u_even * norm * even_t + v * norm * odd_t
    odd_y = u_odd * norm * odd_t + v * norm * even_t

    if tile_loss is not None:
        total = tl.sum(even_t * even_y + odd_t * odd_y) / (H * W)
        tile_loss += _plane(first, sizes, loss_strides) * tl.num_programs(1) + tl.program_id(1)
        tl.store(tile_loss, total)
    if OUTPUT:
        scale = power_of_two(tl.max(tl.maximum(tl.abs(even_y), tl.abs(odd_y))), EXPONENT)
        inside = k < MH
        tl.debug_barrier()  # all have read the lines
        store_parts(lines + even, k, 0, even_y * scale, inside, MH, MW, PASSES)
        store_parts(lines + odd, k, 0, odd_y * scale, inside, MH, MW, PASSES)
        tl.debug_barrier()
        transposed = rows_basis + 4 * TH * TH
        odd = even + 2 * QUARTER  # in the even ones' order
        even_x, odd_x = _columns(lines, even, odd, None, transposed, K_SLOTS, MH, MW, TH, TILE, PASSES)
        tl.debug_barrier()  # all have read the spectrum
        _store_halves(lines + even, even_x, odd_x, MH, MW, TH, PASSES)
        factor = inverse_power_of_two(scale) * TH
        tl.store(column_factors + tl.program_id(0) * (MW // TILE) + tl.program_id(1), factor)


@triton.jit
def _store_halves(lines, even, odd, MH: tl.constexpr, MW: tl.constexpr, TH: tl.constexpr, PASSES: tl.constexpr):
    """Upper and lower halves of columns from their even and odd parts, sums of TH products at most, over TH."""
    QUARTER: tl.constexpr = _quarter(MH, MW, PASSES)
    m = tl.arange(0, TH)[:, None]
    even *= 1 / TH
    odd *= 1 / TH
    store_parts(lines, m, 0, even + odd, m < MH, MH, MW, PASSES)
    store_parts(lines + 2 * QUARTER, m, 0, even - odd, m < MH, MH, MW, PASSES)


@by_mma_sync
@triton.jit(do_not_specialize=["first", "first_number"])
def columns_noise_kernel(
    lines, column_factors, first, sizes, key, key_strides, first_number, number_strides, weight, weight_strides,
    rows_transposed,
    H: tl.constexpr, W: tl.constexpr, MH: tl.constexpr, MW: tl.constexpr, TH: tl.constexpr, TILE: tl.constexpr,
    PASSES: tl.constexpr,
):  # fmt: skip
    """The lines of T_w xi, in TILE slots of l: TILE frequencies k at a time are drawn and taken up by the sums."""
    K_SLOTS: tl.constexpr = H // 2 + (H % 32 != 0)
    number = first_number.to(tl.uint64) + _plane(first, sizes, number_strides).to(tl.uint64)
    stream = plane_stream(key + _plane(first, sizes, key_strides), number, (H // 2 + 1) * (W // 2 + 1))
    weight += _plane(first, sizes, weight_strides)
    first_l = tl.program_id(1) * TILE
    l = first_l + tl.arange(0, TILE)[None, :]

    largest = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, H, TILE):
        row = weight + tl.minimum(start + tl.arange(0, TILE), H - 1)[:, None] * (W // 2 + 1)
        cosines = tl.load(row + tl.minimum(l, W // 2))
        sines = tl.load(row + _sine_frequency(l, W))
        largest = tl.maximum(largest, tl.maximum(tl.abs(cosines), tl.abs(sines)))
    scale = power_of_two(tl.max(largest), DRAWN_EXPONENT)

    m = tl.arange(0, TH)[:, None]
    zero = tl.zeros((TH, TILE), tl.float32)
    even_cosines = zero
    even_sines = zero
    odd_cosines = zero
    odd_sines = zero
    for start in range(0, K_SLOTS, TILE):
        k = start + tl.arange(0, TILE)[None, :]
        cc, cs, sc, ss = draw_quadrants(start, first_l, stream, weight, scale, H, W, TILE, TILE)
        high, low = load_parts(rows_transposed, m, k, TH, TH, PASSES)
        even_cosines += left_dot(high, low, cc, PASSES)
        even_sines += left_dot(high, low, cs, PASSES)
        high, low = load_parts(rows_transposed + 2 * TH * TH, m, k, TH, TH, PASSES)
        odd_cosines += left_dot(high, low, sc, PASSES)
        odd_sines += left_dot(high, low, ss, PASSES)

    QUARTER: tl.constexpr = _quarter(MH, MW, PASSES)
    lines += tl.program_id(0).to(tl.int64) * (4 * QUARTER) + l
    _store_halves(lines, even_cosines, odd_cosines, MH, MW, TH, PASSES)
    _store_halves(lines + QUARTER, even_sines, odd_sines, MH, MW, TH, PASSES)
    factor = inverse_power_of_two(scale) * (TH * (2.0 / (H * W)) ** 0.5)
    tl.store(column_factors + tl.program_id(0) * (MW // TILE) + tl.program_id(1), factor)


# ---- from lines to rows ----------------------------------------------------------------------------------------------


@by_mma_sync
@triton.jit(do_not_specialize=["first"])
def rows_inverse_kernel(
    output, noisy, first, sizes, output_strides, lines, column_factors, input, input_strides, signal_scale,
    signal_strides, scale, scale_strides, columns_basis,
    H: tl.constexpr, W: tl.constexpr, MH: tl.constexpr, MW: tl.constexpr, TW: tl.constexpr, TILE: tl.constexpr,
    ROWS: tl.constexpr, SAMPLES: tl.constexpr, PASSES: tl.constexpr,
):  # fmt: skip
    """scale x to `output`, from the lines of x. With an input, x, and to `noisy` signal_scale input + scale x."""
    HALF: tl.constexpr = (H + 1) // 2
    SLOTS: tl.constexpr = W // 2 + (W % 32 != 0)
    ROW_TILES: tl.constexpr = triton.cdiv(HALF, ROWS)
    SAMPLE_TILES: tl.constexpr = triton.cdiv((W + 1) // 2, SAMPLES)
    tile = tl.program_id(1) // SAMPLE_TILES
    lower = tile // ROW_TILES
    m = _tile(tile % ROW_TILES, ROWS)[:, None]
    n = _tile(tl.program_id(1) % SAMPLE_TILES, SAMPLES)[None, :]
    h = tl.where(lower == 0, m, H - 1 - m)
    inside = m < HALF - lower * (H % 2)
    QUARTER: tl.constexpr = _quarter(MH, MW, PASSES)
    lines += tl.program_id(0).to(tl.int64) * (4 * QUARTER) + lower * (2 * QUARTER)
    column_factors += tl.program_id(0) * (MW // TILE)

    zero = tl.zeros((ROWS, SAMPLES), tl.float32)
    even = zero
    odd = zero
    for start in range(0, SLOTS, TILE):
        l = start + tl.arange(0, TILE)
        factor = tl.load(column_factors + start // TILE)
        x_high, x_low = load_parts(lines, tl.minimum(m, MH - 1), l[None, :], MH, MW, PASSES)
        high, low = load_parts(columns_basis, l[:, None], n, TW, TW, PASSES)
        even += factor * product(x_high, x_low, high, low, zero, PASSES)
        x_high, x_low = load_parts(lines + QUARTER, tl.minimum(m, MH - 1), l[None, :], MH, MW, PASSES)
        high, low = load_parts(columns_basis + 2 * TW * TW, l[:, None], n, TW, TW, PASSES)
        odd += factor * product(x_high, x_low, high, low, zero, PASSES)

    factor = scale_of(scale, _plane(first, sizes, scale_strides))
    if input is None:
        even *= factor
        odd *= factor
    left = even + odd
    right = even - odd
    row = _plane(first, sizes, output_strides) * (H * W) + h * W
    left_inside = inside & (2 * n < W)
    right_inside = inside & (2 * n < W - 1)
    tl.store(output + row + n, left, mask=left_inside)
    tl.store(output + row + (W - 1 - n), right, mask=right_inside)
    if input is not None:
        signal = scale_of(signal_scale, _plane(first, sizes, signal_strides))
        x = input + _plane(first, sizes, input_strides) + h * input_strides[3]
        x_left = tl.load(x + n * input_strides[4], mask=left_inside, other=0.0).to(tl.float32)
        x_right = tl.load(x + (W - 1 - n) * input_strides[4], mask=right_inside, other=0.0).to(tl.float32)
        tl.store(noisy + row + n, signal * x_left + factor * left, mask=left_inside)
        tl.store(noisy + row + (W - 1 - n), signal * x_right + factor * right, mask=right_inside)
