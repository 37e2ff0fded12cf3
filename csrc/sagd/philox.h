// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
#pragma once

#include <cstdint>

#include "complex.h"

namespace sagd {

constexpr uint32_t philox_multiplier0 = 0xD2511F53u, philox_multiplier1 = 0xCD9E8D57u;

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

// One of the ten rounds on the four counter words c, for any word type U with ^. mul_wide(U a, uint32_t m, U& high,
// U& low) gives the two halves of a 32 x 32 bit product. U may hold each word in 64 bits with anything in the upper
// half: only the lower half is ever used.
template <class U, class K, class MulWide>
SAGD_INLINE void philox_round(U c[4], const PhiloxKeys<K>& keys, int round, MulWide mul_wide) {
  U high0, low0, high1, low1;
  mul_wide(c[0], philox_multiplier0, high0, low0);
  mul_wide(c[2], philox_multiplier1, high1, low1);
  c[0] = high1 ^ c[1] ^ keys.low[round];
  c[2] = high0 ^ c[3] ^ keys.high[round];
  c[1] = low1;
  c[3] = low0;
}

template <class U, class K, class MulWide>
SAGD_INLINE void philox(U c[4], const PhiloxKeys<K>& keys, MulWide mul_wide) {
  SAGD_UNROLL
  for (int round = 0; round < 10; ++round) philox_round(c, keys, round, mul_wide);
}

// The first two rounds on counters that differ in the lowest word alone: half of their products are the same for all.
template <class K>
struct PhiloxStart {
  K key1, key2, key3, word3;  // what follows from the three upper words, with the rounds' keys

  SAGD_INLINE PhiloxStart(const PhiloxKeys<K>& keys, uint32_t c1, uint32_t c2, uint32_t c3) {
    const uint64_t first = uint64_t(c2) * philox_multiplier1;
    const uint64_t second = (uint32_t(first >> 32) ^ c1 ^ uint32_t(keys.low[0])) * uint64_t(philox_multiplier0);
    key1 = c3 ^ keys.high[0];
    key2 = uint32_t(first) ^ keys.low[1];
    key3 = uint32_t(second >> 32) ^ keys.high[1];
    word3 = uint32_t(second);
  }

  // The counters' lowest words in, the four words after two rounds out.
  template <class U, class MulWide>
  SAGD_INLINE void operator()(U lowest, U c[4], MulWide mul_wide) const {
    U high0, low0, high1, low1;
    mul_wide(lowest, philox_multiplier0, high0, low0);
    mul_wide(high0 ^ key1, philox_multiplier1, high1, low1);
    c[0] = high1 ^ key2;
    c[1] = low1;
    c[2] = low0 ^ key3;
    c[3] = U{} ^ word3;
  }
};

}  // namespace sagd
