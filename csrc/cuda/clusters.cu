#include "cuda/clusters.h"

#include "cuda/kernels.h"

namespace sagd::cuda {

bool takes_cluster(int64_t height, int64_t width) {
  bool takes = false;
  with_cluster_shape(height, width, [&]<class Shape>(const Shape&) {  // of other sizes the device is asked nothing
    // the kernel that needs most registers and shared memory
    const auto kernel = &kernel::whitened_mse<float, Shape>;
    takes = attribute(cudaDevAttrClusterLaunch) && Clusters<Shape>(kernel, true).resident() > 0;
  });
  return takes;
}

}  // namespace sagd::cuda
