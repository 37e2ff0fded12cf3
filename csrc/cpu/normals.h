// Standard normals from the library's stream: one Philox block a lane, four normals a block, by Box and Muller.
//
// Cost per 16 blocks (64 normals) with AVX-512: 120 instructions of Philox, about 80 of logarithm, root and sincos.
#pragma once

#include <cmath>

#include "cpu/simd.h"
#include "sagd/philox.h"

namespace sagd::SAGD_ISA {

using Words = Vec<uint64_t>;  // one 32-bit word in the lower half of each lane

SAGD_INLINE void mul_wide(Words a, uint32_t m, Words& high, Words& low) {
#if defined(__AVX512F__)
  low = (Words)_mm512_maskz_mul_epu32(0xff, (__m512i)a, _mm512_set1_epi64(m));
#elif defined(__AVX2__)
  low = (Words)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(m));
#else
  low = (a & 0xffffffffu) * uint64_t(m);
#endif
  high = low >> 32;
}

// The Philox blocks number counter + i * step of a stream, for the lanes i = first, first + stride, ...
struct Stream {
  uint64_t seed;
  unsigned __int128 counter;

  SAGD_INLINE void blocks(int first, int stride, uint64_t step, Words c[4]) const {
    Words index;
    for (int i = 0; i < lanes<uint64_t>; ++i) index[i] = uint64_t(first + i * stride) * step;
    const uint64_t low = uint64_t(counter), high = uint64_t(counter >> 64);
    const Words sum = low + index;
    Words carried = broadcast(high);
    if (low + lanes<uint32_t> * step < low) carried = carried - (Words)(sum < low);
    c[0] = sum;
    c[1] = sum >> 32;
    c[2] = carried;
    c[3] = carried >> 32;
    philox(c, uint32_t(seed), uint32_t(seed >> 32), mul_wide);
  }
};

// cos and sin of 2 pi r / 2^32: the nearest quarter turn is split off exactly, in integers, and a polynomial in the
// rest t, |t| <= 1/8 turn, has a relative error below 4e-9 (fitted by Lawson's iteration).
SAGD_INLINE void cos_sin_turn(Vec<uint32_t> r, Vec<float>& c, Vec<float>& s) {
  const Vec<uint32_t> quadrant = (r + 0x20000000u) >> 30;
  const Vec<float> t = __builtin_convertvector((Vec<int32_t>)(r - (quadrant << 30)), Vec<float>) * 0x1p-32f;
  const Vec<float> z = t * t;
  const Vec<float> sine = t * (6.2831852879f + z * (-41.3416626331f + z * (81.5925535407f + z * -75.4020679073f)));
  const Vec<float> cosine = 1.0f + z * (-19.7392086937f + z * (64.9393264716f + z * (-85.4437417241f + z * 59.245964038f)));
  const Vec<uint32_t> odd = -(quadrant & 1);
  const Vec<uint32_t> x = (Vec<uint32_t>)cosine, y = (Vec<uint32_t>)sine;
  c = (Vec<float>)(((odd & y) | (~odd & x)) ^ ((quadrant + 1) & 2) << 30);
  s = (Vec<float>)(((odd & x) | (~odd & y)) ^ (quadrant & 2) << 30);
}

// sqrt(-2 ln u), u = (r + 1/2) / 2^32. ln u = ln(1 + f) + e ln 2 with 1 + f in [sqrt(1/2), sqrt(2)); the polynomial's
// relative error is below 7e-9. Near u = 1, f = u - 1 is taken from 2^32 - 1 - r, so that nothing cancels.
SAGD_INLINE Vec<float> radius(Vec<uint32_t> r) {
  const Vec<float> x = __builtin_convertvector(r, Vec<float>) + 0.5f;
  const Vec<uint32_t> b = (Vec<uint32_t>)x - 0x3f3504f3u;  // the bits of sqrt(1/2)
  const Vec<int32_t> exponent = (Vec<int32_t>)b >> 23;
  const Vec<float> m = (Vec<float>)((b & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  const Vec<float> near_one = (__builtin_convertvector(~r, Vec<float>) + 0.5f) * -0x1p-32f;
  const Vec<float> f = r > 0xb504f333u ? near_one : m;
  const Vec<float> e = r > 0xb504f333u ? Vec<float>{} : __builtin_convertvector(exponent - 32, Vec<float>);
  const Vec<float> p =
      0.3333331678f + f * (-0.2500079657f + f * (0.2000228251f + f * (-0.1662496975f +
      f * (0.1418142039f + f * (-0.1312529658f + f * (0.1287919881f + f * -0.0786544453f))))));
  const Vec<float> log = e * 0.69314718056f + (f + f * f * (f * p - 0.5f));
  return square_root(-2.0f * log);
}

// Four vectors of normals: lane i holds those of block stream.counter + i * step.
SAGD_INLINE void draw(const Stream& stream, uint64_t step, Vec<float> g[4]) {
  Words even[4], odd[4];
  stream.blocks(0, 2, step, even);
  stream.blocks(1, 2, step, odd);
  Vec<uint32_t> r[4];
#pragma GCC unroll 4
  for (int w = 0; w < 4; ++w) r[w] = (Vec<uint32_t>)((even[w] & 0xffffffffu) | odd[w] << 32);
#pragma GCC unroll 2
  for (int pair = 0; pair < 4; pair += 2) {
    const Vec<float> length = radius(r[pair]);
    Vec<float> c, s;
    cos_sin_turn(r[pair + 1], c, s);
    g[pair] = length * c;
    g[pair + 1] = length * s;
  }
}

SAGD_INLINE void draw(const Stream& stream, uint64_t step, Vec<double> g[4]) {
  Words c[4];
  stream.blocks(0, 1, step, c);
  for (int pair = 0; pair < 4; pair += 2) {
    for (int i = 0; i < lanes<double>; ++i) {
      const double u = (double(uint32_t(c[pair][i])) + 0.5) * 0x1p-32;
      const double angle = double(uint32_t(c[pair + 1][i])) * 0x1p-32 * 6.283185307179586476925;
      const double length = ::sqrt(-2 * ::log(u));
      g[pair][i] = length * ::cos(angle);
      g[pair + 1][i] = length * ::sin(angle);
    }
  }
}

}  // namespace sagd::SAGD_ISA
