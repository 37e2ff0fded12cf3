"""The operators on planes of up to 128 x 128 as Triton kernels: one program per plane, one pass over device memory.

A plane is transformed by matrix products on tensor cores. With the origin half a sample before the first pixel the real
Fourier basis along an axis of N samples falls into cosines, even about the middle, and sines, odd about it:

    c_k(m) = cos(2 pi k (m + 1/2) / N),  s_k(m) = sin(2 pi k (m + 1/2) / N),  0 <= k <= N / 2, 0 <= m < N / 2.

So a plane is folded about the middle of its rows' axis, and its spectrum is four quadrants. They are named by the basis
along the rows' axis (height H, frequency k), then along the columns' (width W, frequency l): cs goes with c_k s_l. A
basis has M >= N / 2 slots, a power of two; the sine of the Nyquist frequency, which is no cosine, sits in the sines'
slot 0 where 32 divides N, else in its own slot N / 2. Other slots are zero. Rows are not folded, but multiplied with
bases of all N samples: they are read and written as they lie in memory, which is worth more than half of a product.

Products are transposed, [columns x rows] but for the filter's last two, so that the sums of one are an operand of the
next in the registers where they are; else they would pass through shared memory.

The factors of a product are float16, its sums float32. For float32 results each factor is the sum of two float16
numbers, and three products keep 22 bits; for bfloat16 results, and where the user allows tf32, one product keeps the 11
bits that tf32 has. Powers of two, chosen for each plane by its largest value, keep float16 in range: no plane is too
small or too large, and none sees another. Tensor cores truncate their sums, so long ones are steps, added in float32.

Cost per pixel: the plane in and out of device memory once; W + M multiply-adds for each way, 1 or 3 passes; a quarter
of a Philox block and of two Box-Muller pairs. docs/gpu_costs.md has the counts.
"""

import triton
import triton.language as tl

from .triton_functions import (
    by_mma_sync,
    count_bins,
    count_kept,
    draw_quadrants,
    even_and_odd,
    frequencies,
    inverse_power_of_two,
    largest_weight,
    left_dot,
    load_parts,
    own_negative,
    plane_stream,
    power_of_two,
    right_dot,
    scale_of,
)

# ---- planes ----------------------------------------------------------------------------------------------------------


@triton.jit
def _plane(strides):
    """The offset of this program's plane, from strides along three batch dimensions, the axes of the grid."""
    return (
        tl.program_id(0).to(tl.int64) * strides[0]
        + tl.program_id(1).to(tl.int64) * strides[1]
        + tl.program_id(2).to(tl.int64) * strides[2]
    )


@triton.jit
def _halves(m, n, row_stride, column_stride, H: tl.constexpr, W: tl.constexpr):
    """Offsets of rows m of the plane's two halves, each read outside in, at columns n; and which of them count: in the
    first half of an odd size, its middle does, too."""
    column = n * column_stride
    inside = n < W
    return m * row_stride + column, (H - 1 - m) * row_stride + column, (2 * m < H) & inside, (2 * m < H - 1) & inside


@triton.jit
def _load_halves(
    plane, m, n, row_stride, column_stride,
    H: tl.constexpr, W: tl.constexpr, MH: tl.constexpr, COLUMNS: tl.constexpr, DENSE: tl.constexpr,
):  # fmt: skip
    if DENSE:
        row_stride = W
        column_stride = 1
    top, bottom, upper, lower = _halves(m, n, row_stride, column_stride, H, W)
    if H == 2 * MH and W == COLUMNS:
        return tl.load(plane + top).to(tl.float32), tl.load(plane + bottom).to(tl.float32)
    else:
        x_top = tl.load(plane + top, mask=upper, other=0.0)
        return x_top.to(tl.float32), tl.load(plane + bottom, mask=lower, other=0.0).to(tl.float32)


