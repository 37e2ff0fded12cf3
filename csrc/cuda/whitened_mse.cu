#include "cuda/launch.h"

namespace sagd::cuda {

constexpr int mean_threads = 256;

void whitened_mse(const Job& job, void* workspace, void* stream) {
  with_kernel(job, workspace, stream, [&]<class S, class Shape>(const Shape& shape) {
    launch(&kernel::whitened_mse<S, Shape>, job, shape, true, workspace, stream);
  });
}

void mean_loss(const double* plane_loss, int64_t planes, float* loss, void* stream) {
  void* arguments[] = {&plane_loss, &planes, &loss};
  SAGD_CHECK(cudaLaunchKernel(&mean_of<mean_threads>, dim3(1), dim3(mean_threads), arguments, mean_threads * sizeof(double),
                              static_cast<cudaStream_t>(stream)));
}

}  // namespace sagd::cuda
