#include <string>

#include "cuda/error.h"
#include "cuda/operators.h"
#include "cuda/shapes.h"

namespace sagd::cuda {
namespace {

template <class A>
std::string describe(const A& axis) {
  std::string text;
  for (int s = 0; s < axis.stages; ++s) text += (s ? " x " : "") + std::to_string(axis.radix(s));
  return text;
}

}  // namespace

std::string describe_plan(int64_t height, int64_t width, int64_t shared_bytes_) {
  std::string text;
  with_shape(height, width, [&](const auto& shape) {
    // the loss holds most: what fits it fits every operator
    if (shared_bytes(shape, 1, 0, true) > size_t(shared_bytes_)) return;
    text = "columns " + describe(shape.columns) + ", rows " + describe(shape.rows) + " points, " +
           std::to_string(shape.threads) + " threads a plane";
    if (shared_bytes(shape, 1, 1, true) > size_t(shared_bytes_)) text += ", weight read from memory";
  });
  return text;
}

void use_device(int index) { SAGD_CHECK(cudaSetDevice(index)); }

int64_t shared_bytes_per_block() {
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) == cudaSuccess &&
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess) {
    return bytes;
  }
  cudaGetLastError();  // no device is no error
  return 0;
}

}  // namespace sagd::cuda