@triton.jit
def _store_halves(
    plane, m, n, x_top, x_bottom, H: tl.constexpr, W: tl.constexpr, MH: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """The inverse of _load_halves, to a contiguous plane."""
    top, bottom, upper, lower = _halves(m, n, W, 1, H, W)
    if H == 2 * MH and W == COLUMNS:
        tl.store(plane + top, x_top)
        tl.store(plane + bottom, x_bottom)
    else:
        tl.store(plane + top, x_top, mask=upper)
        tl.store(plane + bottom, x_bottom, mask=lower)


# ---- noise -----------------------------------------------------------------------------------------------------------


@by_mma_sync
@triton.jit(do_not_specialize=["first_number"])
def noise_kernel(
    output, noisy, output_strides, input, input_strides, signal_scale, signal_strides, scale, scale_strides,
    key, key_strides, first_number, number_strides, weight, weight_strides, columns_basis, rows_basis,
    H: tl.constexpr, W: tl.constexpr, MH: tl.constexpr, MW: tl.constexpr, NW: tl.constexpr, CHUNK: tl.constexpr,
    DENSE: tl.constexpr, PASSES: tl.constexpr,
):  # fmt: skip
    """Shaped noise: scale T_w xi to `output`. With an input, T_w xi, and to `noisy` signal_scale input + scale T_w xi.

    CHUNK row frequencies at a time go through the first product and into the sums of the second.
    """
    ORBITS: tl.constexpr = (H // 2 + 1) * (W // 2 + 1)
    K_SLOTS: tl.constexpr = H // 2 + (H % 32 != 0)
    L_SLOTS: tl.constexpr = W // 2 + (W % 32 != 0)
    TILE: tl.constexpr = min(MW, 32)  # column frequencies at a time: longer sums would lose precision
    number = first_number.to(tl.uint64) + _plane(number_strides).to(tl.uint64)
    stream = plane_stream(key + _plane(key_strides), number, ORBITS)
    weight += _plane(weight_strides)
    range_scale = power_of_two(largest_weight(weight, H * (W // 2 + 1), 512), 4)

    n = tl.arange(0, NW)[None, :]
    zero = tl.zeros((NW, MH), tl.float32)
    even = zero
    odd = zero
    for first_k in range(0, K_SLOTS, CHUNK):
        k_slot = first_k + tl.arange(0, CHUNK)
        cosine_lines = tl.zeros((NW, CHUNK), tl.float32)
        sine_lines = tl.zeros((NW, CHUNK), tl.float32)
        for first_l in range(0, L_SLOTS, TILE):
            cc, cs, sc, ss = draw_quadrants(first_k, first_l, stream, weight, range_scale, H, W, CHUNK, TILE)
            l_slot = first_l + tl.arange(0, TILE)
            high, low = load_parts(columns_basis, l_slot[:, None], n, MW, NW, PASSES)
            cosine_lines += left_dot(tl.trans(high), tl.trans(low), tl.trans(cc), PASSES)
            sine_lines += left_dot(tl.trans(high), tl.trans(low), tl.trans(sc), PASSES)
            high, low = load_parts(columns_basis + 2 * MW * NW, l_slot[:, None], n, MW, NW, PASSES)
            cosine_lines += left_dot(tl.trans(high), tl.trans(low), tl.trans(cs), PASSES)
            sine_lines += left_dot(tl.trans(high), tl.trans(low), tl.trans(ss), PASSES)
        m = tl.arange(0, MH)[None, :]
        high, low = load_parts(rows_basis, k_slot[:, None], m, MH, MH, PASSES)
        even += right_dot(cosine_lines, high, low, zero, PASSES)
        high, low = load_parts(rows_basis + 2 * MH * MH, k_slot[:, None], m, MH, MH, PASSES)
        odd += right_dot(sine_lines, high, low, zero, PASSES)

    norm = inverse_power_of_two(range_scale) * (2.0 / (H * W)) ** 0.5
    if input is None:
        norm *= scale_of(scale, _plane(scale_strides))
    even *= norm
    odd *= norm
    top = tl.trans(even + odd)
    bottom = tl.trans(even - odd)
    plane = _plane(output_strides) * (H * W)
    m = tl.arange(0, MH)[:, None]
    _store_halves(output + plane, m, n, top, bottom, H, W, MH, NW)
    if input is not None:
        signal, noise = scale_of(signal_scale, _plane(signal_strides)), scale_of(scale, _plane(scale_strides))
        input += _plane(input_strides)
        x_top, x_bottom = _load_halves(input, m, n, input_strides[3], input_strides[4], H, W, MH, NW, DENSE)
        x_top = signal * x_top + noise * top
        x_bottom = signal * x_bottom + noise * bottom
        _store_halves(noisy + plane, m, n, x_top, x_bottom, H, W, MH, NW)


# ---- filter ----------------------------------------------------------------------------------------------------------


@triton.jit
def _difference(
    input, input_strides, target, target_strides, m, n,
    H: tl.constexpr, W: tl.constexpr, MH: tl.constexpr, NW: tl.constexpr, DENSE: tl.constexpr,
):  # fmt: skip
    """Rows of the halves of input - target, or of input."""
    x_top, x_bottom = _load_halves(input, m, n, input_strides[3], input_strides[4], H, W, MH, NW, DENSE)
    if target is not None:
        t_top, t_bottom = _load_halves(target, m, n, target_strides[3], target_strides[4], H, W, MH, NW, DENSE)
        x_top -= t_top
        x_bottom -= t_bottom
    return x_top, x_bottom


@triton.jit
def _half_spectrum(
    input, input_strides, target, target_strides, range_scale, columns_basis, rows_basis, SINES: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, MH: tl.constexpr, MW: tl.constexpr, NW: tl.constexpr, CHUNK: tl.constexpr,
    DENSE: tl.constexpr, PASSES: tl.constexpr,
):  # fmt: skip
    """Coefficients of the cosines, or the sines, along the rows' axis: times the columns' cosines, times their sines.

    The two halves one after the other read the plane twice; together they would need more registers than there are.
    """
    TILE: tl.constexpr = min(NW, 32)  # columns at a time in the first product: longer sums would lose precision
    slot = tl.arange(0, MW)[:, None]
    k = tl.arange(0, MH)[None, :]
    zero = tl.zeros((MW, MH), tl.float32)
    of_cosines = zero
    of_sines = zero
    for first in range(0, (H + 1) // 2, CHUNK):
        m = first + tl.arange(0, CHUNK)[:, None]
        cosines = tl.zeros((MW, CHUNK), tl.float32)
        sines = tl.zeros((MW, CHUNK), tl.float32)
        for first_n in tl.static_range(0, NW, TILE):
            n = first_n + tl.arange(0, TILE)[None, :]
            top, bottom = _difference(input, input_strides, target, target_strides, m, n, H, W, MH, NW, DENSE)
            if SINES:
                folded = tl.trans(range_scale * top - range_scale * bottom)
            else:
                folded = tl.trans(range_scale * top + range_scale * bottom)
            high, low = load_parts(columns_basis, slot, n, MW, NW, PASSES)
            cosines += left_dot(high, low, folded, PASSES)
            high, low = load_parts(columns_basis + 2 * MW * NW, slot, n, MW, NW, PASSES)
            sines += left_dot(high, low, folded, PASSES)
        high, low = load_parts(rows_basis + SINES * (2 * MH * MH), m, k, MH, MH, PASSES)
        of_cosines += right_dot(cosines, high, low, zero, PASSES)
        of_sines += right_dot(sines, high, low, zero, PASSES)
    return of_cosines, of_sines


@triton.jit
def _largest(a, b, c, d):
    return tl.max(tl.maximum(tl.maximum(tl.abs(a), tl.abs(b)), tl.maximum(tl.abs(c), tl.abs(d))))


@by_mma_sync
@triton.jit
def filter_kernel(
    output, plane_loss, output_strides, input, input_strides, target, target_strides, scale, scale_strides,
    weight, weight_strides, columns_basis, rows_basis,
    H: tl.constexpr, W: tl.constexpr, MH: tl.constexpr, MW: tl.constexpr, NW: tl.constexpr, CHUNK: tl.constexpr,
    DENSE: tl.constexpr, PASSES: tl.constexpr,
):  # fmt: skip
    """scale T_w input to `output`. With a target, T_u (input - target) for the whitening u = 1/w^2 (times the share of
    bins with w > 0), if there is an output, and to `plane_loss` the mean over the plane of the difference times that.

    CHUNK rows of the plane's halves at a time go through the first two products, and come out of the last two.
    """
    WHITEN: tl.constexpr = target is not None
    ROWS: tl.constexpr = (H + 1) // 2
    # Sums of 2 NW <= 256 values below 2^7, and of MH <= 64 below 2^9, are in float16's range, which ends at 2^16.
    EXPONENT_IN: tl.constexpr = 6
    EXPONENT_OUT: tl.constexpr = 8
    input += _plane(input_strides)
    if target is not None:
        target += _plane(target_strides)

    largest = 0.0
    for first in range(0, ROWS, CHUNK):
        m = first + tl.arange(0, CHUNK)[:, None]
        n = tl.arange(0, NW)[None, :]
        top, bottom = _difference(input, input_strides, target, target_strides, m, n, H, W, MH, NW, DENSE)
        largest = tl.maximum(largest, tl.max(tl.maximum(tl.abs(top), tl.abs(bottom))))
    scale_in = power_of_two(largest, EXPONENT_IN)

    cc, cs = _half_spectrum(
        input, input_strides, target, target_strides, scale_in, columns_basis, rows_basis, False,
        H, W, MH, MW, NW, CHUNK, DENSE, PASSES,
    )  # fmt: skip
    sc, ss = _half_spectrum(
        input, input_strides, target, target_strides, scale_in, columns_basis, rows_basis, True,
        H, W, MH, MW, NW, CHUNK, DENSE, PASSES,
    )  # fmt: skip

    weight += _plane(weight_strides)
    k = frequencies(0, MH, H)[None, :]
    l = frequencies(0, MW, W)[:, None]
    u, v = even_and_odd(weight, k, l, H, W, WHITEN)
    # A basis function's coefficient is its product with the plane over its squared length.
    norm = count_bins(tl.arange(0, MH)[None, :], H) * count_bins(tl.arange(0, MW)[:, None], W) / (H * W)
    u *= norm
    v = tl.where(own_negative(k, H) | own_negative(l, W), 0.0, v * norm)
    y_cc = u * cc - v * ss
    y_cs = u * cs + v * sc
    y_sc = u * sc + v * cs
    y_ss = u * ss - v * cc
    # The sines of the Nyquist frequencies in slot 0.
    half_height = tl.full((1, 1), H // 2, tl.int32)
    half_width = tl.full((1, 1), W // 2, tl.int32)
    if H % 32 == 0:
        row, _ = even_and_odd(weight, half_height, l, H, W, WHITEN)
        y_sc = tl.where(k == 0, row * norm * sc, y_sc)
        y_ss = tl.where(k == 0, row * norm * ss, y_ss)
    if W % 32 == 0:
        column, _ = even_and_odd(weight, k, half_width, H, W, WHITEN)
        y_cs = tl.where(l == 0, column * norm * cs, y_cs)
        y_ss = tl.where(l == 0, column * norm * ss, y_ss)
    if H % 32 == 0 and W % 32 == 0:
        corner, _ = even_and_odd(weight, half_height, half_width, H, W, WHITEN)
        y_ss = tl.where((k == 0) & (l == 0), corner * norm * ss, y_ss)

    if target is not None:
        total = tl.sum(cc * y_cc + cs * y_cs + sc * y_sc + ss * y_ss)
    scale_out = power_of_two(_largest(y_cc, y_cs, y_sc, y_ss), EXPONENT_OUT)
    y_cc *= scale_out
    y_cs *= scale_out
    y_sc *= scale_out
    y_ss *= scale_out
    unscale_in = inverse_power_of_two(scale_in)
    factor = scale_of(scale, _plane(scale_strides))
    if target is not None:
        kept = tl.maximum(count_kept(weight, H, W, 512), 1.0)  # not before: it would take registers
        tl.store(plane_loss + _plane(output_strides), total * unscale_in * unscale_in / kept)
        factor = H * W / kept

    if output is not None:
        factor *= unscale_in * inverse_power_of_two(scale_out)
        slot = tl.arange(0, MW)[:, None]
        COLUMNS: tl.constexpr = min(NW, 64)  # at a time in the last product: more would not fit in shared memory
        nothing = tl.zeros((CHUNK, COLUMNS), tl.float32)
        for first in range(0, ROWS, CHUNK):
            m = first + tl.arange(0, CHUNK)[:, None]
            k = tl.arange(0, MH)[None, :]
            high, low = load_parts(rows_basis, m, k, MH, MH, PASSES)
            even_cosines = left_dot(high, low, tl.trans(y_cc), PASSES)
            even_sines = left_dot(high, low, tl.trans(y_cs), PASSES)
            high, low = load_parts(rows_basis + 2 * MH * MH, m, k, MH, MH, PASSES)
            odd_cosines = left_dot(high, low, tl.trans(y_sc), PASSES)
            odd_sines = left_dot(high, low, tl.trans(y_ss), PASSES)
            for first_column in tl.static_range(0, NW, COLUMNS):
                n = first_column + tl.arange(0, COLUMNS)[None, :]
                high, low = load_parts(columns_basis, slot, n, MW, NW, PASSES)
                even = right_dot(even_cosines, high, low, nothing, PASSES)
                odd = right_dot(odd_cosines, high, low, nothing, PASSES)
                high, low = load_parts(columns_basis + 2 * MW * NW, slot, n, MW, NW, PASSES)
                even += right_dot(even_sines, high, low, nothing, PASSES)
                odd += right_dot(odd_sines, high, low, nothing, PASSES)
                even *= factor
                odd *= factor
                _store_halves(output + _plane(output_strides) * (H * W), m, n, even + odd, even - odd, H, W, MH, NW)
