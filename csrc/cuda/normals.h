// Normals from the library's stream on one thread: a Philox block gives four, by Box and Muller.
//
// They have variance 1 / (2 ln 2), because the special function units' logarithm is to base 2: what weighs them has the
// factor `deviation` in its table.
//
// Cost per block: 18 wide products and 20 other operations of Philox, 4 special functions, 48 others.
#pragma once

#include <cuda_runtime.h>

#include <bit>

#include "sagd/job.h"
#include "sagd/philox.h"

namespace sagd::cuda {

using Point = Complex<float>;

struct MulWide {
  __device__ __forceinline__ void operator()(uint32_t a, uint32_t m, uint32_t& high, uint32_t& low) const {
#ifdef __CUDA_ARCH__
    asm("{\n\t.reg .u64 product;\n\tmul.wide.u32 product, %2, %3;\n\tmov.b64 {%1, %0}, product;\n\t}"
        : "=r"(high), "=r"(low)
        : "r"(a), "r"(m));  // of a shift by 32 the compiler makes an addition for high
#else
    const uint64_t product = uint64_t(a) * m;
    high = uint32_t(product >> 32);
    low = uint32_t(product);
#endif
  }
};

// Of normal numbers alone, which takes one instruction each: the library's own functions take subnormal ones, too.
__device__ __forceinline__ float log2_of_normal(float x) {
#ifdef __CUDA_ARCH__
  asm("lg2.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
#else
  return log2f(x);
#endif
}
__device__ __forceinline__ float sqrt_of_normal(float x) {
#ifdef __CUDA_ARCH__
  asm("sqrt.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
#else
  return sqrtf(x);
#endif
}

// The standard deviation of a normal over that of what is drawn here: sqrt(2 ln 2).
constexpr float deviation = 1.17741002f;

// weight sqrt(-log2 u) (cos, sin)(2 pi r1 / 2^32), or its conjugate, with u = (r0 + 1/2) / 2^32. Near u = 1, where the
// special function units' logarithm says little, three terms of its series; of the angle, the nearest half turn is split
// off as a sign. The rest, t half turns, is doubled from half of it: polynomials for the root of 2 times sine and cosine
// of that. The result is right to 5e-8 in the mean square, 3e-7 at most.
__device__ __forceinline__ Point box_muller(uint32_t r0, uint32_t r1, float weight, bool conjugate) {
  const bool near_one = r0 >= 0xF8000000u;
  const float u = fmaf(float(near_one ? ~r0 : r0), 0x1p-32f, 0x1p-33f);  // or 1 - u, without cancellation
  const float series = u * fmaf(u, fmaf(u, -0.4808983f, -0.7213475f), -1.442695f);
  const float length = sqrt_of_normal(-(near_one ? series : log2_of_normal(u)));
  const uint32_t sign = (r1 + 0x40000000u) & 0x80000000u;
  const float radius = std::bit_cast<float>(std::bit_cast<uint32_t>(length) ^ sign) * weight;
  const float t = float(int32_t(r1 << 1)) * (conjugate ? -0x1p-32f : 0x1p-32f), z = t * t;
  const float sine = t * fmaf(fmaf(fmaf(-0.00650844148f, z, 0.112684852f), z, -0.913530312f), z, 2.22144146f);
  const float cosine = fmaf(fmaf(fmaf(-0.0288616317f, z, 0.35864259f), z, -1.74471104f), z, 1.41421352f);
  const float part = radius * sine;
  return {fmaf(-part, sine, radius), part * cosine};
}

// The stream of a plane: its first orbit's place.
struct Stream {
  PhiloxKeys<uint32_t> keys;
  unsigned __int128 counter;

  // Whether the counters of the first n orbits differ in more than their lowest word.
  __device__ __forceinline__ bool carries(uint32_t n) const { return uint32_t(counter) > ~n; }

  // An orbit's first pair of normals times w_first, its second pair times w_second.
  __device__ __forceinline__ void draw(uint32_t orbit, Point& first, Point& second, float w_first = 1,
                                       float w_second = 1, bool conjugate = false) const {
    const unsigned __int128 at = counter + orbit;
    uint32_t c[4] = {uint32_t(at), uint32_t(at >> 32), uint32_t(at >> 64), uint32_t(at >> 96)};
    philox(c, keys, MulWide{});
    first = box_muller(c[0], c[1], w_first, conjugate);
    second = box_muller(c[2], c[3], w_second, conjugate);
  }
};

// The same where the counters' lowest word does not carry: what their other words contribute is computed once.
struct QuickStream {
  PhiloxKeys<uint32_t> keys;
  PhiloxStart<uint32_t> start;
  uint32_t lowest;

  __device__ __forceinline__ explicit QuickStream(const Stream& stream)
      : keys(stream.keys),
        start(keys, uint32_t(stream.counter >> 32), uint32_t(stream.counter >> 64), uint32_t(stream.counter >> 96)),
        lowest(uint32_t(stream.counter)) {
#ifdef __CUDA_ARCH__  // the compiler would rather add up these keys again for every draw
    SAGD_UNROLL
    for (int round = 2; round < 10; ++round) asm("" : "+r"(keys.low[round]), "+r"(keys.high[round]));
#endif
  }

  __device__ __forceinline__ void draw(uint32_t orbit, Point& first, Point& second, float w_first = 1,
                                       float w_second = 1, bool conjugate = false) const {
    uint32_t c[4];
    start(lowest + orbit, c, MulWide{});
    SAGD_UNROLL
    for (int round = 2; round < 10; ++round) philox_round(c, keys, round, MulWide{});
    first = box_muller(c[0], c[1], w_first, conjugate);
    second = box_muller(c[2], c[3], w_second, conjugate);
  }
};

__device__ __forceinline__ Stream plane_stream(const Job& job, int64_t plane) {
  const int64_t key = plane < job.planes_per_key ? 0 : plane / job.planes_per_key;  // most often without a division
  const uint64_t number = job.plane_offset + uint64_t(plane - key * job.planes_per_key);
  const uint64_t orbits = uint64_t(job.height / 2 + 1) * uint64_t(job.width / 2 + 1);
  const unsigned __int128 first = static_cast<unsigned __int128>(number) * orbits;
  return {PhiloxKeys<uint32_t>(job.keys[2 * key]), job.keys[2 * key + 1] + first};
}

}  // namespace sagd::cuda
