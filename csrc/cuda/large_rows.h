// The passes of large.h along rows.
#pragma once

#include "cuda/kernels.h"
#include "cuda/large.h"

namespace sagd::cuda {

// Pairs of rows of a tensor with any strides.
template <class S>
class ReadRows {
 public:
  __device__ __forceinline__ ReadRows(const Planes& tensor, int64_t plane)
      : from_(static_cast<const S*>(tensor.data) + tensor.batch.offset(plane)),
        row_stride_(tensor.row_stride),
        column_stride_(tensor.column_stride) {}

  // v[m] = columns w + m step of rows h and h + 1; zero where there are no such rows
  template <int R>
  __device__ __forceinline__ void operator()(int h, int height, int w, int step, Point* v) const {
    SAGD_UNROLL
    for (int m = 0; m < R; ++m) v[m] = {0, 0};
    if (h < height) row<R>(h, w, step, [&](int m, float x) { v[m].re = x; });
    if (h + 1 < height) row<R>(h + 1, w, step, [&](int m, float x) { v[m].im = x; });
  }

 private:
  template <int R, class F>
  __device__ __forceinline__ void row(int h, int w, int step, F&& f) const {
    const S* from = from_ + h * row_stride_ + w * column_stride_;
    if (column_stride_ == 1) {  // offsets of 32 bits, constants where the axis is fixed
      SAGD_UNROLL
      for (int m = 0; m < R; ++m) f(m, widen(__ldg(from + m * step)));
    } else {
      SAGD_UNROLL
      for (int m = 0; m < R; ++m) f(m, widen(__ldg(from + m * step * column_stride_)));
    }
  }

  const S* from_;
  int64_t row_stride_, column_stride_;
};

// f(j, row, l) for the first of the two rows in line j, every line of the bundle, and every packed column l. The real
// frequency 0 is packed with frequency width / 2, which `partner` of 0 is.
template <class Lines, class F>
__device__ __forceinline__ void for_row_spectra(const Chunk& chunk, const Lines& lines, int first, F&& f) {
  const int tasks = lines.count * chunk.packed_columns;
  for (int task = lines.thread; task < tasks; task += lines.threads) {
    const int j = quotient(task, chunk.packed_columns), row = 2 * (first + j);
    if (row < int(chunk.job.height)) f(j, row, task - j * chunk.packed_columns);
  }
}
__device__ __forceinline__ int partner(int l, int width) { return l > 0 ? width - l : width / 2; }

namespace kernel {

// Leaves the frequencies of column 0 as they are, and twice all others.
template <class S, class Shape>
SAGD_PASS forward_rows(const __grid_constant__ Pass<Shape> pass) {
  for_lines(pass, [&](const auto& lines, const LineMemory& memory, int64_t plane, int first) SAGD_INLINE_LAMBDA {
    const int height = int(pass.job.height), width = int(pass.job.width), pitch = pass.packed_columns;
    const ReadRows<S> input(pass.job.input, plane), target(pass.job.target, plane);
    const bool subtract = pass.job.target.data != nullptr;
    lines.template forward<Neighbours::points>([&]<int R>(int w, int j, int step, Point* v) {
      input.template operator()<R>(2 * (first + j), height, w, step, v);
      if (!subtract) return;
      Point other[R];
      target.template operator()<R>(2 * (first + j), height, w, step, other);
      SAGD_UNROLL
      for (int m = 0; m < R; ++m) v[m] = v[m] - other[m];
    });
    Stored* spectra = pass.spectra(plane);
    for_row_spectra(pass, lines, first, [&](int j, int row, int l) {
      const bool alone = l == 0 && width % 2;
      Point a = lines.storage[memory.place[l] + j];
      Point b = alone ? Point{0, 0} : lines.storage[memory.place[partner(l, width)] + j];
      separate(l == 0, a, b);
      spectra[row * pitch + l] = a;
      if (row + 1 < height) spectra[(row + 1) * pitch + l] = b;
    });
  });
}

template <class S, class Shape>
SAGD_PASS inverse_rows(const __grid_constant__ Pass<Shape> pass) {
  for_lines(pass, [&](const auto& lines, const LineMemory& memory, int64_t plane, int first) SAGD_INLINE_LAMBDA {
    const Job& job = pass.job;
    const int height = int(job.height), width = int(job.width), pitch = pass.packed_columns;
    const Stored* spectra = pass.spectra(plane);
    for_row_spectra(pass, lines, first, [&](int j, int row, int l) {
      Point a = spectra[row * pitch + l], b{0, 0};
      if (row + 1 < height) b = spectra[(row + 1) * pitch + l];
      join(l == 0, a, b);
      lines.storage[memory.place[l] + j] = a;
      if (l > 0 || width % 2 == 0) lines.storage[memory.place[partner(l, width)] + j] = b;
    });
    __syncthreads();

    const float scale = job.plane_loss ? float(pixels(job) / plane_sum(pass, plane).im) : factor(job.scale, plane);
    const float signal_scale = job.noise ? factor(job.signal_scale, plane) : 0;
    const S* signal = static_cast<const S*>(job.input.data) + job.input.batch.offset(plane);
    const int64_t start = plane * (job.height * job.width);
    S *to = static_cast<S*>(job.output) + start, *noise = static_cast<S*>(job.noise) + start;
    const auto write = [&](int h, int column, float x) {
      float result = x * scale;
      if (job.noise) {
        noise[h * width + column] = narrow<S>(x);
        result += widen(__ldg(signal + h * job.input.row_stride + column * job.input.column_stride)) * signal_scale;
      }
      to[h * width + column] = narrow<S>(result);
    };
    lines.template inverse<Neighbours::points>([&]<int R>(int w, int j, int step, const Point* v) {
      const int row = 2 * (first + j);
      if (row >= height) return;
      SAGD_UNROLL
      for (int m = 0; m < R; ++m) write(row, w + m * step, v[m].re);
      if (row + 1 >= height) return;
      SAGD_UNROLL
      for (int m = 0; m < R; ++m) write(row + 1, w + m * step, v[m].im);
    });
  });
}

}  // namespace kernel
}  // namespace sagd::cuda
