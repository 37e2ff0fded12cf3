// The passes of large.h along columns.
#pragma once

#include "cuda/kernels.h"
#include "cuda/large.h"

namespace sagd::cuda {

// The weight of a plane, where it lies.
template <WeightMap map>
__device__ __forceinline__ Weight<map> plane_weight(const Job& job, int64_t plane, float factor) {
  return {static_cast<const float*>(job.weight.data) + job.weight.batch.offset(plane), job.weight.row_stride,
          job.weight.column_stride, int(job.width), factor};
}

// Columns from the workspace and back into it, as Lines asks for them.
struct Slab {
  Stored* from;  // the first row of the first column
  int pitch, columns;

  __device__ __forceinline__ Slab(const Chunk& chunk, int64_t plane, int first)
      : from(chunk.spectra(plane) + first), pitch(chunk.packed_columns), columns(chunk.packed_columns - first) {}

  template <int R>
  __device__ __forceinline__ void read(int h, int j, int step, Point* v) const {
    SAGD_UNROLL
    for (int m = 0; m < R; ++m) v[m] = {0, 0};
    if (j >= columns) return;
    SAGD_UNROLL
    for (int m = 0; m < R; ++m) v[m] = from[(h + m * step) * pitch + j];
  }
  template <int R>
  __device__ __forceinline__ void write(int h, int j, int step, const Point* v) const {
    if (j >= columns) return;
    SAGD_UNROLL
    for (int m = 0; m < R; ++m) from[(h + m * step) * pitch + j] = v[m];
  }
};

namespace kernel {

// With map inverse_square also a slab's sums.
template <WeightMap map, class Shape>
SAGD_PASS filter_columns(const __grid_constant__ Pass<Shape> pass) {
  constexpr bool measure = map == WeightMap::inverse_square;
  for_lines(pass, [&](const auto& lines, const LineMemory& memory, int64_t plane, int first) SAGD_INLINE_LAMBDA {
    const Job& job = pass.job;
    const int height = int(job.height), width = int(job.width);
    const auto weight = plane_weight<map>(job, plane, 0.5f / pixels(job));
    const Slab slab(pass, plane, first);
    Point sum{0, 0};
    lines.template forward<Neighbours::lines, true>(
        [&]<int R>(int h, int j, int step, Point* v) { slab.read<R>(h, j, step, v); });
    lines.turn([&]<int R>(int p, int j, int step, Point* v) {
      const int k = memory.frequency[p], l = first + j;
      if (l == 0 || j >= slab.columns) return false;
      SAGD_UNROLL
      for (int m = 0; m < R; ++m) v[m] = weigh<measure>(v[m], weight.inner(k + m * step, l), 2, sum);
      return true;
    });
    if (first == 0) {
      for (int k = lines.thread; k <= height / 2; k += lines.threads) {
        const int negative = k > 0 ? height - k : 0;
        const float w_top = weight(k, negative, 0);
        const float w_bottom = width % 2 ? 0 : weight(k, negative, width / 2);
        weigh_packed<measure>(lines.storage + memory.place[k], lines.storage + memory.place[negative], w_top, w_bottom,
                              width % 2, sum);
      }
      __syncthreads();
      lines.turn_back_first_line();
    }
    if constexpr (measure) {
      const Complex<double> total = sum_of<false>(memory.sums, lines.thread, lines.threads, sum);
      if (lines.thread == 0) pass.slab_sums(plane)[first / lines.count] = total;
      if (!job.output) return;
    }
    lines.template inverse<Neighbours::lines, true>(
        [&]<int R>(int h, int j, int step, const Point* v) { slab.write<R>(h, j, step, v); });
  });
}

template <class Shape>
SAGD_PASS draw_columns(const __grid_constant__ Pass<Shape> pass) {
  for_lines(pass, [&](const auto& lines, const LineMemory& memory, int64_t plane, int first) SAGD_INLINE_LAMBDA {
    const Job& job = pass.job;
    const int height = int(job.height), width = int(job.width), orbits = width / 2 + 1;
    const auto weight = plane_weight<WeightMap::value>(job, plane, deviation * sqrtf(0.5f / pixels(job)));
    const Stream stream = plane_stream(job, plane);
    const Slab slab(pass, plane, first);
    Point* storage = lines.storage;
    const int tasks = lines.count * (height / 2 + 1);
    for (int task = lines.thread; task < tasks; task += lines.threads) {
      const int k = quotient(task, lines.count), j = task - k * lines.count, l = first + j;
      if (l == 0 || j >= slab.columns) continue;
      const int negative = k > 0 ? height - k : 0;
      Point here, mirror;  // F(k, l) and F(k, -l) = conj F(-k, l)
      stream.draw(k * orbits + l, here, mirror, weight.inner(k, l), weight.inner(negative, l));
      Point *to_here = storage + memory.place[k] + j, *to_mirror = storage + memory.place[negative] + j;
      *to_mirror = {mirror.re, -mirror.im};
      *to_here = here;  // last: where k is its own mirror, this is the value
    }
    for (int k = first == 0 ? lines.thread : height; k <= height / 2; k += lines.threads) {
      const int negative = k > 0 ? height - k : 0;
      const float w_top = weight(k, negative, 0);
      const float w_bottom = width % 2 ? 0 : weight(k, negative, width / 2);
      Point top, bottom{0, 0}, unused;
      stream.draw(k * orbits, top, unused);
      if (width % 2 == 0) stream.draw(k * orbits + width / 2, bottom, unused);
      pack_drawn(storage + memory.place[k], storage + memory.place[negative], top, bottom, k == negative, w_top,
                 w_bottom);
    }
    __syncthreads();
    lines.inverse([&]<int R>(int h, int j, int step, const Point* v) { slab.write<R>(h, j, step, v); });
  });
}

// The losses from the sums of the slabs.
__global__ void plane_losses(const __grid_constant__ Chunk chunk) {
  const int64_t planes = chunk.job.planes, threads = gridDim.x * blockDim.x;
  for (int64_t plane = blockIdx.x * blockDim.x + threadIdx.x; plane < planes; plane += threads) {
    const Complex<double> sum = plane_sum(chunk, plane);
    chunk.job.plane_loss[plane] = sum.re / sum.im;
  }
}

}  // namespace kernel
}  // namespace sagd::cuda
