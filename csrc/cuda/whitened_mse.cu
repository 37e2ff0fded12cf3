#include "cuda/launch.h"

namespace sagd::cuda {

constexpr int mean_threads = 256;

static __global__ void __launch_bounds__(mean_threads) mean_of(const double* plane_loss, int64_t planes, float* loss) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  double* parts = reinterpret_cast<double*>(shared_memory);
  double sum = 0;
  for (int64_t plane = threadIdx.x; plane < planes; plane += mean_threads) sum += plane_loss[plane];
  parts[threadIdx.x] = sum;
  for (int n = mean_threads / 2; n > 0; n /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < n) parts[threadIdx.x] += parts[threadIdx.x + n];
  }
  if (threadIdx.x == 0) *loss = float(parts[0] / double(planes));
}

void whitened_mse(const Job& job, void* stream) {
  with_kernel(job, [&]<class S, class Shape>(const Shape& shape) {
    launch(&kernel::whitened_mse<S, Shape>, job, shape, true, stream);
  });
}

void mean_loss(const double* plane_loss, int64_t planes, float* loss, void* stream) {
  void* arguments[] = {&plane_loss, &planes, &loss};
  SAGD_CHECK(cudaLaunchKernel(&mean_of, dim3(1), dim3(mean_threads), arguments, mean_threads * sizeof(double),
                              static_cast<cudaStream_t>(stream)));
}

}  // namespace sagd::cuda
