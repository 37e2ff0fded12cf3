"""The operators on planes of up to 512 x 512 as Triton kernels: the products of triton_kernels.py, tile by tile.

A plane is too large for a program, so each axis's transform is a launch of its own, and between launches planes are in
device memory, as float32. The host takes as many planes at a time as let this stay in the L2 cache:

    lines     [2, H, MW]      each row's coefficients, of the cosines and of the sines along W; by slots of l
    spectrum  [2, 2, MH, MW]  the plane's, first of the cosines, then of the sines along H; by slots of k and l

Noise is drawn as a spectrum; two launches make planes of spectra. The filter has two more before them, of which the
second multiplies by the weight. A program computes one tile of two products: of the cosines along its axis and of the
sines. Powers of two, chosen by each program for what it reads, keep float16 in range. No plane sees another.

A product is summed in steps of 16, each step by tensor cores, which truncate, the steps in float32, which rounds: so
the error does not grow with the axis.

Cost per pixel: for each axis transformed M multiply-adds, for M slots, in 1 or 3 passes, and 8 bytes of the L2 cache;
what drawing takes as there.
"""

import triton
import triton.language as tl

from .triton_functions import (
    by_mma_sync,
    coefficients,
    count_bins,
    even_and_odd,
    inverse_power_of_two,
    left_dot,
    load_basis,
    load_weights,
    own_negative,
    plane_stream,
    power_of_two,
    right_dot,
    scale_of,
)

EXPONENT = tl.constexpr(12)  # of the largest operand, so that the sum of two of them is a float16


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


@triton.jit
def _halves(n, inside, N: tl.constexpr, TILE: tl.constexpr):
    """Whether the samples n of a tile, from the two ends of lines of N, are any; an odd number's middle is of the first
    half."""
    if N % (2 * TILE) == 0:
        return inside, inside
    else:
        return (2 * n < N) & inside, (2 * n < N - 1) & inside


@triton.jit
def _load_ends(line, n, stride, inside, N: tl.constexpr, TILE: tl.constexpr):
    near_inside, far_inside = _halves(n, inside, N, TILE)
    near = tl.load(line + n * stride, mask=near_inside, other=0.0)
    far = tl.load(line + (N - 1 - n) * stride, mask=far_inside, other=0.0)
    return near.to(tl.float32), far.to(tl.float32)


@triton.jit
def _store_ends(line, n, stride, inside, near, far, N: tl.constexpr, TILE: tl.constexpr):
    near_inside, far_inside = _halves(n, inside, N, TILE)
    tl.store(line + n * stride, near, mask=near_inside)
    tl.store(line + (N - 1 - n) * stride, far, mask=far_inside)


@triton.jit
def _larger(largest, x, y):
    return tl.maximum(largest, tl.maximum(tl.abs(x), tl.abs(y)))


# ---- noise -----------------------------------------------------------------------------------------------------------


