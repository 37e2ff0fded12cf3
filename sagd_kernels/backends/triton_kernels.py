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

Cost per pixel: the plane in and out of device memory once; M/2 multiply-adds for each of 2 (noise) or 4 (filter)
products and 1 or 3 passes; a quarter of a Philox block and of two Box-Muller pairs. docs/gpu_costs.md has the counts.
"""

import os

import triton
import triton.language as tl

# Triton's interpreter has no inline assembly.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


# ---- the random stream: docs/contract.md -----------------------------------------------------------------------------


@triton.jit
def _wide_product(a, multiplier: tl.constexpr):
    product = a.to(tl.uint64) * multiplier
    return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@triton.jit
def _philox(c0, c1, c2, k0, k1):
    """Philox4x32-10 of the counters (c0, c1, c2, 0): four tensors of 32-bit words."""
    c3 = tl.zeros_like(c0)
    for _ in tl.static_range(10):
        high0, low0 = _wide_product(c0, 0xD2511F53)
        high1, low1 = _wide_product(c2, 0xCD9E8D57)
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def _approximate(x, function: tl.constexpr):
    """By the special function units: "lg2" to 2^-22, which says little about logarithms near 0; "sqrt" to 2^-23."""
    if not INTERPRETED:
        return tl.inline_asm_elementwise(
            function + ".approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    elif function == "lg2":
        return tl.log2(x)
    else:
        return tl.sqrt(x)


@triton.jit
def _radius(word):
    """sqrt(-2 ln u), u = (word + 1/2) 2^-32. Near u = 1, three terms of the series in 1 - u."""
    u = word.to(tl.float32) * 2.0**-32 + 2.0**-33
    v = (word ^ 0xFFFFFFFF).to(tl.float32) * 2.0**-32 + 2.0**-33
    series = v * (2 + v * (1 + v * 0.6666667))
    return _approximate(tl.where(v < 2.0**-5, series, -1.3862943611198906 * _approximate(u, "lg2")), "sqrt")


@triton.jit
def _normal_pair(radius_word, angle_word):
    """Two normals by Box and Muller's method, from a word for the radius and an angle in 2^-32 turns: the radius, its
    sign aside, by which the cosine and the sine are to be multiplied.

    The nearest half turn, a sign, is split off in integers; the polynomials in the rest, t half turns, are right to
    5e-8. The special function units' sine and cosine would be right to 2^-20 only.
    """
    sign = (angle_word + 0x40000000) & 0x80000000
    t = (angle_word << 1).to(tl.int32, bitcast=True).to(tl.float32) * 2.0**-32
    z = t * t
    cosine = (((0.2196968 * z - 1.3318802) * z + 4.0584119) * z - 4.9347929) * z + 1.0
    sine = ((((0.07722224 * z - 0.59804645) * z + 2.5500316) * z - 5.1677069) * z + 3.1415926) * t
    radius = (_radius(radius_word).to(tl.uint32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)
    return radius, cosine, sine


@triton.jit
def _half_sample_phase(k, N: tl.constexpr):
    """k / (2 N) turns, in 2^-32 turns."""
    return ((k.to(tl.uint64) * ((1 << 64) // (2 * N))) >> 32).to(tl.uint32)


@triton.jit
def _stream(key, number, ORBITS: tl.constexpr):
    """The stream of the plane of that number: Philox's key, and the first counter's lowest word; then, before and after
    that word carries, which within a plane it does at most once, the next two words."""
    seed = tl.load(key)
    offset = tl.load(key + 1)
    low = offset + number * ORBITS
    high = (tl.umulhi(number, tl.full((), ORBITS, tl.uint64)) + (low < offset).to(tl.uint64)).to(tl.uint32)
    next_low = low + (1 << 32)
    next_high = high + (next_low < low).to(tl.uint32)
    return (
        seed.to(tl.uint32), (seed >> 32).to(tl.uint32),
        low.to(tl.uint32), (low >> 32).to(tl.uint32), (next_low >> 32).to(tl.uint32), high, next_high,
    )  # fmt: skip


@triton.jit
def _words(k, l, stream, W: tl.constexpr):
    """The four words of the Philox block of orbit (k, l)."""
    k0, k1, c0, c1, next_c1, c2, next_c2 = stream
    counter = (c0 + (k * (W // 2 + 1)).to(tl.uint32)) + l.to(tl.uint32)
    carried = counter < c0
    return _philox(counter, tl.where(carried, next_c1, c1), tl.where(carried, next_c2, c2), k0, k1)


# ---- frequencies and weights -----------------------------------------------------------------------------------------


@triton.jit
def _frequencies(first, SLOTS: tl.constexpr, N: tl.constexpr):
    """The frequencies of some of an axis's slots. Those beyond Nyquist's, where bases are zero, repeat it."""
    return tl.minimum(first + tl.arange(0, SLOTS), N // 2)


@triton.jit
def _placed_like(x, loaded):
    """x, computed by the threads that hold the elements of `loaded`. Otherwise the compiler draws the normals in a
    layout of its own, and six tiles of radii, cosines and sines go through shared memory.
    """
    if INTERPRETED:
        return x
    else:
        x, loaded = tl.broadcast(x, loaded)
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r,r", [x, loaded], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def _own_negative(k, N: tl.constexpr):
    return (k == 0) | (2 * k == N)


@triton.jit
def _weights(weight, k, l, H: tl.constexpr, W: tl.constexpr):
    """w(k, l) and w(-k, l)"""
    mirrored = tl.where(k == 0, 0, H - k)
    return tl.load(weight + (k * (W // 2 + 1) + l)), tl.load(weight + (mirrored * (W // 2 + 1) + l))


@triton.jit
def _largest_weight(plus, minus):
    return tl.max(tl.maximum(tl.abs(plus), tl.abs(minus)))


# ---- products --------------------------------------------------------------------------------------------------------


@triton.jit
def _power_of_two(largest, EXPONENT: tl.constexpr):
    """2^e, |e| <= 126, such that 2^EXPONENT <= 2^e largest < 2^(EXPONENT + 1) where it can be."""
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 0xFF
    scale = tl.minimum(tl.maximum(254 + EXPONENT - exponent, 1), 253)
    return (scale << 23).to(tl.float32, bitcast=True)


@triton.jit
def _inverse_power_of_two(scale):
    return ((254 << 23) - scale.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)


@triton.jit
def _constant(matrix, rows, columns, M: tl.constexpr, PASSES: tl.constexpr):
    """The high and low parts of a matrix of triton.py's `_basis`."""
    high = tl.load(matrix + rows * M + columns)
    if PASSES == 1:
        return high, high
    else:
        return high, tl.load(matrix + M * M + rows * M + columns)


