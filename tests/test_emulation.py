"""The emulator of GPU kernels computes right, and finds what is wrong."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.emulation import EmulationError, Kernel, Pointer, Race, Struct, Unsupported, launch
from tests.emulation.examples import cuda, kernel, single


def unary(instruction: str, values: np.ndarray, result: str = "f32") -> np.ndarray:
    """`instruction %f2, %f1` on each value."""
    body = f"""ld.param.u64 %rd1, [x]; ld.param.u64 %rd2, [y];
        add.u64 %rd1, %rd1, %rd0; add.u64 %rd2, %rd2, %rd0;
        ld.global.f32 %f1, [%rd1]; {instruction}; st.global.{result} [%rd2], %{"f" if result == "f32" else "r"}2;"""
    out = np.zeros(len(values), {"f32": np.float32, "s32": np.int32, "b32": np.uint32}[result])
    launch(single(body, "u64 x", "u64 y"), (1,), (len(values),), [np.asarray(values, np.float32), out])
    return out


# -- values


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 as published: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011)."""
    c, k = counter, key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def run_philox(counter: list[int], key: list[int], n: int = 128):
    words, normals = np.zeros((n, 4), np.uint32), np.zeros((n, 4), np.float32)
    args = [np.array(counter, np.uint32).tobytes(), np.array(key, np.uint32).tobytes(), words, normals]
    return words, normals, launch(kernel("philox_normal"), (n // 64,), (64,), args)


def test_philox_known_answers():
    """Random123's known answers (kat_vectors, philox4x32-10)."""
    assert [hex(word) for word in run_philox([0] * 4, [0] * 2)[0][0]] == [
        "0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8",
    ]  # fmt: skip
    assert [hex(word) for word in run_philox([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2)[0][0]] == [
        "0x408f276d", "0x41c83b0e", "0xa20bc7c6", "0x6d5451fd",
    ]  # fmt: skip


def test_box_muller():
    words, normals, run = run_philox([0, 0, 0, 0], [1234, 0])
    assert (words == [philox([i, 0, 0, 0], [1234, 0]) for i in range(len(words))]).all()
    radius = np.sqrt(-2 * np.log((words[:, ::2] + 0.5) / 2**32))
    angle = 2 * np.pi * words[:, 1::2].astype(np.int32) / 2**32
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(-1, 4)
    assert np.abs(normals - expected).max() < 5e-6
    found, warps = run.counters.instructions(), len(words) // 32
    assert 36 * warps <= found["int_mul"] <= 44 * warps  # 10 rounds x 4 products, some merged or folded
    assert found["mufu"] == 8 * warps  # 2 logarithms, square roots, sines and cosines
    assert run.counters.dram_bytes == (0, 32 * len(words))
    assert run.counters.lanes_per_warp == 32


@pytest.mark.parametrize(
    "load",
    [
        "ld.param.u64 %rd1, [s+8]; ld.param.u32 %r1, [s+4];",
        "mov.b64 %rd2, s; ld.param.u64 %rd1, [%rd2+8]; ld.param.u32 %r1, [%rd2+4];",
        "mov.b64 %rd2, s; cvta.param.u64 %rd3, %rd2; ld.u64 %rd1, [%rd3+8]; ld.u32 %r1, [%rd3+4];",
        "mov.b64 %rd2, s; mul.wide.u32 %rd4, %r0, 0; add.u64 %rd2, %rd2, %rd4; ld.param.v2.u32 {%r2, %r1}, [%rd2];"
        "ld.param.u64 %rd1, [%rd2+8];",
    ],
)
def test_struct_by_value(load):
    """{unused, n, pointer}: element n of an array, by the struct's name, by its address and by a generic address."""
    body = f"""{load} mul.wide.u32 %rd6, %r1, 4; add.u64 %rd1, %rd1, %rd6; ld.global.f32 %f1, [%rd1];
        ld.param.u64 %rd5, [y]; add.u64 %rd5, %rd5, %rd0; st.global.f32 [%rd5], %f1;"""
    array, out = np.arange(10, dtype=np.float32), np.zeros(4, np.float32)
    data = np.array([99, 3, 0, 0], np.uint32).tobytes()
    struct = Struct(data, {8: Pointer(array, 8)})
    launch(single(body, "align 8 .b8 s[16]", "u64 y"), (1,), (4,), [struct, out])
    assert (out == 5).all()


def test_struct_ends_where_it_ends():
    body = "mov.b64 %rd2, s; ld.param.u32 %r1, [%rd2+16];"
    with pytest.raises(EmulationError, match="param access out of bounds: up to byte 20 of 16"):
        launch(single(body, "align 8 .b8 s[16]"), (1,), (4,), [bytes(16)])


def test_integer_instructions():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2**32, (2, 64), dtype=np.uint64).astype(np.uint32)
    out = np.zeros((64, 6), np.uint64)
    launch(kernel("integers"), (1,), (64,), [a, b, out])
    for i in range(64):
        p, q = int(a[i]), int(b[i])
        x = p | q << 32
        y = (x * 0x9E3779B97F4A7C15 + 12345) % 2**64
        assert [int(value) for value in out[i]] == [
            y,
            x * y >> 64,
            bin(x).count("1") | (32 - p.bit_length()) << 8,
            (p + q) % 2**32 | (16 + (p + q >> 32)) << 32,
            int(f"{p:032b}"[::-1], 2),
            x // (q | 1),
        ]


def test_rounding_to_tf32_and_bfloat16():
    one, ulp = np.float32(1), np.float32(2**-10)
    values = one + ulp * np.array([0.25, 0.5, 0.75, 1.5], np.float32)
    assert list((unary("cvt.rna.tf32.f32 %f2, %f1", values) - one) / ulp) == [0, 1, 1, 2]
    assert list((unary("cvt.rn.tf32.f32 %f2, %f1", values) - one) / ulp) == [0, 0, 1, 2]
    bits = unary("cvt.rn.bf16x2.f32 %r2, %f1, %f1", one + 8 * ulp * np.array([0.25, 0.5, 1.5, 0.75], np.float32), "b32")
    assert [hex(word) for word in bits] == ["0x3f803f80", "0x3f803f80", "0x3f823f82", "0x3f813f81"]


def test_float_conversions_and_nan():
    values = np.array([1.5, 2.5, -1.5, np.nan, 1e20, -1e20, np.inf, 0], np.float32)
    assert list(unary("cvt.rni.s32.f32 %r2, %f1", values, "s32")) == [
        2, 2, -2, 0, 2**31 - 1, -(2**31), 2**31 - 1, 0,
    ]  # fmt: skip
    assert list(unary("cvt.rzi.s32.f32 %r2, %f1", values, "s32"))[:4] == [1, 2, -1, 0]
    quiet = unary("max.f32 %f2, %f1, 0f00000000", values)
    assert list(quiet[:4]) == [1.5, 2.5, 0, 0]  # max ignores a NaN
    assert np.isnan(unary("max.NaN.f32 %f2, %f1, 0f00000000", values)[3])


@pytest.mark.parametrize(
    ("name", "function", "error"),
    [
        ("sin", np.sin, 2**-21.41),
        ("cos", np.cos, 2**-21.19),
        ("ex2", np.exp2, 2**-22),
        ("lg2", np.log2, 2**-22),
        ("rsqrt", lambda x: 1 / np.sqrt(x), 2**-22.9),
    ],
)
def test_approximate_functions_are_as_inexact_as_documented(name, function, error):
    x = np.linspace(0.01, 3, 1024).astype(np.float32)
    exact = function(x.astype(np.float64))
    scale = np.maximum(np.abs(exact), 1) if name in ("sin", "cos", "lg2") else np.abs(exact)
    worst = np.max(np.abs(unary(f"{name}.approx.f32 %f2, %f1", x) - exact) / scale)
    assert 0.9 * error < worst < error + 2**-24


FRAGMENTS = {"tf32": (4, 8), "bf16": (2, 16), "f16": (2, 16)}  # bytes of an operand's element, k
LANE = np.arange(32)
GROUP, MEMBER = LANE >> 2, LANE & 3


def multiply(type_: str, a: np.ndarray, b: np.ndarray, c: float, target: str = "sm_80", **options):
    """One m16n8 product of operands' bits [16, k] and [k, 8], plus c: (launch, float32 [16, 8]).

    The fragments are laid out as the PTX ISA's figures of mma.m16n8k8 (tf32) and m16n8k16 show.
    """
    nbytes, k = FRAGMENTS[type_]
    per = 4 // nbytes
    fragments = np.zeros((6, 32), np.uint32)
    for h in range(per):
        for i in range(4):
            column = per * MEMBER + h + (k // 2) * (i >> 1)
            fragments[i] |= a[GROUP + 8 * (i & 1), column].astype(np.uint32) << np.uint32(16 * h)
        for i in range(2):
            row = per * MEMBER + h + (k // 2) * i
            fragments[4 + i] |= b[row, GROUP].astype(np.uint32) << np.uint32(16 * h)
    loads = "".join(f"ld.global.b32 %r{i + 1}, [%rd1+{128 * i}];" for i in range(6))
    stores = "".join(f"st.global.f32 [%rd2+{128 * i}], %f{i};" for i in range(4))
    body = f"""ld.param.u64 %rd1, [x]; ld.param.u64 %rd2, [y]; ld.param.f32 %f10, [c];
        add.u64 %rd1, %rd1, %rd0; add.u64 %rd2, %rd2, %rd0; {loads}
        mma.sync.aligned.m16n8k{k}.row.col.f32.{type_}.{type_}.f32 {{%f0, %f1, %f2, %f3}},
            {{%r1, %r2, %r3, %r4}}, {{%r5, %r6}}, {{%f10, %f10, %f10, %f10}}; {stores}"""
    out, result = np.zeros((4, 32), np.float32), np.zeros((16, 8), np.float32)
    source = single(body, "u64 x", "u64 y", "f32 c").replace("sm_80", target)
    run = launch(source, (1,), (32,), [fragments, out, c], **options)
    for i in range(4):
        result[GROUP + 8 * (i >> 1), 2 * MEMBER + (i & 1)] = out[i]
    return run, result


@pytest.mark.parametrize("type_", FRAGMENTS)
def test_mma_takes_rounded_operands(type_):
    """Of float32 bits tf32 ignores the low ones; the half types are given what they hold."""
    k, rng = FRAGMENTS[type_][1], np.random.default_rng(1)
    a, b = rng.standard_normal((16, k)).astype(np.float32), rng.standard_normal((k, 8)).astype(np.float32)
    if type_ == "f16":
        bits = [value.astype(np.float16).view(np.uint16) for value in (a, b)]
        rounded = [value.view(np.float16).astype(float) for value in bits]
    else:
        kept = np.uint32(0xFFFFE000 if type_ == "tf32" else 0xFFFF0000)
        cut = [value.view(np.uint32) & kept for value in (a, b)]
        rounded = [value.view(np.float32).astype(float) for value in cut]
        bits = [a.view(np.uint32), b.view(np.uint32)] if type_ == "tf32" else [value >> 16 for value in cut]
    run, found = multiply(type_, *bits, c=1.0)
    expected = rounded[0] @ rounded[1] + 1
    assert np.abs(found - expected).max() < 3e-6
    assert np.abs(multiply(type_, *bits, c=1.0, approximate=False)[1] - expected).max() < 5e-7
    assert np.abs(found - (a.astype(float) @ b + 1)).max() > 1e-4  # it did lose what the type cannot hold
    assert run.counters.mma_flops == {type_: 2 * 16 * 8 * k}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("target", "approximate", "ulps"),
    [
        ("sm_80", True, 0),  # each product is cut to multiples of 2^-24: nothing is left
        ("sm_90", True, 1),  # to multiples of 2^-25: 4 x 2^-25
        ("sm_80", False, 2),  # 3 x 2^-24 rounded to nearest even
    ],
)
def test_tensor_cores_truncate(target, approximate, ulps, sign):
    """1 + 4 x 0.75 x 2^-24, in units of 2^-23."""
    a, b = np.zeros((16, 8), np.float32), np.ones((8, 8), np.float32)
    a[:, :4] = sign * 0.75 * 2.0**-24
    _, found = multiply("tf32", a.view(np.uint32), b.view(np.uint32), float(sign), target, approximate=approximate)
    assert (found == sign * np.float32(1 + ulps * 2.0**-23)).all()


def test_mma_of_zeros_infinities_and_nan():
    a, b = np.zeros((16, 8), np.float32), np.ones((8, 8), np.float32)
    a[1, 0], a[2, 0], a[3, :2] = np.inf, np.nan, [1e30, 2.0**-140]
    _, found = multiply("tf32", a.view(np.uint32), b.view(np.uint32), 0.0)
    assert (found[0] == 0).all() and (found[1] == np.inf).all() and np.isnan(found[2]).all()
    assert np.allclose(found[3], 1e30, rtol=1e-3) and (found[4:] == 0).all()


def signal(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def run_fft(source: str, n: int, x: np.ndarray, blocks: int | None = None, shared: int | None = None, **options):
    """fft.cu's transform of the rows of x: (launch, spectrum, energy)."""
    out = np.full((blocks or len(x), n), np.nan, np.complex64)
    energy = np.zeros(len(out), np.float32)
    shared = 8 * n if shared is None else shared
    args = [x, out, energy]
    run = launch(kernel(f"Li{n}E", source), (len(out),), (n // 4,), args, dynamic_shared=shared, **options)
    return run, out, energy


@pytest.mark.parametrize(("n", "flags"), [(256, ()), (1024, ("-use_fast_math",))])
def test_fft(n, flags):
    x = signal(5, n)
    run, out, energy = run_fft(cuda("fft.cu", "sm_80", *flags), n, x)
    expected = np.fft.fft(x.astype(np.complex128))
    assert np.abs(out - expected).max() < 2e-6 * np.abs(expected).max()
    assert np.allclose(energy, (np.abs(expected) ** 2).sum(1), rtol=1e-5)
    stages, warps = {256: 4, 1024: 5}[n], n // 4 // 32
    assert run.counters.barriers_per_block == 2 * (stages - 1) + 1
    assert run.counters.instructions()["shuffle"] == 5 * 5 * (warps + 1)
    assert run.counters.dram_bytes[0] == 5 * 8 * n
    assert run.counters.traffic("global", "load").sector_efficiency == 1


def test_results_do_not_depend_on_batching():
    source, x = cuda("fft.cu"), signal(6, 256)
    runs = [run_fft(source, 256, x, batch_lanes=lanes) for lanes in (1, 128, 1 << 16)]
    for run, out, _ in runs[1:]:
        assert (out == runs[0][1]).all()
        assert run.counters.warps == runs[0][0].counters.warps
        assert run.counters.traffic("shared") == runs[0][0].counters.traffic("shared")


# -- what is wrong is found


def without(source: str, name: str, pattern: str, number: int) -> str:
    """A module without one match of a pattern in a kernel's body. IndexError if there are fewer."""
    start = source.index(f".entry {name}")
    end = source.find(".entry", start + 10)
    matches = re.finditer(pattern, source[start : end if end > 0 else len(source)])
    match = list(matches)[number]
    return source[: start + match.start()] + source[start + match.end() :]


BARRIER = r"bar\.sync[^;]*;"


@pytest.mark.parametrize("blocks", [1, 3])
def test_every_needed_barrier_is_missed(blocks):
    """All barriers of the FFT but the first are needed; without any one of them a race is reported."""
    source, x = cuda("fft.cu", "sm_75"), signal(blocks, 256)
    name = kernel("Li256E", source).name
    run_fft(without(source, name, BARRIER, 0), 256, x)
    for number in range(1, 7):
        with pytest.raises(Race):
            run_fft(without(source, name, BARRIER, number), 256, x)
    with pytest.raises(IndexError):
        without(source, name, BARRIER, 7)


def test_transpose_without_its_barrier():
    source = cuda("kernels.cu")
    name = kernel("transposeILi1E").name
    x, y = np.zeros((32, 32), np.float32), np.zeros((32, 32), np.float32)
    with pytest.raises(Race, match="read-after-write"):
        launch(Kernel(without(source, name, BARRIER, 0), name), (1,), (32, 32), [x, y])


@pytest.mark.parametrize("lanes", [64, 1 << 14])
def test_blocks_that_use_other_addresses(lanes):
    """Their values, and their races in every block of a batch."""
    blocks, t = 5, np.arange(64)
    x = np.random.default_rng(0).standard_normal((blocks, 64)).astype(np.float32)
    y, expected = x.copy(), np.empty_like(x)
    for block in range(blocks):
        shared = np.empty(64, np.float32)
        shared[(t + 5 * block) % 64] = 2 * x[block][(t + block) % 64]
        expected[block] = shared[63 - t]
    launch(kernel("rotateILb1E"), (blocks,), (64,), [y], batch_lanes=lanes)
    assert (y == expected).all()
    with pytest.raises(Race, match="read-after-write"):
        launch(kernel("rotateILb0E"), (blocks,), (64,), [x.copy()], batch_lanes=lanes)


each_barrier = pytest.mark.parametrize(
    ("between", "threads", "race"),
    [
        ("bar.sync 0;", 64, False),
        ("bar.warp.sync 0xffffffff;", 32, False),
        ("bar.warp.sync 0xffffffff;", 64, True),
        ("", 32, True),
    ],
)


@each_barrier
def test_a_warp_barrier_orders_one_warp(between, threads, race):
    """The first thread of the last warp writes, all read."""
    body = f"""setp.eq.u32 %p1, %r0, {threads - 32};
        @%p1 st.shared.u32 [tile], %r0; {between} ld.shared.u32 %r2, [tile];"""
    if race:
        with pytest.raises(Race, match="read-after-write"):
            launch(single(body), (1,), (threads,), [])
    else:
        launch(single(body), (1,), (threads,), [])


@each_barrier
def test_a_thread_writes_what_it_read_after_the_others(between, threads, race):
    body = f"""setp.eq.u32 %p1, %r0, 0; ld.shared.u32 %r2, [tile]; {between}
        @%p1 ld.shared.u32 %r2, [tile]; @%p1 st.shared.u32 [tile], %r0;"""
    if race:
        with pytest.raises(Race, match="write-after-read"):
            launch(single(body), (1,), (threads,), [])
    else:
        launch(single(body), (1,), (threads,), [])


def between_blocks(load: str, store: str) -> str:
    """Each thread of 64 blocks loads and stores at these multiples of 4 bytes."""
    return single(
        f"""ld.param.u64 %rd1, [x]; ld.param.u64 %rd2, [y]; mov.u32 %r1, %ctaid.x; mad.lo.u32 %r2, %r1, 32, %r0;
        mul.wide.u32 %rd3, {load}, 4; mul.wide.u32 %rd4, {store}, 4; add.u64 %rd1, %rd1, %rd3; add.u64 %rd2, %rd2, %rd4;
        ld.global.f32 %f1, [%rd1]; st.global.f32 [%rd2], %f1;""",
        "u64 x",
        "u64 y",
    )


@pytest.mark.parametrize("lanes", [32, 1 << 14])
@pytest.mark.parametrize(
    ("load", "store", "in_place", "race"),
    [
        ("%r2", "%r2", False, None),
        ("%r2", "%r2", True, None),  # each block reads and writes what is its own
        ("%r0", "%r2", False, None),  # all read the same
        ("%r2", "%r0", False, "write-write"),
        ("%r0", "%r2", True, "read-after-write|write-after-read"),
    ],
)
def test_races_between_blocks(load, store, in_place, race, lanes):
    x = np.zeros(64 * 32, np.float32)
    y = x if in_place else np.zeros_like(x)
    source = between_blocks(load, store)
    if race is None:
        launch(source, (64,), (32,), [x, y], batch_lanes=lanes)
    else:
        with pytest.raises(Race, match=f"({race}) race between blocks"):
            launch(source, (64,), (32,), [x, y], batch_lanes=lanes)


def test_uninitialised_shared_memory_is_nan():
    out = np.zeros(32, np.float32)
    body = "ld.shared.f32 %f1, [tile]; ld.param.u64 %rd1, [y]; add.u64 %rd1, %rd1, %rd0; st.global.f32 [%rd1], %f1;"
    launch(single(body, "u64 y"), (1,), (32,), [out])
    assert np.isnan(out).all()


ASYNC = """ld.param.u64 %rd1, [x]; ld.param.u64 %rd2, [y]; add.u64 %rd1, %rd1, %rd0; add.u64 %rd2, %rd2, %rd0;
    shl.b32 %r1, %r0, 2; mov.u32 %r2, tile; add.u32 %r2, %r2, %r1;
    cp.async.ca.shared.global [%r2], [%rd1], 4; cp.async.commit_group; {wait}
    ld.shared.f32 %f1, [%r2]; st.global.f32 [%rd2], %f1;"""


@pytest.mark.parametrize("wait", ["cp.async.wait_group 0;", "cp.async.wait_all;", "cp.async.wait_group 1;", ""])
def test_async_copies_land_when_they_are_waited_for(wait):
    x, y = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    source = single(ASYNC.format(wait=wait), "u64 x", "u64 y")
    if wait in ("cp.async.wait_group 1;", ""):
        with pytest.raises(Race, match=r"outstanding cp\.async"):
            launch(source, (1,), (64,), [x, y])
        launch(source, (1,), (64,), [x, y], races=False)
        assert np.isnan(y).all()
    else:
        run = launch(source, (1,), (64,), [x, y])
        assert (y == x).all()
        assert run.counters.dram_bytes == (256, 256)


def test_memory_errors():
    source, x = cuda("fft.cu", "sm_75"), signal(3, 256)
    with pytest.raises(EmulationError, match="shared access out of bounds"):
        run_fft(source, 256, x, shared=8 * 256 - 64)
    with pytest.raises(EmulationError, match="global access out of bounds"):
        run_fft(source, 256, x[:2].copy(), blocks=3)
    with pytest.raises(EmulationError, match="misaligned 16-byte access"):
        unaligned = Pointer(np.zeros(65, np.float32), 4)
        launch(kernel("copy4"), (1,), (16,), [unaligned, np.zeros(64, np.float32)])


def test_deadlock():
    with pytest.raises(EmulationError, match="deadlock"):
        launch(kernel("stuck"), (1,), (64,), [np.zeros(64, np.float32)])


def test_shuffle_with_missing_lanes():
    shuffle = "shfl.sync.bfly.b32 %r2, %r0, 1, 31, 0xffffffff;"
    launch(single(shuffle), (1,), (64,), [])
    with pytest.raises(EmulationError, match=r"shfl\.sync: lanes named in the mask are missing"):
        launch(single(f"setp.lt.u32 %p1, %r0, 16; @%p1 {shuffle}"), (1,), (32,), [])


def test_unsupported_is_said_when_it_is_reached():
    launch(single("setp.ge.u32 %p1, %r0, 99; @%p1 bra A; ret; A: activemask.b32 %r1;"), (1,), (32,), [])
    with pytest.raises(Unsupported, match=r"opcode activemask .*instruction 2: activemask\.b32 %r1"):
        launch(single("activemask.b32 %r1;"), (1,), (32,), [])


def test_the_emulator_knows_nothing_of_the_benchmarks_that_use_it():
    sources = list(Path(__file__).with_name("emulation").rglob("*.py"))
    assert len(sources) > 20
    for source in sources:
        imports = [line for line in source.read_text().splitlines() if line.lstrip().startswith(("import ", "from "))]
        assert not [line for line in imports if "benchmarks" in line], source
