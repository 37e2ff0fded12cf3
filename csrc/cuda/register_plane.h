// The two-dimensional transform of one real plane by threads that hold whole lines in registers.
//
// Two columns are the real and imaginary part of a packed column, which one thread holds, or `lanes` threads of a warp,
// each every lanes-th point: they meet in one more stage, by shuffles. Between the axes a thread holds a packed row in
// the same way: rows k and -k of all packed columns, which come apart into the spectra of single columns, one complex
// row of twice the length. Rows 0 and H / 2 are real before their row transform and share the first packed row.
// Packed columns go through shared memory on their way to rows, and back: nothing else does, and twiddle factors are
// constants.
//
// storage[k][j], row k of packed columns with an odd pitch, lets neighbouring threads write and read columns as well as
// rows without bank conflicts. The column that this leaves empty takes the last row's numbers as they are drawn.
//
// Cost per pixel of 32 x 32, there and back: 2 words through device memory; 4 of 4 bytes through shared memory for the
// points and 1/2 for the weight; 28 operations of butterflies; 4 barriers, of the warp. A second lane adds 4 shuffles.
#pragma once

#include "cuda/block.h"
#include "cuda/spectrum.h"
#include "sagd/butterflies.h"

namespace sagd::cuda {

template <class Shape>
class RegisterTransform {
  static constexpr int height = decltype(Shape::columns)::length, width = decltype(Shape::rows)::length;
  static constexpr int packed_columns = Shape::packed_columns, packed_rows = Shape::packed_rows;
  static constexpr int orbits = Shape::orbits, lanes = Shape::lanes, pitch_ = packed_columns | 1;
  static_assert(pitch_ > packed_columns && orbits <= height);
  static_assert(lanes == 1 || (lanes == 2 && packed_columns % 16 == 0 && packed_rows % 16 == 0));

 public:
  // Thread `thread` of the Shape::threads that share the plane in `storage`; idle threads only keep the barriers.
  __device__ __forceinline__ RegisterTransform(const Shape&, const Shared<Shape>&, Point* storage, int thread,
                                               bool idle)
      : storage_(storage),
        thread_(thread),
        line_(thread / 32 * (32 / lanes) + thread % (32 / lanes)),
        part_(thread % 32 / (32 / lanes)),
        has_column_(!idle && line_ < packed_columns),
        has_row_(!idle && line_ < packed_rows) {}

  // The column transforms of what read(h, j, step, v) gives: v[m], the packed points of rows h + m step, column j.
  template <class Read>
  __device__ __forceinline__ void forward_columns(Read&& read) {
    constexpr int points = height / lanes;
    if (has_column_) {
      Point v[points];
      read.template operator()<points>(part_, line_, lanes, v);
      forward<height>(v);
      SAGD_UNROLL
      for (int m = 0; m < points; ++m) storage_[(part_ * points + m) * pitch_ + line_] = v[m];
    }
    barrier();
  }

  // The way back: write(h, j, step, v) is given them.
  template <class Write>
  __device__ __forceinline__ void inverse_columns(Write&& write) {
    constexpr int points = height / lanes;
    if (!has_column_) return;
    Point v[points];
    SAGD_UNROLL
    for (int m = 0; m < points; ++m) v[m] = storage_[(part_ * points + m) * pitch_ + line_];
    inverse<height>(v);
    write.template operator()<points>(part_, line_, lanes, v);
  }

  // Row transforms, the weight, and with `filter` the inverse row transforms; else the rows are left undefined.
  // With `measure`, returns this thread's part of (sum of weight |F|^2 over the full plane's bins, bins with w > 0).
  // Before the weight all packed rows but the first hold twice their values.
  template <bool measure, WeightMap map>
  __device__ __forceinline__ Point weigh_rows(const Weight<map>& weight, bool filter) {
    Point sum{0, 0}, v[points_of_row];
    if (has_row_) {
      for_packed([&](int a, int b, int j) SAGD_INLINE_LAMBDA {
        v[a] = first_row()[j], v[b] = second_row()[j];
        separate(line_ == 0, v[a], v[b]);
      });
      forward<width>(v);
      if (line_ == 0) for_points([&](int m) SAGD_INLINE_LAMBDA { *own_bin(m) = v[m]; });
    }
    barrier();
    const float *top = weight.packed_row(0), *bottom = weight.packed_row(packed_rows);
    for (int l = has_row_ ? thread_ : orbits; l < orbits; l += Shape::threads) {  // the first packed row
      weigh_packed<measure>(first_bin(l), first_bin(mirror(l)), top[packed_place<Shape>(l)], bottom[packed_place<Shape>(l)],
                            false, sum);
    }
    barrier();
    if (has_row_) {
      if (line_ == 0) {
        for_points([&](int m) SAGD_INLINE_LAMBDA { v[m] = *own_bin(m); });
      } else {
        const float* weights = weight.packed_row(line_) + packed_place<Shape>(part_ * points_of_row);
        for_points([&](int m) SAGD_INLINE_LAMBDA { v[m] = weigh<measure>(v[m], weights[m], 2, sum); });
      }
      if (filter) inverse_row(v);
    }
    barrier();
    return sum;
  }

