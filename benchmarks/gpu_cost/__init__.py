"""What the GPU kernels cost by count, without a GPU: `python -m benchmarks.gpu_cost`; read docs/gpu_costs.md.

Everything here is an estimate. The kernels run in the emulator of tests/emulation, which counts; the times are lower
bounds from public limits of the devices.

contenders.py  the library's GPU backends and the cases that they are compiled and costed for
resources.py   registers, spills and shared memory of the kernels, and the table that a test holds them to
cost.py        a contender's launches for a case, as rows: one for each device
eager.py       the same for torch's eager pipeline, by a rule
report.py      Markdown, from the rows
plots.py       the picture, from the rows
results/       the committed estimates
"""
