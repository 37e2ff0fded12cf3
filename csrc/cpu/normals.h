// Standard normals from the library's stream: one Philox block a lane, four normals a block, by Box and Muller.
//
// Cost per 16 blocks (64 normals) with AVX-512: about 210 instructions of arithmetic, half of them Philox's.
#pragma once

#include <cmath>

#include "cpu/simd.h"
#include "sagd/philox.h"

namespace sagd::SAGD_ISA {

// A 32-bit word of each of lanes<uint32_t> blocks, in the lower halves of 64-bit lanes: what multiplication takes. The
// rounds of the even and the odd blocks alternate, because each one waits for the one before.
struct Words {
  Vec<uint64_t> even, odd;
};

SAGD_INLINE Words operator^(Words a, Words b) { return {a.even ^ b.even, a.odd ^ b.odd}; }
SAGD_INLINE Words operator^(Words a, uint64_t b) { return {a.even ^ b, a.odd ^ b}; }
SAGD_INLINE Words operator>>(Words a, int n) { return {a.even >> n, a.odd >> n}; }

SAGD_INLINE Vec<uint64_t> product(Vec<uint64_t> a, uint32_t m) {
#if defined(__AVX512F__)
  return (Vec<uint64_t>)_mm512_maskz_mul_epu32(0xff, (__m512i)a, _mm512_set1_epi64(m));
#elif defined(__AVX2__)
  return (Vec<uint64_t>)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(m));
#elif defined(__x86_64__)
  return (Vec<uint64_t>)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(m));
#elif defined(__aarch64__)
  return (Vec<uint64_t>)vmull_n_u32(vmovn_u64((uint64x2_t)a), m);
#else
  return (a & 0xffffffffu) * uint64_t(m);
#endif
}

SAGD_INLINE void mul_wide(Words a, uint32_t m, Words& high, Words& low) {
  low = {product(a.even, m), product(a.odd, m)};
  high = low >> 32;
}

SAGD_INLINE Words operator+(uint64_t a, Words b) { return {a + b.even, a + b.odd}; }

// The 64-bit numbers of(i) for i = 0, 1, ...
template <class Of>
SAGD_INLINE Words words(Of&& of) {
  Words w = {};
  for (int i = 0; i < lanes<uint64_t>; ++i) {
    w.even[i] = of(2 * i);
    w.odd[i] = of(2 * i + 1);
  }
  return w;
}

// 0, step, 2 step, ...
SAGD_INLINE Words multiples(uint64_t step) {
  return words([=](int i) { return i * step; });
}

// A position in the stream of a seed. The keys are kept in 64 bits each, as the lanes that they are broadcast to.
struct Stream {
  PhiloxKeys<uint64_t> keys;
  unsigned __int128 counter;

  // The blocks at these distances from the counter.
  SAGD_INLINE void blocks(Words distance, Words c[4]) const {
    const uint64_t low = uint64_t(counter), high = uint64_t(counter >> 64);
    const Words sum = low + distance;
    const Words carried = {high - (Vec<uint64_t>)(sum.even < low), high - (Vec<uint64_t>)(sum.odd < low)};
    c[0] = sum;
    c[1] = sum >> 32;
    c[2] = carried;
    c[3] = carried >> 32;
    philox(c, keys, mul_wide);
  }
};

// ---- Box and Muller's method -----------------------------------------------------------------------------------
// sqrt(-2 ln u) (cos, sin) of 2 pi v for u = (r[0] + 1/2) / 2^32 and v = r[1] / 2^32; likewise of r[2] and r[3].
//
// ln u = ln(1 + f) + e ln 2 with 1 + f in [sqrt(1/2), sqrt(2)). Near u = 1, f = u - 1 is taken from 2^32 - 1 - r, so
// that nothing cancels. The nearest half turn of v, a sign, is split off exactly, in integers; t half turns are left,
// |t| <= 1/2. The polynomials for -2 ln(1 + f) / f, sin(pi t) / t and cos(pi t), highest terms first, have relative
// errors below 3.2e-8, of which the square root halves that of the first, 7e-9 and 7e-9 (fitted by Lawson's iteration).
constexpr float log_terms[9] = {-0.1740087731f, 0.2853497764f,  -0.2982953562f, 0.3315516895f, -0.3992612758f,
                                0.5000267408f,  -0.6666782147f, 1.0f,           -2.0f};
constexpr float sine_terms[5] = {0.0776594082555f, -0.598292159484f, 2.55007765973f, -5.16771009033f, 3.14159264018f};
constexpr float cosine_terms[6] = {-0.024396716651f, 0.234937558985f, -1.33521205668f,
                                   4.05870916434f,   -4.93480213723f, 1.0f};

