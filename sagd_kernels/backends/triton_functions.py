"""What the Triton kernels share: the random stream, coefficients and weights by frequency, products in float16 pairs.

The head of triton_kernels.py says what the basis and the products are.
"""

import contextlib
import functools
import os
import threading

import triton
import triton.language as tl

# Triton's interpreter has no inline assembly.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


# ---- compilation -----------------------------------------------------------------------------------------------------

_compiling = threading.RLock()


def by_mma_sync(kernel):
    """The kernel, whose products become mma.sync on every GPU.

    Of four warps and more Triton would make wgmma of them on compute capability 9.0 and tcgen05 on 10.0. Its wgmma
    (3.6) reads beyond shared memory where a kernel has several products of small tiles, as ours, and no emulator has
    run either instruction. Triton reads what prevents this from the process's environment and nowhere else. So it
    stands there while one of these kernels is compiled, once for each of its forms, and not while they are launched: a
    kernel that another thread compiles in that time is compiled with it, too.
    """
    if isinstance(kernel, triton.JITFunction):  # not for Triton's interpreter
        compile_kernel = kernel._do_compile

        @functools.wraps(compile_kernel)
        def compile_by_mma_sync(*args, **kwargs):
            with _compiling, _environment(DISABLE_MMA_V3="1", DISABLE_MMA_V5="1"):
                return compile_kernel(*args, **kwargs)

        kernel._do_compile = compile_by_mma_sync
    return kernel


