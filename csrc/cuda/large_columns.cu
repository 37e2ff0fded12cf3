#include "cuda/large_columns.h"

#include "cuda/large_host.h"

namespace sagd::cuda {

void filter_columns(const Chunk& chunk, const Passes& passes, void* stream) {
  with_line_shape(passes.columns, [&]<class Shape>(const Shape& shape) {
    launch_lines(chunk.job.plane_loss ? &kernel::filter_columns<WeightMap::inverse_square, Shape>
                                      : &kernel::filter_columns<WeightMap::value, Shape>,
                 chunk, shape, passes.slabs, stream);
  });
}

void draw_columns(const Chunk& chunk, const Passes& passes, void* stream) {
  with_line_shape(passes.columns, [&]<class Shape>(const Shape& shape) {
    launch_lines(&kernel::draw_columns<Shape>, chunk, shape, passes.slabs, stream);
  });
}

void plane_losses(const Chunk& chunk, void* stream) {
  constexpr unsigned threads = 128, most_blocks = 1024;
  const int64_t blocks = (chunk.job.planes + threads - 1) / threads;
  void* arguments[] = {const_cast<Chunk*>(&chunk)};
  SAGD_CHECK(cudaLaunchKernel(&kernel::plane_losses, dim3(unsigned(std::min<int64_t>(blocks, most_blocks))),
                              dim3(threads), arguments, 0, static_cast<cudaStream_t>(stream)));
}

}  // namespace sagd::cuda
