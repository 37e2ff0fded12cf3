// The lane types of one instruction set, through the vector extensions of GCC and clang: loads, stores, conversions,
// register transposes. Included once per instruction set; everything lies in namespace sagd::SAGD_ISA, so that code
// compiled for one processor is never linked into the path of another.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "cpu/job.h"
#include "sagd/complex.h"

namespace sagd::SAGD_ISA {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(vector_bytes)));
};
template <class T>
using Vec = typename VectorOf<T>::type;
template <class T>
constexpr int lanes = vector_bytes / sizeof(T);

// With 32 registers a butterfly has room for the addresses and factors of data elsewhere; with 16 its points are spilt.
constexpr bool many_registers = vector_bytes == 64;

// The type that a stored type is computed in.
template <class S>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class S>
using Compute = typename ComputeOf<S>::type;

template <class To, class From>
SAGD_INLINE To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// The vector, number or pointer itself, in a register: the compiler does not know how it came about.
template <class V>
SAGD_INLINE V opaque(V v) {
#if defined(__x86_64__)
  if constexpr (std::is_scalar_v<V>) {
    asm("" : "+r"(v));
  } else {
    asm("" : "+v"(v));
  }
#elif defined(__aarch64__)
  if constexpr (std::is_scalar_v<V>) {
    asm("" : "+r"(v));
  } else {
    asm("" : "+w"(v));
  }
#endif
  return v;
}

// A value that is loaded once. Left to itself, the compiler folds a load into every instruction that uses the value;
// with wide vectors that takes more load slots than there are.
template <class V>
SAGD_INLINE V loaded(V v) {
  return many_registers ? opaque(v) : v;
}

// Hands out one piece of memory in parts. Parts of vectors come first, so that every part is aligned.
class Carver {
 public:
  explicit Carver(void* memory) : at_(static_cast<char*>(memory)) {}

  template <class Part>
  SAGD_INLINE Part* take(int64_t n) {
    char* const from = at_;
    at_ += n * sizeof(Part);
    return reinterpret_cast<Part*>(from);
  }

 private:
  char* at_;
};

// ---- one value -------------------------------------------------------------------------------------------------

SAGD_INLINE float widen(float x) { return x; }
SAGD_INLINE double widen(double x) { return x; }
SAGD_INLINE float widen(BFloat16 x) { return bits<float>(uint32_t(x.bits) << 16); }

SAGD_INLINE float widen(Half x) {
  // shifting a half's exponent and mantissa into place leaves the value times 2^-112, subnormals included
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = uint32_t(x.bits & 0x7fff) << 13;
  if (rest >= 0x0f800000) return bits<float>(sign | rest | 0x7f800000);
  return bits<float>(sign | bits<uint32_t>(bits<float>(rest) * 0x1p112f));
}

template <class S>
SAGD_INLINE S narrow(Compute<S> x);
template <>
SAGD_INLINE float narrow<float>(float x) { return x; }
template <>
SAGD_INLINE double narrow<double>(double x) { return x; }

template <>
SAGD_INLINE BFloat16 narrow<BFloat16>(float x) {
  const uint32_t b = bits<uint32_t>(x);
  if (x != x) return {uint16_t(b >> 16 | 0x40)};
  return {uint16_t((b + 0x7fff + (b >> 16 & 1)) >> 16)};
}

template <>
SAGD_INLINE Half narrow<Half>(float x) {
  const uint32_t b = bits<uint32_t>(x), sign = b >> 16 & 0x8000, magnitude = b & 0x7fffffff;
  if (magnitude > 0x7f800000) return {uint16_t(sign | 0x7e00)};
  if (magnitude >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // rounds to 2^16 or beyond: infinity
  if (magnitude < 0x38800000) {  // subnormal: adding 1/2 leaves the rounded multiple of 2^-24 in the lowest bits
    return {uint16_t(sign | (bits<uint32_t>(bits<float>(magnitude) + 0.5f) - 0x3f000000))};
  }
  return {uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13))};
}

// ---- vectors of consecutive values -----------------------------------------------------------------------------

template <class T>
SAGD_INLINE Vec<T> broadcast(T x) {
  return Vec<T>{} + x;
}

