"""Triton kernels for the tests of the emulator."""

import triton
import triton.language as tl


@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n) + tl.load(y + i, mask=i < n), mask=i < n)


@triton.jit
def total(values):
    return tl.sum(values, axis=0)


@triton.jit
def row_sum(x, out, N: tl.constexpr):
    row = tl.program_id(0)
    tl.store(out + row, total(tl.load(x + row * N + tl.arange(0, N))))


@triton.jit
def random_words(out, seed, BLOCK: tl.constexpr):
    """The four words of Philox4x32-10 for counters 0, 1, 2, ..."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a, b, c, d = tl.randint4x(seed, i)
    tl.store(out + 4 * i, a)
    tl.store(out + 4 * i + 1, b)
    tl.store(out + 4 * i + 2, c)
    tl.store(out + 4 * i + 3, d)


@triton.jit
def product(a, b, out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr):
    """One [M, K] x [K, N] product for each program."""
    p = tl.program_id(0)
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    left = tl.load(a + p * M * K + m[:, None] * K + k[None, :])
    right = tl.load(b + p * K * N + k[:, None] * N + n[None, :])
    tl.store(out + p * M * N + m[:, None] * N + n[None, :], tl.dot(left, right, input_precision=PRECISION))


@triton.jit
def pipelined_product(a, b, out, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr):
    """A tiled product of any size; with STAGES > 1 tiles come by cp.async while others are multiplied."""
    rm, rn = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN)
    rk = tl.arange(0, BK)
    sums = tl.zeros((BM, BN), tl.float32)
    for k in tl.range(0, K, BK, num_stages=STAGES):
        x = tl.load(
            a + rm[:, None] * K + (k + rk)[None, :], mask=(rm[:, None] < M) & ((k + rk)[None, :] < K), other=0.0
        )
        y = tl.load(
            b + (k + rk)[:, None] * N + rn[None, :], mask=((k + rk)[:, None] < K) & (rn[None, :] < N), other=0.0
        )
        sums = tl.dot(x, y, sums)
    tl.store(out + rm[:, None] * N + rn[None, :], sums, mask=(rm[:, None] < M) & (rn[None, :] < N))


@triton.jit
def fast_sine(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    value = tl.inline_asm_elementwise(
        "sin.approx.f32 $0, $1;", "=f,f", [tl.load(x + i)], dtype=tl.float32, is_pure=True, pack=1
    )
    tl.store(out + i, value)
