"""`pytest benchmarks`: the process of the measurements is set up as the runner's, before anything loads torch."""

from .process import keep_freed_memory, physical_cores, pin

pin(len(physical_cores()))
keep_freed_memory()
