// Launches of kernels whose planes take a cluster of blocks.
#pragma once

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

#include "cuda/cluster.h"
#include "cuda/runtime.h"
#include "cuda/shapes.h"

namespace sagd::cuda {

// Whether planes of this size take clusters on the current device, if there is one.
bool takes_cluster(int64_t height, int64_t width);

// A kernel's clusters on the current device.
template <class Shape>
class Clusters {
 public:
  Clusters(void (*kernel)(const Call<Shape>), bool measure)
      : kernel_(kernel), bytes_(ClusterMemory<Shape>(nullptr, measure).bytes) {
    size_.id = cudaLaunchAttributeClusterDimension;
    size_.val.clusterDim.x = Shape::ranks;
    size_.val.clusterDim.y = size_.val.clusterDim.z = 1;
  }

  // How many run at a time, asked for once.
  int resident() {
    static std::mutex mutex;
    static std::map<std::tuple<int, void (*)(const Call<Shape>)>, int> known;
    int device = 0;
    SAGD_CHECK(cudaGetDevice(&device));
    const std::tuple key(device, kernel_);
    const std::lock_guard<std::mutex> lock(mutex);
    if (const auto found = known.find(key); found != known.end()) return found->second;
    if (bytes_ > size_t(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin))) return known[key] = 0;
    SAGD_CHECK(cudaFuncSetAttribute(kernel_, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes_)));
    const cudaLaunchConfig_t config = clusters(1, nullptr);
    int count = 0;
    SAGD_CHECK(cudaOccupancyMaxActiveClusters(&count, kernel_, &config));
    return known[key] = count;
  }

  void launch(const Call<Shape>& call, void* stream) {
    const cudaLaunchConfig_t config = clusters(std::min<int64_t>(call.job.planes, resident()), stream);
    SAGD_CHECK(cudaLaunchKernelEx(&config, kernel_, call));
  }

 private:
  cudaLaunchConfig_t clusters(int64_t count, void* stream) {
    const dim3 grid{unsigned(Shape::ranks * count)}, block{unsigned(Shape::threads)};
    return {grid, block, bytes_, static_cast<cudaStream_t>(stream), &size_, 1};
  }

  void (*kernel_)(const Call<Shape>);
  size_t bytes_;
  cudaLaunchAttribute size_{};
};

}  // namespace sagd::cuda