@triton.jit
def _split(x, PASSES: tl.constexpr):
    high = x.to(tl.float16)
    if PASSES == 1:
        return high, high
    else:
        return high, (x - high.to(tl.float32)).to(tl.float16)


@triton.jit
def _product(a_high, a_low, b_high, b_low, sum, PASSES: tl.constexpr):
    """sum + a b"""
    if PASSES == 3:
        sum = tl.dot(a_low, b_high, sum)
        sum = tl.dot(a_high, b_low, sum)
    return tl.dot(a_high, b_high, sum)


@triton.jit
def _left(matrix_high, matrix_low, x, PASSES: tl.constexpr):
    """matrix x"""
    high, low = _split(x, PASSES)
    zero = tl.zeros((matrix_high.shape[0], x.shape[1]), tl.float32)
    return _product(matrix_high, matrix_low, high, low, zero, PASSES)


@triton.jit
def _right(x, matrix_high, matrix_low, sum, PASSES: tl.constexpr):
    """sum + x matrix"""
    high, low = _split(x, PASSES)
    return _product(high, low, matrix_high, matrix_low, sum, PASSES)


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
def _factor(scale, strides):
    if scale is None:
        return 1.0
    else:
        return tl.load(scale + _plane(strides)).to(tl.float32)


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


# ---- noise -----------------------------------------------------------------------------------------------------------


@triton.jit
def _line(k, l, stream, weight, scale, H: tl.constexpr, W: tl.constexpr):
    """scale w F, as A + iB, at frequencies (k, l), one of them Nyquist's. Where F is real, only the part that a basis
    function takes up is right."""
    radius_word, angle_word, _, _ = _words(k, l, stream, W)
    angle = angle_word - _half_sample_phase(k, H) - _half_sample_phase(l, W)
    radius, cosine, sine = _normal_pair(radius_word, angle)
    radius *= weight * tl.where(_own_negative(k, H) & _own_negative(l, W), 0.7071067811865476 * scale, scale)
    return radius * cosine, radius * sine


