// Discrete Fourier transforms of a few points held in registers, in natural order, on any lane type.
//
// Forward: X_k = sum_n x_n exp(-2 pi i k n / R); inverse: the conjugate, not normalised.
// Cost in additions, multiplications or fused pairs per point: 2: 2, 4: 4, 8: 6.75, 16: 10, odd primes R: R + 1, and
// for coprime factors the sum of theirs.
#pragma once

#include "complex.h"

namespace sagd {

namespace detail {

// cos(2 pi q / n) and sin(2 pi q / n): Taylor's series on an argument reduced to [-pi/4, pi/4].
struct Angle {
  double cos, sin;
};

constexpr Angle angle(int q, int n) {
  const int quadrant = (8 * q + n) / (2 * n);  // the nearest multiple of a quarter turn, 0 <= q < n
  const double x = 6.283185307179586476925286766559 * (4 * q - quadrant * n) / (4.0 * n);
  double c = 0, s = 0, term = 1;
  for (int k = 0; k < 24; term *= x / ++k) {
    (k % 2 ? s : c) += k % 4 < 2 ? term : -term;
  }
  switch (quadrant % 4) {
    case 0: return {c, s};
    case 1: return {-s, c};
    case 2: return {-c, -s};
    default: return {s, -c};
  }
}

template <int n>
struct Circle {
  Angle at[n];
  constexpr Circle() : at{} {
    for (int q = 0; q < n; ++q) at[q] = angle(q, n);
  }
};

}  // namespace detail

// Odd primes, dense: the points n and R - n enter by their sum and difference, so every product is real.
template <int R, bool inverse, class T, class V>
struct Butterfly {
  static_assert(R == 3 || R == 5 || R == 7 || R == 11 || R == 13 || R == 17 || R == 19);
  static SAGD_INLINE void run(Complex<V>* x) {
    constexpr int half = R / 2;
    constexpr detail::Circle<R> circle;  // a local one: device code cannot reach a variable of the host
    Complex<V> sum[half], difference[half], total = x[0];
    SAGD_UNROLL
    for (int n = 0; n < half; ++n) {
      sum[n] = x[n + 1] + x[R - 1 - n];
      difference[n] = quarter_turn<inverse>(x[n + 1] - x[R - 1 - n]);
      total = total + sum[n];
    }
    SAGD_UNROLL
    for (int k = 1; k <= half; ++k) {
      Complex<V> even = x[0], odd = difference[0] * T(circle.at[k].sin);
      SAGD_UNROLL
      for (int n = 0; n < half; ++n) {
        const detail::Angle w = circle.at[k * (n + 1) % R];
        even = even + sum[n] * T(w.cos);
        if (n > 0) odd = odd + difference[n] * T(w.sin);
      }
      x[k] = even + odd;
      x[R - k] = even - odd;
    }
    x[0] = total;
  }
};

template <bool inverse, class T, class V>
struct Butterfly<1, inverse, T, V> {
  static SAGD_INLINE void run(Complex<V>*) {}
};

template <bool inverse, class T, class V>
struct Butterfly<2, inverse, T, V> {
  static SAGD_INLINE void run(Complex<V>* x) {
    const Complex<V> a = x[0], b = x[1];
    x[0] = a + b;
    x[1] = a - b;
  }
};

template <bool inverse, class T, class V>
struct Butterfly<4, inverse, T, V> {
  static SAGD_INLINE void run(Complex<V>* x) {
    const Complex<V> a = x[0] + x[2], b = x[0] - x[2], c = x[1] + x[3];
    const Complex<V> d = quarter_turn<inverse>(x[1] - x[3]);
    x[0] = a + c;
    x[1] = b + d;
    x[2] = a - c;
    x[3] = b - d;
  }
};

template <bool inverse, class T, class V>
struct Butterfly<8, inverse, T, V> {
  static SAGD_INLINE void run(Complex<V>* x) {
    Complex<V> even[4] = {x[0], x[2], x[4], x[6]}, odd[4] = {x[1], x[3], x[5], x[7]};
    Butterfly<4, inverse, T, V>::run(even);
    Butterfly<4, inverse, T, V>::run(odd);
    const T h = T(0.70710678118654752440);
    const Complex<V> q1 = quarter_turn<inverse>(odd[1]), q3 = quarter_turn<inverse>(odd[3]);
    odd[1] = (odd[1] + q1) * h;
    odd[2] = quarter_turn<inverse>(odd[2]);
    odd[3] = (q3 - odd[3]) * h;
    SAGD_UNROLL
    for (int k = 0; k < 4; ++k) {
      x[k] = even[k] + odd[k];
      x[k + 4] = even[k] - odd[k];
    }
  }
};

// Any two factors: with n = B a + b and k = c + A d, the points of one b meet factors of exp(-2 pi i b c / (A B)).
template <int A, int B, bool inverse, class T, class V>
struct TwoStepButterfly {
  static SAGD_INLINE void run(Complex<V>* x) {
    constexpr int R = A * B;
    constexpr detail::Circle<R> circle;
    Complex<V> y[B][A];
    SAGD_UNROLL
    for (int b = 0; b < B; ++b) {
      SAGD_UNROLL
      for (int a = 0; a < A; ++a) y[b][a] = x[B * a + b];
      Butterfly<A, inverse, T, V>::run(y[b]);
    }
    SAGD_UNROLL
    for (int c = 0; c < A; ++c) {
      Complex<V> row[B];
      SAGD_UNROLL
      for (int b = 0; b < B; ++b) {
        const detail::Angle w = circle.at[b * c];
        row[b] = b * c == 0 ? y[b][c]
               : 4 * b * c == R ? quarter_turn<inverse>(y[b][c])
                                : rotate<inverse>(y[b][c], T(w.cos), T(-w.sin));
      }
      Butterfly<B, inverse, T, V>::run(row);
      SAGD_UNROLL
      for (int d = 0; d < B; ++d) x[c + A * d] = row[d];
    }
  }
};

template <bool inverse, class T, class V>
struct Butterfly<16, inverse, T, V> : TwoStepButterfly<4, 4, inverse, T, V> {};
template <bool inverse, class T, class V>
struct Butterfly<32, inverse, T, V> : TwoStepButterfly<4, 8, inverse, T, V> {};
template <bool inverse, class T, class V>
struct Butterfly<64, inverse, T, V> : TwoStepButterfly<8, 8, inverse, T, V> {};

// Coprime factors (Good, "The interaction algorithm and practical Fourier analysis", 1958): with
// n = B a + A b and k = c mod A, d mod B, the transform of A B points is two-dimensional, without twiddle factors.
template <int A, int B, bool inverse, class T, class V>
struct GoodButterfly {
  static SAGD_INLINE void run(Complex<V>* x) {
    constexpr int R = A * B;
    Complex<V> y[B][A];
    SAGD_UNROLL
    for (int b = 0; b < B; ++b) {
      SAGD_UNROLL
      for (int a = 0; a < A; ++a) y[b][a] = x[(B * a + A * b) % R];
      Butterfly<A, inverse, T, V>::run(y[b]);
    }
    SAGD_UNROLL
    for (int c = 0; c < A; ++c) {
      Complex<V> row[B];
      SAGD_UNROLL
      for (int b = 0; b < B; ++b) row[b] = y[b][c];
      Butterfly<B, inverse, T, V>::run(row);
      SAGD_UNROLL
      for (int d = 0; d < B; ++d) x[(from_c * c + from_d * d) % R] = row[d];
    }
  }

  static constexpr int inverse_modulo(int n, int modulus) {
    int i = 0;
    while (i * n % modulus != 1) ++i;
    return i;
  }
  static constexpr int from_c = B * inverse_modulo(B, A), from_d = A * inverse_modulo(A, B);
};

template <bool inverse, class T, class V>
struct Butterfly<6, inverse, T, V> : GoodButterfly<3, 2, inverse, T, V> {};
template <bool inverse, class T, class V>
struct Butterfly<10, inverse, T, V> : GoodButterfly<5, 2, inverse, T, V> {};
template <bool inverse, class T, class V>
struct Butterfly<12, inverse, T, V> : GoodButterfly<3, 4, inverse, T, V> {};
template <bool inverse, class T, class V>
struct Butterfly<14, inverse, T, V> : GoodButterfly<7, 2, inverse, T, V> {};
template <bool inverse, class T, class V>
struct Butterfly<28, inverse, T, V> : GoodButterfly<7, 4, inverse, T, V> {};

}  // namespace sagd
