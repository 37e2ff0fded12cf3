// From a job to a launch: planes to a block, blocks to the device. Every limit is asked of the device, and every error
// that CUDA reports becomes an exception.
#pragma once

#include <string>

#include "cuda/clusters.h"
#include "cuda/kernels.h"
#include "cuda/large_host.h"
#include "cuda/operators.h"
#include "cuda/shapes.h"

namespace sagd::cuda {

// How a kernel's planes are given to blocks.
struct Blocks {
  int planes_per_block = 0;  // 0: not even one plane fits
  int tables = 0;
  size_t shared_bytes = 0;
  int resident = 0;  // blocks on the whole device at a time
  std::vector<uint16_t> rows;  // see order_rows
};

// The choice that keeps most planes on a multiprocessor.
template <class Kernel, class Shape>
Blocks choose_blocks(Kernel kernel, const Shape& shape, bool one_weight, bool measure, size_t limit) {
  const int multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  Blocks best;
  int most = 0;
  const bool staged = stages_weight(shape, limit);
  const int step = fewest_planes(shape);
  for (int planes = step; planes * shape.threads <= Shape::max_threads; planes += step) {
    const int tables = !staged ? 0 : one_weight ? 1 : planes;
    const size_t bytes = shared_bytes(shape, planes, tables, measure);
    if (bytes > limit) break;
    int blocks = 0;
    SAGD_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, planes * shape.threads, bytes));
    // Lines in registers: as many warps to a block as it may have, since they share the instructions that are fetched.
    if (Shape::in_registers ? blocks == 0 : blocks * planes <= most) continue;
    most = blocks * planes;
    best = {planes, tables, bytes, blocks * multiprocessors, {}};
  }
  best.rows = order_rows(shape);
  return best;
}

// Queues the kernel that fills the weight tables in device memory.
template <class Shape>
void launch_order(Call<Shape>& call, void* stream) {
  constexpr int threads = 256, most_blocks = 1024;
  const auto kernel = call.job.plane_loss ? &kernel::order_weights<WeightMap::inverse_square, Shape>
                                          : &kernel::order_weights<WeightMap::value, Shape>;
  int64_t weights = number_weights(call.job.weight.batch, call.ordered_of);
  const int64_t blocks = (weights * call.shape.columns.length * call.shape.orbits + threads - 1) / threads;
  void* arguments[] = {&call, &weights};
  SAGD_CHECK(cudaLaunchKernel(kernel, dim3(unsigned(std::min<int64_t>(blocks, most_blocks))), dim3(threads), arguments,
                              0, static_cast<cudaStream_t>(stream)));
}

template <class Shape>
void launch(void (*kernel)(const Call<Shape>), const Job& job, const Shape& shape, bool measure, void* workspace,
            void* stream) {
  if (job.planes == 0) return;
  const bool one_weight = job.weight.batch.dims == 0;
  const Blocks& blocks = ask_once(
      kernel, [&](int limit) { return choose_blocks(kernel, shape, one_weight, measure, size_t(limit)); }, job.height,
      job.width, one_weight);
  if (blocks.planes_per_block == 0) {
    throw std::runtime_error("sagd: planes of " + std::to_string(job.height) + " x " + std::to_string(job.width) +
                             " do not fit the shared memory of this device");
  }
  Call<Shape> call{job, shape, blocks.planes_per_block, blocks.tables, static_cast<float*>(workspace), {}, {}};
  std::copy(blocks.rows.begin(), blocks.rows.end(), call.rows);
  if (blocks.tables == 0) launch_order(call, stream);
  const int64_t bundles = (job.planes + blocks.planes_per_block - 1) / blocks.planes_per_block;
  const dim3 grid(unsigned(std::min<int64_t>(bundles, blocks.resident)));
  void* arguments[] = {&call};
  SAGD_CHECK(cudaLaunchKernel(kernel, grid, dim3(unsigned(blocks.planes_per_block * shape.threads)), arguments,
                              blocks.shared_bytes, static_cast<cudaStream_t>(stream)));
}

template <Clustered Shape>
void launch(void (*kernel)(const Call<Shape>), const Job& job, const Shape& shape, bool measure, void* workspace,
            void* stream) {
  if (job.planes == 0) return;
  Call<Shape> call{job, shape, 1, 0, static_cast<float*>(workspace), {}, {}};
  static const std::vector<uint16_t> rows = order_rows(Shape{});
  std::copy(rows.begin(), rows.end(), call.rows);
  launch_order(call, stream);
  Clusters<Shape>(kernel, measure).launch(call, stream);
}

// Calls f.operator()<S>() with the stored type of a dtype.
template <class F>
void with_stored_type(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::float32: return f.template operator()<float>();
    case Dtype::bfloat16: return f.template operator()<__nv_bfloat16>();
    case Dtype::float16: return f.template operator()<__half>();
    default: throw std::runtime_error("sagd: there are no CUDA kernels for float64");
  }
}

// Calls f.operator()<S>(shape) for a job whose planes fit the shared memory of a block or of a cluster; others take the
// passes of large.h.
template <bool draws = false, class F>
void with_kernel(const Job& job, void* workspace, void* stream, F&& f) {
  with_stored_type(job.dtype, [&]<class S>() {
    const auto with = [&](const auto& shape) { f.template operator()<S>(shape); };
    if (takes_cluster(job.height, job.width)) return void(with_cluster_shape(job.height, job.width, with));
    if (!fits_block(job.height, job.width, size_t(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)))) {
      return run_passes(job, workspace, stream);
    }
    with_shape<draws>(job.height, job.width, with);
  });
}

}  // namespace sagd::cuda
