// The two-dimensional transform of one real plane in shared memory by a group of threads, and what happens between.
//
// Layout. A real plane is half a complex plane, by itself: columns j and j + W2, W2 = ceil(W / 2), are the real and
// imaginary part of one complex column (an odd one out has a zero partner). storage[h][j], H rows of W2 points, holds
// the plane from the first load to the last store; every stage reads a butterfly's points and puts them back. After the
// column transforms rows k and -k come apart into the spectra of columns j and j + W2 at frequency k, one complex row
// of W points in the places of the two: the packed row k. Rows 0 and H / 2 are real before their row transform and
// share one packed row as real and imaginary part, which the weight has to take apart again.
//
// Threads of a warp work on neighbouring columns (packed rows), so that a column's (row's) twiddle factors are the same
// for nearly all of them.
//
// Cost per pixel of a square of N = radix1 * radix2, there and back: 2 words through device memory; 12 of 4 bytes
// through shared memory for the points and about 3 for twiddle factors; 4 log2 N operations of butterflies each way;
// 8 barriers. Every further radix of an axis adds 4 words and 2 barriers.
#pragma once

#include "cuda/lines.h"
#include "cuda/spectrum.h"

namespace sagd::cuda {

// ---- the spectrum of a packed row, whose frequency l lies at at(l) --------------------------------------------------

// The first packed row holds the spectra of rows 0 and H / 2, each of a real row.
template <bool measure, class Shape, class At>
__device__ __forceinline__ void weigh_packed_row(const Shape& shape, RowPair pair, const WeightTable& weight,
                                                 int l, At&& at, Point& sum) {
  const bool odd = shape.columns.length % 2;
  float w_top, w_bottom;
  weight.of_packed_row(pair, odd, l, w_top, w_bottom);
  Point *here = at(l), *mirror = at(l > 0 ? shape.rows.length - l : 0);
  weigh_packed<measure>(here, mirror, w_top, w_bottom, odd, sum);
}

template <class Shape, class At>
__device__ __forceinline__ void draw_packed_row(const Shape& shape, RowPair pair, const Stream& stream,
                                                const WeightTable& weight, int l, At&& at) {
  const int height = shape.columns.length, width = shape.rows.length;
  const bool real = l == 0 || 2 * l == width;
  float w_top, w_bottom;
  weight.of_packed_row(pair, height % 2, l, w_top, w_bottom);
  Point top, bottom{0, 0}, unused;
  stream.draw(l, top, unused);
  if (height % 2 == 0) stream.draw(height / 2 * shape.orbits + l, bottom, unused);
  Point *here = at(l), *mirror = at(l > 0 ? width - l : 0);
  pack_drawn(here, mirror, top, bottom, real, w_top, w_bottom);
}

// Draws any other packed row. What is the same for all of its orbits is looked up once: in a loop over orbits the
// compiler, which cannot tell tables from points, would read the tables again after every store.
class DrawnRow {
 public:
  template <class Shape, class Memory>
  __device__ __forceinline__ DrawnRow(const Shape& shape, const Memory& shared, const WeightTable& weight, int row)
      : DrawnRow(shape, shared.row_position, shared.pairs[row], shared.pair_frequency[row], weight) {}

  // Frequencies l and -l, weighted, into *at(p), p their positions: F(k', l) and F(k', -l) where the row's k is k', or
  // else, above height / 2, where it is -k', F(-k', -l) = conj F(k', l) and F(-k', l) = conj F(k', -l).
  template <class From, class At>
  __device__ __forceinline__ void operator()(const From& from, int l, At&& at) const {
    // everything is read before anything is written
    Point *to_first = at(position_of_first_[l * direction_]), *to_second = at(position_of_second_[-l * direction_]);
    Point first, second;
    from.draw(orbit_ + l, first, second, weight_(l), mirror_weight_(l), upper_);
    *to_second = second;
    *to_first = first;  // last: where both are the same, this is the value
  }

