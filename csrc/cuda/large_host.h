// The passes of large.h as the host sees them.
#pragma once

#include <map>
#include <mutex>
#include <optional>
#include <tuple>

#include "cuda/runtime.h"
#include "cuda/shapes.h"

namespace sagd::cuda {

// How planes of one size take the passes.
struct Passes {
  LineShape rows, columns;
  int row_bundles, slabs;
};

// Empty where an axis has no transform, or a block no room for one line.
inline std::optional<Passes> passes_for(int64_t height, int64_t width, size_t shared_limit) {
  const auto rows = line_shape(width, shared_limit), columns = line_shape(height, shared_limit);
  if (!rows || !columns) return {};
  const auto bundles = [](int64_t lines, const LineShape& shape) { return int((lines + shape.lines - 1) / shape.lines); };
  return Passes{*rows, *columns, bundles((height + 1) / 2, *rows), bundles((width + 1) / 2, *columns)};
}

// All passes of a job, chunk by chunk. The workspace has workspace_bytes(job) bytes.
void run_passes(const Job& job, void* workspace, void* stream);

// Each queues one pass.
void forward_rows(const Pass& pass, void* stream);
void filter_columns(const Pass& pass, void* stream);
void draw_columns(const Pass& pass, void* stream);
void inverse_rows(const Pass& pass, void* stream);
void plane_losses(const Pass& pass, void* stream);

// Blocks of a kernel that the current device holds at a time, asked for once.
template <class Kernel>
int resident_blocks(Kernel kernel, int threads, size_t shared_bytes) {
  static std::mutex mutex;
  static std::map<std::tuple<int, Kernel, int, size_t>, int> known;
  int device = 0;
  SAGD_CHECK(cudaGetDevice(&device));
  const std::tuple key(device, kernel, threads, shared_bytes);
  const std::lock_guard<std::mutex> lock(mutex);
  if (const auto found = known.find(key); found != known.end()) return found->second;
  const int limit = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  SAGD_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit));
  int blocks = 0;
  SAGD_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes));
  return known[key] = blocks * attribute(cudaDevAttrMultiProcessorCount);
}

inline void launch_lines(void (*kernel)(const Pass), Pass pass, void* stream) {
  const size_t bytes = LineMemory(nullptr, pass.shape).bytes;
  const int64_t tasks = pass.planes * pass.bundles;
  const dim3 grid(unsigned(std::min<int64_t>(tasks, resident_blocks(kernel, pass.shape.threads, bytes))));
  void* arguments[] = {&pass};
  SAGD_CHECK(cudaLaunchKernel(kernel, grid, dim3(unsigned(pass.shape.threads)), arguments, bytes,
                              static_cast<cudaStream_t>(stream)));
}

}  // namespace sagd::cuda
