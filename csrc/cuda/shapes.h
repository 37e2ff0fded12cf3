// Which shapes have kernels of their own, and how all others are cut.
#pragma once

#include <algorithm>
#include <bit>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <vector>

#include "cuda/block.h"
#include "cuda/large.h"

namespace sagd::cuda {

// Squares that diffusion models use most: every stride and loop is a constant.
//   FixedShape:     threads a plane, blocks a multiprocessor (which bounds registers), columns, rows
//   RegisterSquare: length, lanes a line, threads of a block, blocks a multiprocessor
using Square16 = RegisterSquare<16, 1, 128, 5>;
using Square24 = FixedShape<24, 4, FixedAxis<4, 6>, FixedAxis<6, 4>>;
struct Square28 : RegisterSquare<28, 1, 128, 3> {
  static constexpr int fewer_blocks = min_blocks;  // nothing is spilled with as many
};
using Square32 = RegisterSquare<32, 1, 128, 3>;
using Square40 = FixedShape<96, 4, FixedAxis<5, 8>, FixedAxis<8, 5>>;
using Square48 = FixedShape<96, 4, FixedAxis<6, 8>, FixedAxis<8, 6>>;
using Square56 = FixedShape<128, 4, FixedAxis<7, 8>, FixedAxis<8, 7>>;
using Square64 = FixedShape<256, 4, FixedAxis<8, 8>, FixedAxis<8, 8>>;
using Noise64 = RegisterSquare<64, 2, 128, 3>;
using Square80 = FixedShape<208, 4, FixedAxis<8, 10>, FixedAxis<10, 8>>;
using Square96 = FixedShape<384, 3, FixedAxis<8, 12>, FixedAxis<12, 8>>;
using Square112 = FixedShape<448, 2, FixedAxis<8, 14>, FixedAxis<14, 8>>;
using Square128 = FixedShape<256, 3, FixedAxis<8, 16>, FixedAxis<16, 8>>;
using Square160 = FixedShape<448, 2, FixedAxis<10, 16>, FixedAxis<16, 10>>;
using Square192 = FixedShape<768, 1, FixedAxis<12, 16>, FixedAxis<16, 12>>;
using Square224 = FixedShape<896, 1, FixedAxis<14, 16>, FixedAxis<16, 14>>;

// One that the blocks of a cluster hold together.
using Square256 = ClusterShape<8, 256, 3, FixedAxis<16, 16>, FixedAxis<16, 16>>;

// The cheapest stages for a length of factors 2, 3, 5 and 7: by arithmetic, and a pass through shared memory for each.
// Empty for other lengths.
inline std::vector<int> factorize(int length, int largest = radices[0]) {
  if (length == 1) return {};
  const auto cost = [](const std::vector<int>& stages) {
    double sum = stages.empty() ? std::numeric_limits<double>::infinity() : 0;
    for (int radix : stages) sum += 10 + (radix >= 14 ? 10 : radix == 8 ? 6.75 : radix > 5 ? 8 : radix);
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

// The same, computed once for each length.
inline std::vector<int> stages_of(int length) {
  static std::mutex mutex;
  static std::map<int, std::vector<int>> known{{1, {1}}};
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(length);
  return found != known.end() ? found->second : known[length] = factorize(length);
}

inline std::optional<Axis> make_axis(int length, bool even_first) {
  std::vector<int> stages = stages_of(length);
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
  const int tasks = int(height * width + 15) / 16;  // 16 pixels at a time keep a thread busy
  const int planes = height * width <= 3 << 12 ? 3 : height * width <= 9 << 11 ? 2 : 1;  // that an H100's memory takes
  shape.threads = tasks < 32 ? int(std::bit_ceil(unsigned(tasks)))
                             : std::min((tasks + 31) / 32, AnyShape::max_threads / planes / 32) * 32;
  return shape;
}

// Calls f with the shape of a plane, for what draws noise or for the rest, and returns whether there is one.
template <bool draws = false, class F>
bool with_shape(int64_t height, int64_t width, F&& f) {
  if (height == width) {
    switch (height) {
      case 16: return f(Square16{}), true;
      case 24: return f(Square24{}), true;
      case 28: return f(Square28{}), true;
      case 32: return f(Square32{}), true;
      case 40: return f(Square40{}), true;
      case 48: return f(Square48{}), true;
      case 56: return f(Square56{}), true;
      case 64: return f(std::conditional_t<draws, Noise64, Square64>{}), true;
      case 80: return f(Square80{}), true;
      case 96: return f(Square96{}), true;
      case 112: return f(Square112{}), true;
      case 128: return f(Square128{}), true;
      case 160: return f(Square160{}), true;
      case 192: return f(Square192{}), true;
      case 224: return f(Square224{}), true;
    }
  }
  const auto shape = any_shape(height, width);
  if (shape) f(*shape);
  return shape.has_value();
}

// The same of a plane that the blocks of a cluster hold together, where the device has clusters.
template <class F>
bool with_cluster_shape(int64_t height, int64_t width, F&& f) {
  if (height == 256 && width == 256) return f(Square256{}), true;
  return false;
}

// Shared memory of a block, in bytes.
template <class Shape>
size_t shared_bytes(const Shape& shape, int planes_per_block, int tables, bool measure) {
  return Shared<Shape>(nullptr, shape, planes_per_block, tables, measure).bytes;
}

// Planes of a block: any number, or as many as fill warps, of which none is in two.
template <class Shape>
int fewest_planes(const Shape& shape) {
  return Shape::in_registers ? std::max(32 / shape.threads, 1) : 1;
}

// Whether a block's shared memory, so many bytes, has room for the weight beside a plane, with what the loss needs.
template <class Shape>
bool stages_weight(const Shape& shape, size_t limit) {
  return Shape::always_staged || (!Shape::never_staged && shared_bytes(shape, 1, 1, true) <= limit);
}

// Numbers the weights of a batch, of which planes share some; returns how many there are.
inline int64_t number_weights(const BatchIndex& weights, BatchIndex& number) {
  int64_t count = 1;
  number = weights;
  for (int d = weights.dims - 1; d >= 0; --d) {
    if (weights.stride[d] == 0) continue;
    number.stride[d] = count;
    count *= weights.size[d];
  }
  return count;
}

// Bytes of device memory for the weight tables of a job.
inline int64_t table_bytes(const Job& job) {
  BatchIndex number;
  return number_weights(job.weight.batch, number) * job.height * (job.width / 2 + 1) * int64_t(sizeof(float));
}

// Whether a block's shared memory, so many bytes, holds a plane: what the loss needs fits every operator.
inline bool fits_block(int64_t height, int64_t width, size_t limit) {
  bool fits = false;
  with_shape(height, width, [&](const auto& shape) {
    const int planes = fewest_planes(shape), tables = shape.in_registers ? planes : 0;
    fits = shared_bytes(shape, planes, tables, true) <= limit;
  });
  return fits;
}

// Lines of an axis: as many at a time as threads whose points are read or written at once, or fewer where the axis is
// long. The axis has at least two stages, of which one may do nothing (see Lines::turn).
inline std::optional<AnyLines> line_shape(int64_t length, size_t limit) {
  if (length > max_length) return {};
  std::vector<int> stages = stages_of(int(length));
  if (stages.empty() || stages.size() > max_stages) return {};
  if (stages.size() == 1) stages.push_back(1);
  for (int lines = 16; lines > 0; lines /= 2) {
    const int threads = int(length) * lines / 32;  // 32 points keep a thread busy
    const AnyLines shape{Axis(stages.data(), int(stages.size())), Count(lines),
                         std::clamp((threads + 31) / 32 * 32, 64, AnyLines::max_threads)};
    if (LineMemory(nullptr, shape).bytes <= limit) return shape;
  }
  return {};
}

// Calls f with the shape, as one that kernels are compiled for where the axis is among those that are used most.
template <class F>
void with_line_shape(const AnyLines& shape, F&& f) {
  switch (shape.lines == 16 ? shape.axis.length : 0) {
    case 256: return f(FixedLines<16, 128, 4, FixedAxis<16, 16>>{});
    case 512: return f(FixedLines<16, 256, 2, FixedAxis<8, 8, 8>>{});
    case 1024: return f(FixedLines<16, 512, 1, FixedAxis<16, 8, 8>>{});
    default: return f(shape);
  }
}

// The frequencies of the packed rows: of every pair k and -k one, 0 first. Neighbouring threads work on neighbouring
// packed rows, so of 16 in a row, neither the rows of k nor those of -k meet in a bank, if that can be.
template <class Shape>
std::vector<uint16_t> order_rows(const Shape& shape) {
  constexpr int group = 16;  // threads whose points are read or written at once
  const int height = shape.columns.length;
  const auto negative = [&](int k) { return k > 0 ? height - k : 0; };
  const auto second = [&](int k) { return k > 0 ? height - k : height / 2; };
  const auto bank = [&](int k) { return position(shape.columns, k) * pitch(shape) % group; };
  std::vector<int> waiting(height);  // in the order of the storage
  for (int k = 0; k < height; ++k) waiting[position(shape.columns, k)] = k;
  std::erase(waiting, height % 2 == 0 ? height / 2 : height);
  std::vector<uint16_t> rows;
  unsigned of_first = 0, of_second = 0;  // banks that the group uses
  while (!waiting.empty()) {
    if (rows.size() % group == 0) of_first = of_second = 0;
    const auto free = std::find_if(waiting.begin(), waiting.end(), [&](int k) {
      return !(of_first >> bank(k) & 1) && !(of_second >> bank(second(k)) & 1);
    });
    const int k = rows.empty() ? 0 : free != waiting.end() ? *free : waiting.front();
    of_first |= 1u << bank(k), of_second |= 1u << bank(second(k));
    rows.push_back(uint16_t(k));
    std::erase_if(waiting, [&](int other) { return other == k || other == negative(k); });
  }
  return rows;
}

}  // namespace sagd::cuda
