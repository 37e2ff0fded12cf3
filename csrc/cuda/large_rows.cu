#include "cuda/large_rows.h"

#include "cuda/launch.h"

namespace sagd::cuda {

void forward_rows(const Pass& pass, void* stream) {
  with_stored_type(pass.job.dtype, [&]<class S>() { launch_lines(&kernel::forward_rows<S>, pass, stream); });
}

void inverse_rows(const Pass& pass, void* stream) {
  with_stored_type(pass.job.dtype, [&]<class S>() { launch_lines(&kernel::inverse_rows<S>, pass, stream); });
}

}  // namespace sagd::cuda
