// What the kernels are asked to do: raw pointers, sizes and strides. No torch types here or below.
#pragma once

#include <cstdint>

#include "complex.h"

namespace sagd {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

enum class Dtype { float32, float64, bfloat16, float16 };

constexpr int max_batch_dims = 16;

// Maps the number of a plane in its batch (row-major over the batch dimensions) to an element offset.
// Dimensions that can be merged are merged, so most tensors have one or none.
struct BatchIndex {
  int dims = 0;
  int64_t size[max_batch_dims], stride[max_batch_dims];

  // always inlined: a copy compiled for one instruction set must not become everyone's
  SAGD_INLINE int64_t offset(int64_t plane) const {
    int64_t at = 0;
    for (int d = dims - 1; d > 0; --d) {
      const int64_t whole = quotient(plane, size[d]);
      at += (plane - whole * size[d]) * stride[d];
      plane = whole;
    }
    return dims > 0 ? at + plane * stride[0] : 0;
  }

 private:
  // of numbers that are not negative: on a GPU a division of 64 bits takes as long as a dozen pixels
  static SAGD_INLINE int64_t quotient(int64_t n, int64_t divisor) {
    if ((uint64_t(n) | uint64_t(divisor)) >> 32) return n / divisor;
    return uint32_t(n) / uint32_t(divisor);
  }
};

// A tensor [..., rows, columns] with any strides, broadcast to the batch; strides count elements.
struct Planes {
  const void* data = nullptr;
  int64_t row_stride = 0, column_stride = 0;
  BatchIndex batch;
};

// One factor per plane, broadcast to the batch.
struct Factors {
  const void* data = nullptr;  // null: 1
  Dtype dtype = Dtype::float32;
  BatchIndex batch;
};

// Calls f(begin, end, context) for ranges that make up [0, n), on several threads at once; returns when all are done.
using Parallel = void (*)(int64_t n, void (*f)(int64_t begin, int64_t end, void* context), void* context);

// One call of an operator on `planes` planes of height x width. Outputs are contiguous. The weight is float32, or
// float64 if the planes are; input, target and outputs share `dtype`.
struct Job {
  int64_t planes, height, width;
  Dtype dtype;
  Planes input, target, weight;
  Factors scale;         // of the result (spectral_filter, shaped_noise) or of the noise (add_noise)
  Factors signal_scale;  // of the input (add_noise)
  const uint64_t* keys = nullptr;  // (seed, offset) pairs, one for each run of planes_per_key planes
  int64_t planes_per_key = 1;
  uint64_t plane_offset = 0;
  void* output = nullptr;
  void* noise = nullptr;        // add_noise: the noise itself; output is the noisy input
  double* plane_loss = nullptr;  // whitened_mse: one mean per plane
  Parallel parallel = nullptr;   // CPU: who shares each plane; null: this thread has it for itself
};

}  // namespace sagd
