// The lane types of one instruction set, through the vector extensions of GCC and clang: loads, stores, conversions,
// register transposes. Included once per instruction set; everything lies in namespace sagd::SAGD_ISA, so that code
// compiled for one processor is never linked into the path of another.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
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

// The bits of a stored value, and as many of them as a vector of what they are computed in has lanes.
template <class S>
using Bits = std::conditional_t<sizeof(S) == 2, uint16_t, S>;
template <class S>
struct PackedOf {
  typedef Bits<S> type __attribute__((vector_size(lanes<Compute<S>> * sizeof(S))));
};
template <class S>
using Packed = typename PackedOf<S>::type;

template <class S>
SAGD_INLINE Vec<Compute<S>> unpack(Packed<S> packed) {
  if constexpr (std::is_same_v<S, Compute<S>>) {
    return packed;
  } else if constexpr (std::is_same_v<S, BFloat16>) {
    return (Vec<float>)(__builtin_convertvector(packed, Vec<uint32_t>) << 16);
  } else {
#if defined(__AVX512F__)
    return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, (__m256i)packed);
#elif defined(__F16C__)
    return (Vec<float>)_mm256_cvtph_ps((__m128i)packed);
#elif defined(__aarch64__)
    return (Vec<float>)vcvt_f32_f16((float16x4_t)packed);
#else
    Vec<float> v;
    for (int i = 0; i < lanes<float>; ++i) v[i] = widen(Half{packed[i]});
    return v;
#endif
  }
}

template <class S>
SAGD_INLINE Packed<S> pack(Vec<Compute<S>> v) {
  if constexpr (std::is_same_v<S, Compute<S>>) {
    return v;
  } else if constexpr (std::is_same_v<S, BFloat16>) {
    const Vec<uint32_t> b = (Vec<uint32_t>)v;
    const Vec<uint32_t> rounded = (b + 0x7fff + (b >> 16 & 1)) >> 16, quiet = b >> 16 | 0x40;
    const Vec<uint32_t> half = v != v ? quiet : rounded;  // NaN stays NaN
    return __builtin_convertvector(half, Packed<S>);
  } else {
#if defined(__AVX512F__)
    return (Packed<S>)_mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
    return (Packed<S>)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__aarch64__)
    return (Packed<S>)vcvt_f16_f32((float32x4_t)v);
#else
    Packed<S> packed;
    for (int i = 0; i < lanes<float>; ++i) packed[i] = narrow<Half>(v[i]).bits;
    return packed;
#endif
  }
}

template <class S>
SAGD_INLINE Vec<Compute<S>> load(const S* from) {
  Packed<S> packed;
  std::memcpy(&packed, from, sizeof packed);
  return unpack<S>(packed);
}

template <class S>
SAGD_INLINE void store(S* to, Vec<Compute<S>> v) {
  const Packed<S> packed = pack<S>(v);
  std::memcpy(to, &packed, sizeof packed);
}

namespace detail {

// A vector's halves.
template <class V>
struct HalvesOf {
  using Value = std::remove_cvref_t<decltype(V{}[0])>;
  typedef Value type __attribute__((vector_size(sizeof(V) / 2)));
  static constexpr int n = sizeof(type) / sizeof(Value);
};
template <class V>
using HalfVector = typename HalvesOf<V>::type;

template <class V, int... i>
SAGD_INLINE HalfVector<V> lower(V v, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(v, v, i...);
}
template <class V, int... i>
SAGD_INLINE HalfVector<V> upper(V v, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(v, v, (HalvesOf<V>::n + i)...);
}
template <class V, int... i>
SAGD_INLINE V joined(HalfVector<V> lower, HalfVector<V> upper, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(lower, upper, i...);
}

// The first n values, 0 <= n < their number, in pieces of half the size, a quarter ... To load what was just stored in
// smaller pieces would make the processor wait.
template <class V, class Value>
SAGD_INLINE V load_pieces(const Value* from, int n) {
  constexpr int half = sizeof(V) / sizeof(Value) / 2;
  if constexpr (half == 0) {
    return V{};
  } else {
    using H = HalfVector<V>;
    H piece = {};
    if (n & half) std::memcpy(&piece, from, sizeof piece);
    const H rest = load_pieces<H>(from + (n & half), n & (half - 1));
    constexpr auto all = std::make_integer_sequence<int, 2 * half>{};
    return n & half ? joined<V>(piece, rest, all) : joined<V>(rest, H{}, all);
  }
}

template <class V, class Value>
SAGD_INLINE void store_pieces(Value* to, V v, int n) {
  constexpr int half = sizeof(V) / sizeof(Value) / 2;
  if constexpr (half > 0) {
    constexpr auto of_half = std::make_integer_sequence<int, half>{};
    HalfVector<V> rest = lower(v, of_half);
    if (n & half) {
      std::memcpy(to, &rest, sizeof rest);
      rest = upper(v, of_half);
    }
    store_pieces(to + (n & half), rest, n & (half - 1));
  }
}

}  // namespace detail

// The first n values (0 < n <= lanes), the other lanes zero.
template <class S>
SAGD_INLINE Vec<Compute<S>> load_first(const S* from, int n) {
#if defined(__AVX512F__)
  const uint32_t mask = (1u << n) - 1;
  if constexpr (std::is_same_v<S, float>) return (Vec<float>)_mm512_maskz_loadu_ps(__mmask16(mask), from);
  if constexpr (std::is_same_v<S, double>) return (Vec<double>)_mm512_maskz_loadu_pd(__mmask8(mask), from);
  if constexpr (sizeof(S) == 2) return unpack<S>((Packed<S>)_mm256_maskz_loadu_epi16(__mmask16(mask), from));
#else
  if (n >= lanes<Compute<S>>) return load(from);
#if defined(__AVX2__)
  if constexpr (std::is_same_v<S, float>) {
    const Vec<int32_t> lane = {0, 1, 2, 3, 4, 5, 6, 7};
    return (Vec<float>)_mm256_maskload_ps(from, (__m256i)(lane < n));
  }
#endif
  return unpack<S>(detail::load_pieces<Packed<S>>(reinterpret_cast<const Bits<S>*>(from), n));
#endif
}

template <class S>
SAGD_INLINE void store_first(S* to, Vec<Compute<S>> v, int n) {
#if defined(__AVX512F__)
  const uint32_t mask = (1u << n) - 1;
  if constexpr (std::is_same_v<S, float>) return _mm512_mask_storeu_ps(to, __mmask16(mask), (__m512)v);
  if constexpr (std::is_same_v<S, double>) return _mm512_mask_storeu_pd(to, __mmask8(mask), (__m512d)v);
  if constexpr (sizeof(S) == 2) return _mm256_mask_storeu_epi16(to, __mmask16(mask), (__m256i)pack<S>(v));
#else
  if (n >= lanes<Compute<S>>) return store(to, v);
  detail::store_pieces(reinterpret_cast<Bits<S>*>(to), pack<S>(v), n);
#endif
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
#elif defined(__x86_64__)
  return (Vec<float>)_mm_sqrt_ps((__m128)x);
#elif defined(__aarch64__)
  return (Vec<float>)vsqrtq_f32((float32x4_t)x);
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
