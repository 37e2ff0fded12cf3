// Bringing values into the cache before they are asked for.
#pragma once

#include <cstdint>

#include "cpu/simd.h"

namespace sagd::SAGD_ISA {

// Values of several tensors that are brought into the second cache (the first one has enough to hold) while a transform
// works on its rows, which leaves memory alone. It is called with the runs of n values that they consist of, one after
// the other.
template <class S, int tensors>
struct Fetch {
  const S* values[tensors];

  SAGD_INLINE void operator()(int64_t run, int n) const {
    for (int tensor = 0; tensor < tensors; ++tensor) {
      const char* const from = reinterpret_cast<const char*>(values[tensor] + run * n);
      for (int at = 0; at < n * int(sizeof(S)); at += 64) __builtin_prefetch(from + at, 0, 2);
    }
  }
};

template <class S, class... More>
Fetch<S, 1 + sizeof...(More)> fetch(const S* values, More... more) {
  return {{values, more...}};
}

}  // namespace sagd::SAGD_ISA