 private:
  template <class Shape>
  __device__ __forceinline__ DrawnRow(const Shape& shape, const uint16_t* position, RowPair pair, int k,
                                      const WeightTable& weight)
      : upper_(2 * k > shape.columns.length),
        direction_(upper_ ? -1 : 1),
        orbit_((upper_ ? shape.columns.length - k : k) * shape.orbits),
        position_of_first_(position + (upper_ ? int(shape.rows.length) : 0)),
        position_of_second_(position + (upper_ ? 0 : int(shape.rows.length))),
        weight_(weight.row(upper_ ? pair.second : pair.first)),
        mirror_weight_(weight.row(upper_ ? pair.first : pair.second)) {}

  bool upper_;
  int direction_, orbit_;
  const uint16_t *position_of_first_, *position_of_second_;  // in the order in which frequencies are drawn
  WeightTable::Row weight_, mirror_weight_;
};

template <class Shape>
class PlaneTransform {
 public:
  // Thread `thread` of the shape.threads that share the plane in `storage`; idle threads only keep the barriers.
  __device__ __forceinline__ PlaneTransform(const Shape& shape, const Shared<Shape>& shared, Point* storage, int thread,
                                            bool idle)
      : shape_(shape), shared_(shared), storage_(storage), start_(idle ? max_points : thread) {}

  // The transform of what read(h, j, step, v) gives, v[m]: the packed points of rows h + m step, column j; the weight;
  // and with `filter` as much of the way back as is done in the same places, else the rows are left undefined.
  // With `measure`, returns this thread's part of (sum of weight |F|^2 over the full plane's bins, bins with w > 0).
  // Before the weight all packed rows but the first hold twice their values.
  template <bool measure, class Read>
  __device__ __forceinline__ Point forward(Read&& read, const WeightTable& weight, bool filter) {
    columns().forward(read);
    return weigh_rows<measure>(weight, filter);
  }

  // The way back: write(h, j, step, v) is given the packed points.
  template <class Write>
  __device__ __forceinline__ void inverse(Write&& write) {
    columns().inverse(write);
  }

  // Of what the threads of a plane have summed, and whether it is they who report it: clusters have more to do here.
  __device__ __forceinline__ Complex<double> total(Complex<double> sum) const { return sum; }
  __device__ __forceinline__ bool first() const { return true; }

  // The spectrum of weighted noise, drawn where it is used, and its inverse row transforms.
  __device__ __forceinline__ void draw(const Stream& stream, const WeightTable& weight) {
    __syncthreads();  // the weight is staged, and the last plane's points are read
    for (int l = start_; l < shape_.orbits; l += shape_.threads) {
      draw_packed_row(shape_, shared_.pairs[0], stream, weight, l, frequencies(0));
    }
    if (stream.carries(uint32_t(shape_.orbits * (height() / 2 + 1)))) draw_rows(stream, weight);  // hardly ever
    else draw_rows(QuickStream(stream), weight);
    __syncthreads();
    inverse_rows(false);
  }

 private:
  __device__ __forceinline__ int height() const { return shape_.columns.length; }
  __device__ __forceinline__ int width() const { return shape_.rows.length; }
  __device__ __forceinline__ auto columns() const {
    using Number = typename Shape::Number;
    return Lines<decltype(Shape::columns), Number>{
        shape_.columns, Number(shape_.packed_columns), pitch(shape_), 0, shared_.column_roots, storage_, start_,
        shape_.threads};
  }

  // All packed rows but the first. Neighbouring threads draw neighbouring rows, each stays in its own: where the rows
  // do not divide the threads, some have nothing to do.
  template <class From>
  __device__ __forceinline__ void draw_rows(const From& from, const WeightTable& weight) {
    const int rows = shape_.packed_rows, fit = quotient(shape_.threads, shape_.packed_rows), step = fit > 0 ? fit : 1;
    for (int task = start_; task < step * rows; task += shape_.threads) {
      const int first = quotient(task, shape_.packed_rows), row = task - first * rows;
      if (row == 0) continue;
      const DrawnRow drawn(shape_, shared_, weight, row);
      const PackedRow points = packed_row(row);
      const auto to = [&](int p) { return points[p]; };
      SAGD_UNROLL_TWICE
      for (int l = first; l < shape_.orbits; l += step) drawn(from, l, to);
    }
  }

