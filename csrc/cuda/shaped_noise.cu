#include "cuda/launch.h"

namespace sagd::cuda {

void shaped_noise(const Job& job, void* workspace, void* stream) {
  with_kernel<true>(job, workspace, stream, [&]<class S, class Shape>(const Shape& shape) {
    launch(&kernel::shaped_noise<false, S, Shape>, job, shape, false, workspace, stream);
  });
}

}  // namespace sagd::cuda
