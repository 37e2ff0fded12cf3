#include "cuda/launch.h"

namespace sagd::cuda {

void spectral_filter(const Job& job, void* stream) {
  with_kernel(job, [&]<class S, class Shape>(const Shape& shape) {
    launch(&kernel::spectral_filter<S, Shape>, job, shape, false, stream);
  });
}

}  // namespace sagd::cuda
