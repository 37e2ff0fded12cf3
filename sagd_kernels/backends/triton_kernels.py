"""The operators on planes of up to 128 x 128 as Triton kernels: one program per plane, one pass over device memory.

A plane is transformed by matrix products on tensor cores. With the origin half a sample before the first pixel the real
Fourier basis along an axis of N samples falls into cosines, even about the middle, and sines, odd about it:

    c_k(m) = cos(2 pi k (m + 1/2) / N),  s_k(m) = sin(2 pi k (m + 1/2) / N),  0 <= k <= N / 2, 0 <= m < N / 2.

So a plane is folded about both middles into four quadrants, each transformed by products with half-size matrices. They
are named by the basis along the rows' axis (height H, frequency k), then along the columns' (width W, frequency l): cs
goes with c_k s_l. A matrix has M >= N / 2 slots, a power of two; the sine of the Nyquist frequency, which is no cosine,
sits in the sines' slot 0 where 32 divides N, else in its own slot N / 2. Other slots are zero.

The factors of a product are float16, its sums float32. For float32 results each factor is the sum of two float16
numbers, and three products keep 22 bits; for bfloat16 results, and where the user allows tf32, one product keeps the 11
bits that tf32 has. Powers of two, chosen for each plane by its largest value, keep float16 in range: no plane is too
small or too large, and none sees another.

Cost per pixel: the plane in and out of device memory once; M multiply-adds for each of 2 (noise) or 4 (filter)
products and 1 or 3 passes; a quarter of a Philox block and of two Box-Muller pairs. docs/gpu_costs.md has the counts.
"""

import triton
import triton.language as tl

