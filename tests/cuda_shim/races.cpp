// Runs every operator on a few planes, more than its blocks take at a time, for ThreadSanitizer to watch.
#include <cstdio>
#include <vector>

#include "cuda/large_columns.h"
#include "cuda/large_rows.h"
#include "cuda/launch.h"

using namespace sagd;
using namespace sagd::cuda;

namespace {

constexpr int planes = 300;  // more than all blocks hold at a time, as are fewer where the planes are large

// What a job of `planes` planes points to.
struct Operands {
  std::vector<float> input, target, weight, output, noise;
  std::vector<double> loss;
  uint64_t key[2] = {1, 2};
  Job job{};

  Operands(int height, int width, bool one_weight)
      : input(planes * pixels(height, width), 1.5f),
        target(input.size(), 0.5f),
        weight(planes * bins(height, width), 2.0f),
        output(input.size()),
        noise(input.size()),
        loss(planes) {
    BatchIndex of_planes, of_weights;
    of_planes.dims = 1, of_planes.size[0] = planes, of_planes.stride[0] = int64_t(pixels(height, width));
    of_weights = of_planes, of_weights.stride[0] = int64_t(bins(height, width));
    if (one_weight) of_weights.dims = 0;
    job.planes = planes, job.height = height, job.width = width, job.dtype = Dtype::float32;
    job.input = {input.data(), width, 1, of_planes};
    job.target = {target.data(), width, 1, of_planes};
    job.weight = {weight.data(), width / 2 + 1, 1, of_weights};
    job.keys = key, job.planes_per_key = planes;
    job.output = output.data(), job.noise = noise.data(), job.plane_loss = loss.data();
  }

  static size_t pixels(int height, int width) { return size_t(height) * width; }
  static size_t bins(int height, int width) { return size_t(height) * (width / 2 + 1); }
};

template <class Shape>
void run(const Shape& shape, bool one_weight, int most_planes = planes) {
  Operands operands(shape.columns.length, shape.rows.length, one_weight);
  operands.job.planes = std::min(planes, most_planes);
  std::vector<float> tables(operands.weight.size());
  launch(&kernel::shaped_noise<true, float, Shape>, operands.job, shape, false, tables.data(), nullptr);
  if constexpr (!requires { requires Shape::lanes == 2; }) {  // for noise alone
    launch(&kernel::spectral_filter<float, Shape>, operands.job, shape, false, tables.data(), nullptr);
    launch(&kernel::whitened_mse<float, Shape>, operands.job, shape, true, tables.data(), nullptr);
  }
}

void run_mean() {
  const Operands operands(1, 1, true);
  float mean;
  const double* losses = operands.loss.data();
  int64_t count = planes;
  float* to = &mean;
  void* arguments[] = {&losses, &count, &to};
  SAGD_CHECK(cudaLaunchKernel(&mean_of<64>, dim3(1), dim3(64), arguments, 64 * sizeof(double), nullptr));
}

// The passes, on one chunk.
template <class Rows, class Columns>
void run_passes_of(const Rows& rows, const Columns& columns) {
  const int height = columns.axis.length, width = rows.axis.length, packed = (width + 1) / 2;
  const Operands operands(height, width, true);
  const auto bundles = [](int lines, int at_a_time) { return (lines + at_a_time - 1) / at_a_time; };
  const int row_bundles = bundles((height + 1) / 2, rows.lines), slabs = bundles(packed, columns.lines);
  const int64_t points = int64_t(planes) * height * packed;
  std::vector<Point> workspace(points + 2 * planes * slabs);
  const Chunk chunk{operands.job, Count(packed), slabs, reinterpret_cast<Stored*>(workspace.data()), points, 0, planes};
  launch_lines(&kernel::forward_rows<float, Rows>, chunk, rows, row_bundles, nullptr);
  launch_lines(&kernel::filter_columns<WeightMap::value, Columns>, chunk, columns, slabs, nullptr);
  launch_lines(&kernel::filter_columns<WeightMap::inverse_square, Columns>, chunk, columns, slabs, nullptr);
  launch_lines(&kernel::inverse_rows<float, Rows>, chunk, rows, row_bundles, nullptr);
  launch_lines(&kernel::draw_columns<Columns>, chunk, columns, slabs, nullptr);
}

}  // namespace

int main() {
  run(FixedShape<24, 1, FixedAxis<4, 2>, FixedAxis<4, 2>>{}, true);  // more threads than leaders of a sum
  run(FixedShape<8, 1, FixedAxis<4, 2>, FixedAxis<4, 2>>{}, false);
  run(FixedShape<5, 1, FixedAxis<3, 3>, FixedAxis<5, 3>>{}, true);
  run(FixedShape<16, 1, FixedAxis<16>, FixedAxis<16>>{}, true);
  run(RegisterSquare<8, 1, 64, 1>{}, true);
  run(RegisterSquare<8, 1, 64, 1>{}, false);
  run(RegisterSquare<32, 2, 64, 1>{}, true);
  run(RegisterSquare<64, 2, 64, 1>{}, true, 17);
  run(ClusterShape<2, 24, 1, FixedAxis<4, 2>, FixedAxis<4, 2>>{}, true);
  run_mean();
  run_passes_of(FixedLines<4, 8, 1, FixedAxis<4, 3>>{}, FixedLines<4, 24, 1, FixedAxis<4, 2>>{});
  std::puts("ran");
}
