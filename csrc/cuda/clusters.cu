#include "cuda/clusters.h"

#include "cuda/kernels.h"

namespace sagd::cuda {

bool takes_cluster(int64_t height, int64_t width) {
  bool takes = false;
  with_cluster_shape(height, width, [&]<class Shape>(const Shape&) {  // of other sizes the device is asked nothing
    int device = 0, clusters = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, device) != cudaSuccess) {
      cudaGetLastError();  // no device is no error
      return;
    }
    // the kernel that needs most registers and shared memory
    takes = clusters && Clusters<Shape>(&kernel::whitened_mse<float, Shape>, true).resident() > 0;
  });
  return takes;
}

}  // namespace sagd::cuda
