// Plans of the one-dimensional transforms: how a length is factored, and every constant that its stages need.
#pragma once

namespace sagd {

template <class T>
struct Plan;

// A prime length above 19: dense while that is cheapest, else a cyclic convolution by shorter transforms.
enum class PrimeMethod { dense, rader, bluestein };

template <class T>
struct PrimePlan {
  PrimeMethod method;
  int length;
  const Plan<T>* convolution;  // Rader: length - 1; Bluestein: a smooth length of at least 2 length - 1
  const int* gather;           // Rader: g^p mod length, the input's order
  const int* scatter;          // Rader: g^-q mod length, the output's order
  const T* chirp;              // Bluestein: exp(-i pi n^2 / length), (re, im) pairs
  const T* kernel;             // (re, im) pairs. dense: exp(-2 pi i k / length); else the kernel's transform in the
                               // convolution's digit order, divided by its length
};

// One stage of a transform in place: blocks x span butterflies of `radix` points that lie `span` apart.
template <class T>
struct Stage {
  int radix, span, blocks;
  const T* twiddle;           // [span][radix - 1] (re, im) pairs: exp(-2 pi i q m / (radix span)), m = 1 .. radix - 1
  const PrimePlan<T>* prime;  // null where a butterfly in registers exists
};

// Forward: decimation in frequency, natural order in, digit order out. Inverse: the stages backwards, decimation in
// time, digit order in, natural order out; not normalised. Nothing is ever reordered.
template <class T>
struct Plan {
  int length;
  int stages;
  const Stage<T>* stage;
  const int* position;  // where the forward transform leaves frequency k
  const int* mirror;    // for each position, where it leaves the negative of that frequency
  const int* half;      // the frequencies 0 .. (length - 1) / 2, as they come
  int scratch;          // complex vectors that the primes need
  double cost;          // arithmetic operations per transform of one lane, an estimate
};

// The plan of a length >= 1; made once, kept for the life of the process, safe to call from any thread.
template <class T>
const Plan<T>& plan(int length);

// Roots of unity for the lanes of vectors (lane_plane.h), for a width of 32 V: for each vector the real parts of 16, then
// the imaginary parts, aligned to 64 bytes.
template <class T>
struct LaneRoots {
  const T* halves;  // [v]: exp(-2 pi i (16 v + lane) / width)
  const T* units;   // [v]: exp(-2 pi i 2 v lane / width)
  const T* values;  // [k], k < 4: exp(-2 pi i k (lane mod 4) / 16)
};

// Those of a width; made once, kept and safe to call as plans are.
template <class T>
const LaneRoots<T>& lane_roots(int width);

}  // namespace sagd