template <class S>
SAGD_INLINE Vec<Compute<S>> load(const S* from) {
  using T = Compute<S>;
  Vec<T> v;
  if constexpr (std::is_same_v<S, T>) {
    std::memcpy(&v, from, sizeof v);
  } else if constexpr (std::is_same_v<S, BFloat16>) {
    typedef uint16_t Packed __attribute__((vector_size(vector_bytes / 2)));
    Packed packed;
    std::memcpy(&packed, from, sizeof packed);
    v = (Vec<float>)(__builtin_convertvector(packed, Vec<uint32_t>) << 16);
#if defined(__AVX512F__)
  } else if constexpr (std::is_same_v<S, Half>) {
    v = (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)from));
#elif defined(__F16C__)
  } else if constexpr (std::is_same_v<S, Half>) {
    v = (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#endif
  } else {
    for (int i = 0; i < lanes<T>; ++i) v[i] = widen(from[i]);
  }
  return v;
}

template <class S>
SAGD_INLINE void store(S* to, Vec<Compute<S>> v) {
  using T = Compute<S>;
  if constexpr (std::is_same_v<S, T>) {
    std::memcpy(to, &v, sizeof v);
  } else if constexpr (std::is_same_v<S, BFloat16>) {
    const Vec<uint32_t> b = (Vec<uint32_t>)v;
    const Vec<uint32_t> rounded = (b + 0x7fff + (b >> 16 & 1)) >> 16, quiet = b >> 16 | 0x40;
    const Vec<uint32_t> half = v != v ? quiet : rounded;  // NaN stays NaN
    typedef uint16_t Packed __attribute__((vector_size(vector_bytes / 2)));
    const Packed packed = __builtin_convertvector(half, Packed);
    std::memcpy(to, &packed, sizeof packed);
#if defined(__AVX512F__)
  } else if constexpr (std::is_same_v<S, Half>) {
    _mm256_storeu_si256((__m256i*)to, _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  } else if constexpr (std::is_same_v<S, Half>) {
    _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#endif
  } else {
    for (int i = 0; i < lanes<T>; ++i) to[i] = narrow<S>(v[i]);
  }
}

// The first n values (0 < n <= lanes), the other lanes zero.
template <class S>
SAGD_INLINE Vec<Compute<S>> load_first(const S* from, int n) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<S, float>) return (Vec<float>)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), from);
#endif
  if (n >= lanes<Compute<S>>) return load(from);
  S padded[lanes<Compute<S>>] = {};
  std::memcpy(padded, from, n * sizeof(S));
  return load(padded);
}

template <class S>
SAGD_INLINE void store_first(S* to, Vec<Compute<S>> v, int n) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<S, float>) return _mm512_mask_storeu_ps(to, __mmask16((1u << n) - 1), (__m512)v);
#endif
  if (n >= lanes<Compute<S>>) return store(to, v);
  S padded[lanes<Compute<S>>];
  store(padded, v);
  std::memcpy(to, padded, n * sizeof(S));
}

// The first n values at a stride.
template <class S>
SAGD_INLINE Vec<Compute<S>> load_strided(const S* from, int64_t stride, int n) {
  Vec<Compute<S>> v = {};
  for (int i = 0; i < n; ++i) v[i] = widen(from[i * stride]);
  return v;
}

template <class S>
SAGD_INLINE Vec<Compute<S>> load_some(const S* from, int64_t stride, int n) {
  return stride == 1 ? load_first(from, n) : load_strided(from, stride, n);
}

