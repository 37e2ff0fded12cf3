// The two-dimensional transform of one real plane by threads that hold whole lines in registers.
//
// Two columns are the real and imaginary part of a packed column, which one thread holds. Between the axes a thread
// holds a packed row: rows k and -k of all packed columns, which come apart into the spectra of single columns, one
// complex row of twice the length. Rows 0 and H / 2 are real before their row transform and share the first packed row.
// Packed columns go through shared memory on their way to rows, and back: nothing else does, and twiddle factors are
// constants.
//
// Noise also takes lines of twice as many points as a thread holds: two lanes of a warp have half of the points each
// and meet in one more stage, by shuffles.
//
// storage[k][j], row k of packed columns with an odd pitch, lets neighbouring threads write and read columns as well as
// rows without bank conflicts.
//
// Cost per pixel of 32 x 32. Filter: 2 words through device memory, 4 through shared memory for the points and 1/2 for
// the weight, 42 instructions of which 28 are the butterflies', 2 barriers of the warp. Noise: 1 word, 2 and 1/2, 50
// instructions of which 26 draw, 4 barriers. A second lane adds 2 shuffles and 2 words of shared memory.
#pragma once

#include "cuda/block.h"
#include "cuda/spectrum.h"
#include "sagd/butterflies.h"

namespace sagd::cuda {

template <class Shape>
class RegisterTransform {
  static constexpr int length = decltype(Shape::columns)::length;  // of columns and rows
  static constexpr int packed = Shape::packed_columns, orbits = Shape::orbits, row_pitch = packed | 1;
  static constexpr int lanes = Shape::lanes, points = length / lanes;
  static_assert(lanes == 1 || (lanes == 2 && packed % 16 == 0));
  static_assert(row_pitch >= orbits);

 public:
  // Thread `thread` of the Shape::threads that share the plane in `storage`; idle threads only keep the barriers.
  __device__ __forceinline__ RegisterTransform(const Shape&, const Shared<Shape>&, Point* storage, int thread,
                                               bool idle)
      : storage_(storage),
        thread_(thread),
        line_(thread / 32 * (32 / lanes) + thread % (32 / lanes)),
        part_(int(unsigned(thread) % 32 / (32 / lanes))),
        active_(!idle && line_ < packed) {}

  // The transform of what read(h, j, step, v) gives, v[m]: the packed points of rows h + m step, column j; the weight.
  // With `measure`, returns this thread's part of (sum of weight |F|^2 over the full plane's bins, bins with w > 0).
  // Before the weight all packed rows but the first hold twice their values.
  template <bool measure, class Read>
  __device__ __forceinline__ Point forward(Read&& read, const WeightTable& weight, bool) {
    static_assert(lanes == 1);
    if (active_) {
      read.template operator()<points>(0, line_, 1, v_);
      Butterfly<points, false, float, float>::run(v_);
      disguise_real_rows(v_[0], v_[length / 2]);
      for_points([&](int m) SAGD_INLINE_LAMBDA { column(m) = v_[m]; });
    }
    wait_for_plane<Shape::in_a_warp>();
    if (!active_) return {0, 0};
    for_columns([&](int a, int b, int j) SAGD_INLINE_LAMBDA {
      v_[a] = first_row()[j], v_[b] = second_row()[j];
      separate(false, v_[a], v_[b]);
    });
    Butterfly<points, false, float, float>::run(v_);
    return weigh_row<measure>(weight);
  }

