// The one-dimensional transform in place of `length` complex vectors that lie one after the other (a strip): one
// independent transform per lane. See plan.h for the order of the output. Every stage reads and writes the strip once.
#pragma once

#include "cpu/plan.h"
#include "cpu/simd.h"
#include "sagd/butterflies.h"

namespace sagd::SAGD_ISA {

template <class T>
using Point = Complex<Vec<T>>;

template <class V>
SAGD_INLINE Complex<V> loaded(Complex<V> a) {
  return {loaded(a.re), loaded(a.im)};
}

template <class T>
void forward(const Plan<T>& plan, Point<T>* x, Point<T>* scratch);
template <class T>
void inverse(const Plan<T>& plan, Point<T>* x, Point<T>* scratch);

// a times a twiddle factor w, or its conjugate for the inverse transform. Each of the four products loads its factor by
// itself, the last two through another pointer to the same one: a multiplication broadcasts what it loads for free,
// while a broadcast that two of them share takes the slot of an addition.
template <bool inverse, class T>
SAGD_INLINE Point<T> twiddle(Point<T> a, const T* w, const T* same) {
  return inverse ? Point<T>{a.re * w[0] + a.im * w[1], a.im * same[0] - a.re * same[1]}
                 : Point<T>{a.re * w[0] - a.im * w[1], a.im * same[0] + a.re * same[1]};
}

// One butterfly of a stage, with its twiddles: on the output forward, on the input of the inverse. The points come from
// get(m) and go to put(m, point). Both are passed by value, here and below: what lies in memory is read again after
// every store.
template <int R, bool inverse, bool twiddled, class T, class Get, class Put>
SAGD_INLINE void butterfly(const T* w, Get get, Put put) {
  const T* const same = many_registers ? opaque(w) : w;
  Point<T> v[R];
#pragma GCC unroll 32
  for (int m = 0; m < R; ++m) {
    v[m] = loaded(get(m));
    if (inverse && twiddled && m > 0) v[m] = twiddle<true>(v[m], w + 2 * m - 2, same + 2 * m - 2);
  }
  Butterfly<R, inverse, T, Vec<T>>::run(v);
#pragma GCC unroll 32
  for (int m = 0; m < R; ++m) {
    if (!inverse && twiddled && m > 0) v[m] = twiddle<false>(v[m], w + 2 * m - 2, same + 2 * m - 2);
    put(m, v[m]);
  }
}

// The butterflies of a block; get(i) and put(i, point) take the points' positions in it.
template <int R, bool inverse, class T, class Get, class Put>
SAGD_INLINE void butterfly_block(const Stage<T>& stage, Get get, Put put) {
  const int span = stage.span;
  butterfly<R, inverse, false>(stage.twiddle, [=](int m) { return get(m * span); },
                               [=](int m, Point<T> v) { put(m * span, v); });
  for (int q = 1; q < span; ++q) {
    butterfly<R, inverse, true>(stage.twiddle + q * 2 * (R - 1), [=](int m) { return get(q + m * span); },
                                [=](int m, Point<T> v) { put(q + m * span, v); });
  }
}

template <int R, bool inverse, class T>
void butterfly_stage(const Stage<T>& stage, Point<T>* x) {
  for (int b = 0; b < stage.blocks; ++b, x += R * stage.span) {
    butterfly_block<R, inverse>(stage, [=](int i) { return x[i]; }, [=](int i, Point<T> v) { x[i] = v; });
  }
}

// A prime length, natural order in and out. The inverse is the forward transform between two exchanges of the real
// and imaginary parts.
template <bool inverse_, class T>
SAGD_INLINE Point<T> exchanged(Point<T> a) {
  return inverse_ ? Point<T>{a.im, a.re} : a;
}

template <bool inverse_, class T>
void prime_transform(const PrimePlan<T>& prime, Point<T>* x, Point<T>* scratch) {
  const int n = prime.length;
  if (prime.method == PrimeMethod::dense) {
    const int half = n / 2;
    Point<T> total = x[0];
    Point<T>*sum = scratch, *difference = scratch + half;
    for (int j = 1; j <= half; ++j) {
      sum[j - 1] = x[j] + x[n - j];
      difference[j - 1] = quarter_turn<inverse_>(x[j] - x[n - j]);
      total = total + sum[j - 1];
    }
    for (int k = 1; k <= half; ++k) {
      Point<T> even = x[0], odd = {};
      for (int j = 1, at = k; j <= half; ++j, at = at + k < n ? at + k : at + k - n) {
        const T c = prime.kernel[2 * at], s = -prime.kernel[2 * at + 1];
        even = even + sum[j - 1] * c;
        odd = odd + difference[j - 1] * s;
      }
      x[k] = even + odd;
      x[n - k] = even - odd;
    }
    x[0] = total;
    return;
  }

  const Plan<T>& convolution = *prime.convolution;
  const int m = convolution.length;
  Point<T>*a = scratch, *rest = scratch + m;
  if (prime.method == PrimeMethod::rader) {
    const Point<T> first = exchanged<inverse_, T>(x[0]);
    for (int q = 0; q < m; ++q) a[q] = exchanged<inverse_, T>(x[prime.gather[q]]);
    forward(convolution, a, rest);
    x[0] = exchanged<inverse_, T>(first + a[0]);
    for (int q = 0; q < m; ++q) a[q] = rotate<false>(a[q], prime.kernel[2 * q], prime.kernel[2 * q + 1]);
    a[0] = a[0] + first;  // a constant in the spectrum's first bin is added to every output
    inverse(convolution, a, rest);
    for (int q = 0; q < m; ++q) x[prime.scatter[q]] = exchanged<inverse_, T>(a[q]);
  } else {
    const T* c = prime.chirp;
    for (int j = 0; j < n; ++j) a[j] = rotate<false>(exchanged<inverse_, T>(x[j]), c[2 * j], c[2 * j + 1]);
    for (int j = n; j < m; ++j) a[j] = Point<T>{};
    forward(convolution, a, rest);
    for (int q = 0; q < m; ++q) a[q] = rotate<false>(a[q], prime.kernel[2 * q], prime.kernel[2 * q + 1]);
    inverse(convolution, a, rest);
    for (int j = 0; j < n; ++j) x[j] = exchanged<inverse_, T>(rotate<false>(a[j], c[2 * j], c[2 * j + 1]));
  }
}

template <bool inverse_, class T>
void prime_stage(const Stage<T>& stage, Point<T>* x, Point<T>* scratch) {
  const int span = stage.span, n = stage.radix;
  for (int b = 0; b < stage.blocks; ++b, x += n * span) {
    const T* w = stage.twiddle;
    for (int q = 0; q < span; ++q, w += 2 * (n - 1)) {
      for (int m = 0; m < n; ++m) scratch[m] = x[q + m * span];
      if (inverse_) {
        for (int m = 1; m < n; ++m) scratch[m] = rotate<true>(scratch[m], w[2 * m - 2], w[2 * m - 1]);
      }
      prime_transform<inverse_>(*stage.prime, scratch, scratch + n);
      x[q] = scratch[0];
      for (int m = 1; m < n; ++m) {
        x[q + m * span] = inverse_ ? scratch[m] : rotate<false>(scratch[m], w[2 * m - 2], w[2 * m - 1]);
      }
    }
  }
}

// Calls f.operator()<R>() with the stage's radix as a constant.
template <class F>
SAGD_INLINE void with_radix(int radix, F&& f) {
  switch (radix) {
    case 2: return f.template operator()<2>();
    case 3: return f.template operator()<3>();
    case 4: return f.template operator()<4>();
    case 5: return f.template operator()<5>();
    case 6: return f.template operator()<6>();
    case 7: return f.template operator()<7>();
    case 8: return f.template operator()<8>();
    case 10: return f.template operator()<10>();
    default: return f.template operator()<12>();
  }
}

// The same for larger primes, if the radix is one of those.
template <class F>
SAGD_INLINE bool with_large_prime(int radix, F&& f) {
  switch (radix) {
    case 11: f.template operator()<11>(); return true;
    case 13: f.template operator()<13>(); return true;
    case 17: f.template operator()<17>(); return true;
    case 19: f.template operator()<19>(); return true;
    default: return false;
  }
}

template <bool inverse_, class T>
void run_stage(const Stage<T>& stage, Point<T>* x, Point<T>* scratch) {
  if (stage.prime) return prime_stage<inverse_>(stage, x, scratch);
  if (with_large_prime(stage.radix, [&]<int R>() { butterfly_stage<R, inverse_>(stage, x); })) return;
  with_radix(stage.radix, [&]<int R>() { butterfly_stage<R, inverse_>(stage, x); });
}

template <class T>
void forward(const Plan<T>& plan, Point<T>* x, Point<T>* scratch) {
  for (int s = 0; s < plan.stages; ++s) run_stage<false>(plan.stage[s], x, scratch);
}

template <class T>
void inverse(const Plan<T>& plan, Point<T>* x, Point<T>* scratch) {
  for (int s = plan.stages - 1; s >= 0; --s) run_stage<true>(plan.stage[s], x, scratch);
}

// Calls f.operator()<R>() if the plan's first stage, which is the inverse's last, is one that can take its points from
// elsewhere or leave them there: of the radices that first stages of lengths above 16 have, all but primes above 13.
template <class T, class F>
SAGD_INLINE bool with_outer_radix(const Plan<T>& plan, F&& f) {
  if (plan.stages == 0 || plan.stage[0].prime) return false;
  switch (plan.stage[0].radix) {
    case 7: f.template operator()<7>(); return true;
    case 8: f.template operator()<8>(); return true;
    case 10: f.template operator()<10>(); return true;
    case 11: f.template operator()<11>(); return true;
    case 12: f.template operator()<12>(); return true;
    case 13: f.template operator()<13>(); return true;
    default: return false;
  }
}

// The first `stages` stages of the forward transform, of points that the first one takes from read(i).
template <class T, class Read>
SAGD_INLINE void forward(const Plan<T>& plan, int stages, Point<T>* x, Point<T>* scratch, Read read) {
  int s = with_outer_radix(plan, [&]<int R>() {
    butterfly_block<R, false>(plan.stage[0], read, [=](int i, Point<T> v) { x[i] = v; });
  });
  if (s == 0) {
    for (int i = 0; i < plan.length; ++i) x[i] = read(i);
  }
  for (; s < stages; ++s) run_stage<false>(plan.stage[s], x, scratch);
}

// The last `stages` stages of the inverse transform, whose last one hands its points to write(i, point).
template <class T, class Write>
SAGD_INLINE void inverse(const Plan<T>& plan, int stages, Point<T>* x, Point<T>* scratch, Write write) {
  for (int s = stages - 1; s > 0; --s) run_stage<true>(plan.stage[s], x, scratch);
  const bool done = with_outer_radix(plan, [&]<int R>() {
    butterfly_block<R, true>(plan.stage[0], [=](int i) { return x[i]; }, write);
  });
  if (done) return;
  if (stages > 0) run_stage<true>(plan.stage[0], x, scratch);
  for (int i = 0; i < plan.length; ++i) write(i, x[i]);
}

// ---- forward, a pointwise step, inverse: the last forward stage, the step and the first inverse stage in one pass

// Whether a stage can be part of that. Large primes come last in their own powers only, too seldom for so much code.
template <class T>
bool fuses(const Stage<T>& stage) {
  return !stage.prime && !with_large_prime(stage.radix, []<int>() {});
}

template <int R, class T, class Pointwise>
void fused_stage(const Stage<T>& stage, Point<T>* x, Pointwise&& pointwise) {
  for (int at = 0; at < stage.blocks * R; at += R) {
    Point<T> v[R];
#pragma GCC unroll 32
    for (int m = 0; m < R; ++m) v[m] = loaded(x[at + m]);
    Butterfly<R, false, T, Vec<T>>::run(v);
#pragma GCC unroll 32
    for (int m = 0; m < R; ++m) v[m] = pointwise(at + m, v[m]);
    Butterfly<R, true, T, Vec<T>>::run(v);
#pragma GCC unroll 32
    for (int m = 0; m < R; ++m) x[at + m] = v[m];
  }
}

// x <- inverse(pointwise(forward(x))); pointwise(position, point) sees the points in digit order.
template <class T, class Pointwise>
void convolve(const Plan<T>& plan, Point<T>* x, Point<T>* scratch, Pointwise&& pointwise) {
  const int last = plan.stages - 1;
  if (last < 0 || !fuses(plan.stage[last])) {
    forward(plan, x, scratch);
    for (int i = 0; i < plan.length; ++i) x[i] = pointwise(i, x[i]);
    return inverse(plan, x, scratch);
  }
  for (int s = 0; s < last; ++s) run_stage<false>(plan.stage[s], x, scratch);
  const Stage<T>& stage = plan.stage[last];
  with_radix(stage.radix, [&]<int R>() { fused_stage<R>(stage, x, pointwise); });
  for (int s = last - 1; s >= 0; --s) run_stage<true>(plan.stage[s], x, scratch);
}

// The same for a step that needs the point of the negative frequency, too.
template <int R, class T, class Pointwise>
void fused_pair_stage(const Plan<T>& plan, Point<T>* x, Pointwise&& pointwise) {
  for (int at = 0; at < plan.length; at += R) {
    // the negatives of a block are a block, backwards; but 0, in front of the first block, is its own negative
    const int back = at == 0 ? 0 : plan.mirror[at] - (R - 1);
    if (back < at) continue;
    Point<T> v[R], negative[R], y[R];
#pragma GCC unroll 32
    for (int m = 0; m < R; ++m) v[m] = loaded(x[at + m]);
    Butterfly<R, false, T, Vec<T>>::run(v);
    if (at == 0) {
#pragma GCC unroll 32
      for (int m = 0; m < R; ++m) negative[m] = v[(m + 1) % R];
    } else {
#pragma GCC unroll 32
      for (int m = 0; m < R; ++m) negative[m] = loaded(x[back + m]);
      Butterfly<R, false, T, Vec<T>>::run(negative);
    }
#pragma GCC unroll 32
    for (int m = 0; m < R; ++m) y[m] = pointwise(at + m, v[m], negative[R - 1 - m]);
    Butterfly<R, true, T, Vec<T>>::run(y);
#pragma GCC unroll 32
    for (int m = 0; m < R; ++m) x[at + m] = y[m];
    if (back == at) continue;
#pragma GCC unroll 32
    for (int m = 0; m < R; ++m) y[m] = pointwise(back + m, negative[m], v[R - 1 - m]);
    Butterfly<R, true, T, Vec<T>>::run(y);
#pragma GCC unroll 32
    for (int m = 0; m < R; ++m) x[back + m] = y[m];
  }
}

// x <- inverse(y), y = pointwise(position, point, the negative frequency's point) of forward(x).
template <class T, class Pointwise>
void convolve_pairs(const Plan<T>& plan, Point<T>* x, Point<T>* scratch, Pointwise&& pointwise) {
  const int last = plan.stages - 1;
  if (last < 0 || !fuses(plan.stage[last])) {
    forward(plan, x, scratch);
    for (int i = 0; i < plan.length; ++i) {
      const int mirror = plan.mirror[i];
      const Point<T> point = x[i], negative = x[mirror];
      if (mirror < i) continue;
      x[i] = pointwise(i, point, negative);
      if (mirror > i) x[mirror] = pointwise(mirror, negative, point);
    }
    return inverse(plan, x, scratch);
  }
  for (int s = 0; s < last; ++s) run_stage<false>(plan.stage[s], x, scratch);
  with_radix(plan.stage[last].radix, [&]<int R>() { fused_pair_stage<R>(plan, x, pointwise); });
  for (int s = last - 1; s >= 0; --s) run_stage<true>(plan.stage[s], x, scratch);
}

}  // namespace sagd::SAGD_ISA