  // Row transforms, the weight, and with `filter` the inverse row transforms.
  template <bool measure>
  __device__ __forceinline__ Point weigh_rows(const WeightTable& weight, bool filter) {
    Point sum{0, 0};
    separate_odd_width();
    shape_.rows.template forward<true>([&]<int R>(int, auto stage) {
      for_rows<R>(stage, shape_.packed_rows, [&](int row, int, int q, Point* v) {
        separate_butterfly<R>(stage, row, v);
        Butterfly<R, false, float, float>::run(v);
        twiddle<R, false>(v, shared_.row_roots, q * stage.blocks);
      });
      __syncthreads();
    });
    shape_.rows.last([&]<int R>(int, auto stage) {
      for_rows<R>(stage, shape_.packed_rows, [&](int row, int p, int, Point* v) {
        separate_butterfly<R>(stage, row, v);
        Butterfly<R, false, float, float>::run(v);
        if (row == 0) return;
        const RowPair pair = shared_.pairs[row];
        const int l0 = shared_.row_frequency[p], step = stage.blocks;
        SAGD_UNROLL
        for (int m = 0; m < R; ++m) {
          const int l = l0 + m * step;  // l0 < step = width / R
          const bool mirrored = R % 2 == 0 ? m >= R / 2 : 2 * l > width();
          v[m] = weigh<measure>(v[m], weight(pair, l, mirrored), 2, sum);
        }
        Butterfly<R, true, float, float>::run(v);
        join_butterfly<R>(stage, row, v);
      });
    });
    __syncthreads();
    for (int l = start_; l < shape_.orbits; l += shape_.threads) {
      weigh_packed_row<measure>(shape_, shared_.pairs[0], weight, l, frequencies(0), sum);
    }
    if (!filter) return sum;
    __syncthreads();
    inverse_rows(true, !measure && Shape::max_threads * Shape::min_blocks > 1024);
    return sum;
  }

  // ---- butterflies ------------------------------------------------------------------------------------------------

  // f(row, p, q, v) on the points p + m span of a butterfly, of every butterfly of the first n packed rows.
  template <int R, class Stage, class Number, class F>
  __device__ __forceinline__ void for_rows(const Stage& stage, Number n, F&& f) {
    const int tasks = n * (width() / R);
    for (int task = start_; task < tasks; task += shape_.threads) {
      const int i = quotient(task, n), row = task - i * n;
      const int block = quotient(i, stage.span), q = i - block * stage.span, p = block * R * stage.span + q;
      const PackedRow points = packed_row(row);
      Point* to[R];
      Point v[R];
      SAGD_UNROLL
      for (int m = 0; m < R; ++m) {
        // An even radix divides the two halves of the row (see separate_butterfly), so it crosses over once at most.
        const bool first_of_half = R % 2 == 1 || m == 0 || m == R / 2;
        to[m] = first_of_half ? points[p + m * stage.span] : to[m - 1] + stage.span;
        v[m] = *to[m];
      }
      f(row, p, q, v);
      SAGD_UNROLL
      for (int m = 0; m < R; ++m) *to[m] = v[m];
    }
  }

  // Where the points of a packed row lie.
  struct PackedRow {
    Point *first, *second;
    int columns;

    __device__ __forceinline__ Point* operator[](int p) const { return (p >= columns ? second : first) + p; }
  };
  __device__ __forceinline__ PackedRow packed_row(int row) const {
    const RowPair pair = shared_.pairs[row];
    const int columns = shape_.packed_columns;
    return {storage_ + pair.first * pitch(shape_), storage_ + pair.second * pitch(shape_) - columns, columns};
  }