SAGD_INLINE Vec<float> square_root(Vec<float> x) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_maskz_sqrt_ps(0xffff, (__m512)x);
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_sqrt_ps((__m256)x);
#else
  for (int i = 0; i < lanes<float>; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// ---- transposes ------------------------------------------------------------------------------------------------
// A vector is a row of 128-bit blocks. First each group of E rows is transposed inside the blocks (E values a block),
// then the blocks among the groups. Every shuffle is one instruction on AVX-512, AVX2 and SSE.

namespace detail {

template <class Index, class V, int... j>
SAGD_INLINE V shuffle(V a, V b, std::integer_sequence<int, j...>) {
  return __builtin_shufflevector(a, b, Index::of(j)...);
}

template <class Index, class T>
SAGD_INLINE Vec<T> shuffle(Vec<T> a, Vec<T> b) {
  return shuffle<Index>(a, b, std::make_integer_sequence<int, lanes<T>>{});
}

// In each block, the groups of `size` values of a's and b's lower (upper) half, in turn: a0 b0 a1 b1 ...
template <class T, int size, bool upper>
struct Interleave {
  static constexpr int per_block = 16 / sizeof(T);
  static constexpr int of(int j) {
    const int block = j / per_block * per_block, group = j % per_block / size;
    return (group % 2 ? lanes<T> : 0) + block + (upper ? per_block / 2 : 0) + group / 2 * size + j % size;
  }
};

// The even (odd) blocks of a, then those of b.
template <class T, bool odd>
struct SelectBlocks {
  static constexpr int per_block = 16 / sizeof(T), blocks = lanes<T> / per_block;
  static constexpr int of(int j) {
    const int block = j / per_block, half = blocks / 2;
    return (block < half ? 0 : lanes<T>) + (2 * (block % half) + odd) * per_block + j % per_block;
  }
};

}  // namespace detail

// Among four vectors of four blocks of four values: the values of each block are transposed.
template <class T>
SAGD_INLINE void transpose_values(Vec<T>& r0, Vec<T>& r1, Vec<T>& r2, Vec<T>& r3) {
  using namespace detail;
  const Vec<T> a = shuffle<Interleave<T, 1, false>, T>(r0, r1), b = shuffle<Interleave<T, 1, true>, T>(r0, r1);
  const Vec<T> c = shuffle<Interleave<T, 1, false>, T>(r2, r3), d = shuffle<Interleave<T, 1, true>, T>(r2, r3);
  r0 = shuffle<Interleave<T, 2, false>, T>(a, c);
  r1 = shuffle<Interleave<T, 2, true>, T>(a, c);
  r2 = shuffle<Interleave<T, 2, false>, T>(b, d);
  r3 = shuffle<Interleave<T, 2, true>, T>(b, d);
}

// The same of the blocks themselves.
template <class T>
SAGD_INLINE void transpose_blocks(Vec<T>& r0, Vec<T>& r1, Vec<T>& r2, Vec<T>& r3) {
  using namespace detail;
  const Vec<T> even01 = shuffle<SelectBlocks<T, false>, T>(r0, r1), odd01 = shuffle<SelectBlocks<T, true>, T>(r0, r1);
  const Vec<T> even23 = shuffle<SelectBlocks<T, false>, T>(r2, r3), odd23 = shuffle<SelectBlocks<T, true>, T>(r2, r3);
  r0 = shuffle<SelectBlocks<T, false>, T>(even01, even23);
  r1 = shuffle<SelectBlocks<T, false>, T>(odd01, odd23);
  r2 = shuffle<SelectBlocks<T, true>, T>(even01, even23);
  r3 = shuffle<SelectBlocks<T, true>, T>(odd01, odd23);
}

// r[i][j] -> r[j][i] for a square of lanes.
template <class T>
SAGD_INLINE void transpose(Vec<T>* r) {
  using namespace detail;
  constexpr int n = lanes<T>, per_block = 16 / sizeof(T), blocks = n / per_block;
#pragma GCC unroll 16
  for (int i = 0; i < n; i += per_block) {
    if constexpr (per_block == 4) {
      transpose_values<T>(r[i], r[i + 1], r[i + 2], r[i + 3]);
    } else {
      const Vec<T> a = r[i], b = r[i + 1];
      r[i] = shuffle<Interleave<T, 1, false>, T>(a, b);
      r[i + 1] = shuffle<Interleave<T, 1, true>, T>(a, b);
    }
  }
#pragma GCC unroll 16
  for (int e = 0; e < per_block; ++e) {
    if constexpr (blocks == 2) {
      const Vec<T> a = r[e], b = r[e + per_block];
      r[e] = shuffle<SelectBlocks<T, false>, T>(a, b);
      r[e + per_block] = shuffle<SelectBlocks<T, true>, T>(a, b);
    } else if constexpr (blocks == 4) {
      transpose_blocks<T>(r[e], r[e + per_block], r[e + 2 * per_block], r[e + 3 * per_block]);
    }
  }
}

}  // namespace sagd::SAGD_ISA