from .triton_functions import (
    coefficients,
    count_bins,
    even_and_odd,
    frequencies,
    half_sample_phase,
    inverse_power_of_two,
    left_dot,
    load_basis,
    load_weights,
    normal_pair,
    orbit_words,
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
def _corners(
    plane, row_stride, column_stride, first,
    H: tl.constexpr, W: tl.constexpr, MH: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Pointers to columns of the plane's four corners, each read outside in; and which of them count: in the first half
    of an odd size, its middle does, too."""
    m = tl.arange(0, MH)[:, None]
    n = first + tl.arange(0, COLUMNS)[None, :]
    # How many neighbouring columns are inside or outside together: what one access may hold.
    TOGETHER: tl.constexpr = (W // 2) & -(W // 2) if W % 2 == 0 else 1
    if W % (2 * COLUMNS) != 0:
        n = tl.max_contiguous(n, [1, TOGETHER])
    top = m * row_stride
    bottom = (H - 1 - m) * row_stride
    left = n * column_stride
    right = (W - 1 - n) * column_stride
    upper = 2 * m < H
    lower = 2 * m < H - 1
    near = tl.max_constancy(2 * n < W, [1, TOGETHER])
    far = tl.max_constancy(2 * n < W - 1, [1, TOGETHER])
    return (
        plane + (top + left), plane + (top + right), plane + (bottom + left), plane + (bottom + right),
        upper, lower, near, far,
    )  # fmt: skip


@triton.jit
def _load_quadrants(
    plane, row_stride, column_stride, first,
    H: tl.constexpr, W: tl.constexpr, MH: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    p00, p01, p10, p11, upper, lower, near, far = _corners(plane, row_stride, column_stride, first, H, W, MH, COLUMNS)
    if H == 2 * MH and W % (2 * COLUMNS) == 0:
        x00 = tl.load(p00)
        x01 = tl.load(p01)
        x10 = tl.load(p10)
        x11 = tl.load(p11)
    elif W % (2 * COLUMNS) == 0:
        x00 = tl.load(p00, mask=upper, other=0.0)
        x01 = tl.load(p01, mask=upper, other=0.0)
        x10 = tl.load(p10, mask=lower, other=0.0)
        x11 = tl.load(p11, mask=lower, other=0.0)
    else:
        x00 = tl.load(p00, mask=upper & near, other=0.0)
        x01 = tl.load(p01, mask=upper & far, other=0.0)
        x10 = tl.load(p10, mask=lower & near, other=0.0)
        x11 = tl.load(p11, mask=lower & far, other=0.0)
    return x00.to(tl.float32), x01.to(tl.float32), x10.to(tl.float32), x11.to(tl.float32)


@triton.jit
def _store_quadrants(
    plane, first, x00, x01, x10, x11,
    H: tl.constexpr, W: tl.constexpr, MH: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The inverse of _load_quadrants, to a contiguous plane."""
    p00, p01, p10, p11, upper, lower, near, far = _corners(plane, W, 1, first, H, W, MH, COLUMNS)
    if H == 2 * MH and W % (2 * COLUMNS) == 0:
        tl.store(p00, x00)
        tl.store(p01, x01)
        tl.store(p10, x10)
        tl.store(p11, x11)
    elif W % (2 * COLUMNS) == 0:
        tl.store(p00, x00, mask=upper)
        tl.store(p01, x01, mask=upper)
        tl.store(p10, x10, mask=lower)
        tl.store(p11, x11, mask=lower)
    else:
        tl.store(p00, x00, mask=upper & near)
        tl.store(p01, x01, mask=upper & far)
        tl.store(p10, x10, mask=lower & near)
        tl.store(p11, x11, mask=lower & far)


@triton.jit
def _halves(plane, row_stride, column_stride, H: tl.constexpr, W: tl.constexpr, MH: tl.constexpr, MW: tl.constexpr):
    """Pointers to the rows of the plane's two halves, each read outside in; and which of them count."""
    m = tl.arange(0, MH)[:, None]
    n = tl.arange(0, 2 * MW)[None, :]
    column = plane + n * column_stride
    return column + m * row_stride, column + (H - 1 - m) * row_stride, (2 * m < H) & (n < W), (2 * m < H - 1) & (n < W)


@triton.jit
def _load_halves(plane, row_stride, column_stride, H: tl.constexpr, W: tl.constexpr, MH: tl.constexpr, MW: tl.constexpr):
    top, bottom, upper, lower = _halves(plane, row_stride, column_stride, H, W, MH, MW)
    if H == 2 * MH and W == 2 * MW:
        return tl.load(top).to(tl.float32), tl.load(bottom).to(tl.float32)
    else:
        return (
            tl.load(top, mask=upper, other=0.0).to(tl.float32),
            tl.load(bottom, mask=lower, other=0.0).to(tl.float32),
        )


@triton.jit
def _store_halves(plane, x_top, x_bottom, H: tl.constexpr, W: tl.constexpr, MH: tl.constexpr, MW: tl.constexpr):
    """The inverse of _load_halves, to a contiguous plane."""
    top, bottom, upper, lower = _halves(plane, W, 1, H, W, MH, MW)
    if H == 2 * MH and W == 2 * MW:
        tl.store(top, x_top)
        tl.store(bottom, x_bottom)
    else:
        tl.store(top, x_top, mask=upper)
        tl.store(bottom, x_bottom, mask=lower)


# ---- noise -----------------------------------------------------------------------------------------------------------


@triton.jit
def _largest_weight(plus, minus):
    return tl.max(tl.maximum(tl.abs(plus), tl.abs(minus)))


@triton.jit
def _line(k, l, stream, weight, scale, H: tl.constexpr, W: tl.constexpr):
    """scale w F, as A + iB, at frequencies (k, l), one of them Nyquist's. Where F is real, only the part that a basis
    function takes up is right."""
    radius_word, angle_word, _, _ = orbit_words(k, l, stream, W)
    angle = angle_word - half_sample_phase(k, H) - half_sample_phase(l, W)
    radius, cosine, sine = normal_pair(radius_word, angle)
    radius *= weight * tl.where(own_negative(k, H) & own_negative(l, W), 0.7071067811865476 * scale, scale)
    return radius * cosine, radius * sine


@triton.jit(do_not_specialize=["first_number"])
def noise_kernel(
    output, noisy, output_strides, input, input_strides, signal_scale, signal_strides, scale, scale_strides,
    key, key_strides, first_number, number_strides, weight, weight_strides, columns_basis, rows_basis,
    H: tl.constexpr, W: tl.constexpr, MH: tl.constexpr, MW: tl.constexpr, CHUNK: tl.constexpr, PASSES: tl.constexpr,
):  # fmt: skip
    """Shaped noise: scale T_w xi to `output`. With an input, T_w xi, and to `noisy` signal_scale input + scale T_w xi.

    CHUNK column frequencies at a time go through the first product and into the sums of the second.
    """
    ORBITS: tl.constexpr = (H // 2 + 1) * (W // 2 + 1)
    SLOTS: tl.constexpr = W // 2 + (W % 32 != 0)
    number = first_number.to(tl.uint64) + _plane(number_strides).to(tl.uint64)
    stream = plane_stream(key + _plane(key_strides), number, ORBITS)
    weight += _plane(weight_strides)

    n = tl.arange(0, 2 * MW)[:, None]
    cosine_lines = tl.zeros((2 * MW, MH), tl.float32)
    sine_lines = tl.zeros((2 * MW, MH), tl.float32)
    k = frequencies(0, MH, H)
    row_slot = tl.arange(0, MH)[:, None]
    range_scale = tl.full((), 2.0**126, tl.float32)
    for first in range(0, SLOTS, CHUNK):
        l = frequencies(first, CHUNK, W)
        column_slot = first + tl.arange(0, CHUNK)[None, :]
        # Nyquist's frequencies that have no slots: a row, and with the first columns a column that ends in the corner.
        plus, minus = load_weights(weight, k[:, None], l[None, :], H, W)
        largest = _largest_weight(plus, minus)
        if H % 32 == 0:
            row = tl.load(weight + (H // 2 * (W // 2 + 1) + l))
            largest = tl.maximum(largest, tl.max(tl.abs(row)))
        if W % 32 == 0:
            column_k = frequencies(0, 2 * MH, H)
            column_plus, column_minus = load_weights(weight, column_k, W // 2, H, W)
            column = 0.5 * column_plus + 0.5 * column_minus
            largest = tl.maximum(largest, tl.max(tl.abs(column)))
        # The largest weight so far sets the range of the sums.
        new_scale = tl.minimum(range_scale, power_of_two(largest, 4))
        if SLOTS > CHUNK and new_scale < range_scale:
            shrink = new_scale * inverse_power_of_two(range_scale)
            cosine_lines *= shrink
            sine_lines *= shrink
        range_scale = new_scale

        a, b, c, d = coefficients(k[:, None], l[None, :], stream, plus, minus, range_scale, H, W)
        cc = a + c
        ss = c - a
        sc = -b - d
        cs = d - b
        # The sines of the Nyquist frequencies in slot 0.
        if H % 32 == 0:
            half_height = tl.full((1,), H // 2, tl.int32)
            row_a, row_b = _line(half_height, l, stream, row, range_scale, H, W)
            sc = tl.where(row_slot == 0, -row_b[None, :], sc)
            ss = tl.where(row_slot == 0, -row_a[None, :], ss)
        if W % 32 == 0 and first == 0:
            half_width = tl.full((1,), W // 2, tl.int32)
            column_a, column_b = _line(column_k, half_width, stream, column, range_scale, H, W)
            column_a, corner_a = tl.split(tl.trans(tl.reshape(column_a, (2, MH))))
            column_b, _ = tl.split(tl.trans(tl.reshape(column_b, (2, MH))))
            if H % 32 == 0:
                column_a = tl.where(tl.arange(0, MH) == 0, corner_a, column_a)
            cs = tl.where(column_slot == 0, -column_b[:, None], cs)
            ss = tl.where(column_slot == 0, -column_a[:, None], ss)

        column_slot = first + tl.arange(0, CHUNK)[None, :]
        high, low = load_basis(columns_basis, n, column_slot, 2 * MW, MW, PASSES)
        cosine_lines += left_dot(high, low, tl.trans(cc), PASSES)
        sine_lines += left_dot(high, low, tl.trans(sc), PASSES)
        high, low = load_basis(columns_basis + 4 * MW * MW, n, column_slot, 2 * MW, MW, PASSES)
        cosine_lines += left_dot(high, low, tl.trans(cs), PASSES)
        sine_lines += left_dot(high, low, tl.trans(ss), PASSES)

    norm = inverse_power_of_two(range_scale) * (2.0 / (H * W)) ** 0.5
    if input is None:
        norm *= scale_of(scale, _plane(scale_strides))
    k = tl.arange(0, MH)[:, None]
    m = tl.arange(0, MH)[None, :]
    zero = tl.zeros((2 * MW, MH), tl.float32)
    high, low = load_basis(rows_basis, k, m, MH, MH, PASSES)
    even = right_dot(cosine_lines, high, low, zero, PASSES) * norm
    high, low = load_basis(rows_basis + 2 * MH * MH, k, m, MH, MH, PASSES)
    odd = right_dot(sine_lines, high, low, zero, PASSES) * norm
    top = tl.trans(even + odd)
    bottom = tl.trans(even - odd)
    plane = _plane(output_strides) * (H * W)
    _store_halves(output + plane, top, bottom, H, W, MH, MW)
    if input is not None:
        signal, noise = scale_of(signal_scale, _plane(signal_strides)), scale_of(scale, _plane(scale_strides))
        x_top, x_bottom = _load_halves(
            input + _plane(input_strides), input_strides[3], input_strides[4], H, W, MH, MW
        )  # fmt: skip
        _store_halves(noisy + plane, signal * x_top + noise * top, signal * x_bottom + noise * bottom, H, W, MH, MW)


# ---- filter ----------------------------------------------------------------------------------------------------------


@triton.jit
def _difference(
    input, input_strides, target, target_strides, first,
    H: tl.constexpr, W: tl.constexpr, MH: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Columns of the quadrants of input - target, or of input."""
    plane = input + _plane(input_strides)
    x00, x01, x10, x11 = _load_quadrants(plane, input_strides[3], input_strides[4], first, H, W, MH, COLUMNS)
    if target is not None:
        plane = target + _plane(target_strides)
        t00, t01, t10, t11 = _load_quadrants(plane, target_strides[3], target_strides[4], first, H, W, MH, COLUMNS)
        x00 -= t00
        x01 -= t01
        x10 -= t10
        x11 -= t11
    return x00, x01, x10, x11


@triton.jit
def _largest(x00, x01, x10, x11):
    return tl.max(tl.maximum(tl.maximum(tl.abs(x00), tl.abs(x01)), tl.maximum(tl.abs(x10), tl.abs(x11))))


@triton.jit
def filter_kernel(
    output, plane_loss, output_strides, input, input_strides, target, target_strides, scale, scale_strides,
    weight, weight_strides, columns_basis, columns_transposed, rows_basis, rows_transposed,
    H: tl.constexpr, W: tl.constexpr, MH: tl.constexpr, MW: tl.constexpr, CHUNK: tl.constexpr, PASSES: tl.constexpr,
):  # fmt: skip
    """scale T_w input to `output`. With a target, T_u (input - target) for the whitening u = 1/w^2 (times the share of
    bins with w > 0), if there is an output, and to `plane_loss` the mean over the plane of the difference times that.

    CHUNK columns of the plane at a time go through the first two products, and come out of the last two.
    """
    WHITEN: tl.constexpr = target is not None
    COLUMNS: tl.constexpr = (W + 1) // 2
    # A folded sum of four values times MH, and of two times MW, stays below float16's 2^16.
    EXPONENT_IN: tl.constexpr = 8 if MH == 16 else 7 if MH == 32 else 6
    EXPONENT_OUT: tl.constexpr = 8 if MW == 16 else 7 if MW == 32 else 6

    largest = 0.0
    for first in range(0, COLUMNS, CHUNK):
        x00, x01, x10, x11 = _difference(input, input_strides, target, target_strides, first, H, W, MH, CHUNK)
        largest = tl.maximum(largest, _largest(x00, x01, x10, x11))
    scale_in = power_of_two(largest, EXPONENT_IN)

    k = tl.arange(0, MH)[:, None]
    l = tl.arange(0, MW)[None, :]
    m = tl.arange(0, MH)[None, :]
    cos_high, cos_low = load_basis(rows_basis, k, m, MH, MH, PASSES)
    sin_high, sin_low = load_basis(rows_basis + 2 * MH * MH, k, m, MH, MH, PASSES)
    cc = tl.zeros((MH, MW), tl.float32)
    cs = tl.zeros((MH, MW), tl.float32)
    sc = tl.zeros((MH, MW), tl.float32)
    ss = tl.zeros((MH, MW), tl.float32)
    for first in range(0, COLUMNS, CHUNK):
        n = first + tl.arange(0, CHUNK)
        x00, x01, x10, x11 = _difference(input, input_strides, target, target_strides, first, H, W, MH, CHUNK)
        x00 *= scale_in
        x01 *= scale_in
        x10 *= scale_in
        x11 *= scale_in
        c_high, c_low = load_basis(columns_transposed, n[:, None], l, MW, MW, PASSES)
        s_high, s_low = load_basis(columns_transposed + 2 * MW * MW, n[:, None], l, MW, MW, PASSES)
        cc = right_dot(left_dot(cos_high, cos_low, (x00 + x01) + (x10 + x11), PASSES), c_high, c_low, cc, PASSES)
        cs = right_dot(left_dot(cos_high, cos_low, (x00 - x01) + (x10 - x11), PASSES), s_high, s_low, cs, PASSES)
        sc = right_dot(left_dot(sin_high, sin_low, (x00 + x01) - (x10 + x11), PASSES), c_high, c_low, sc, PASSES)
        ss = right_dot(left_dot(sin_high, sin_low, (x00 - x01) - (x10 - x11), PASSES), s_high, s_low, ss, PASSES)

    weight += _plane(weight_strides)
    k_bins = count_bins(k, H)
    l_bins = count_bins(l, W)
    k = frequencies(0, MH, H)[:, None]
    l = frequencies(0, MW, W)[None, :]
    u, v, kept = even_and_odd(weight, k, l, k_bins * l_bins, H, W, WHITEN)
    v = tl.where(own_negative(k, H) | own_negative(l, W), 0.0, v)
    u_sc = u
    u_cs = u
    u_ss = u
    # The sines of the Nyquist frequencies in slot 0.
    half_height = tl.full((1, 1), H // 2, tl.int32)
    half_width = tl.full((1, 1), W // 2, tl.int32)
    if H % 32 == 0:
        row, _, more = even_and_odd(weight, half_height, l, l_bins, H, W, WHITEN)
        kept += more
        u_sc = tl.where(k == 0, row, u_sc)
        u_ss = tl.where(k == 0, row, u_ss)
    if W % 32 == 0:
        column, _, more = even_and_odd(weight, k, half_width, k_bins, H, W, WHITEN)
        kept += more
        u_cs = tl.where(l == 0, column, u_cs)
        u_ss = tl.where(l == 0, column, u_ss)
    if H % 32 == 0 and W % 32 == 0:
        corner, _, more = even_and_odd(weight, half_height, half_width, 1.0, H, W, WHITEN)
        kept += more
        u_ss = tl.where((k == 0) & (l == 0), corner, u_ss)

    # A basis function's coefficient is its product with the plane over its squared length.
    norm = k_bins * l_bins / (H * W)
    v *= norm
    y_cc = u * norm * cc - v * ss
    y_ss = u_ss * norm * ss - v * cc
    y_sc = u_sc * norm * sc + v * cs
    y_cs = u_cs * norm * cs + v * sc
    unscale_in = inverse_power_of_two(scale_in)
    factor = scale_of(scale, _plane(scale_strides))
    if target is not None:
        kept = tl.maximum(kept, 1.0)
        total = tl.sum(cc * y_cc + cs * y_cs + sc * y_sc + ss * y_ss)
        tl.store(plane_loss + _plane(output_strides), total * unscale_in * unscale_in / kept)
        factor = H * W / kept

    if output is not None:
        scale_out = power_of_two(_largest(y_cc, y_cs, y_sc, y_ss), EXPONENT_OUT)
        factor *= unscale_in * inverse_power_of_two(scale_out)
        y_cc *= scale_out
        y_cs *= scale_out
        y_sc *= scale_out
        y_ss *= scale_out
        sample = tl.arange(0, MH)[:, None]
        cos_high, cos_low = load_basis(rows_transposed, sample, m, MH, MH, PASSES)
        sin_high, sin_low = load_basis(rows_transposed + 2 * MH * MH, sample, m, MH, MH, PASSES)
        zero = tl.zeros((MH, CHUNK), tl.float32)
        for first in range(0, COLUMNS, CHUNK):
            n = first + tl.arange(0, CHUNK)
            frequency = tl.arange(0, MW)[:, None]
            c_high, c_low = load_basis(columns_basis, frequency, n[None, :], MW, MW, PASSES)
            s_high, s_low = load_basis(columns_basis + 2 * MW * MW, frequency, n[None, :], MW, MW, PASSES)
            z_c = right_dot(y_cc, c_high, c_low, zero, PASSES)
            z_s = right_dot(y_cs, s_high, s_low, zero, PASSES)
            even_left = factor * left_dot(cos_high, cos_low, z_c + z_s, PASSES)
            even_right = factor * left_dot(cos_high, cos_low, z_c - z_s, PASSES)
            z_c = right_dot(y_sc, c_high, c_low, zero, PASSES)
            z_s = right_dot(y_ss, s_high, s_low, zero, PASSES)
            odd_left = factor * left_dot(sin_high, sin_low, z_c + z_s, PASSES)
            odd_right = factor * left_dot(sin_high, sin_low, z_c - z_s, PASSES)
            _store_quadrants(
                output + _plane(output_strides) * (H * W), first,
                even_left + odd_left, even_right + odd_right, even_left - odd_left, even_right - odd_right,
                H, W, MH, CHUNK,
            )  # fmt: skip
