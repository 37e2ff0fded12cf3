"""Blocks of a cluster share their memory in the emulator, which finds what is wrong with how they do it."""

import numpy as np
import pytest

from tests.emulation import EmulationError, Launch, Race, Unsupported, launch
from tests.emulation.examples import single

THREADS = 64
BARRIER = "barrier.cluster.arrive; barrier.cluster.wait;"
# %r3: of this thread's word in shared memory, %r4: its address in the next block of the cluster; %r1: this block's rank
ADDRESSES = """mov.u32 %r1, %cluster_ctarank; mov.u32 %r2, %cluster_nctarank; shl.b32 %r3, %r0, 2;
    add.u32 %r5, %r1, 1; rem.u32 %r5, %r5, %r2; mapa.shared::cluster.u32 %r4, %r3, %r5;"""
NUMBER = "mov.u32 %r6, %ctaid.x; mad.lo.u32 %r6, %r6, 64, %r0;"  # the thread's, in the grid
OWN = NUMBER + "st.shared.u32 [%r3], %r6;"
PEERS = "ld.shared::cluster.u32 %r7, [%r4];"
RESULT = """ld.param.u64 %rd1, [p]; mul.wide.u32 %rd2, %r6, 4; add.s64 %rd1, %rd1, %rd2; st.global.u32 [%rd1], %r7;"""


def run(*parts: str, blocks: int = 6, sample: range | None = None, **options) -> tuple[np.ndarray, Launch]:
    """Runs code on clusters of 3 blocks of 64 threads and 512 bytes of shared memory; what RESULT has stored."""
    found, code = np.zeros(blocks * THREADS, np.uint32), single("".join(parts), "u64 p")
    return found, launch(code, (blocks,), (THREADS,), [found], cluster=3, blocks=sample, **options)


@pytest.mark.parametrize("lanes", [1, 1 << 14])
def test_blocks_read_each_other(lanes):
    found, done = run(ADDRESSES, OWN, BARRIER, PEERS, RESULT, BARRIER, batch_lanes=lanes)
    block, thread = np.divmod(np.arange(6 * THREADS), THREADS)
    next_block = block // 3 * 3 + (block + 1) % 3
    assert (found == next_block * THREADS + thread).all()
    traffic = done.counters.traffic("cluster", "load")
    assert (traffic.requests, traffic.bytes, traffic.sectors) == (6 * 2, 6 * THREADS * 4, 6 * THREADS * 4 // 32)
    assert traffic.sector_efficiency == 1 and done.counters.traffic("shared", "store").wavefronts == 6 * 2
    assert done.counters.barriers == 2 * 6 and done.cluster == 3


def test_blocks_write_to_each_other_by_the_sector():
    far = "mul.lo.u32 %r8, %r0, 4; add.u32 %r4, %r4, %r8; st.shared::cluster.u32 [%r4], %r6;"  # 8 bytes apart
    read = "add.u32 %r8, %r3, %r8; ld.shared.u32 %r7, [%r8];"
    found, done = run(ADDRESSES, NUMBER, far, BARRIER, read, RESULT)
    block, thread = np.divmod(np.arange(6 * THREADS), THREADS)
    assert (found == (block // 3 * 3 + (block + 2) % 3) * THREADS + thread).all()
    assert done.counters.traffic("cluster", "store").sector_efficiency == 0.5


def test_sampled_clusters_stand_for_the_grid():
    code = ADDRESSES, OWN, BARRIER, PEERS, RESULT, BARRIER
    whole, sampled = run(*code, blocks=36)[1].counters, run(*code, blocks=36, sample=range(6))[1].counters
    assert sampled.scale == 6 and sampled.dram_bytes == whole.dram_bytes
    with pytest.raises(ValueError, match="expected whole clusters of 3 blocks, got \\[1, 2, 3\\]"):
        run(*code, sample=range(1, 4))


@pytest.mark.parametrize("between", ["", "bar.sync 0;"])
@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        (OWN, PEERS, "read-after-write"),
        ("ld.shared.u32 %r7, [%r3];", "st.shared::cluster.u32 [%r4], %r0;", "write-after-read"),
        (PEERS, "st.shared.u32 [%r3], %r0;", "write-after-read"),
        ("st.shared::cluster.u32 [%r4], %r0;", "st.shared.u32 [%r3], %r0;", "write-write"),
        ("st.shared::cluster.u32 [%r4], %r0;", "ld.shared.u32 %r7, [%r3];", "read-after-write"),
        (PEERS + "bar.sync 0; ld.shared.u32 %r7, [%r3];", "st.shared.u32 [%r3], %r0;", "write-after-read"),
    ],
)
def test_only_a_barrier_of_the_cluster_orders_its_blocks(first, second, kind, between):
    run(ADDRESSES, first, BARRIER, second, BARRIER)
    with pytest.raises(Race, match=f"shared {kind} race: byte 0, threads 0 of block . and 0 of block"):
        run(ADDRESSES, first, between, second, BARRIER)


def test_a_barrier_of_the_cluster_is_one_of_its_blocks():
    swap = "xor.b32 %r8, %r3, 4; ld.shared.u32 %r7, [%r8];"
    run(ADDRESSES, OWN, BARRIER, swap)
    with pytest.raises(Race, match="threads 1 of block 0 and 0 of block 0"):
        run(ADDRESSES, OWN, swap)


def test_errors():
    with pytest.raises(EmulationError, match="mapa to block 3 of a cluster of 3"):
        run("mov.u32 %r1, 3; mapa.shared::cluster.u32 %r4, %r0, %r1;")
    with pytest.raises(EmulationError, match="shared::cluster access out of bounds: up to byte 764 of 512"):
        run(ADDRESSES, "ld.shared::cluster.u32 %r7, [%r4+508];")
    with pytest.raises(EmulationError, match="shared::cluster access to a block that has returned"):
        run(ADDRESSES, "setp.eq.u32 %p1, %r1, 1; @%p1 ret;", BARRIER, PEERS)
    with pytest.raises(EmulationError, match=r"deadlock: not all threads .* of a cluster"):
        run(f"setp.eq.u32 %p1, %r0, 0; @%p1 bra L1; {BARRIER} ret; L1: bar.sync 0;")
    with pytest.raises(Unsupported, match=r"barrier\.cluster\.arrive"):
        run("barrier.cluster.arrive; add.u32 %r1, %r0, 1; barrier.cluster.wait;")
    with pytest.raises(Unsupported, match="relaxed"):
        run("barrier.cluster.arrive.relaxed; barrier.cluster.wait;")
