#include "cuda/clusters.h"
#include "cuda/large_host.h"
#include "cuda/operators.h"

namespace sagd::cuda {
namespace {

// Of the L2 cache, for the half spectra of a chunk: the rest is for the planes that pass through, weights and results.
constexpr double l2_share = 0.5;

Passes passes_of(const Job& job) {
  const auto passes = passes_for(job.height, job.width, size_t(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)));
  if (passes) return *passes;
  throw std::runtime_error("sagd: there is no CUDA kernel for planes of " + std::to_string(job.height) + " x " +
                           std::to_string(job.width));
}

int64_t packed_columns(const Job& job) { return (job.width + 1) / 2; }

// The planes that are taken through all passes at a time: as many as L2 has room for, and, if that is more blocks than
// run at a time, no more than fill the device a whole number of times.
int64_t chunk_of(const Job& job, const Passes& passes) {
  const double points = l2_share * attribute(cudaDevAttrL2CacheSize) / sizeof(Point);
  const int64_t at_most = int64_t(points) / (job.height * packed_columns(job));
  const int64_t resident = std::max(resident_row_blocks(job, passes), 1);
  const int64_t waves = at_most * passes.row_bundles / resident;
  const int64_t planes = waves > 0 ? waves * resident / passes.row_bundles : at_most;
  return std::clamp<int64_t>(planes, 1, std::max<int64_t>(job.planes, 1));
}

}  // namespace

int64_t workspace_bytes(const Job& job) {
  const size_t limit = size_t(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  if (takes_cluster(job.height, job.width)) return table_bytes(job);
  if (fits_block(job.height, job.width, limit)) {
    bool staged = false;
    with_shape(job.height, job.width, [&](const auto& shape) { staged = stages_weight(shape, limit); });
    return staged ? 0 : table_bytes(job);
  }
  const Passes passes = passes_of(job);
  const int64_t sums = job.plane_loss ? job.planes * passes.slabs * int64_t(sizeof(Complex<double>)) : 0;
  return chunk_of(job, passes) * job.height * packed_columns(job) * int64_t(sizeof(Point)) + sums;
}

void run_passes(const Job& job, void* workspace, void* stream) {
  const Passes passes = passes_of(job);
  const int64_t planes = chunk_of(job, passes);
  Chunk chunk{job, Count(int(packed_columns(job))), passes.slabs, static_cast<Stored*>(workspace),
              planes * job.height * packed_columns(job), 0, 0};
  for (; chunk.first < job.planes; chunk.first += planes) {
    chunk.planes = std::min(planes, job.planes - chunk.first);
    if (job.keys) {
      draw_columns(chunk, passes, stream);
    } else {
      forward_rows(chunk, passes, stream);
      filter_columns(chunk, passes, stream);
    }
    if (job.output) inverse_rows(chunk, passes, stream);
  }
  if (job.plane_loss && job.planes > 0) plane_losses(chunk, stream);
}

}  // namespace sagd::cuda
