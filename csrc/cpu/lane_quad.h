// The transform of sixteen points that lie in the lanes of a vector, of four rows at a time: the registers of the four
// rows exchange blocks, four points are transformed across them, they exchange values, and four points are again.
//
// Cost per vector: 4 shuffles, 8 additions, 3 multiplications or fused pairs; nothing is stored.
#pragma once

#include "cpu/fft.h"
#include "cpu/simd.h"

namespace sagd::SAGD_ISA {

// A point of each of four rows before the transform; after it register k has frequency lane mod 4 + 4 k of row lane / 4.
template <class T>
using Quad = Point<T>[4];

// A table of LaneRoots.
template <class T>
SAGD_INLINE const Point<T>* lane_factors(const T* table) {
  return reinterpret_cast<const Point<T>*>(table);
}

// a times a root of unity for each lane, or its conjugate.
template <bool conjugate, class V>
SAGD_INLINE Complex<V> times(Complex<V> a, const Complex<V>& root) {
  return rotate<conjugate>(a, root.re, root.im);
}

template <class T>
SAGD_INLINE void exchange_blocks(Quad<T>& x) {
  transpose_blocks<T>(x[0].re, x[1].re, x[2].re, x[3].re);
  transpose_blocks<T>(x[0].im, x[1].im, x[2].im, x[3].im);
}

template <class T>
SAGD_INLINE void exchange_values(Quad<T>& x) {
  transpose_values<T>(x[0].re, x[1].re, x[2].re, x[3].re);
  transpose_values<T>(x[0].im, x[1].im, x[2].im, x[3].im);
}

// `roots`: LaneRoots::values.
template <class T>
SAGD_INLINE void forward_lanes(Quad<T>& x, const T* roots) {
  exchange_blocks<T>(x);
  Butterfly<4, false, T, Vec<T>>::run(x);
#pragma GCC unroll 4
  for (int k = 1; k < 4; ++k) x[k] = times<false>(x[k], lane_factors(roots)[k]);
  exchange_values<T>(x);
  Butterfly<4, false, T, Vec<T>>::run(x);
}

template <class T>
SAGD_INLINE void inverse_lanes(Quad<T>& x, const T* roots) {
  Butterfly<4, true, T, Vec<T>>::run(x);
  exchange_values<T>(x);
#pragma GCC unroll 4
  for (int k = 1; k < 4; ++k) x[k] = times<true>(x[k], lane_factors(roots)[k]);
  Butterfly<4, true, T, Vec<T>>::run(x);
  exchange_blocks<T>(x);
}

// The points of the negative frequencies, in the lanes of the first row, if register k has frequencies l + n (lane mod 4 +
// 4 k), 0 < l < n: those of -l, backwards.
template <class T>
SAGD_INLINE Point<T> negatives(const Quad<T>& of_minus_l, int k) {
  const auto turn = [](Vec<T> v) {
    return __builtin_shufflevector(v, v, 3, 2, 1, 0, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  };
  return {turn(of_minus_l[3 - k].re), turn(of_minus_l[3 - k].im)};
}

// The same for l = 0: frequency 0, or n 4 k, is in lane 0.
template <class T>
SAGD_INLINE Point<T> negatives_of_zero(const Quad<T>& x, int k) {
  const auto turn = [](Vec<T> lane_0, Vec<T> v) {
    return __builtin_shufflevector(lane_0, v, 0, 19, 18, 17, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  };
  const Point<T> a = x[(4 - k) % 4], b = x[3 - k];
  return {turn(a.re, b.re), turn(a.im, b.im)};
}

}  // namespace sagd::SAGD_ISA