  // The inverse row transforms. With `weighed`, the last forward stage's counterpart is done, except in the first row.
  // With `few_registers` a thread has less than 64. The compiler would find the last stage's points once for all planes,
  // and spill where they are.
  __device__ __forceinline__ void inverse_rows(bool weighed, [[maybe_unused]] bool few_registers = false) {
    const int start = start_;
    shape_.rows.backward([&]<int R>(int s, auto stage) {
      using Number = typename Shape::Number;
      const Number n = weighed && s == shape_.rows.stages - 1 ? Number(1) : Number(shape_.packed_rows);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
      if (few_registers && s == 0) asm volatile("" : "+r"(start_));
#endif
      for_rows<R>(stage, n, [&](int row, int, int q, Point* v) {
        if (stage.span > 1) twiddle<R, true>(v, shared_.row_roots, q * stage.blocks);
        Butterfly<R, true, float, float>::run(v);
        join_butterfly<R>(stage, row, v);
      });
      __syncthreads();
    });
    start_ = start;
    join_odd_width();
  }

  // ---- between the axes: two packed columns and the spectra of their real columns ----------------------------------

  // Rows k and -k of a packed column and the spectra of its two real columns; in the first packed row, rows 0 and
  // height / 2.
  __device__ __forceinline__ void separate_rows(bool first, Point& z, Point& y) const {
    if (first && height() % 2) y = {0, 0};
    separate(first, z, y);
  }

  // An even width begins with an even radix (plan.h), whose points m and m + R / 2 are packed into the same columns:
  // they come apart in registers, on the way into the first stage.
  template <int R, class Stage>
  __device__ __forceinline__ void separate_butterfly(const Stage& stage, int row, Point* v) const {
    if constexpr (R % 2 == 0) {
      if (stage.blocks > 1) return;
      SAGD_UNROLL
      for (int m = 0; m < R / 2; ++m) separate_rows(row == 0, v[m], v[m + R / 2]);
    }
  }
  template <int R, class Stage>
  __device__ __forceinline__ void join_butterfly(const Stage& stage, int row, Point* v) const {
    if constexpr (R % 2 == 0) {
      if (stage.blocks > 1) return;
      SAGD_UNROLL
      for (int m = 0; m < R / 2; ++m) join(row == 0, v[m], v[m + R / 2]);
    }
  }

  // An odd width takes a pass of its own. The last packed column has no partner.
  __device__ __forceinline__ void separate_odd_width() {
    if (width() % 2 == 0) return;
    for_packed_points([&](bool first, bool alone, Point* z, Point* y) {
      Point b = *y;
      separate_rows(first, *z, b);
      if (!alone) *y = b;
    });
  }
  __device__ __forceinline__ void join_odd_width() {
    if (width() % 2 == 0) return;
    for_packed_points([&](bool first, bool alone, Point* a, Point* b) {
      if (alone) *b = {0, 0};
      join(first, *a, *b);
    });
  }
  template <class F>
  __device__ __forceinline__ void for_packed_points(F&& f) {
    const int tasks = shape_.packed_columns * shape_.packed_rows;
    for (int task = start_; task < tasks; task += shape_.threads) {
      const int j = quotient(task, shape_.packed_rows), row = task - j * shape_.packed_rows;
      const RowPair pair = shared_.pairs[row];
      Point* column = storage_ + j;
      f(row == 0, j + shape_.packed_columns == width(), column + pair.first * pitch(shape_),
        column + pair.second * pitch(shape_));
    }
    __syncthreads();
  }

  // ---- the spectrum -------------------------------------------------------------------------------------------------

  // Where frequency l of a packed row lies.
  __device__ __forceinline__ auto frequencies(int row) const {
    return [this, row](int l) { return packed_row(row)[shared_.row_position[l]]; };
  }

  const Shape& shape_;
  const Shared<Shape>& shared_;
  Point* storage_;
  int start_;
};

}  // namespace sagd::cuda