@contextlib.contextmanager
def _environment(**variables: str):
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


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
def normal_pair(radius_word, angle_word):
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
def half_sample_phase(k, N: tl.constexpr):
    """k / (2 N) turns, in 2^-32 turns."""
    return ((k.to(tl.uint64) * ((1 << 64) // (2 * N))) >> 32).to(tl.uint32)


@triton.jit
def plane_stream(key, number, ORBITS: tl.constexpr):
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
def later_stream(stream, orbits):
    """The stream of a plane whose orbits come so many, less than 2^32, after those of another, which are as few."""
    k0, k1, c0, c1, next_c1, c2, next_c2 = stream
    counter = c0 + orbits
    carried = counter < c0
    return k0, k1, counter, tl.where(carried, next_c1, c1), next_c1, tl.where(carried, next_c2, c2), next_c2


@triton.jit
def orbit_words(k, l, stream, W: tl.constexpr):
    """The four words of the Philox block of orbit (k, l)."""
    k0, k1, c0, c1, next_c1, c2, next_c2 = stream
    counter = (c0 + (k * (W // 2 + 1)).to(tl.uint32)) + l.to(tl.uint32)
    carried = counter < c0
    return _philox(counter, tl.where(carried, next_c1, c1), tl.where(carried, next_c2, c2), k0, k1)


# ---- frequencies and weights -----------------------------------------------------------------------------------------


@triton.jit
def frequencies(first, SLOTS: tl.constexpr, N: tl.constexpr):
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
def own_negative(k, N: tl.constexpr):
    return (k == 0) | (2 * k == N)


@triton.jit
def load_weights(weight, k, l, H: tl.constexpr, W: tl.constexpr):
    """w(k, l) and w(-k, l)"""
    mirrored = tl.where(k == 0, 0, H - k)
    return tl.load(weight + (k * (W // 2 + 1) + l)), tl.load(weight + (mirrored * (W // 2 + 1) + l))


@triton.jit
def coefficients(k, l, stream, plus, minus, scale, H: tl.constexpr, W: tl.constexpr):
    """scale w F at (k, l) as A + iB and at (k, -l) as C + iD, or 0 where that is the same bin; plus, minus = w(+-k, l).

    F is rotated by the half sample that the basis is off. Where F is real, only the part that a basis function takes up
    is right.
    """
    r0, r1, r2, r3 = orbit_words(k, _placed_like(l, plus), stream, W)
    k_phase = half_sample_phase(k, H)
    l_phase = half_sample_phase(l, W)
    k_own = own_negative(k, H)
    l_own = own_negative(l, W)
    # The even part of w where l is its own negative.
    amplitude = tl.where(l_own, 0.5 * scale, scale) * plus + tl.where(l_own, 0.5 * scale, 0.0) * minus
    amplitude = tl.where(k_own & l_own, 0.7071067811865476 * amplitude, amplitude)
    radius, cosine, sine = normal_pair(r0, r1 - k_phase - l_phase)
    radius *= amplitude
    a = radius * cosine
    b = radius * sine
    amplitude = tl.where(k_own, 0.0, 1.0) * (tl.where(l_own, 0.0, scale) * minus)
    radius, cosine, sine = normal_pair(r2, r3 - k_phase + l_phase)
    radius *= amplitude
    return a, b, radius * cosine, radius * sine


@triton.jit
def line(k, l, stream, weight, scale, H: tl.constexpr, W: tl.constexpr):
    """scale w F, as A + iB, at frequencies (k, l), one of them Nyquist's. Where F is real, only the part that a basis
    function takes up is right."""
    radius_word, angle_word, _, _ = orbit_words(k, l, stream, W)
    angle = angle_word - half_sample_phase(k, H) - half_sample_phase(l, W)
    radius, cosine, sine = normal_pair(radius_word, angle)
    radius *= weight * tl.where(own_negative(k, H) & own_negative(l, W), 0.7071067811865476 * scale, scale)
    return radius * cosine, radius * sine


@triton.jit
def draw_quadrants(
    first_k, first_l, stream, weight, scale, H: tl.constexpr, W: tl.constexpr, KS: tl.constexpr, LS: tl.constexpr
):  # fmt: skip
    """scale w F in a tile of KS slots of k times LS of l: the quadrants cc, cs, sc, ss of what an inverse takes."""
    k = frequencies(first_k, KS, H)
    l = frequencies(first_l, LS, W)
    k_slot = first_k + tl.arange(0, KS)
    l_slot = first_l + tl.arange(0, LS)
    plus, minus = load_weights(weight, k[:, None], l[None, :], H, W)
    a, b, c, d = coefficients(k[:, None], l[None, :], stream, plus, minus, scale, H, W)
    cc = a + c
    ss = c - a
    sc = -b - d
    cs = d - b
    # The sines of the Nyquist frequencies, a row and a column, in slot 0.
    if H % 32 == 0 and first_k == 0:
        half_height = tl.full((1,), H // 2, tl.int32)
        row = tl.load(weight + (H // 2 * (W // 2 + 1) + l))
        row_a, row_b = line(half_height, l, stream, row, scale, H, W)
        sc = tl.where(k_slot[:, None] == 0, -row_b[None, :], sc)
        ss = tl.where(k_slot[:, None] == 0, -row_a[None, :], ss)
    if W % 32 == 0 and first_l == 0:
        # The column, and after it the corner, repeated.
        half_width = tl.full((1,), W // 2, tl.int32)
        index = tl.arange(0, 2 * KS)
        column_k = tl.where(index < KS, tl.minimum(first_k + index, H // 2), H // 2)
        column_plus, column_minus = load_weights(weight, column_k, W // 2, H, W)
        column = 0.5 * column_plus + 0.5 * column_minus
        column_a, column_b = line(column_k, half_width, stream, column, scale, H, W)
        column_a, corner_a = tl.split(tl.trans(tl.reshape(column_a, (2, KS))))
        column_b, _ = tl.split(tl.trans(tl.reshape(column_b, (2, KS))))
        if H % 32 == 0:
            column_a = tl.where(k_slot == 0, corner_a, column_a)
        cs = tl.where(l_slot[None, :] == 0, -column_b[:, None], cs)
        ss = tl.where(l_slot[None, :] == 0, -column_a[:, None], ss)
    return cc, cs, sc, ss


@triton.jit
def largest_weight(weight, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    largest = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, COUNT, BLOCK):
        largest = tl.maximum(largest, tl.abs(tl.load(weight + tl.minimum(first + tl.arange(0, BLOCK), COUNT - 1))))
    return tl.max(largest)


@triton.jit
def inverse_square(w):
    return tl.where(w > 0, 1 / (w * w), 0.0)


@triton.jit
def count_bins(slot, N: tl.constexpr):
    """How many of an axis's N frequencies the one in a slot stands for: 2 unless it is its own negative."""
    nyquist = (2 * slot == N) & (N % 32 != 0)
    return tl.where((slot == 0) | nyquist, 1.0, tl.where(2 * slot < N, 2.0, 0.0))


@triton.jit
def count_kept(weight, H: tl.constexpr, W: tl.constexpr, BLOCK: tl.constexpr):
    """How many of a plane's bins have a weight above 0."""
    COUNT: tl.constexpr = H * (W // 2 + 1)
    kept = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, COUNT, BLOCK):
        bin = first + tl.arange(0, BLOCK)
        inside = bin < COUNT
        k = tl.minimum(bin, COUNT - 1) // (W // 2 + 1)
        l = tl.minimum(bin, COUNT - 1) % (W // 2 + 1)
        plus, minus = load_weights(weight, k, l, H, W)
        l_own = own_negative(l, W)
        above = tl.where(l_own, 0.5 * plus + 0.5 * minus, plus) > 0
        kept += tl.where(inside & above, tl.where(l_own, 1.0, 2.0), 0.0)
    return tl.sum(kept)


@triton.jit
def even_and_odd(weight, k, l, H: tl.constexpr, W: tl.constexpr, WHITEN: tl.constexpr):
    """The parts of the weight that are even and odd in each frequency: u +- v = w(k, +-l).

    With WHITEN, of 1/w^2 where w > 0 and 0 elsewhere.
    """
    plus, minus = load_weights(weight, k, l, H, W)
    l_own = own_negative(l, W)
    even = 0.5 * plus + 0.5 * minus
    plus = tl.where(l_own, even, plus)
    minus = tl.where(l_own, even, minus)
    if WHITEN:
        plus = inverse_square(plus)
        minus = inverse_square(minus)
        return 0.5 * (plus + minus), 0.5 * (plus - minus)
    else:
        return even, 0.5 * (plus - minus)


# ---- products --------------------------------------------------------------------------------------------------------


@triton.jit
def power_of_two(largest, EXPONENT: tl.constexpr):
    """2^e, |e| <= 126, such that 2^EXPONENT <= 2^e largest < 2^(EXPONENT + 1) where it can be."""
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 0xFF
    scale = tl.minimum(tl.maximum(254 + EXPONENT - exponent, 1), 253)
    return (scale << 23).to(tl.float32, bitcast=True)


@triton.jit
def inverse_power_of_two(scale):
    return ((254 << 23) - scale.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)


@triton.jit
def load_parts(matrix, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PASSES: tl.constexpr):
    """The high and low parts of a matrix of ROWS x COLUMNS, one after the other in memory."""
    high = tl.load(matrix + rows * COLUMNS + columns)
    if PASSES == 1:
        return high, high
    else:
        return high, tl.load(matrix + ROWS * COLUMNS + rows * COLUMNS + columns)


@triton.jit
def store_parts(matrix, rows, columns, x, inside, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PASSES: tl.constexpr):
    """The inverse of load_parts: the low part only where there are three passes."""
    high, low = _split(x, PASSES)
    tl.store(matrix + rows * COLUMNS + columns, high, mask=inside)
    if PASSES == 3:
        tl.store(matrix + ROWS * COLUMNS + rows * COLUMNS + columns, low, mask=inside)


@triton.jit
def _split(x, PASSES: tl.constexpr):
    high = x.to(tl.float16)
    if PASSES == 1:
        return high, high
    else:
        return high, (x - high.to(tl.float32)).to(tl.float16)


@triton.jit
def product(a_high, a_low, b_high, b_low, sum, PASSES: tl.constexpr):
    """sum + a b"""
    if PASSES == 3:
        sum = tl.dot(a_low, b_high, sum)
        sum = tl.dot(a_high, b_low, sum)
    return tl.dot(a_high, b_high, sum)


@triton.jit
def left_dot(matrix_high, matrix_low, x, PASSES: tl.constexpr):
    """matrix x"""
    high, low = _split(x, PASSES)
    zero = tl.zeros((matrix_high.shape[0], x.shape[1]), tl.float32)
    return product(matrix_high, matrix_low, high, low, zero, PASSES)


@triton.jit
def right_dot(x, matrix_high, matrix_low, sum, PASSES: tl.constexpr):
    """sum + x matrix"""
    high, low = _split(x, PASSES)
    return product(high, low, matrix_high, matrix_low, sum, PASSES)


# ---- scales ----------------------------------------------------------------------------------------------------------


@triton.jit
def scale_of(scale, plane):
    """A plane's factor, from its offset in the scales; 1 where there are none."""
    if scale is None:
        return 1.0
    else:
        return tl.load(scale + plane).to(tl.float32)
