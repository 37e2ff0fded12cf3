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

}  // namespace sagd::cuda
