// Complex arithmetic on any lane type: float or double on a GPU thread, a SIMD vector of either on a CPU.
#pragma once

#if defined(__CUDACC__)
#define SAGD_INLINE __host__ __device__ __forceinline__
#define SAGD_UNROLL _Pragma("unroll")
#define SAGD_UNROLL_TWICE _Pragma("unroll 2")
#else
#define SAGD_INLINE inline __attribute__((always_inline))
#define SAGD_UNROLL _Pragma("GCC unroll 16")
#define SAGD_UNROLL_TWICE
#endif

namespace sagd {

// Of floats it is aligned as a whole, as a GPU thread reads and writes one: in a single access.
template <class V>
struct alignas(sizeof(V) == sizeof(float) ? 2 * sizeof(V) : alignof(V)) Complex {
  V re, im;
};

template <class V>
SAGD_INLINE Complex<V> operator+(Complex<V> a, Complex<V> b) {
  return {a.re + b.re, a.im + b.im};
}

template <class V>
SAGD_INLINE Complex<V> operator-(Complex<V> a, Complex<V> b) {
  return {a.re - b.re, a.im - b.im};
}

// a times a factor, real or of the lane type
template <class V, class T>
SAGD_INLINE Complex<V> operator*(Complex<V> a, T factor) {
  return {a.re * factor, a.im * factor};
}

// i a for the inverse transform, -i a for the forward one
template <bool inverse, class V>
SAGD_INLINE Complex<V> quarter_turn(Complex<V> a) {
  return inverse ? Complex<V>{-a.im, a.re} : Complex<V>{a.im, -a.re};
}

// a (c + i s), or a (c - i s) for the inverse transform
template <bool inverse, class V, class T>
SAGD_INLINE Complex<V> rotate(Complex<V> a, T c, T s) {
  return inverse ? Complex<V>{a.re * c + a.im * s, a.im * c - a.re * s}
                 : Complex<V>{a.re * c - a.im * s, a.im * c + a.re * s};
}

}  // namespace sagd
