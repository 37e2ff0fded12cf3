#include "cuda/launch.h"

namespace sagd::cuda {

void spectral_filter(const Job& job, void* workspace, void* stream) {
  with_kernel(job, workspace, stream, [&]<class S, class Shape>(const Shape& shape) {
    launch(&kernel::spectral_filter<S, Shape>, job, shape, false, workspace, stream);
  });
}

}  // namespace sagd::cuda