@triton.jit
def _coefficients(k, l, stream, plus, minus, scale, H: tl.constexpr, W: tl.constexpr):
    """scale w F at (k, l) as A + iB and at (k, -l) as C + iD, or 0 where that is the same bin; plus, minus = w(+-k, l).

    F is rotated by the half sample that the basis is off. Where F is real, only the part that a basis function takes up
    is right.
    """
    r0, r1, r2, r3 = _words(k, _placed_like(l, plus), stream, W)
    k_phase = _half_sample_phase(k, H)
    l_phase = _half_sample_phase(l, W)
    k_own = _own_negative(k, H)
    l_own = _own_negative(l, W)
    # The even part of w where l is its own negative.
    amplitude = tl.where(l_own, 0.5 * scale, scale) * plus + tl.where(l_own, 0.5 * scale, 0.0) * minus
    amplitude = tl.where(k_own & l_own, 0.7071067811865476 * amplitude, amplitude)
    radius, cosine, sine = _normal_pair(r0, r1 - k_phase - l_phase)
    radius *= amplitude
    a = radius * cosine
    b = radius * sine
    amplitude = tl.where(k_own, 0.0, 1.0) * (tl.where(l_own, 0.0, scale) * minus)
    radius, cosine, sine = _normal_pair(r2, r3 - k_phase + l_phase)
    radius *= amplitude
    return a, b, radius * cosine, radius * sine


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
    stream = _stream(key + _plane(key_strides), number, ORBITS)
    weight += _plane(weight_strides)

    m = tl.arange(0, MH)[:, None]
    k_columns = tl.arange(0, MH)[None, :]
    cos_high, cos_low = _constant(rows_basis, m, k_columns, MH, PASSES)
    sin_high, sin_low = _constant(rows_basis + 2 * MH * MH, m, k_columns, MH, PASSES)
    even_top = tl.zeros((MH, MW), tl.float32)
    odd_top = tl.zeros((MH, MW), tl.float32)
    even_bottom = tl.zeros((MH, MW), tl.float32)
    odd_bottom = tl.zeros((MH, MW), tl.float32)
    k = _frequencies(0, MH, H)
    row_slot = tl.arange(0, MH)[:, None]
    range_scale = tl.full((), 2.0**126, tl.float32)
    for first in range(0, SLOTS, CHUNK):
        l = _frequencies(first, CHUNK, W)
        column_slot = first + tl.arange(0, CHUNK)[None, :]
        # Nyquist's frequencies that have no slots: a row, and with the first columns a column that ends in the corner.
        plus, minus = _weights(weight, k[:, None], l[None, :], H, W)
        largest = _largest_weight(plus, minus)
        if H % 32 == 0:
            row = tl.load(weight + (H // 2 * (W // 2 + 1) + l))
            largest = tl.maximum(largest, tl.max(tl.abs(row)))
        if W % 32 == 0:
            column_k = _frequencies(0, 2 * MH, H)
            column_plus, column_minus = _weights(weight, column_k, W // 2, H, W)
            column = 0.5 * column_plus + 0.5 * column_minus
            largest = tl.maximum(largest, tl.max(tl.abs(column)))
        # The largest weight so far sets the range of the sums.
        new_scale = tl.minimum(range_scale, _power_of_two(largest, 4))
        if SLOTS > CHUNK and new_scale < range_scale:
            shrink = new_scale * _inverse_power_of_two(range_scale)
            even_top *= shrink
            odd_top *= shrink
            even_bottom *= shrink
            odd_bottom *= shrink
        range_scale = new_scale

        a, b, c, d = _coefficients(k[:, None], l[None, :], stream, plus, minus, range_scale, H, W)
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

        n = tl.arange(0, MW)[None, :]
        column_slot = first + tl.arange(0, CHUNK)[:, None]
        c_high, c_low = _constant(columns_basis, column_slot, n, MW, PASSES)
        s_high, s_low = _constant(columns_basis + 2 * MW * MW, column_slot, n, MW, PASSES)
        cc = _left(cos_high, cos_low, cc, PASSES)
        sc = _left(sin_high, sin_low, sc, PASSES)
        even_top = _right(cc + sc, c_high, c_low, even_top, PASSES)
        even_bottom = _right(cc - sc, c_high, c_low, even_bottom, PASSES)
        cs = _left(cos_high, cos_low, cs, PASSES)
        ss = _left(sin_high, sin_low, ss, PASSES)
        odd_top = _right(cs + ss, s_high, s_low, odd_top, PASSES)
        odd_bottom = _right(cs - ss, s_high, s_low, odd_bottom, PASSES)

    norm = _inverse_power_of_two(range_scale) * (2.0 / (H * W)) ** 0.5
    plane = _plane(output_strides) * (H * W)
    if input is None:
        norm *= _factor(scale, scale_strides)
    even_top *= norm
    odd_top *= norm
    even_bottom *= norm
    odd_bottom *= norm
    x00 = even_top + odd_top
    x01 = even_top - odd_top
    x10 = even_bottom + odd_bottom
    x11 = even_bottom - odd_bottom
    _store_quadrants(output + plane, 0, x00, x01, x10, x11, H, W, MH, MW)
    if input is not None:
        signal, noise = _factor(signal_scale, signal_strides), _factor(scale, scale_strides)
        i00, i01, i10, i11 = _load_quadrants(
            input + _plane(input_strides), input_strides[3], input_strides[4], 0, H, W, MH, MW
        )
        i00 = signal * i00 + noise * x00
        i01 = signal * i01 + noise * x01
        i10 = signal * i10 + noise * x10
        i11 = signal * i11 + noise * x11
        _store_quadrants(noisy + plane, 0, i00, i01, i10, i11, H, W, MH, MW)


# ---- filter ----------------------------------------------------------------------------------------------------------


@triton.jit
def _inverse_square(w):
    return tl.where(w > 0, 1 / (w * w), 0.0)


@triton.jit
def _bins(slot, N: tl.constexpr):
    """How many of an axis's N frequencies the one in a slot stands for: 2 unless it is its own negative."""
    nyquist = (2 * slot == N) & (N % 32 != 0)
    return tl.where((slot == 0) | nyquist, 1.0, tl.where(2 * slot < N, 2.0, 0.0))


@triton.jit
def _even_and_odd(weight, k, l, bins, H: tl.constexpr, W: tl.constexpr, WHITEN: tl.constexpr):
    """The parts of the weight that are even and odd in each frequency: u +- v = w(k, +-l).

    With WHITEN, of 1/w^2 where w > 0 and 0 elsewhere, and how many of the bins that is.
    """
    plus, minus = _weights(weight, k, l, H, W)
    l_own = _own_negative(l, W)
    even = 0.5 * plus + 0.5 * minus
    plus = tl.where(l_own, even, plus)
    minus = tl.where(l_own, even, minus)
    if WHITEN:
        kept = 0.5 * tl.sum(tl.where(plus > 0, bins, 0.0) + tl.where(minus > 0, bins, 0.0))
        plus = _inverse_square(plus)
        minus = _inverse_square(minus)
        return 0.5 * (plus + minus), 0.5 * (plus - minus), kept
    else:
        return even, 0.5 * (plus - minus), 0.0


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
    scale_in = _power_of_two(largest, EXPONENT_IN)

    k = tl.arange(0, MH)[:, None]
    l = tl.arange(0, MW)[None, :]
    m = tl.arange(0, MH)[None, :]
    cos_high, cos_low = _constant(rows_basis, k, m, MH, PASSES)
    sin_high, sin_low = _constant(rows_basis + 2 * MH * MH, k, m, MH, PASSES)
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
        c_high, c_low = _constant(columns_transposed, n[:, None], l, MW, PASSES)
        s_high, s_low = _constant(columns_transposed + 2 * MW * MW, n[:, None], l, MW, PASSES)
        cc = _right(_left(cos_high, cos_low, (x00 + x01) + (x10 + x11), PASSES), c_high, c_low, cc, PASSES)
        cs = _right(_left(cos_high, cos_low, (x00 - x01) + (x10 - x11), PASSES), s_high, s_low, cs, PASSES)
        sc = _right(_left(sin_high, sin_low, (x00 + x01) - (x10 + x11), PASSES), c_high, c_low, sc, PASSES)
        ss = _right(_left(sin_high, sin_low, (x00 - x01) - (x10 - x11), PASSES), s_high, s_low, ss, PASSES)

    weight += _plane(weight_strides)
    k_bins = _bins(k, H)
    l_bins = _bins(l, W)
    k = _frequencies(0, MH, H)[:, None]
    l = _frequencies(0, MW, W)[None, :]
    u, v, kept = _even_and_odd(weight, k, l, k_bins * l_bins, H, W, WHITEN)
    v = tl.where(_own_negative(k, H) | _own_negative(l, W), 0.0, v)
    u_sc = u
    u_cs = u
    u_ss = u
    # The sines of the Nyquist frequencies in slot 0.
    half_height = tl.full((1, 1), H // 2, tl.int32)
    half_width = tl.full((1, 1), W // 2, tl.int32)
    if H % 32 == 0:
        row, _, more = _even_and_odd(weight, half_height, l, l_bins, H, W, WHITEN)
        kept += more
        u_sc = tl.where(k == 0, row, u_sc)
        u_ss = tl.where(k == 0, row, u_ss)
    if W % 32 == 0:
        column, _, more = _even_and_odd(weight, k, half_width, k_bins, H, W, WHITEN)
        kept += more
        u_cs = tl.where(l == 0, column, u_cs)
        u_ss = tl.where(l == 0, column, u_ss)
    if H % 32 == 0 and W % 32 == 0:
        corner, _, more = _even_and_odd(weight, half_height, half_width, 1.0, H, W, WHITEN)
        kept += more
        u_ss = tl.where((k == 0) & (l == 0), corner, u_ss)

    # A basis function's coefficient is its product with the plane over its squared length.
    norm = k_bins * l_bins / (H * W)
    v *= norm
    y_cc = u * norm * cc - v * ss
    y_ss = u_ss * norm * ss - v * cc
    y_sc = u_sc * norm * sc + v * cs
    y_cs = u_cs * norm * cs + v * sc
    unscale_in = _inverse_power_of_two(scale_in)
    factor = _factor(scale, scale_strides)
    if target is not None:
        kept = tl.maximum(kept, 1.0)
        total = tl.sum(cc * y_cc + cs * y_cs + sc * y_sc + ss * y_ss)
        tl.store(plane_loss + _plane(output_strides), total * unscale_in * unscale_in / kept)
        factor = H * W / kept

    if output is not None:
        scale_out = _power_of_two(_largest(y_cc, y_cs, y_sc, y_ss), EXPONENT_OUT)
        factor *= unscale_in * _inverse_power_of_two(scale_out)
        y_cc *= scale_out
        y_cs *= scale_out
        y_sc *= scale_out
        y_ss *= scale_out
        sample = tl.arange(0, MH)[:, None]
        cos_high, cos_low = _constant(rows_transposed, sample, m, MH, PASSES)
        sin_high, sin_low = _constant(rows_transposed + 2 * MH * MH, sample, m, MH, PASSES)
        zero = tl.zeros((MH, CHUNK), tl.float32)
        for first in range(0, COLUMNS, CHUNK):
            n = first + tl.arange(0, CHUNK)
            frequency = tl.arange(0, MW)[:, None]
            c_high, c_low = _constant(columns_basis, frequency, n[None, :], MW, PASSES)
            s_high, s_low = _constant(columns_basis + 2 * MW * MW, frequency, n[None, :], MW, PASSES)
            z_c = _right(y_cc, c_high, c_low, zero, PASSES)
            z_s = _right(y_cs, s_high, s_low, zero, PASSES)
            even_left = factor * _left(cos_high, cos_low, z_c + z_s, PASSES)
            even_right = factor * _left(cos_high, cos_low, z_c - z_s, PASSES)
            z_c = _right(y_sc, c_high, c_low, zero, PASSES)
            z_s = _right(y_ss, s_high, s_low, zero, PASSES)
            odd_left = factor * _left(sin_high, sin_low, z_c + z_s, PASSES)
            odd_right = factor * _left(sin_high, sin_low, z_c - z_s, PASSES)
            _store_quadrants(
                output + _plane(output_strides) * (H * W), first,
                even_left + odd_left, even_right + odd_right, even_left - odd_left, even_right - odd_right,
                H, W, MH, CHUNK,
            )  # fmt: skip
