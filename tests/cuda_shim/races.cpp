// Runs every operator on a few planes, more than its blocks take at a time, for ThreadSanitizer to watch.
#include <cstdio>
#include <vector>

#include "cuda/launch.h"

using namespace sagd;
using namespace sagd::cuda;

namespace {

constexpr int planes = 300;  // more than all blocks hold at a time

template <class Shape>
void run(const Shape& shape, bool one_weight) {
  const int height = shape.columns.length, width = shape.rows.length;
  const size_t pixels = size_t(height) * width, bins = size_t(height) * (width / 2 + 1);
  std::vector<float> input(planes * pixels, 1.5f), target(planes * pixels, 0.5f), weight(planes * bins, 2.0f);
  std::vector<float> output(planes * pixels), noise(planes * pixels);
  std::vector<double> loss(planes);
  const uint64_t key[2] = {1, 2};

  BatchIndex of_planes, of_weights;
  of_planes.dims = 1, of_planes.size[0] = planes, of_planes.stride[0] = int64_t(pixels);
  if (!one_weight) of_weights.dims = 1, of_weights.size[0] = planes, of_weights.stride[0] = int64_t(bins);
  Job job{};
  job.planes = planes, job.height = height, job.width = width, job.dtype = Dtype::float32;
  job.input = {input.data(), width, 1, of_planes};
  job.target = {target.data(), width, 1, of_planes};
  job.weight = {weight.data(), width / 2 + 1, 1, of_weights};
  job.keys = key, job.planes_per_key = planes;
  job.output = output.data(), job.noise = noise.data(), job.plane_loss = loss.data();

  launch(&kernel::spectral_filter<float, Shape>, job, shape, false, nullptr);
  launch(&kernel::shaped_noise<true, float, Shape>, job, shape, false, nullptr);
  launch(&kernel::whitened_mse<float, Shape>, job, shape, true, nullptr);
}

}  // namespace

int main() {
  run(FixedShape<24, 1, FixedAxis<4, 2>, FixedAxis<4, 2>>{}, true);  // more threads than leaders of a sum
  run(FixedShape<8, 1, FixedAxis<4, 2>, FixedAxis<4, 2>>{}, false);
  run(FixedShape<5, 1, FixedAxis<3, 3>, FixedAxis<5, 3>>{}, true);
  run(FixedShape<16, 1, FixedAxis<16>, FixedAxis<16>>{}, true);
  std::puts("ran");
}
