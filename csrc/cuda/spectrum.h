// Two real lines as one complex line, and what is done to spectra: the arithmetic that kernels for planes of any size
// share.
#pragma once

#include "cuda/normals.h"

namespace sagd::cuda {

// z, y: frequencies k and -k of a complex line -> the spectra of the two real lines that are its real and imaginary
// part, at k, doubled. `first`: frequencies 0 and n / 2 -> a number for each line, its frequencies 0 and n / 2.
__device__ __forceinline__ void separate(bool first, Point& z, Point& y) {
  const Point a = {first ? z.re : z.re + y.re, first ? y.re : z.im - y.im};
  const Point b = {first ? z.im : z.im + y.im, first ? y.im : y.re - z.re};
  z = a;
  y = b;
}
__device__ __forceinline__ void join(bool first, Point& a, Point& b) {
  const Point z = {first ? a.re : a.re - b.im, first ? b.re : a.im + b.re};
  const Point y = {first ? a.im : a.re + b.im, first ? b.im : b.re - a.im};
  a = z;
  b = y;
}

// value times w. Adds w |F|^2 of the one or two bins that the value, 2 F, stands for, and how many of them count; w is
// half of what the loss weighs with, or negative where a bin does not count.
template <bool measure>
__device__ __forceinline__ Point weigh(Point value, float w, int bins, Point& sum) {
  if constexpr (measure) {
    if (w >= 0) sum.im += bins;
    w = fmaxf(w, 0.0f);
    const float power = (value.re * value.re + value.im * value.im) * w;
    sum.re += bins == 2 ? power : 0.5f * power;
  }
  return value * w;
}

// Frequencies k and -k of P = top + i bottom, the spectra of two real lines:
// top(k) = (P(k) + conj P(-k)) / 2 and i bottom(k) = (P(k) - conj P(-k)) / 2. `alone`: there is no bottom line.
template <bool measure>
__device__ __forceinline__ void weigh_packed(Point* here, Point* mirror, float w_top, float w_bottom, bool alone,
                                             Point& sum) {
  Point top = {here->re + mirror->re, here->im - mirror->im};
  Point bottom = {here->re - mirror->re, here->im + mirror->im};
  const int bins = here == mirror ? 1 : 2;
  top = weigh<measure>(top, w_top, bins, sum);
  bottom = alone ? Point{0, 0} : weigh<measure>(bottom, w_bottom, bins, sum);
  *mirror = {top.re - bottom.re, bottom.im - top.im};
  *here = top + bottom;
}

// The same two frequencies of noise. `real`: k is its own mirror, so its coefficients are real.
__device__ __forceinline__ void pack_drawn(Point* here, Point* mirror, Point top, Point bottom, bool real, float w_top,
                                           float w_bottom) {
  constexpr float root2 = 1.41421356237309505f;
  top = real ? Point{top.re * root2, 0} : top;
  bottom = real ? Point{bottom.re * root2, 0} : bottom;
  top = top * w_top;
  bottom = bottom * w_bottom;
  *mirror = {top.re + bottom.im, bottom.re - top.im};
  *here = {top.re - bottom.im, top.im + bottom.re};
}

}  // namespace sagd::cuda