@by_mma_sync
@triton.jit(do_not_specialize=["first", "first_number"])
def draw_kernel(
    spectrum, first, sizes, key, key_strides, first_number, number_strides, weight, weight_strides,
    H: tl.constexpr, W: tl.constexpr, MH: tl.constexpr, MW: tl.constexpr, ORBITS: tl.constexpr,
):  # fmt: skip
    """The spectrum of T_w xi: frequency orbits, each to the slots of its basis functions."""
    ALL: tl.constexpr = (H // 2 + 1) * (W // 2 + 1)
    number = first_number.to(tl.uint64) + _plane(first, sizes, number_strides).to(tl.uint64)
    stream = plane_stream(key + _plane(first, sizes, key_strides), number, ALL)
    orbit = _tile(tl.program_id(1), ORBITS)
    inside = orbit < ALL
    orbit = tl.minimum(orbit, ALL - 1)
    k = orbit // (W // 2 + 1)
    l = orbit % (W // 2 + 1)
    plus, minus = load_weights(weight + _plane(first, sizes, weight_strides), k, l, H, W)
    a, b, c, d = coefficients(k, l, stream, plus, minus, (2.0 / (H * W)) ** 0.5, H, W)

    # Where 32 divides N, slot 0 of the sines is for the frequency that has no slot of the cosines.
    K_SLOTS: tl.constexpr = H // 2 + (H % 32 != 0)
    L_SLOTS: tl.constexpr = W // 2 + (W % 32 != 0)
    k_cosine = inside & (k < K_SLOTS)
    l_cosine = l < L_SLOTS
    k_sine = inside & ((k > 0) | (H % 32 != 0))
    l_sine = (l > 0) | (W % 32 != 0)
    k_slot = tl.where(k < K_SLOTS, k, 0) * MW
    l_slot = tl.where(l < L_SLOTS, l, 0)
    spectrum += tl.program_id(0).to(tl.int64) * (4 * MH * MW)
    tl.store(spectrum + (k_slot + l_slot), a + c, mask=k_cosine & l_cosine)
    tl.store(spectrum + (MH * MW + k_slot + l_slot), d - b, mask=k_cosine & l_sine)
    tl.store(spectrum + (2 * MH * MW + k_slot + l_slot), -b - d, mask=k_sine & l_cosine)
    tl.store(spectrum + (3 * MH * MW + k_slot + l_slot), c - a, mask=k_sine & l_sine)


# ---- from planes to spectra ------------------------------------------------------------------------------------------


@triton.jit
def _difference(x, x_stride, target, target_stride, n, inside, W: tl.constexpr, CHUNK: tl.constexpr):
    near, far = _load_ends(x, n, x_stride, inside, W, CHUNK)
    if target is not None:
        target_near, target_far = _load_ends(target, n, target_stride, inside, W, CHUNK)
        near -= target_near
        far -= target_far
    return near, far


@by_mma_sync
@triton.jit(do_not_specialize=["first"])
def rows_forward_kernel(
    lines, first, sizes, input, input_strides, target, target_strides, columns_transposed,
    H: tl.constexpr, W: tl.constexpr, MW: tl.constexpr, ROWS: tl.constexpr, TW: tl.constexpr, CHUNK: tl.constexpr,
    PASSES: tl.constexpr,
):  # fmt: skip
    """The lines of input - target, or of input."""
    h = _tile(tl.program_id(1) // (MW // TW), ROWS)[:, None]
    l = _tile(tl.program_id(1) % (MW // TW), TW)[None, :]
    inside = h < H
    x = input + _plane(first, sizes, input_strides) + h * input_strides[3]
    if target is not None:
        target += _plane(first, sizes, target_strides) + h * target_strides[3]

    largest = tl.zeros((ROWS, CHUNK), tl.float32)
    for start in range(0, (W + 1) // 2, CHUNK):
        n = start + tl.arange(0, CHUNK)[None, :]
        near, far = _difference(x, input_strides[4], target, target_strides[4], n, inside, W, CHUNK)
        largest = _larger(largest, near, far)
    scale = power_of_two(tl.max(largest), EXPONENT)

    zero = tl.zeros((ROWS, TW), tl.float32)
    cosines = zero
    sines = zero
    for start in range(0, (W + 1) // 2, CHUNK):
        n = start + tl.arange(0, CHUNK)[None, :]
        near, far = _difference(x, input_strides[4], target, target_strides[4], n, inside, W, CHUNK)
        near *= scale
        far *= scale
        n = start + tl.arange(0, CHUNK)[:, None]
        cos_high, cos_low = load_basis(columns_transposed, n, l, MW, MW, PASSES)
        sin_high, sin_low = load_basis(columns_transposed + 2 * MW * MW, n, l, MW, MW, PASSES)
        cosines += right_dot(near + far, cos_high, cos_low, zero, PASSES)
        sines += right_dot(near - far, sin_high, sin_low, zero, PASSES)

    unscale = inverse_power_of_two(scale)
    lines += tl.program_id(0).to(tl.int64) * (2 * H * MW) + (h * MW + l)
    tl.store(lines, cosines * unscale, mask=inside)
    tl.store(lines + H * MW, sines * unscale, mask=inside)


@by_mma_sync
@triton.jit(do_not_specialize=["first"])
def columns_forward_kernel(
    spectrum, tile_loss, first, sizes, loss_strides, lines, weight, weight_strides, rows_basis,
    H: tl.constexpr, W: tl.constexpr, MH: tl.constexpr, MW: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr,
    CHUNK: tl.constexpr, PASSES: tl.constexpr,
):  # fmt: skip
    """The spectrum of T_w x from the lines of x; to `tile_loss`, where there is one, the tile's share of the mean over
    the plane of x T_w x.

    The weight mixes cc with ss and cs with sc, which a program's pair of products therefore is.
    """
    mixed = tl.program_id(1) % 2  # 0: cc and ss; 1: cs and sc
    k = _tile(tl.program_id(1) // 2 % (MH // TH), TH)[:, None]
    l = _tile(tl.program_id(1) // 2 // (MH // TH), TW)[None, :]
    lines += tl.program_id(0).to(tl.int64) * (2 * H * MW) + l
    for_even = lines + mixed * (H * MW)
    for_odd = lines + (1 - mixed) * (H * MW)

    largest = tl.zeros((CHUNK, TW), tl.float32)
    for start in range(0, (H + 1) // 2, CHUNK):
        m = start + tl.arange(0, CHUNK)[:, None]
        top, bottom = _load_ends(for_even, m, MW, True, H, CHUNK)
        largest = _larger(largest, top, bottom)
        top, bottom = _load_ends(for_odd, m, MW, True, H, CHUNK)
        largest = _larger(largest, top, bottom)
    scale = power_of_two(tl.max(largest), EXPONENT)

    even = tl.zeros((TH, TW), tl.float32)
    odd = tl.zeros((TH, TW), tl.float32)
    for start in range(0, (H + 1) // 2, CHUNK):
        m = start + tl.arange(0, CHUNK)[None, :]
        cos_high, cos_low = load_basis(rows_basis, k, m, MH, MH, PASSES)
        sin_high, sin_low = load_basis(rows_basis + 2 * MH * MH, k, m, MH, MH, PASSES)
        m = start + tl.arange(0, CHUNK)[:, None]
        top, bottom = _load_ends(for_even, m, MW, True, H, CHUNK)
        even += left_dot(cos_high, cos_low, scale * top + scale * bottom, PASSES)
        top, bottom = _load_ends(for_odd, m, MW, True, H, CHUNK)
        odd += left_dot(sin_high, sin_low, scale * top - scale * bottom, PASSES)

    weight += _plane(first, sizes, weight_strides)
    k_cosine, k_sine = tl.minimum(k, H // 2), _sine_frequency(k, H)
    l_cosine, l_sine = tl.minimum(l, W // 2), _sine_frequency(l, W)
    l_even = tl.where(mixed == 0, l_cosine, l_sine)
    l_odd = tl.where(mixed == 0, l_sine, l_cosine)
    u_even, v = even_and_odd(weight, k_cosine, l_even, H, W, False)
    u_odd, _ = even_and_odd(weight, k_sine, l_odd, H, W, False)
    v = tl.where(own_negative(k, H) | own_negative(l, W), 0.0, tl.where(mixed == 0, -v, v))
    # A basis function's coefficient is its product with the plane over its squared length.
    norm = count_bins(k, H) * count_bins(l, W) / (H * W)
    y_even = u_even * norm * even + v * norm * odd
    y_odd = u_odd * norm * odd + v * norm * even

    unscale = inverse_power_of_two(scale)
    if tile_loss is not None:
        total = tl.sum(even * y_even + odd * y_odd) / (H * W)
        tile_loss += _plane(first, sizes, loss_strides) * tl.num_programs(1) + tl.program_id(1)
        tl.store(tile_loss, total * unscale * unscale)
    if spectrum is not None:
        spectrum += tl.program_id(0).to(tl.int64) * (4 * MH * MW) + (k * MW + l)
        tl.store(spectrum + mixed * (MH * MW), y_even * unscale)
        tl.store(spectrum + (3 - mixed) * (MH * MW), y_odd * unscale)


# ---- from spectra to planes ------------------------------------------------------------------------------------------


@by_mma_sync
@triton.jit
def columns_inverse_kernel(
    lines, spectrum, rows_transposed,
    H: tl.constexpr, W: tl.constexpr, MH: tl.constexpr, MW: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr,
    CHUNK: tl.constexpr, PASSES: tl.constexpr,
):  # fmt: skip
    """The lines of a spectrum."""
    sine = tl.program_id(1) % 2  # along the columns
    m = _tile(tl.program_id(1) // 2 % (MH // TH), TH)[:, None]
    l = _tile(tl.program_id(1) // 2 // (MH // TH), TW)[None, :]
    SLOTS: tl.constexpr = H // 2 + (H % 32 != 0)
    inside = l < W // 2 + (W % 32 != 0)
    plane = tl.program_id(0).to(tl.int64)
    for_even = spectrum + (plane * 4 + sine) * (MH * MW) + l
    for_odd = for_even + 2 * MH * MW

    largest = tl.zeros((CHUNK, TW), tl.float32)
    for start in range(0, SLOTS, CHUNK):
        k = start + tl.arange(0, CHUNK)[:, None]
        cosines = tl.load(for_even + k * MW, mask=inside & (k < SLOTS), other=0.0)
        sines = tl.load(for_odd + k * MW, mask=inside & (k < SLOTS), other=0.0)
        largest = _larger(largest, cosines, sines)
    scale = power_of_two(tl.max(largest), EXPONENT)

    even = tl.zeros((TH, TW), tl.float32)
    odd = tl.zeros((TH, TW), tl.float32)
    for start in range(0, SLOTS, CHUNK):
        k = start + tl.arange(0, CHUNK)[None, :]
        cos_high, cos_low = load_basis(rows_transposed, m, k, MH, MH, PASSES)
        sin_high, sin_low = load_basis(rows_transposed + 2 * MH * MH, m, k, MH, MH, PASSES)
        k = start + tl.arange(0, CHUNK)[:, None]
        cosines = tl.load(for_even + k * MW, mask=inside & (k < SLOTS), other=0.0)
        sines = tl.load(for_odd + k * MW, mask=inside & (k < SLOTS), other=0.0)
        even += left_dot(cos_high, cos_low, scale * cosines, PASSES)
        odd += left_dot(sin_high, sin_low, scale * sines, PASSES)

    unscale = inverse_power_of_two(scale)
    even *= unscale
    odd *= unscale
    _store_ends(lines + (plane * 2 + sine) * (H * MW) + l, m, MW, True, even + odd, even - odd, H, TH)


@by_mma_sync
@triton.jit(do_not_specialize=["first"])
def rows_inverse_kernel(
    output, noisy, first, sizes, output_strides, lines, input, input_strides, signal_scale, signal_strides,
    scale, scale_strides, columns_basis,
    H: tl.constexpr, W: tl.constexpr, MW: tl.constexpr, ROWS: tl.constexpr, TW: tl.constexpr, CHUNK: tl.constexpr,
    PASSES: tl.constexpr,
):  # fmt: skip
    """scale x to `output`, from the lines of x. With an input, x, and to `noisy` signal_scale input + scale x."""
    h = _tile(tl.program_id(1) // (MW // TW), ROWS)[:, None]
    n = _tile(tl.program_id(1) % (MW // TW), TW)[None, :]
    SLOTS: tl.constexpr = W // 2 + (W % 32 != 0)
    inside = h < H
    lines += tl.program_id(0).to(tl.int64) * (2 * H * MW) + h * MW

    largest = tl.zeros((ROWS, CHUNK), tl.float32)
    for start in range(0, SLOTS, CHUNK):
        l = start + tl.arange(0, CHUNK)[None, :]
        cosines = tl.load(lines + l, mask=inside & (l < SLOTS), other=0.0)
        sines = tl.load(lines + (H * MW + l), mask=inside & (l < SLOTS), other=0.0)
        largest = _larger(largest, cosines, sines)
    range_scale = power_of_two(tl.max(largest), EXPONENT)

    zero = tl.zeros((ROWS, TW), tl.float32)
    even = zero
    odd = zero
    for start in range(0, SLOTS, CHUNK):
        l = start + tl.arange(0, CHUNK)[None, :]
        cosines = tl.load(lines + l, mask=inside & (l < SLOTS), other=0.0)
        sines = tl.load(lines + (H * MW + l), mask=inside & (l < SLOTS), other=0.0)
        l = start + tl.arange(0, CHUNK)[:, None]
        cos_high, cos_low = load_basis(columns_basis, l, n, MW, MW, PASSES)
        sin_high, sin_low = load_basis(columns_basis + 2 * MW * MW, l, n, MW, MW, PASSES)
        even += right_dot(range_scale * cosines, cos_high, cos_low, zero, PASSES)
        odd += right_dot(range_scale * sines, sin_high, sin_low, zero, PASSES)

    factor = scale_of(scale, _plane(first, sizes, scale_strides))
    unscale = inverse_power_of_two(range_scale)
    if input is None:
        unscale *= factor
    even *= unscale
    odd *= unscale
    left = even + odd
    right = even - odd
    row = _plane(first, sizes, output_strides) * (H * W) + h * W
    _store_ends(output + row, n, 1, inside, left, right, W, TW)
    if input is not None:
        signal = scale_of(signal_scale, _plane(first, sizes, signal_strides))
        x = input + _plane(first, sizes, input_strides) + h * input_strides[3]
        input_left, input_right = _load_ends(x, n, input_strides[4], inside, W, TW)
        noisy_left = signal * input_left + factor * left
        noisy_right = signal * input_right + factor * right
        _store_ends(noisy + row, n, 1, inside, noisy_left, noisy_right, W, TW)
