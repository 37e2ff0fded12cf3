// How one axis of a plane is factored into stages, known when the kernel is compiled (FixedAxis) or when it is launched
// (Axis). Both say the same with the same names, so that the transform of plane.h is written once.
//
// Stages go forward by decimation in frequency, natural order in, digit order out, and backward by decimation in time;
// nothing is ever reordered. Stage s has `blocks` blocks of `span` butterflies whose radix[s] points lie `span` apart.
#pragma once

#include <bit>
#include <cstdint>

#include "sagd/complex.h"

namespace sagd::cuda {

constexpr int max_stages = 6;  // 3^6 = 729
constexpr int max_length = 1024;
constexpr int max_points = 1 << 15;  // of a plane in shared memory, and what Count can divide

// A number that the kernel divides by: n / count for 0 <= n <= max_points, without a division.
struct Count {
  int value = 1;
  uint32_t reciprocal = 0;

  Count() = default;
  SAGD_INLINE explicit Count(int n) : value(n), reciprocal(uint32_t((uint64_t(1) << 31) / n + 1)) {}
  SAGD_INLINE operator int() const { return value; }
};

SAGD_INLINE int quotient(int n, Count count) { return int(uint64_t(2 * uint32_t(n)) * count.reciprocal >> 32); }
SAGD_INLINE int quotient(int n, int count) { return n / count; }

template <class Number>
struct Stage {
  Number span;
  int blocks;
};

// The radices that a kernel has butterflies for, best first where the rest is equal.
constexpr int radices[] = {16, 14, 12, 10, 8, 7, 6, 5, 4, 3, 2};

class Axis {
 public:
  int length = 1, stages = 0;

  Axis() = default;
  Axis(const int* factors, int n) : stages(n) {
    for (int s = 0; s < n; ++s) {
      radix_[s] = Count(factors[s]);
      length *= factors[s];
    }
    int blocks = 1;
    for (int s = 0; s < n; ++s) {
      blocks *= radix_[s];
      span_[s] = Count(length / blocks);
    }
  }

  SAGD_INLINE Count radix(int s) const { return radix_[s]; }
  SAGD_INLINE Count first_span() const { return span_[0]; }

  // f.operator()<radix>(s, stage) for every stage in turn, or for all but the last
  template <bool but_last = false, class F>
  SAGD_INLINE void forward(F&& f) const {
    for (int s = 0; s < stages - but_last; ++s) visit(s, f);
  }
  template <bool but_last = false, class F>
  SAGD_INLINE void backward(F&& f) const {
    for (int s = stages - 1 - but_last; s >= 0; --s) visit(s, f);
  }
  template <class F>
  SAGD_INLINE void last(F&& f) const {
    visit(stages - 1, f);
  }

 private:
  template <class F>
  SAGD_INLINE void visit(int s, F&& f) const {
    const Stage<Count> stage{span_[s], length / (radix_[s] * span_[s].value)};
    switch (int(radix_[s])) {
      case 16: return f.template operator()<16>(s, stage);
      case 14: return f.template operator()<14>(s, stage);
      case 12: return f.template operator()<12>(s, stage);
      case 10: return f.template operator()<10>(s, stage);
      case 8: return f.template operator()<8>(s, stage);
      case 7: return f.template operator()<7>(s, stage);
      case 6: return f.template operator()<6>(s, stage);
      case 5: return f.template operator()<5>(s, stage);
      case 4: return f.template operator()<4>(s, stage);
      case 3: return f.template operator()<3>(s, stage);
      case 2: return f.template operator()<2>(s, stage);
      default: return f.template operator()<1>(s, stage);  // the one stage of length 1
    }
  }

  Count radix_[max_stages];
  Count span_[max_stages];
};

template <int... radix_>
struct FixedAxis {
  static constexpr int length = (1 * ... * radix_), stages = sizeof...(radix_);

  static SAGD_INLINE constexpr int radix(int s) {
    constexpr int all[] = {radix_...};
    return all[s];
  }
  static SAGD_INLINE constexpr int first_span() { return length / radix(0); }

  template <bool but_last = false, class F>
  SAGD_INLINE void forward(F&& f) const {
    visit_up<0, stages - but_last>(f);
  }
  template <bool but_last = false, class F>
  SAGD_INLINE void backward(F&& f) const {
    visit_down<stages - 1 - but_last>(f);
  }
  template <class F>
  SAGD_INLINE void last(F&& f) const {
    visit<stages - 1>(f);
  }

