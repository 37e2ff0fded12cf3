// Bringing values into the cache before they are asked for.
#pragma once

#include <cstdint>

#include "cpu/simd.h"

namespace sagd::SAGD_ISA {

// Values that are brought into the second cache (the first one has enough to hold) while a transform works on its rows,
// which leaves memory alone. It is called with the runs of n values that they consist of, one after the other.
struct Fetch {
  const char* values;
  int bytes;  // of a value

  SAGD_INLINE void operator()(int64_t run, int n) const {
    const char* const from = values + run * n * bytes;
    for (int at = 0; at < n * bytes; at += 64) __builtin_prefetch(from + at, 0, 2);
  }
};

}  // namespace sagd::SAGD_ISA