  // The spectrum of weighted noise, drawn where it is used. Row length / 2, which joins row 0, is drawn by all threads.
  __device__ __forceinline__ void draw(const Stream& stream, const WeightTable& weight) {
    const float* bottom = weight.packed_row(length / 2);
    const auto for_bottom = [&](auto&& take) SAGD_INLINE_LAMBDA {
      for (int l = active_ ? thread_ : orbits; l < orbits; l += lanes * packed) {
        Point drawn, unused;
        stream.draw(length / 2 * orbits + l, drawn, unused);
        take(l, drawn);
      }
    };
    const auto draw_row = [&]() SAGD_INLINE_LAMBDA {
      if (!active_) return;
      const float* weights = weight.packed_row(line_);
      if (stream.carries(length / 2 * orbits)) draw_row_from(stream, weights);  // hardly ever
      else draw_row_from(QuickStream(stream), weights);
    };
    wait_for_plane<Shape::in_a_warp>();  // the weight is staged, and the last plane's points are read
    draw_row();
    if constexpr (lanes == 1) {
      if (active_ && line_ == 0) for_points([&](int m) SAGD_INLINE_LAMBDA { if (m < orbits) *bin(0, m) = v_[m]; });
    }
    wait_for_plane<Shape::in_a_warp>();
    for_bottom([&](int l, Point drawn) SAGD_INLINE_LAMBDA {
      Point *here = bin(0, l), *there = bin(0, mirror(l));
      pack_drawn(here, there, *here, drawn, l == mirror(l), 1, bottom[packed_place<Shape>(l)]);
    });
    wait_for_plane<Shape::in_a_warp>();
    if (!active_) return;
    if constexpr (lanes == 1) {
      if (line_ == 0) for_points([&](int m) SAGD_INLINE_LAMBDA { v_[m] = *bin(0, m); });
    } else {
      const Point* own = part_ == 0 ? first_row() : second_row();
      for_points([&](int m) SAGD_INLINE_LAMBDA { v_[m] = own[m]; });
    }
  }

  // The way back: write(h, j, step, v) is given the packed points.
  template <class Write>
  __device__ __forceinline__ void inverse(Write&& write) {
    if constexpr (lanes == 2) __syncwarp();  // one lane may have read what the other writes
    if (active_) {
      inverse_line();
      for_columns([&](int a, int b, int j) SAGD_INLINE_LAMBDA {
        join(false, v_[a], v_[b]);
        first_row()[j] = v_[a], second_row()[j] = v_[b];
      });
    }
    wait_for_plane<Shape::in_a_warp>();
    if (!active_) return;
    for_points([&](int m) SAGD_INLINE_LAMBDA { v_[m] = column(m); });
    reveal_real_rows();
    inverse_line();
    write.template operator()<points>(part_, line_, lanes, v_);
  }

  // As PlaneTransform's.
  __device__ __forceinline__ Complex<double> total(Complex<double> sum) const { return sum; }
  __device__ __forceinline__ bool first() const { return true; }

 private:
  // Rows 0 and length / 2, z and y, are real before their row transform and share the first packed row. As
  // (z + i y) / 2 and (z - i y) / 2 they come apart as all other rows and their mirrors do, without a choice for every
  // point.
  static __device__ __forceinline__ void disguise_real_rows(Point& z, Point& y) {
    const Point half = z * 0.5f, turned = quarter_turn<true>(y) * 0.5f;
    z = half + turned;
    y = half - turned;
  }

  // The way back, of sum and difference of the two. Where two lanes have a column's halves, each has one of the rows.
  __device__ __forceinline__ void reveal_real_rows() {
    if constexpr (lanes == 1) {
      const Point sum = v_[0] + v_[length / 2], difference = v_[0] - v_[length / 2];
      v_[0] = sum * 0.5f;
      v_[length / 2] = quarter_turn<false>(difference) * 0.5f;
    } else {
      const Point other = neighbour(v_[0]);
      v_[0] = (part_ == 0 ? v_[0] + other : quarter_turn<false>(other - v_[0])) * 0.5f;
    }
  }

  // What the other lane of the line has.
  static __device__ __forceinline__ Point neighbour(Point value) {
    return {__shfl_xor_sync(~0u, value.re, 16), __shfl_xor_sync(~0u, value.im, 16)};
  }

