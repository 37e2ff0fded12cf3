"""Public limits of a few GPUs. They are peaks: sustained clocks and bandwidths are lower.

Sources: NVIDIA's data sheets of the A100 80 GB SXM, H100 SXM5 and HGX B200 (DRAM, tensor cores; of figures "with
sparsity" half), the Ampere, Hopper and Ada architecture white papers (SMs, clocks, L2), the CUDA C++ Programming Guide
(throughput of arithmetic instructions, technical specifications per compute capability), CUDA's occupancy calculator
(allocation units). The clocks of H100 and B200 follow from their float32 rates, rate / (SMs x lanes x 2). B200 has as
many SMs as CUDA's runtime reports there; its integer, ALU and special-function lanes are assumed to be those of
compute capability 9.0.
"""

from dataclasses import dataclass

SCHEDULERS = 4  # warp instructions per clock and SM
SHARED_BYTES_PER_CLOCK = 128  # per SM
L1_BYTES_PER_CLOCK = 128  # per SM
REGISTER_UNIT = 256  # registers that a warp is given at a time
SHARED_UNIT = 128  # bytes that a block is given at a time
RESERVED_SHARED = 1024  # bytes that the system keeps for each resident block
REGISTERS = 65536  # per SM


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes:
        arch: "sm_80".
        dram_gb_s: in 10^9 bytes per second.
        fp32_lanes .. fp64_lanes: results per clock and SM of float32, integer multiply-add, other integer and compare,
            special functions and conversions, float64.
        tensor_tflops: dense, with float32 accumulation, by operand type.
        max_warps, max_blocks, shared: what an SM holds; shared memory in bytes.
        shared_per_block: the most that a block may ask for, bytes.
        l2: bytes of its L2 cache.
    """

    name: str
    arch: str
    sms: int
    clock_ghz: float
    dram_gb_s: float
    fp32_lanes: int
    imad_lanes: int
    alu_lanes: int
    special_lanes: int
    fp64_lanes: int
    tensor_tflops: dict[str, float]
    max_warps: int
    max_blocks: int
    shared: int
    shared_per_block: int
    l2: int


DEVICES = {
    "A100": Device(
        "NVIDIA A100 SXM 80 GB", "sm_80", 108, 1.41, 2039, 64, 64, 64, 16, 32,
        {"f16": 312, "bf16": 312, "tf32": 156}, 64, 32, 167936, 166912, 40 << 20,
    ),
    "H100": Device(
        "NVIDIA H100 SXM5 80 GB", "sm_90", 132, 1.98, 3350, 128, 64, 64, 16, 64,
        {"f16": 989.4, "bf16": 989.4, "tf32": 494.7}, 64, 32, 233472, 232448, 50 << 20,
    ),
    "RTX 4090": Device(
        "NVIDIA GeForce RTX 4090", "sm_89", 128, 2.52, 1008, 128, 64, 64, 16, 2,
        {"f16": 165.2, "bf16": 165.2, "tf32": 82.6}, 48, 24, 102400, 101376, 72 << 20,
    ),
    "B200": Device(
        "NVIDIA B200 (HGX)", "sm_100", 148, 1.98, 8000, 128, 64, 64, 16, 64,
        {"f16": 2250, "bf16": 2250, "tf32": 1100}, 64, 32, 233472, 232448, 126 << 20,
    ),
}  # fmt: skip
