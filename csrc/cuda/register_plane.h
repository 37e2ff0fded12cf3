// The two-dimensional transform of one real plane by a few threads of a warp that hold its lines in registers.
//
// Columns 2 j and 2 j + 1 are the real and imaginary part of packed column j. A thread holds a whole packed column, and
// between the axes a whole packed row: frequencies k and -k of all columns, which come apart into the spectra of single
// columns, one complex row of twice the length. Rows 0 and H / 2 are real before their row transform and share the
// first packed row. Through shared memory go packed columns on their way to rows, and back: nothing else, without
// twiddle factors, which are constants, and without a barrier beyond the warp.
//
// storage[k][j], row k of packed columns with an odd pitch, lets threads j write and read columns, and threads k rows,
// without bank conflicts.
//
// Cost per pixel, there and back: 2 words through device memory; 4 of 4 bytes through shared memory for the points and
// 1 of the weight; 14 operations of butterflies for each transform of 32 points by 32; no barrier.
#pragma once

#include "cuda/block.h"
#include "cuda/spectrum.h"
#include "sagd/butterflies.h"

namespace sagd::cuda {

template <class Shape>
class RegisterTransform {
 public:
  static constexpr int height = decltype(Shape::columns)::length, width = decltype(Shape::rows)::length;
  static constexpr int packed_columns = Shape::packed_columns, packed_rows = Shape::packed_rows;
  static_assert(height % 2 == 0 && width % 4 == 0, "a row of storage has room for a bin of every orbit");

  // Thread `thread` of the Shape::threads that share the plane in `storage`; idle threads only keep the barriers.
  __device__ __forceinline__ RegisterTransform(const Shape&, const Shared<Shape>&, Point* storage, int thread,
                                               bool idle)
      : storage_(storage), thread_(thread), has_column_(!idle && thread < packed_columns),
        has_row_(!idle && thread < packed_rows) {}

  // The column transforms of what read(h, j, step, v) gives: v[m], the packed points of rows h + m step, column j.
  template <class Read>
  __device__ __forceinline__ void forward_columns(Read&& read) {
    if (has_column_) {
      Point v[height];
      read.template operator()<height>(0, thread_, 1, v);
      Butterfly<height, false, float, float>::run(v);
      SAGD_UNROLL
      for (int k = 0; k < height; ++k) storage_[k * pitch_ + thread_] = v[k];
    }
    __syncwarp();
  }

  // The way back: write(h, j, step, v) is given them.
  template <class Write>
  __device__ __forceinline__ void inverse_columns(Write&& write) {
    if (!has_column_) return;
    Point v[height];
    SAGD_UNROLL
    for (int k = 0; k < height; ++k) v[k] = storage_[k * pitch_ + thread_];
    Butterfly<height, true, float, float>::run(v);
    write.template operator()<height>(0, thread_, 1, v);
  }

  // Row transforms, the weight, and with `filter` the inverse row transforms; else the rows are left undefined.
  // With `measure`, returns this thread's part of (sum of weight |F|^2 over the full plane's bins, bins with w > 0).
  // Before the weight all packed rows but the first hold twice their values.
  template <bool measure, WeightMap map>
  __device__ __forceinline__ Point weigh_rows(const Weight<map>& weight, bool filter) {
    Point sum{0, 0};
    if (has_row_) {
      Point v[width];
      SAGD_UNROLL
      for (int j = 0; j < packed_columns; ++j) {
        v[2 * j] = first_row()[j], v[2 * j + 1] = second_row()[j];
        separate(thread_ == 0, v[2 * j], v[2 * j + 1]);
      }
      Butterfly<width, false, float, float>::run(v);
      if (thread_ == 0) {
        SAGD_UNROLL
        for (int l = 0; l <= width / 2; ++l) {
          float w_top, w_bottom;
          weight.of_packed_row(pair(), height, l, w_top, w_bottom);
          weigh_packed<measure>(&v[l], &v[mirror(l)], w_top, w_bottom, false, sum);
        }
      } else {
        SAGD_UNROLL
        for (int l = 0; l < width; ++l) {
          v[l] = weigh<measure>(v[l], weight(pair(), height, l, 2 * l > width), 2, sum);
        }
      }
      if (filter) inverse_row(v);
    }
    __syncwarp();
    return sum;
  }

  // The spectrum of weighted noise, drawn where it is used, and its inverse row transforms.
  __device__ __forceinline__ void noise_rows(const Stream& stream, const Weight<WeightMap::value>& weight) {
    __syncwarp();  // the weight is staged, and the last plane's points are read
    // Row H / 2, which the first thread holds beside row 0: all threads draw for it.
    if (has_row_) {
      for (int l = thread_; l < orbits; l += packed_rows) {
        Point unused;
        stream.draw(packed_rows * orbits + l, storage_[l], unused);
      }
    }
    __syncwarp();
    if (has_row_) {
      Point v[width];
      SAGD_UNROLL
      for (int l = 0; l < orbits; ++l) {
        Point first, second;
        stream.draw(thread_ * orbits + l, first, second);
        if (thread_ == 0) {
          float w_top, w_bottom;
          weight.of_packed_row(pair(), height, l, w_top, w_bottom);
          pack_drawn(&v[l], &v[mirror(l)], first, storage_[l], l == mirror(l), w_top, w_bottom);
        } else {
          if (l != mirror(l)) v[mirror(l)] = second * weight(pair(), height, mirror(l), true);
          v[l] = first * weight(pair(), height, l, false);
        }
      }
      inverse_row(v);
    }
    __syncwarp();
  }

 private:
  static constexpr int orbits = width / 2 + 1, pitch_ = packed_columns | 1;

  static SAGD_INLINE constexpr int mirror(int l) { return l > 0 ? width - l : 0; }

  // The storage of this thread's packed row: rows k and -k, or 0 and H / 2.
  __device__ __forceinline__ RowPair pair() const {
    return {uint16_t(thread_), uint16_t(thread_ > 0 ? height - thread_ : height / 2), uint16_t(thread_), 0};
  }
  __device__ __forceinline__ Point* first_row() const { return storage_ + pair().first * pitch_; }
  __device__ __forceinline__ Point* second_row() const { return storage_ + pair().second * pitch_; }

  __device__ __forceinline__ void inverse_row(Point* v) const {
    Butterfly<width, true, float, float>::run(v);
    SAGD_UNROLL
    for (int j = 0; j < packed_columns; ++j) {
      join(thread_ == 0, v[2 * j], v[2 * j + 1]);
      first_row()[j] = v[2 * j], second_row()[j] = v[2 * j + 1];
    }
  }

  Point* storage_;
  int thread_;
  bool has_column_, has_row_;
};

}  // namespace sagd::cuda
