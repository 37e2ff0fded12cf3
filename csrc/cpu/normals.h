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

// A position in the stream of a seed. The keys are kept in 64 bits each, as the lanes that they are broadcast to.
struct Stream {
  PhiloxKeys<uint64_t> keys;
  unsigned __int128 counter;

  // The blocks number counter + i * step for the lanes i = first, first + stride, ...
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
    polar(radius(r[pair]), r[pair + 1], g[pair], g[pair + 1]);
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
