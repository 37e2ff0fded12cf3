// Standard normals from the library's stream on one thread: a Philox block gives four, by Box and Muller.
//
// Cost per block: 20 wide products and about 45 other integer operations of Philox, 4 special functions, 50 others.
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

// sqrt(-2 ln u) (cos, sin)(2 pi r1 / 2^32) with u = (r0 + 1/2) / 2^32. Near u = 1, where the special function units'
// logarithm says little, three terms of its series; of the angle, the nearest half turn is split off as a sign, and the
// polynomials in the rest, t half turns, are right to 5e-8.
__device__ __forceinline__ Point box_muller(uint32_t r0, uint32_t r1) {
  const bool near_one = r0 >= 0xF8000000u;
  const float u = fmaf(float(near_one ? ~r0 : r0), 0x1p-32f, 0x1p-33f);  // or 1 - u, without cancellation
  const float series = u * fmaf(u, fmaf(u, 0.6666667f, 1.0f), 2.0f);
  const float length = sqrt_of_normal(near_one ? series : -1.38629436f * log2_of_normal(u));
  const uint32_t sign = (r1 + 0x40000000u) & 0x80000000u;
  const float radius = std::bit_cast<float>(std::bit_cast<uint32_t>(length) ^ sign);
  const float t = float(int32_t(r1 << 1)) * 0x1p-32f, z = t * t;
  const float cosine = fmaf(fmaf(fmaf(fmaf(0.2196968f, z, -1.3318802f), z, 4.0584119f), z, -4.9347929f), z, 1.0f);
  const float sine = fmaf(fmaf(fmaf(fmaf(0.07722224f, z, -0.59804645f), z, 2.5500316f), z, -5.1677069f), z, 3.1415926f);
  return {radius * cosine, radius * sine * t};
}

// The stream of a plane: its first orbit's place.
struct Stream {
  PhiloxKeys<uint32_t> keys;
  unsigned __int128 counter;

  // Whether the counters of the first n orbits differ in more than their lowest word.
  __device__ __forceinline__ bool carries(uint32_t n) const { return uint32_t(counter) > ~n; }

  __device__ __forceinline__ void draw(uint32_t orbit, Point& first, Point& second) const {
    const unsigned __int128 at = counter + orbit;
    uint32_t c[4] = {uint32_t(at), uint32_t(at >> 32), uint32_t(at >> 64), uint32_t(at >> 96)};
    philox(c, keys, MulWide{});
    first = box_muller(c[0], c[1]);
    second = box_muller(c[2], c[3]);
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

  __device__ __forceinline__ void draw(uint32_t orbit, Point& first, Point& second) const {
    uint32_t c[4];
    start(lowest + orbit, c, MulWide{});
    SAGD_UNROLL
    for (int round = 2; round < 10; ++round) philox_round(c, keys, round, MulWide{});
    first = box_muller(c[0], c[1]);
    second = box_muller(c[2], c[3]);
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
