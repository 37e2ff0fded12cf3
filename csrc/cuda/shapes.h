// Which shapes have kernels of their own, and how all others are cut.
#pragma once

#include <algorithm>
#include <bit>
#include <limits>
#include <optional>
#include <vector>

#include "cuda/block.h"

namespace sagd::cuda {

// Squares that diffusion models use most: every stride and loop is a constant.
//                            threads a plane, blocks a multiprocessor (which bounds registers), columns, rows
using Square16 = FixedShape<8, 2, FixedAxis<16>, FixedAxis<16>>;
using Square28 = FixedShape<56, 3, FixedAxis<7, 4>, FixedAxis<4, 7>>;
using Square32 = FixedShape<64, 4, FixedAxis<8, 4>, FixedAxis<8, 4>>;
using Square64 = FixedShape<256, 4, FixedAxis<8, 8>, FixedAxis<8, 8>>;
using Square96 = FixedShape<192, 3, FixedAxis<12, 8>, FixedAxis<12, 8>>;
using Square128 = FixedShape<256, 2, FixedAxis<16, 8>, FixedAxis<16, 8>>;

// The cheapest stages for a length of factors 2, 3, 5 and 7: by arithmetic, and a pass through shared memory for each.
// Empty for other lengths.
inline std::vector<int> factorize(int length, int largest = radices[0]) {
  if (length == 1) return {};
  const auto cost = [](const std::vector<int>& stages) {
    double sum = stages.empty() ? std::numeric_limits<double>::infinity() : 0;
    for (int radix : stages) sum += 10 + (radix == 16 ? 10 : radix == 8 ? 6.75 : radix > 5 ? 8 : radix);
    return sum;
  };
  std::vector<int> best;
  for (int radix : radices) {
    if (radix > largest || length % radix) continue;
    std::vector<int> stages = factorize(length / radix, radix);
    if (stages.empty() && radix != length) continue;
    stages.insert(stages.begin(), radix);
    if (cost(stages) < cost(best)) best = std::move(stages);
  }
  return best;
}

inline std::optional<Axis> make_axis(int length, bool even_first) {
  std::vector<int> stages = length == 1 ? std::vector<int>{1} : factorize(length);
  if (stages.empty() || stages.size() > max_stages) return {};
  if (even_first && length % 2 == 0) {
    const auto even = std::find_if(stages.begin(), stages.end(), [](int radix) { return radix % 2 == 0; });
    std::rotate(stages.begin(), even, even + 1);
  }
  return Axis(stages.data(), int(stages.size()));
}

// The shape of any plane whose lengths have factors 2, 3, 5 and 7 alone and are at most max_length.
inline std::optional<AnyShape> any_shape(int64_t height, int64_t width) {
  if (height > max_length || width > max_length || height * width > 2 * max_points) return {};
  const auto columns = make_axis(int(height), false), rows = make_axis(int(width), true);
  if (!columns || !rows) return {};
  AnyShape shape{*columns, *rows, Count(int(width + 1) / 2), Count(int(height + 1) / 2), Count(int(width) / 2 + 1), 1};
  // 16 pixels at a time keep a thread busy; planes that leave no room for a second one get more threads
  const int tasks = int(height * width + 15) / 16;
  shape.threads = tasks < 32 ? int(std::bit_ceil(unsigned(tasks)))
                             : std::min((tasks + 31) / 32 * 32, height * width > 1 << 14 ? 512 : 256);
  return shape;
}

// Calls f with the shape of a plane, and returns whether there is one.
template <class F>
bool with_shape(int64_t height, int64_t width, F&& f) {
  if (height == width) {
    switch (height) {
      case 16: return f(Square16{}), true;
      case 28: return f(Square28{}), true;
      case 32: return f(Square32{}), true;
      case 64: return f(Square64{}), true;
      case 96: return f(Square96{}), true;
      case 128: return f(Square128{}), true;
    }
  }
  const auto shape = any_shape(height, width);
  if (shape) f(*shape);
  return shape.has_value();
}

// Shared memory of a block, in bytes.
template <class Shape>
size_t shared_bytes(const Shape& shape, int planes_per_block, int tables, bool measure) {
  return Shared<Shape>(nullptr, shape, planes_per_block, tables, measure).bytes;
}

// The packed rows in the order of the storage, so that neighbouring threads find them in neighbouring rows.
template <class Shape>
void order_rows(Call<Shape>& call) {
  const int height = call.shape.columns.length;
  std::vector<int> frequency(height);
  for (int k = 0; k < height; ++k) frequency[position(call.shape.columns, k)] = k;
  std::vector<bool> taken(height);
  int n = 0;
  for (int k : frequency) {
    if (taken[k] || (2 * k == height)) continue;
    taken[k] = taken[k > 0 ? height - k : 0] = true;
    call.rows[n++] = uint16_t(k);
  }
}

}  // namespace sagd::cuda
