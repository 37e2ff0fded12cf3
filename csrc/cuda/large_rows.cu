#include "cuda/large_rows.h"

#include "cuda/launch.h"

namespace sagd::cuda {

void forward_rows(const Chunk& chunk, const Passes& passes, void* stream) {
  with_stored_type(chunk.job.dtype, [&]<class S>() {
    with_line_shape(passes.rows, [&]<class Shape>(const Shape& shape) {
      launch_lines(&kernel::forward_rows<S, Shape>, chunk, shape, passes.row_bundles, stream);
    });
  });
}

void inverse_rows(const Chunk& chunk, const Passes& passes, void* stream) {
  with_stored_type(chunk.job.dtype, [&]<class S>() {
    with_line_shape(passes.rows, [&]<class Shape>(const Shape& shape) {
      launch_lines(&kernel::inverse_rows<S, Shape>, chunk, shape, passes.row_bundles, stream);
    });
  });
}

int resident_row_blocks(const Job& job, const Passes& passes) {
  int blocks = 0;
  with_stored_type(job.dtype, [&]<class S>() {
    with_line_shape(passes.rows, [&]<class Shape>(const Shape& shape) {
      blocks = resident_blocks(&kernel::inverse_rows<S, Shape>, shape.threads, LineMemory(nullptr, shape).bytes);
    });
  });
  return blocks;
}

}  // namespace sagd::cuda