  // The spectrum of weighted noise, drawn where it is used, and its inverse row transforms.
  __device__ __forceinline__ void noise_rows(const Stream& stream, const Weight<WeightMap::value>& weight) {
    barrier();  // the weight is staged, and the last plane's points are read
    for (int l = has_row_ ? thread_ : orbits; l < orbits; l += Shape::threads) {  // row H / 2, for the first packed row
      Point unused;
      stream.draw(packed_rows * orbits + l, *drawn(l), unused);
    }
    barrier();
    if (has_row_) {
      const float* weights = weight.packed_row(line_);
      const float* bottom = weight.packed_row(packed_rows);
#pragma unroll 1
      for (int l = part_; l < orbits; l += lanes) {
        Point first, second;
        stream.draw(line_ * orbits + l, first, second);
        if (line_ == 0) {
          pack_drawn(bin(l), bin(mirror(l)), first, *drawn(l), l == mirror(l), weights[packed_place<Shape>(l)],
                     bottom[packed_place<Shape>(l)]);
        } else {
          *bin(mirror(l)) = second * weights[packed_place<Shape>(mirror(l))];
          *bin(l) = first * weights[packed_place<Shape>(l)];
        }
      }
    }
    if (lanes > 1) __syncwarp();
    if (has_row_) {
      Point v[points_of_row];
      for_points([&](int m) SAGD_INLINE_LAMBDA { v[m] = *own_bin(m); });
      inverse_row(v);
    }
    barrier();
  }

 private:
  static constexpr int points_of_row = width / lanes;

  static __device__ __forceinline__ void barrier() {
    if constexpr (Shape::in_a_warp) __syncwarp();
    else __syncthreads();
  }

  // ---- lines ------------------------------------------------------------------------------------------------------

  // v[m], point m lanes + part of a line of n points -> its frequency m + part n / lanes.
  template <int n>
  __device__ __forceinline__ void forward(Point* v) const {
    Butterfly<n / lanes, false, float, float>::run(v);
    if constexpr (lanes == 2) {
      twiddle<n, false>(v);
      meet<n / lanes>(v);
    }
  }

  // The way back.
  template <int n>
  __device__ __forceinline__ void inverse(Point* v) const {
    if constexpr (lanes == 2) {
      meet<n / lanes>(v);
      twiddle<n, true>(v);
    }
    Butterfly<n / lanes, true, float, float>::run(v);
  }

  template <int n, bool inverse>
  __device__ __forceinline__ void twiddle(Point* v) const {
    constexpr detail::Circle<n> circle;
    if (part_ == 0) return;
    SAGD_UNROLL
    for (int m = 1; m < n / lanes; ++m) v[m] = rotate<inverse>(v[m], float(circle.at[m].cos), float(-circle.at[m].sin));
  }

  // Sums in the first lane of two, differences in the second.
  template <int points>
  __device__ __forceinline__ void meet(Point* v) const {
    const float sign = part_ == 0 ? 1.0f : -1.0f;
    SAGD_UNROLL
    for (int m = 0; m < points; ++m) {
      const Point other = {__shfl_xor_sync(~0u, v[m].re, 16), __shfl_xor_sync(~0u, v[m].im, 16)};
      v[m] = {fmaf(sign, v[m].re, other.re), fmaf(sign, v[m].im, other.im)};
    }
  }

  // ---- rows -------------------------------------------------------------------------------------------------------

  static __device__ __forceinline__ int mirror(int l) { return l > 0 ? width - l : 0; }

  // The storage of this thread's packed row: rows k and -k, or 0 and H / 2.
  __device__ __forceinline__ Point* first_row() const { return storage_ + line_ * pitch_; }
  __device__ __forceinline__ Point* second_row() const {
    return storage_ + (line_ > 0 ? height - line_ : height / 2) * pitch_;
  }
  // Frequency l of it, and of the first packed row, and where number l of row H / 2 waits.
  __device__ __forceinline__ Point* bin(int l) const {
    return l < packed_columns ? first_row() + l : second_row() + l - packed_columns;
  }
  __device__ __forceinline__ Point* first_bin(int l) const {
    return storage_ + (l < packed_columns ? l : height / 2 * pitch_ + l - packed_columns);
  }
  __device__ __forceinline__ Point* drawn(int l) const { return storage_ + l * pitch_ + packed_columns; }

  // f(a, b, j) for this thread's packed columns j: v[a] and v[b] are their real columns.
  template <class F>
  __device__ __forceinline__ void for_packed(F&& f) const {
    SAGD_UNROLL
    for (int i = 0; i < points_of_row / 2; ++i) {
      if constexpr (Shape::adjacent) f(2 * i, 2 * i + 1, i);
      else f(i, i + points_of_row / 2, i * lanes + part_);
    }
  }

  // f(m) for this thread's frequencies m + part points_of_row.
  template <class F>
  static __device__ __forceinline__ void for_points(F&& f) {
    SAGD_UNROLL
    for (int m = 0; m < points_of_row; ++m) f(m);
  }
  __device__ __forceinline__ Point* own_bin(int m) const {
    if constexpr (lanes == 1) return bin(m);
    else return (part_ == 0 ? first_row() : second_row()) + m;
  }

  __device__ __forceinline__ void inverse_row(Point* v) const {
    inverse<width>(v);
    for_packed([&](int a, int b, int j) SAGD_INLINE_LAMBDA {
      join(line_ == 0, v[a], v[b]);
      first_row()[j] = v[a], second_row()[j] = v[b];
    });
  }

  Point* storage_;
  int thread_, line_, part_;
  bool has_column_, has_row_;
};

}  // namespace sagd::cuda
