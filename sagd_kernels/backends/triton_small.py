"""The operators on planes of up to 32 x 32 as Triton kernels: a program takes one plane after another, whole.

The filter: in the Hartley basis, cas(2 pi k m / N) = cos + sin, which is real, symmetric and its own inverse but for
1/N, a plane of H x W has the coefficients T = B_H x B_W. A weight w(k, l) whose parts even and odd in k alone are u and
v takes them to u T - v T', T'(k, l) = T(-k, -l): two more products with mirrored bases, which a weight that is even in
each frequency, as radial weights are, does without. An axis has M >= N slots, a power of two; those beyond are zero.

Products are transposed so that the sums of one are an operand of the next in the registers where they are:

    T^T = (B_W x^T) B_H,    y^T = u T^T - ...,    B_H (y^T)^T B_W.

A plane passes through shared memory when it comes and when it goes, not between. The bases, and the weight where the
planes of a program share it, are read once. Factors are pairs of float16, as the head of triton_kernels.py says.

Noise: in the basis of triton_kernels.py, with M = 8 or 16 slots and 2 M rows, of cosines and sines in turn. Orbits are
drawn by the threads whose products take them up: a thread of a warp has for one column the elements 2 t, 2 t + 1, 2 t +
8, ... of the first product's second operand, t = 0..3, which are the cosines and sines of frequencies t, t + 4, ... Of
planes of up to 16 x 16 two are one tile. Triton chooses layouts by itself; those of 3.9 move only what is drawn for the
Nyquist frequencies, those of 3.6 move the first operand between the threads of a warp, too.

Cost per pixel: the plane in and out of device memory once; M multiply-adds for each of 4 or 6 products of the filter,
2 M for each of the 2 of noise, 1 or 3 passes. A warp draws 3 times for a plane of 16 x 16, whose 81 orbits are 2.5 for
each thread, and 10 times for one of 32 x 32, whose 289 are 9.
"""

import triton
import triton.language as tl

from .triton_functions import (
    by_mma_sync,
    coefficients,
    inverse_power_of_two,
    inverse_square,
    largest_weight,
    later_stream,
    left_dot,
    line,
    load_parts,
    load_weights,
    own_negative,
    plane_stream,
    power_of_two,
    right_dot,
    scale_of,
)

EXPONENT = tl.constexpr(8)  # of the largest operand: sums of 32 times its products with cas are in float16's range


@triton.jit
def _plane(number, strides):
    """The offset of a plane, its number along the first of three batch dimensions, the others' axes of the grid."""
    return (
        number.to(tl.int64) * strides[0]
        + tl.program_id(1).to(tl.int64) * strides[1]
        + tl.program_id(2).to(tl.int64) * strides[2]
    )


@triton.jit
def _mirrored(k, N: tl.constexpr):
    return tl.where((k > 0) & (k < N), N - k, k)


