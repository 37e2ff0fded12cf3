// The CPU kernels of the operators, one table for each instruction set that was built.
#pragma once

#include "sagd/job.h"

namespace sagd {

// The operators, each on the planes [begin, end) of a job. Safe to call from several threads on disjoint ranges.
using Kernel = void (*)(const Job&, int64_t begin, int64_t end);

struct KernelTable {
  const char* name;
  Kernel spectral_filter, shaped_noise, add_noise, whitened_mse;
  int64_t (*shares)(const Job&);  // among how many threads a plane can be divided
};

// The kernels of the widest instruction set that was built and that this processor has, unless the environment
// variable SAGD_CPU_ISA names another; an unknown or unavailable name throws std::runtime_error.
const KernelTable& kernels();

}  // namespace sagd
