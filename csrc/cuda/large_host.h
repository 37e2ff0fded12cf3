// The passes of large.h as the host sees them.
#pragma once

#include <optional>

#include "cuda/runtime.h"
#include "cuda/shapes.h"

namespace sagd::cuda {

// How planes of one size take the passes.
struct Passes {
  AnyLines rows, columns;
  int row_bundles, slabs;
};

// Empty where an axis has no transform, or a block no room for one line.
inline std::optional<Passes> passes_for(int64_t height, int64_t width, size_t shared_limit) {
  const auto rows = line_shape(width, shared_limit), columns = line_shape(height, shared_limit);
  if (!rows || !columns) return {};
  const auto bundles = [](int64_t n, const AnyLines& shape) { return int((n + shape.lines - 1) / shape.lines); };
  return Passes{*rows, *columns, bundles((height + 1) / 2, *rows), bundles((width + 1) / 2, *columns)};
}

// All passes of a job, chunk by chunk. The workspace has workspace_bytes(job) bytes.
void run_passes(const Job& job, void* workspace, void* stream);

// Each queues one pass of a chunk.
void forward_rows(const Chunk& chunk, const Passes& passes, void* stream);
void filter_columns(const Chunk& chunk, const Passes& passes, void* stream);
void draw_columns(const Chunk& chunk, const Passes& passes, void* stream);
void inverse_rows(const Chunk& chunk, const Passes& passes, void* stream);
// plane_loss of all planes of the job, after the last chunk
void plane_losses(const Chunk& chunk, void* stream);

// Blocks of a pass along rows that the device holds at a time.
int resident_row_blocks(const Job& job, const Passes& passes);

// Blocks of a kernel that the current device holds at a time.
template <class Kernel>
int resident_blocks(Kernel kernel, int threads, size_t shared_bytes) {
  const auto ask = [=](int) {
    int blocks = 0;
    SAGD_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes));
    return blocks * attribute(cudaDevAttrMultiProcessorCount);
  };
  return ask_once(kernel, ask, threads, shared_bytes);
}

template <class Shape>
void launch_lines(void (*kernel)(const Pass<Shape>), const Chunk& chunk, const Shape& shape, int bundles,
                  void* stream) {
  Pass<Shape> pass{chunk, shape, bundles};
  const size_t bytes = LineMemory(nullptr, shape).bytes;
  const dim3 grid(unsigned(std::min<int64_t>(chunk.planes * bundles, resident_blocks(kernel, shape.threads, bytes))));
  void* arguments[] = {&pass};
  SAGD_CHECK(cudaLaunchKernel(kernel, grid, dim3(unsigned(shape.threads)), arguments, bytes,
                              static_cast<cudaStream_t>(stream)));
}

}  // namespace sagd::cuda
