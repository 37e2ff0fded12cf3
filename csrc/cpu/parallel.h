// Work on one plane that threads share. What they compute must be one function that is not inlined: where the same code
// is compiled twice, for one thread and for several, it might round differently.
#pragma once

#include "cpu/job.h"
#include "cpu/simd.h"

namespace sagd::SAGD_ISA {

// Calls f(begin, end) for ranges that make up [0, n), by `parallel`. f is a copy of the caller's: one whose address is
// known elsewhere would be kept in memory where it is not needed, too.
template <class F>
[[gnu::noinline]] void hand_out(Parallel parallel, int64_t n, F f) {
  const auto call = [](int64_t begin, int64_t end, void* context) { (*static_cast<F*>(context))(begin, end); };
  parallel(n, call, &f);
}

// The same, or f(0, n) where `parallel` is null.
template <class F>
SAGD_INLINE void in_ranges(Parallel parallel, int64_t n, F f) {
  if (parallel) hand_out(parallel, n, f);
  else f(opaque(int64_t(0)), n);  // opaque: or what it calls might be compiled again, for the constant
}

}  // namespace sagd::SAGD_ISA
