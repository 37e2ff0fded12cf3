#include <string>

#include "cuda/clusters.h"
#include "cuda/large_host.h"
#include "cuda/operators.h"

namespace sagd::cuda {
namespace {

template <class A>
std::string describe(const A& axis) {
  std::string text;
  for (int s = 0; s < axis.stages; ++s) text += (s ? " x " : "") + std::to_string(axis.radix(s));
  return text;
}

// All files are compiled for the same kinds of GPU, so any kernel tells whether there is code for one.
__global__ void any_kernel() {}

}  // namespace

std::string describe_plan(int64_t height, int64_t width, int64_t shared_bytes_) {
  const size_t limit = size_t(shared_bytes_);
  if (limit == 0) return "";
  if (limit == size_t(shared_bytes_per_block()) && takes_cluster(height, width)) {  // the current device
    std::string text;
    with_cluster_shape(height, width, [&](const auto& shape) {
      text = "columns " + describe(shape.columns) + ", rows " + describe(shape.rows) + " points, in clusters of " +
             std::to_string(shape.ranks) + " blocks";
    });
    return text;
  }
  if (!fits_block(height, width, limit)) {
    const auto passes = passes_for(height, width, limit);
    if (!passes) return "";
    std::string text = "three passes: rows ";
    with_line_shape(passes->rows, [&](const auto& shape) { text += describe(shape.axis); });
    text += " points, " + std::to_string(passes->rows.lines) + " pairs at a time, columns ";
    with_line_shape(passes->columns, [&](const auto& shape) { text += describe(shape.axis); });
    return text + " points, " + std::to_string(passes->columns.lines) + " at a time";
  }
  std::string text;
  with_shape(height, width, [&](const auto& shape) {
    text = "columns " + describe(shape.columns) + ", rows " + describe(shape.rows) + " points, " +
           std::to_string(shape.threads) + " threads a plane";
    if (!stages_weight(shape, limit)) text += ", weight read from memory";
  });
  return text;
}

void use_device(int index) { SAGD_CHECK(cudaSetDevice(index)); }

int64_t shared_bytes_per_block(int device) {
  int bytes = 0;
  cudaFuncAttributes code;
  if ((device < 0 ? cudaGetDevice(&device) : cudaSetDevice(device)) == cudaSuccess &&
      cudaFuncGetAttributes(&code, any_kernel) == cudaSuccess &&
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess) {
    return bytes;
  }
  cudaGetLastError();  // no device is no error, nor one of another kind
  return 0;
}

}  // namespace sagd::cuda
