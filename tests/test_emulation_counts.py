"""The emulator counts what can be counted by hand, and estimates from that what follows from a device's limits."""

import numpy as np
import pytest

from tests.emulation import Kernel, Pointer, counters, launch, toolchain
from tests.emulation.devices import DEVICES
from tests.emulation.estimate import bounds, estimate, occupancy
from tests.emulation.examples import COPY, kernel, needs, single
from tests.emulation.sass import machine_mix


def copy_of(n: int, **options):
    x, y = np.arange(n, dtype=np.float32), np.zeros(n, np.float32)
    run = launch(kernel("copy", COPY), (-(-n // 256),), (256,), [x, y], **options)
    return run.counters, x, y


def test_coalesced_copy():
    found, x, y = copy_of(1024)
    assert (x == y).all()
    for what in ("load", "store"):
        traffic = found.traffic("global", what)
        assert (traffic.requests, traffic.bytes, traffic.sectors) == (32, 4096, 128)
        assert traffic.sector_efficiency == 1
    assert found.dram_bytes == (4096, 4096)
    assert found.worst("global") == []


def test_vector_copy_has_a_quarter_of_the_requests():
    x, y = np.arange(4096, dtype=np.float32), np.zeros(4096, np.float32)
    traffic = launch(kernel("copy4"), (4,), (256,), [x, y]).counters.traffic("global", "load")
    assert (x == y).all()
    assert (traffic.requests, traffic.sectors, traffic.bytes) == (32, 512, 16384)


@pytest.mark.parametrize("stride", [4, 8])
def test_strided_copy(stride):
    n = 512
    x, y = np.arange(n * stride, dtype=np.float32), np.zeros(n, np.float32)
    found = launch(kernel("strided"), (2,), (256,), [x, y, stride]).counters
    assert (y == x[::stride]).all()
    assert found.traffic("global", "load").sector_efficiency == 1 / stride
    assert found.traffic("global", "store").sector_efficiency == 1
    assert found.dram_bytes == (4 * n * stride, 4 * n)
    assert "ld.global" in found.worst("global")[0][0]


def test_broadcast_is_one_sector_and_read_once():
    x, y = np.ones(1024, np.float32), np.zeros(1024, np.float32)
    found = launch(kernel("broadcast"), (4,), (256,), [x, y]).counters
    assert found.traffic("global", "load").sectors == 128 + 32
    assert found.dram_bytes == (4096, 4096)


def test_partial_warps_and_unaligned_views():
    x, y = np.arange(145, dtype=np.float32), np.zeros(144, np.float32)
    found = launch(kernel("copy", COPY), (3,), (48,), [Pointer(x, 4), y]).counters
    assert (x[1:] == y).all()
    assert found.lanes_per_warp == 24
    assert found.traffic("global", "load").sectors == 3 * (5 + 3)  # one more than aligned, in each request
    assert found.traffic("global", "store").sectors == 3 * (4 + 2)


def test_sampled_blocks_stand_for_the_grid():
    whole, sampled = copy_of(64 * 256)[0], copy_of(64 * 256, blocks=range(24, 32))[0]
    assert sampled.scale == 8 and sampled.dram_bytes == whole.dram_bytes
    assert {name: 8 * n for name, n in sampled.instructions().items()} == whole.instructions()


def test_what_all_blocks_share_is_not_scaled():
    x, y = np.ones(64 * 256, np.float32), np.zeros(64 * 256, np.float32)
    found = launch(kernel("broadcast"), (64,), (256,), [x, y], blocks=range(2)).counters
    assert found.dram_bytes == (4 * len(x), 4 * len(y))
    few, out = np.ones(512, np.float32), np.zeros(64 * 256, np.float32)
    found = launch(kernel("strided"), (64,), (256,), [few, out, 0], blocks=range(2)).counters
    assert found.dram_bytes == (32, 4 * len(out))


@pytest.mark.parametrize(("padding", "degree"), [(0, 32), (1, 1)])
def test_transpose_bank_conflicts(padding, degree):
    x, y = np.arange(64 * 64, dtype=np.float32).reshape(64, 64), np.zeros((64, 64), np.float32)
    found = launch(kernel(f"transposeILi{padding}E"), (2, 2), (32, 32), [x, y]).counters
    assert (y == x.T).all()
    loads = found.traffic("shared", "load")
    assert (loads.requests, loads.wavefronts, loads.conflict_degree) == (128, 128 * degree, degree)
    assert found.traffic("shared", "store").conflict_degree == 1
    assert found.barriers_per_block == 1


@pytest.mark.parametrize(
    ("address", "width", "expected"),
    [
        (lambda i: 4 * i, 4, (1, 1)),
        (lambda i: 0, 4, (1, 1)),
        (lambda i: 8 * i, 4, (2, 1)),
        (lambda i: 128 * i, 4, (32, 1)),
        (lambda i: 132 * i, 4, (1, 1)),
        (lambda i: 2 * i, 2, (1, 1)),
        (lambda i: 8 * i, 8, (2, 2)),
        (lambda i: 16 * i, 8, (4, 2)),
        (lambda i: 16 * i, 16, (4, 4)),
        (lambda i: 32 * i, 16, (8, 4)),
        (lambda i: 128 * i, 16, (32, 4)),
        (lambda i: 4 * i if i < 16 else -1, 4, (1, 1)),
        (lambda i: 16 * i if i < 8 else -1, 16, (1, 1)),
    ],
)
def test_bank_rule(address, width, expected):
    rows = np.array([[address(i) for i in range(32)]], np.int64)
    assert counters.bank_wavefronts(rows, width) == expected


def test_atomics():
    bins, count = np.random.default_rng(0).integers(0, 8, 512).astype(np.int32), np.zeros(8, np.int32)
    found = launch(kernel("histogram"), (4,), (128,), [bins, count]).counters
    assert (count == np.bincount(bins, minlength=8)).all()
    assert found.traffic("shared", "atomic").requests == 16
    assert found.traffic("global", "atomic").requests == 4


@pytest.mark.parametrize("n", [8, 40])
def test_loops_count_their_trips(n):
    x, y, coefficients = np.linspace(-1, 1, 64).astype(np.float32), np.zeros(64, np.float32), np.arange(n)
    found = launch(kernel("horner"), (1,), (64,), [coefficients.astype(np.float32), n, x, y]).counters
    assert np.allclose(y, np.polyval(coefficients, x.astype(float)), rtol=1e-5, atol=1e-5)
    assert found.instructions()["fp32_fma"] == 2 * n
    assert found.fp32_flops == 2 * n * 64


def test_divergence():
    def steps(v: int) -> int:
        return 0 if v == 1 else 1 + steps(3 * v + 1 if v % 2 else v // 2)

    x, y = np.arange(1, 65, dtype=np.int32), np.zeros(64, np.int32)
    found = launch(kernel("collatz"), (1,), (64,), [x, y]).counters
    assert list(y) == [steps(int(v)) for v in x]
    assert 1 < found.lanes_per_warp < 20


# -- estimates


def test_occupancy_known_answers():
    a100, h100, rtx4090, b200 = DEVICES.values()
    assert occupancy(a100, 256, 32, 0).warps == 64
    assert occupancy(a100, 256, 64, 0).blocks == 4
    assert occupancy(rtx4090, 256, 32, 0).warps == 48
    assert occupancy(a100, 32, 82, 0).warps == 20  # 5 on each scheduler
    found = occupancy(a100, 128, 32, 48 << 10)
    assert (found.blocks, found.warps, found.limited_by) == (3, 12, "shared memory")
    assert occupancy(h100, 128, 32, 100 << 10).blocks == 2
    assert occupancy(rtx4090, 128, 32, 100 << 10).blocks == 0
    assert occupancy(b200, 32, 16, 0).limited_by == "blocks"


def test_bounds_by_hand():
    a100, hz = DEVICES["A100"], 1.41e9
    found = bounds(
        a100,
        {"fp32_fma": 1.08e9, "mufu": 1.08e6},
        blocks=108 * 1000,
        dram_bytes=2039e9,
        shared_wavefronts=1.08e8,
        mma_flops={"tf32": 156e12},
    )
    assert found["dram"] == found["tensor"] == pytest.approx(1.0)
    assert found["issue"] == pytest.approx(1.08108e9 / 4 / 108 / hz)
    assert found["fma"] == pytest.approx(1.08e9 / 2 / 108 / hz)
    assert found["special"] == pytest.approx(1.08e6 * 2 / 108 / hz)
    assert found["shared"] == pytest.approx(1.08e8 / 108 / hz)
    one_block = bounds(a100, {"fp32_fma": 1e6}, blocks=1, dram_bytes=0)
    assert one_block["fma"] == pytest.approx(1e6 / 2 / hz)


@pytest.mark.parametrize("name", DEVICES)
def test_copy_is_bound_by_dram(name):
    needs("ptxas")
    n, device = 1 << 20, DEVICES[name]
    x, y = np.zeros(n, np.float32), np.zeros(n, np.float32)
    run = launch(kernel("copy", COPY), (n // 256,), (256,), [x, y], blocks=range(2))
    found = estimate(run, device)
    assert found.limiter == "dram"
    assert found.seconds == pytest.approx(8 * n / (device.dram_gb_s * 1e9))
    assert 0 < found.resources.registers <= 32 and found.resources.spill_stores == 0
    assert found.occupancy.warps == device.max_warps


LOOP = single(
    """ld.param.u64 %rd1, [p]; ld.param.u32 %r1, [n]; add.s64 %rd3, %rd1, %rd0; ld.global.f32 %f1, [%rd3];
    mov.f32 %f2, 0f3f800000; mov.u32 %r3, 0;
    L1: fma.rn.f32 %f2, %f2, %f1, 0f3f000000; fma.rn.f32 %f2, %f2, %f1, 0f3f800000;
    add.u32 %r3, %r3, 1; setp.lt.u32 %p1, %r3, %r1; @%p1 bra L1;
    st.global.f32 [%rd3], %f2;""",
    "u64 p",
    "u32 n",
)


def test_machine_instructions():
    """Straight code issues each of its instructions once; of an unrolled loop the arithmetic is counted exactly."""
    needs("ptxas", "nvdisasm")
    straight, _, _ = copy_of(1024)
    mix = machine_mix(straight, toolchain.assemble(straight.kernel, "sm_80")[1])
    assert sum(mix.by_class.values()) == mix.static * 32
    assert mix.by_class["mem_global"] == 64
    n = 1000
    loop = launch(LOOP, (1,), (64,), [np.full(64, 0.5, np.float32), n]).counters
    mix = machine_mix(loop, toolchain.assemble(loop.kernel, "sm_90")[1])
    assert mix.unrolled > 1
    assert mix.by_class["fp32_fma"] == pytest.approx(2 * n * 2, rel=0.01)
    assert sum(mix.by_class.values()) < sum(loop.warps)  # the loop's overhead shrinks


MEETING = single(  # warps that may have diverged exchange 8 numbers
    "ld.param.u64 %rd1, [p]; ld.param.u32 %r1, [n]; add.s64 %rd3, %rd1, %rd0; ld.global.f32 %f1, [%rd3];"
    "setp.ge.u32 %p1, %r0, %r1; @%p1 bra L1;"
    + "shfl.sync.bfly.b32 %f2, %f1, 1, 31, -1; add.f32 %f1, %f1, %f2; mul.f32 %f1, %f1, %f2;" * 8
    + "L1: st.global.f32 [%rd3], %f1;",
    "u64 p",
    "u32 n",
)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "sm_120"])
def test_slow_paths_of_diverged_warps_are_not_counted(arch):
    needs("ptxas", "nvdisasm")
    found = launch(MEETING, (1,), (96,), [np.ones(96, np.float32), 64]).counters
    cubin = toolchain.assemble(found.kernel, arch)[1]
    listing = toolchain.disassemble(cubin)
    assert "BRA.DIV" in listing and listing.count("SHFL") > 8  # more than what runs while a warp's lanes are together
    mix = machine_mix(found, cubin)
    assert mix.by_class["shuffle"] == mix.by_class["fp32_add"] == mix.by_class["fp32_mul"] == 8 * 2
    assert mix.unrolled == 1


def test_ptx_of_another_architecture():
    needs("ptxas")
    tied = Kernel((COPY).replace("sm_80", "sm_90a"))
    with pytest.raises(toolchain.ToolError, match="PTX for sm_90a runs on no other architecture"):
        toolchain.assemble(tied, "sm_80")
    newer = Kernel((COPY).replace("sm_80", "sm_90"))
    with pytest.raises(toolchain.ToolError, match="PTX for sm_90 does not run on sm_80"):
        toolchain.assemble(newer, "sm_80")