SAGD_INLINE void split_logarithm(Vec<uint32_t> r, Vec<float>& f, Vec<float>& e) {
  const Vec<float> x = __builtin_convertvector(r, Vec<float>) + 0.5f;
  const Vec<uint32_t> b = (Vec<uint32_t>)x - 0x4f3504f3u;  // the bits of 2^32 sqrt(1/2)
  const Vec<float> m = (Vec<float>)((b & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  const Vec<float> near_one = __builtin_convertvector(~r, Vec<float>) * -0x1p-32f - 0x1p-33f;
  f = r > 0xb504f333u ? near_one : m;
  e = __builtin_convertvector((Vec<int32_t>)b >> 23, Vec<float>);  // 0 where f is near_one
}

// Calls meanwhile(i) before the i-th terms, for i < 10.
template <class Meanwhile>
SAGD_INLINE void box_muller(const Vec<uint32_t> r[4], Vec<float> g[4], Meanwhile&& meanwhile) {
  Vec<float> f[2], e[2], t[2], z[2], log[2], sine[2], cosine[2];
#pragma GCC unroll 2
  for (int p = 0; p < 2; ++p) {
    split_logarithm(r[2 * p], f[p], e[p]);
    t[p] = __builtin_convertvector((Vec<int32_t>)(r[2 * p + 1] << 1), Vec<float>) * 0x1p-32f;
    z[p] = t[p] * t[p];
  }
#pragma GCC unroll 10
  for (int i = 0; i < 10; ++i) {
    meanwhile(i);
#pragma GCC unroll 2
    for (int p = 0; p < 2; ++p) {
      if (i < 9) log[p] = i == 0 ? broadcast(log_terms[0]) : log[p] * f[p] + log_terms[i];
      if (i < 5) sine[p] = i == 0 ? broadcast(sine_terms[0]) : sine[p] * z[p] + sine_terms[i];
      if (i < 6) cosine[p] = i == 0 ? broadcast(cosine_terms[0]) : cosine[p] * z[p] + cosine_terms[i];
    }
  }
#pragma GCC unroll 2
  for (int p = 0; p < 2; ++p) {
    const Vec<uint32_t> sign = (r[2 * p + 1] + 0x40000000u) & 0x80000000u;
    const Vec<float> radius = square_root(e[p] * -1.38629436112f + log[p] * f[p]);
    const Vec<float> length = (Vec<float>)((Vec<uint32_t>)radius ^ sign);
    g[2 * p] = length * cosine[p];
    g[2 * p + 1] = length * (t[p] * sine[p]);
  }
}

// ---- normals ---------------------------------------------------------------------------------------------------

// Draws four vectors of normals at a time: each lane holds those of the block at its own distance from the counter, at
// most `reach`. Counter and distances are those that the last draw named as the next. The words for these are made
// during that draw: a round of Philox and a term of each polynomial take turns, because each waits for the one before,
// and the processor does not look far enough ahead to find other work by itself.
template <class T>
class Normals {
 public:
  SAGD_INLINE Normals(const Stream& stream, Words distance, uint64_t reach)
      : stream_(stream), reach_(reach), upper_(stream.counter >> 32),
        start_(stream.keys, uint32_t(upper_), uint32_t(upper_ >> 32), uint32_t(upper_ >> 64)) {
    stream_.blocks(distance, words_);
  }

  SAGD_INLINE void draw(Vec<T> g[4], unsigned __int128 next, Words distance) {
    bool ready = false;  // the next words
    if constexpr (sizeof(T) == sizeof(float)) {
      Vec<uint32_t> r[4];
#pragma GCC unroll 4
      for (int w = 0; w < 4; ++w) r[w] = (Vec<uint32_t>)((words_[w].even & 0xffffffffu) | words_[w].odd << 32);
      const Words lowest = uint64_t(next) + distance;
      box_muller(r, g, [&](int i) {
        if (i == 0) start_(lowest, words_, mul_wide);
        if (i >= 2) philox_round(words_, stream_.keys, i, mul_wide);
      });
      ready = next >> 32 == upper_ && (next + reach_) >> 32 == upper_;
    } else {
      draw_doubles(g);
    }
    if (!ready) [[unlikely]] {
      stream_.counter = next;
      stream_.blocks(distance, words_);
    }
  }

 private:
  SAGD_INLINE void draw_doubles(Vec<double> g[4]) const {  // there are words for twice as many lanes
    const auto word = [&](int w, int i) { return uint32_t(i % 2 ? words_[w].odd[i / 2] : words_[w].even[i / 2]); };
    for (int pair = 0; pair < 4; pair += 2) {
      for (int i = 0; i < lanes<double>; ++i) {
        const double u = (double(word(pair, i)) + 0.5) * 0x1p-32;
        const double angle = double(word(pair + 1, i)) * 0x1p-32 * 6.283185307179586476925;
        const double length = ::sqrt(-2 * ::log(u));
        g[pair][i] = length * ::cos(angle);
        g[pair + 1][i] = length * ::sin(angle);
      }
    }
  }

  Stream stream_;
  const uint64_t reach_;
  const unsigned __int128 upper_;      // the counters' words but the lowest,
  const PhiloxStart<uint64_t> start_;  // as long as they stay the same
  Words words_[4];
};

}  // namespace sagd::SAGD_ISA
