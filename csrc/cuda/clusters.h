// Launches of kernels whose planes take a cluster of blocks.
#pragma once

#include <algorithm>

#include "cuda/cluster.h"
#include "cuda/runtime.h"
#include "cuda/shapes.h"

namespace sagd::cuda {

// Whether planes of this size take clusters on the current device.
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

  // How many run at a time.
  int resident() {
    return ask_once(kernel_, [&](int limit) {
      cudaFuncAttributes code{};
      SAGD_CHECK(cudaFuncGetAttributes(&code, kernel_));
      int count = 0;
      if (bytes_ > size_t(limit) || code.ptxVersion < first_with_clusters) return count;
      const cudaLaunchConfig_t config = clusters(1, nullptr);
      SAGD_CHECK(cudaOccupancyMaxActiveClusters(&count, kernel_, &config));
      return count;
    });
  }

  void launch(const Call<Shape>& call, void* stream) {
    const cudaLaunchConfig_t config = clusters(std::min<int64_t>(call.job.planes, resident()), stream);
    SAGD_CHECK(cudaLaunchKernelEx(&config, kernel_, call));
  }

 private:
  // Compute capability times ten. A newer GPU may run code that was compiled for an older one, which has none in it.
  static constexpr int first_with_clusters = 90;

  cudaLaunchConfig_t clusters(int64_t count, void* stream) {
    const dim3 grid{unsigned(Shape::ranks * count)}, block{unsigned(Shape::threads)};
    return {grid, block, bytes_, static_cast<cudaStream_t>(stream), &size_, 1};
  }

  void (*kernel_)(const Call<Shape>);
  size_t bytes_;
  cudaLaunchAttribute size_{};
};

}  // namespace sagd::cuda