 private:
  static constexpr int blocks(int s) { return s == 0 ? 1 : blocks(s - 1) * radix(s - 1); }

  template <int s, class F>
  static SAGD_INLINE void visit(F&& f) {
    f.template operator()<radix(s)>(s, Stage<int>{length / (blocks(s) * radix(s)), blocks(s)});
  }
  template <int s, int end, class F>
  static SAGD_INLINE void visit_up(F&& f) {
    if constexpr (s < end) {
      visit<s>(f);
      visit_up<s + 1, end>(f);
    }
  }
  template <int s, class F>
  static SAGD_INLINE void visit_down(F&& f) {
    if constexpr (s >= 0) {
      visit<s>(f);
      visit_down<s - 1>(f);
    }
  }
};

// Where the forward stages leave frequency k.
template <class A>
SAGD_INLINE int position(const A& axis, int k) {
  int at = 0, span = axis.length;
  for (int s = 0; s < axis.stages; ++s) {
    const int next = quotient(k, axis.radix(s));
    span = quotient(span, axis.radix(s));
    at += (k - next * axis.radix(s)) * span;
    k = next;
  }
  return at;
}

// The shape of a plane: `columns` is the axis along a column (height points), `rows` the one along a row. Here any.
struct AnyShape {
  using Number = Count;
  static constexpr int max_threads = 512, min_blocks = 1;  // of a block, on a multiprocessor
  static constexpr int fewer_blocks = 1;  // where two inputs, or two outputs, need more registers
  static constexpr bool always_staged = false, never_staged = false;  // the weight, in shared memory
  static constexpr bool in_registers = false, in_a_warp = false, adjacent = false;
  static constexpr bool alone = false;  // whether blocks have a single plane
  Axis columns, rows;
  Count packed_columns, packed_rows, orbits;
  int threads;  // for each plane; depends on the shape alone
};

// One that the kernel is compiled for, with this many threads a plane.
template <int threads_, int min_blocks_, class Columns, class Rows>
struct FixedShape {
  using Number = int;
  static constexpr int max_threads = threads_ > 256 ? threads_ : 256, min_blocks = min_blocks_;
  static constexpr int fewer_blocks = min_blocks > 1 ? min_blocks - 1 : 1;
  Columns columns;
  Rows rows;
  static constexpr int threads = threads_;
  static constexpr int packed_columns = (Rows::length + 1) / 2, packed_rows = (Columns::length + 1) / 2;
  static constexpr int orbits = Rows::length / 2 + 1;
  // whether the weight, 2 bytes a pixel, finds room beside the plane on every GPU: a block has 99 KB at least. Where it
  // does not, it stays in device memory, so that a multiprocessor holds one plane more.
  static constexpr bool always_staged = 6 * Columns::length * Rows::length < 90 << 10, never_staged = !always_staged;
  static constexpr bool in_registers = false, in_a_warp = false, adjacent = false, alone = 2 * threads > max_threads;
};

// A square whose lines are held in registers (register_plane.h), each by one lane of a warp, or for noise by two.
// An axis is one stage.
template <int length, int lanes_, int max_threads_, int min_blocks_>
struct RegisterSquare
    : FixedShape<lanes_ * int(std::bit_ceil(unsigned(length / 2))), min_blocks_, FixedAxis<length>, FixedAxis<length>> {
  static constexpr int lanes = lanes_, max_threads = max_threads_;
  static constexpr bool in_registers = true, alone = false;
  static constexpr bool in_a_warp = RegisterSquare::FixedShape::threads <= 32;  // whose barrier is enough
  static constexpr bool adjacent = lanes == 1;  // packed columns are columns 2 j and 2 j + 1
};

// One whose plane is held by `ranks` blocks together (cluster.h).
template <int ranks_, int threads_, int min_blocks_, class Columns, class Rows>
struct ClusterShape : FixedShape<threads_, min_blocks_, Columns, Rows> {
  static_assert(Columns::length % (2 * ranks_) == 0 && Rows::length % (2 * ranks_) == 0 && Rows::radix(0) % 2 == 0);
  static constexpr int ranks = ranks_;
  static constexpr int block_columns = Rows::length / 2 / ranks, block_rows = Columns::length / 2 / ranks;
  static constexpr int pitch = block_rows | 1;  // of the row storage, which is also walked along its rows
};
template <class Shape>
concept Clustered = requires { Shape::ranks; };

}  // namespace sagd::cuda