  // v[m], frequency m + part points of a line -> its point m lanes + part.
  __device__ __forceinline__ void inverse_line() {
    if constexpr (lanes == 2) {  // sums in the first lane, differences in the second, which takes the odd points
      constexpr detail::Circle<length> circle;
      const float sign = part_ == 0 ? 1.0f : -1.0f;
      SAGD_UNROLL
      for (int m = 0; m < points; ++m) {
        const Point other = neighbour(v_[m]);
        v_[m] = {fmaf(sign, v_[m].re, other.re), fmaf(sign, v_[m].im, other.im)};
      }
      if (part_ == 1) {
        SAGD_UNROLL
        for (int m = 1; m < points; ++m) {
          v_[m] = rotate<true>(v_[m], float(circle.at[m].cos), float(-circle.at[m].sin));
        }
      }
    }
    Butterfly<points, true, float, float>::run(v_);
  }

  // ---- rows -------------------------------------------------------------------------------------------------------

  static __device__ __forceinline__ int mirror(int l) { return l > 0 ? length - l : 0; }

  // The storage of a packed row: rows k and -k, or 0 and length / 2. Its frequency l, where it is kept there.
  __device__ __forceinline__ Point* first_row() const { return storage_ + line_ * row_pitch; }
  __device__ __forceinline__ Point* second_row() const { return second_row(line_); }
  __device__ __forceinline__ Point* second_row(int row) const {
    return storage_ + (row > 0 ? length - row : length / 2) * row_pitch;
  }
  __device__ __forceinline__ Point* bin(int row, int l) const {
    return l < packed ? storage_ + row * row_pitch + l : second_row(row) + l - packed;
  }
  // Where v[m] of a packed column is kept.
  __device__ __forceinline__ Point& column(int m) const { return storage_[(part_ * points + m) * row_pitch + line_]; }

  // f(a, b, j) for the packed columns j of which this thread has the two columns, v[a] and v[b].
  template <class F>
  __device__ __forceinline__ void for_columns(F&& f) const {
    SAGD_UNROLL
    for (int i = 0; i < points / 2; ++i) {
      if constexpr (Shape::adjacent) f(2 * i, 2 * i + 1, i);
      else f(i, i + points / 2, i * lanes + part_);
    }
  }
  template <class F>
  static __device__ __forceinline__ void for_points(F&& f) {
    SAGD_UNROLL
    for (int m = 0; m < points; ++m) f(m);
  }

  // The weighted numbers of this thread's packed row, into v, or where two lanes draw for each other, into storage.
  // Of row 0 those of positive frequencies count.
  template <class From>
  __device__ __forceinline__ void draw_row_from(const From& from, const float* weights) {
    constexpr int half = (lanes - 1) * (packed / 2);  // of two lanes the second begins here, and draws one more
    SAGD_UNROLL
    for (int i = 0; i < orbits - half; ++i) {
      if (i == half && lanes == 2 && part_ == 0) continue;
      const int l = i + part_ * half;
      const int mirrored = mirror(l);
      Point first, second;
      from.draw(line_ * orbits + l, first, second, weights[packed_place<Shape>(l)],
                weights[packed_place<Shape>(mirrored)]);
      if (l != mirrored) {
        if constexpr (lanes == 1) v_[length - i] = second;
        else *bin(line_, mirrored) = second;
      }
      if constexpr (lanes == 1) v_[i] = first;
      else *bin(line_, l) = first;
    }
  }

  // The spectrum in v times the weight. The first packed row holds two spectra.
  template <bool measure>
  __device__ __forceinline__ Point weigh_row(const WeightTable& weight) {
    Point sum{0, 0};
    const float *own = weight.packed_row(line_), *bottom = weight.packed_row(length / 2);
    if (line_ == 0) {
      SAGD_UNROLL
      for (int l = 0; l < orbits; ++l) {
        weigh_packed<measure>(&v_[l], &v_[mirror(l)], own[l], bottom[l], false, sum);
      }
    } else {
      for_points([&](int m) SAGD_INLINE_LAMBDA { v_[m] = weigh<measure>(v_[m], own[m], 2, sum); });
    }
    return sum;
  }

  Point* storage_;
  int thread_, line_, part_;
  bool active_;
  Point v_[points];  // of this thread's line
};

}  // namespace sagd::cuda
