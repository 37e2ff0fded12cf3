// Standard normals from the library's stream: one Philox block a lane, four normals a block, by Box and Muller.
//
// Cost per 16 blocks (64 normals) with AVX-512: 120 instructions of Philox, about 100 of logarithm, root and sincos.
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
#else
  return (a & 0xffffffffu) * uint64_t(m);
#endif
}

SAGD_INLINE void mul_wide(Words a, uint32_t m, Words& high, Words& low) {
  low = {product(a.even, m), product(a.odd, m)};
  high = low >> 32;
}

// A position in the stream of a seed. The keys are kept in 64 bits each, as the lanes that they are broadcast to.
struct Stream {
  PhiloxKeys<uint64_t> keys;
  unsigned __int128 counter;

  // The blocks number counter + i * step for i = 0, 1, ...
  SAGD_INLINE void blocks(uint64_t step, Words c[4]) const {
    const uint64_t low = uint64_t(counter), high = uint64_t(counter >> 64);
    Vec<uint64_t> lane = {};
    for (int i = 0; i < lanes<uint64_t>; ++i) lane[i] = i;
    const Vec<uint64_t> even = lane * (2 * step), odd = even + step;
    const Words sum = {low + even, low + odd};
    Words carried = {broadcast(high), broadcast(high)};
    if (low + lanes<uint32_t> * step < low) {
      carried = {carried.even - (Vec<uint64_t>)(sum.even < low), carried.odd - (Vec<uint64_t>)(sum.odd < low)};
    }
    c[0] = sum;
    c[1] = sum >> 32;
    c[2] = carried;
    c[3] = carried >> 32;
    philox(c, keys, mul_wide);
  }
};

// length (cos, sin) of 2 pi r / 2^32. The nearest half turn, a sign, is split off exactly, in integers; the
// polynomials in the rest, t half turns with |t| <= 1/2, have errors below 7e-9 (fitted by Lawson's iteration).
SAGD_INLINE void polar(Vec<float> length, Vec<uint32_t> r, Vec<float>& x, Vec<float>& y) {
  const Vec<float> t = __builtin_convertvector((Vec<int32_t>)(r << 1), Vec<float>) * 0x1p-32f;
  const Vec<float> z = t * t;
  const Vec<float> sine =
      3.14159264018f + z * (-5.16771009033f + z * (2.55007765973f + z * (-0.598292159484f + z * 0.0776594082555f)));
  const Vec<float> cosine =
      1.0f + z * (-4.93480213723f + z * (4.05870916434f + z * (-1.33521205668f + z * (0.234937558985f +
      z * -0.024396716651f))));
  length = (Vec<float>)((Vec<uint32_t>)length ^ ((r + 0x40000000u) & 0x80000000u));
  x = length * cosine;
  y = length * (t * sine);
}

// sqrt(-2 ln u), u = (r + 1/2) / 2^32. ln u = ln(1 + f) + e ln 2 with 1 + f in [sqrt(1/2), sqrt(2)); the polynomial's
// relative error is below 7e-9. Near u = 1, f = u - 1 is taken from 2^32 - 1 - r, so that nothing cancels.
SAGD_INLINE Vec<float> radius(Vec<uint32_t> r) {
  const Vec<float> x = __builtin_convertvector(r, Vec<float>) + 0.5f;
  const Vec<uint32_t> b = (Vec<uint32_t>)x - 0x4f3504f3u;  // the bits of 2^32 sqrt(1/2)
  const Vec<int32_t> exponent = (Vec<int32_t>)b >> 23;
  const Vec<float> m = (Vec<float>)((b & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  const Vec<float> near_one = __builtin_convertvector(~r, Vec<float>) * -0x1p-32f - 0x1p-33f;
  const Vec<float> f = r > 0xb504f333u ? near_one : m;
  const Vec<float> e = __builtin_convertvector(exponent, Vec<float>);  // 0 where f is near_one
  const Vec<float> minus_2_log =
      f * (-2.0f + f * (1.0f + f * (-0.6666663356f + f * (0.5000159314f + f * (-0.4000456502f + f * (0.3324993950f +
      f * (-0.2836284078f + f * (0.2625059316f + f * (-0.2575839762f + f * 0.1573088906f)))))))));
  return square_root(e * -1.38629436112f + minus_2_log);
}

// Four vectors of normals: lane i holds those of block stream.counter + i * step.
SAGD_INLINE void draw(const Stream& stream, uint64_t step, Vec<float> g[4]) {
  Words c[4];
  stream.blocks(step, c);
  Vec<uint32_t> r[4];
#pragma GCC unroll 4
  for (int w = 0; w < 4; ++w) r[w] = (Vec<uint32_t>)((c[w].even & 0xffffffffu) | c[w].odd << 32);
#pragma GCC unroll 2
  for (int pair = 0; pair < 4; pair += 2) {
    polar(radius(r[pair]), r[pair + 1], g[pair], g[pair + 1]);
  }
}

SAGD_INLINE void draw(const Stream& stream, uint64_t step, Vec<double> g[4]) {
  Words c[4];
  stream.blocks(step, c);  // twice as many as there are lanes
  const auto word = [&](int w, int i) { return uint32_t(i % 2 ? c[w].odd[i / 2] : c[w].even[i / 2]); };
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

}  // namespace sagd::SAGD_ISA
