// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
#pragma once

#include <cstdint>

#include "complex.h"

namespace sagd {

// The keys of the ten rounds, two words each: the seed's halves, stepped by Weyl sequences.
template <class K>
struct PhiloxKeys {
  K low[10], high[10];

  SAGD_INLINE explicit PhiloxKeys(uint64_t seed) {
    for (uint32_t round = 0; round < 10; ++round) {
      low[round] = uint32_t(seed) + round * 0x9E3779B9u;
      high[round] = uint32_t(seed >> 32) + round * 0xBB67AE85u;
    }
  }
};

// Ten rounds on the four counter words c, for any word type U with ^. mul_wide(U a, uint32_t m, U& high, U& low) gives
// the two halves of a 32 x 32 bit product. U may hold each word in 64 bits with anything in the upper half: only the
// lower half is ever used.
template <class U, class K, class MulWide>
SAGD_INLINE void philox(U c[4], const PhiloxKeys<K>& keys, MulWide mul_wide) {
  SAGD_UNROLL
  for (int round = 0; round < 10; ++round) {
    U high0, low0, high1, low1;
    mul_wide(c[0], 0xD2511F53u, high0, low0);
    mul_wide(c[2], 0xCD9E8D57u, high1, low1);
    c[0] = high1 ^ c[1] ^ keys.low[round];
    c[2] = high0 ^ c[3] ^ keys.high[round];
    c[1] = low1;
    c[3] = low0;
  }
}

}  // namespace sagd