@triton.jit
def _weights(weight, k, l, H: tl.constexpr, W: tl.constexpr, WHITEN: tl.constexpr):
    """u and v at frequencies (k, l) of the whole plane, times 1 / (H W). With WHITEN of 1/w^2 where w > 0 and 0
    elsewhere, and how many bins that is."""
    inside = (k < H) & (l < W)
    k = tl.minimum(k, H - 1)
    l = tl.minimum(l, W - 1)
    half = tl.minimum(l, _mirrored(l, W))  # the column of the half plane that has the bin or its conjugate
    mirrored = _mirrored(k, H)
    plus = tl.load(weight + (tl.where(half == l, k, mirrored) * (W // 2 + 1) + half))
    minus = tl.load(weight + (tl.where(half == l, mirrored, k) * (W // 2 + 1) + half))
    even = 0.5 * plus + 0.5 * minus
    plus = tl.where(own_negative(l, W), even, plus)
    minus = tl.where(own_negative(l, W), even, minus)
    kept = 1.0
    if WHITEN:
        kept = tl.maximum(tl.sum(tl.where(inside & (plus > 0), 1.0, 0.0)), 1.0)
        plus = inverse_square(plus)
        minus = inverse_square(minus)
    norm: tl.constexpr = 1 / (H * W)
    even = 0.5 * norm * plus + 0.5 * norm * minus
    odd = tl.where(own_negative(k, H), 0.0, 0.5 * norm * plus - 0.5 * norm * minus)
    return even, odd, kept


@triton.jit
def _pixel(m, n, strides, W: tl.constexpr, DENSE: tl.constexpr):
    """The offset of a pixel in its plane."""
    if DENSE:
        return m * W + n
    else:
        return m * strides[3] + n * strides[4]


@triton.jit
def _load(
    plane, strides, m, n, H: tl.constexpr, W: tl.constexpr, MH: tl.constexpr, MW: tl.constexpr, DENSE: tl.constexpr
):  # fmt: skip
    pointers = plane + _pixel(m, n, strides, W, DENSE)
    if H == MH and W == MW:
        return tl.load(pointers).to(tl.float32)
    else:
        return tl.load(pointers, mask=(m < H) & (n < W), other=0.0).to(tl.float32)


@triton.jit
def _difference(
    number, input, input_strides, target, target_strides, m, n,
    H: tl.constexpr, W: tl.constexpr, MH: tl.constexpr, MW: tl.constexpr, DENSE: tl.constexpr,
):  # fmt: skip
    """input - target, or input."""
    x = _load(input + _plane(number, input_strides), input_strides, m, n, H, W, MH, MW, DENSE)
    if target is not None:
        x -= _load(target + _plane(number, target_strides), target_strides, m, n, H, W, MH, MW, DENSE)
    return x


@triton.jit
def _coefficients(x, columns_high, columns_low, rows_high, rows_low, PASSES: tl.constexpr):
    """T^T of a plane x."""
    lines = left_dot(columns_high, columns_low, tl.trans(x), PASSES)
    zero = tl.zeros((columns_high.shape[0], rows_high.shape[1]), tl.float32)
    return right_dot(lines, rows_high, rows_low, zero, PASSES)


@by_mma_sync
@triton.jit(do_not_specialize=["planes", "planes_of_program"])
def whole_filter_kernel(
    output, plane_loss, output_strides, input, input_strides, target, target_strides, scale, scale_strides,
    weight, weight_strides, columns_basis, rows_basis, planes, planes_of_program,
    H: tl.constexpr, W: tl.constexpr, MH: tl.constexpr, MW: tl.constexpr, SHARED: tl.constexpr,
    DENSE: tl.constexpr, PASSES: tl.constexpr,
):  # fmt: skip
    """What triton_kernels.filter_kernel computes, for `planes_of_program` planes along the grid's first axis, which has
    `planes`. SHARED: these have one weight.
    """
    WHITEN: tl.constexpr = target is not None
    m = tl.arange(0, MH)[:, None]
    n = tl.arange(0, MW)[None, :]
    columns_high, columns_low = load_parts(columns_basis, tl.arange(0, MW)[:, None], n, MW, MW, PASSES)
    rows_high, rows_low = load_parts(rows_basis, m, tl.arange(0, MH)[None, :], MH, MH, PASSES)
    k = tl.arange(0, MH)[None, :]
    l = tl.arange(0, MW)[:, None]
    first = tl.program_id(0) * planes_of_program
    if SHARED:
        u, v, kept = _weights(weight + _plane(first, weight_strides), k, l, H, W, WHITEN)
        mixed = tl.max(tl.abs(v)) > 0
    for i in range(tl.minimum(planes - first, planes_of_program)):
        number = first + i
        if not SHARED:
            u, v, kept = _weights(weight + _plane(number, weight_strides), k, l, H, W, WHITEN)
            mixed = tl.max(tl.abs(v)) > 0
        x = _difference(number, input, input_strides, target, target_strides, m, n, H, W, MH, MW, DENSE)
        scale_in = power_of_two(tl.max(tl.abs(x)), EXPONENT)
        t = _coefficients(x * scale_in, columns_high, columns_low, rows_high, rows_low, PASSES)
        y = u * t
        if mixed:
            minus_l = _mirrored(tl.arange(0, MW), W)[:, None]
            minus_k = _mirrored(tl.arange(0, MH), H)[:, None]
            mirrored_high, mirrored_low = load_parts(columns_basis, minus_l, n, MW, MW, PASSES)
            high, low = load_parts(rows_basis, minus_k, tl.arange(0, MH)[None, :], MH, MH, PASSES)
            y -= v * _coefficients(x * scale_in, mirrored_high, mirrored_low, high, low, PASSES)

        unscale = inverse_power_of_two(scale_in)
        factor = scale_of(scale, _plane(number, scale_strides))
        if target is not None:
            tl.store(plane_loss + _plane(number, output_strides), tl.sum(t * y) * unscale * unscale / kept)
            factor = H * W / kept
        if output is not None:
            scale_out = power_of_two(tl.max(tl.abs(y)), EXPONENT)
            lines = left_dot(rows_high, rows_low, tl.trans(y * scale_out), PASSES)
            zero = tl.zeros((MH, MW), tl.float32)
            x = right_dot(lines, columns_high, columns_low, zero, PASSES)
            x *= factor * unscale * inverse_power_of_two(scale_out)
            pointers = output + _plane(number, output_strides) * (H * W) + m * W + n
            if H == MH and W == MW:
                tl.store(pointers, x)
            else:
                tl.store(pointers, x, mask=(m < H) & (n < W))


# ---- noise -----------------------------------------------------------------------------------------------------------


@triton.jit
def _and_corner(M: tl.constexpr, N: tl.constexpr):
    """The frequencies of an axis's slots, followed by Nyquist's as often."""
    index = tl.arange(0, 2 * M)
    return tl.minimum(tl.where(index < M, index, N // 2), N // 2)[None, :]


@triton.jit
def _noise_weights(weight, k, l, row_l, column_k, H: tl.constexpr, W: tl.constexpr):
    """w(k, l) and w(-k, l); on Nyquist's row and column; a power of two for their range."""
    plus, minus = load_weights(weight, k, l, H, W)
    row = tl.load(weight + (H // 2 * (W // 2 + 1) + row_l))
    column_plus, column_minus = load_weights(weight, column_k, W // 2, H, W)
    range_scale = power_of_two(largest_weight(weight, H * (W // 2 + 1), 128), 4)
    return plus, minus, row, 0.5 * column_plus + 0.5 * column_minus, range_scale


@triton.jit
def _nyquist(k, l, stream, weight, scale, H: tl.constexpr, W: tl.constexpr, M: tl.constexpr):
    """scale w F, as A + iB, on Nyquist's row or column; and A at the corner."""
    a, b = line(k, l, stream, weight, scale, H, W)
    a, corner = tl.split(tl.permute(tl.reshape(a, (a.shape[0], 2, M)), (0, 2, 1)))
    b, _ = tl.split(tl.permute(tl.reshape(b, (b.shape[0], 2, M)), (0, 2, 1)))
    return a, b, corner


@by_mma_sync
@triton.jit(do_not_specialize=["first_number", "planes", "planes_of_program"])
def whole_noise_kernel(
    output, noisy, output_strides, input, input_strides, signal_scale, signal_strides, scale, scale_strides,
    key, key_strides, first_number, number_strides, weight, weight_strides, columns_basis, rows_basis,
    planes, planes_of_program,
    H: tl.constexpr, W: tl.constexpr, MH: tl.constexpr, MW: tl.constexpr, PLANES: tl.constexpr, SHARED: tl.constexpr,
    DENSE: tl.constexpr, PASSES: tl.constexpr,
):  # fmt: skip
    """What triton_kernels.noise_kernel computes, for `planes_of_program` planes along the grid's first axis, which has
    `planes`. PLANES at a time, which have one key and one weight; SHARED: all have one weight.
    """
    ORBITS: tl.constexpr = (H // 2 + 1) * (W // 2 + 1)
    m = tl.arange(0, 2 * MH)[:, None]
    slot = tl.arange(0, 2 * MH)[None, :]  # k, cosine or sine
    rows_high, rows_low = load_parts(rows_basis, slot % 2 * (2 * MH) + slot // 2, m, MH, 2 * MH, PASSES)
    n = tl.arange(0, 2 * MW)[None, :]
    slot = tl.arange(0, 2 * MW)[:, None]  # cosine or sine, l
    columns_high, columns_low = load_parts(columns_basis, slot // MW * (2 * MW) + slot % MW, n, MW, 2 * MW, PASSES)

    plane = tl.arange(0, PLANES)
    # Orbits are tiles [plane, k // 4, l, k % 4].
    k_slot = 4 * tl.arange(0, MH // 4)[:, None, None] + tl.arange(0, 4)[None, None, :]
    l_slot = tl.arange(0, MW)[None, :, None]
    k = tl.minimum(k_slot, H // 2)
    l = tl.minimum(l_slot, W // 2)
    row_l = _and_corner(MW, W)
    column_k = _and_corner(MH, H)
    half_height = tl.full((1, 1), H // 2, tl.int32)
    half_width = tl.full((1, 1), W // 2, tl.int32)

    first = tl.program_id(0) * planes_of_program
    last = tl.minimum(first + planes_of_program, planes)
    if SHARED:
        w = weight + _plane(first, weight_strides)
        plus, minus, row, column, range_scale = _noise_weights(w, k, l, row_l, column_k, H, W)
    for i in range(0, last - first, PLANES):
        start = first + i
        if not SHARED:
            w = weight + _plane(start, weight_strides)
            plus, minus, row, column, range_scale = _noise_weights(w, k, l, row_l, column_k, H, W)
        number = first_number.to(tl.uint64) + _plane(start, number_strides).to(tl.uint64)
        stream = plane_stream(key + _plane(start, key_strides), number, ORBITS)
        orbits = (plane * number_strides[0] * ORBITS).to(tl.uint32)
        streams = later_stream(stream, orbits[:, None, None, None])
        a, b, c, d = coefficients(k[None], l[None], streams, plus[None], minus[None], range_scale, H, W)
        cc = a + c
        ss = c - a
        sc = -b - d
        cs = d - b
        # The sines of the Nyquist frequencies, a row and a column, in slot 0.
        streams = later_stream(stream, orbits[:, None])
        if H == 2 * MH:
            row_a, row_b, _ = _nyquist(half_height, row_l, streams, row, range_scale, H, W, MW)
            sc = tl.where(k_slot == 0, -row_b[:, None, :, None], sc)
            ss = tl.where(k_slot == 0, -row_a[:, None, :, None], ss)
        if W == 2 * MW:
            column_a, column_b, corner = _nyquist(column_k, half_width, streams, column, range_scale, H, W, MH)
            if H == 2 * MH:
                column_a = tl.where(tl.arange(0, MH)[None, :] == 0, corner, column_a)
            cs = tl.where(l_slot == 0, -tl.reshape(column_b, (PLANES, MH // 4, 4))[:, :, None, :], cs)
            ss = tl.where(l_slot == 0, -tl.reshape(column_a, (PLANES, MH // 4, 4))[:, :, None, :], ss)

        spectrum = tl.join(tl.join(cc, sc), tl.join(cs, ss))  # ..., cosine or sine of k, then of l
        spectrum = tl.reshape(tl.permute(spectrum, (1, 3, 4, 0, 5, 2)), (2 * MH, PLANES * 2 * MW))
        lines = left_dot(rows_high, rows_low, spectrum, PASSES)
        lines = tl.permute(tl.reshape(lines, (2 * MH, PLANES, 2 * MW)), (1, 0, 2))
        lines = tl.reshape(lines, (PLANES * 2 * MH, 2 * MW))
        zero = tl.zeros((PLANES * 2 * MH, 2 * MW), tl.float32)
        x = tl.reshape(right_dot(lines, columns_high, columns_low, zero, PASSES), (PLANES, 2 * MH, 2 * MW))

        inside = (start + plane < last)[:, None, None]
        if H != 2 * MH or W != 2 * MW:
            inside = inside & (m < H) & (n < W)
        number = tl.minimum(start + plane, last - 1)[:, None, None]
        factor = scale_of(scale, _plane(number, scale_strides))
        norm = inverse_power_of_two(range_scale) * (2.0 / (H * W)) ** 0.5
        if input is None:
            norm *= factor
        x *= norm
        pixels = _plane(number, output_strides) * (H * W) + (m * W + n)
        tl.store(output + pixels, x, mask=inside)
        if input is not None:
            signal = scale_of(signal_scale, _plane(number, signal_strides))
            source = input + _plane(number, input_strides) + _pixel(m, n, input_strides, W, DENSE)
            y = tl.load(source, mask=inside, other=0.0).to(tl.float32)
            tl.store(noisy + pixels, signal * y + factor * x, mask=inside)
