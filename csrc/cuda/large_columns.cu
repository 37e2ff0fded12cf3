#include "cuda/large_columns.h"

#include "cuda/launch.h"

namespace sagd::cuda {

void filter_columns(const Pass& pass, void* stream) {
  launch_lines(pass.job.plane_loss ? &kernel::filter_columns<WeightMap::inverse_square>
                                   : &kernel::filter_columns<WeightMap::value>,
               pass, stream);
}

void draw_columns(const Pass& pass, void* stream) { launch_lines(&kernel::draw_columns, pass, stream); }

void plane_losses(const Pass& pass, void* stream) {
  constexpr unsigned threads = 128, most_blocks = 1024;
  const int64_t blocks = (pass.job.planes + threads - 1) / threads;
  void* arguments[] = {const_cast<Pass*>(&pass)};
  SAGD_CHECK(cudaLaunchKernel(&kernel::plane_losses, dim3(unsigned(std::min<int64_t>(blocks, most_blocks))),
                              dim3(threads), arguments, 0, static_cast<cudaStream_t>(stream)));
}

}  // namespace sagd::cuda
