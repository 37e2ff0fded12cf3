"""The benchmark suite: `python -m benchmarks --help`, `make bench`, `pytest benchmarks`; read docs/benchmarks.md.

cases.py        what is computed: one registry of operators, shapes, dtypes and directions, and their data
contenders.py   who computes it: the library and its peers
mkl.py          one of them, through its C interface
checks.py       whether a contender computes it: nothing is timed before it has passed
limits.py       what the machine allows: copy bandwidth, peak arithmetic, and what a case asks of both
clocks.py       how a call is timed on a CPU and on a GPU
memory.py       how much memory a call takes beyond its results
runner.py       the interleaved measurement
process.py      processes with a stated number of threads
machine.py      what it was measured on
rows.py         the CSV
report.py       Markdown, README and comparison of two runs, from the CSV alone
plots.py        pictures, from the CSV alone
results/        committed runs, one directory per device
instructions.py what the CPU kernels execute for a plane, counted
claims/         what shaped noise is claimed to do for models, tested by training them
gpu_cost/       what the GPU kernels cost by count, without a GPU
"""
