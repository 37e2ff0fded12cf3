// What a block of threads holds in shared memory, and how a plane's weight is read.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <type_traits>

#include "cuda/axis.h"
#include "cuda/normals.h"
#include "sagd/job.h"

// Behind a lambda's parameters: a call that is not inlined costs a stack for what the lambda holds.
#define SAGD_INLINE_LAMBDA __attribute__((always_inline))

namespace sagd::cuda {

// One launch: the job, how its planes are cut, and how they are given to blocks. Every thread group of shape.threads
// has a plane at a time; a block has planes_per_block of them and takes every gridDim.x-th such bundle.
template <class Shape>
struct Call {
  Job job;
  Shape shape;
  int planes_per_block;
  int tables;  // weight tables in shared memory: 1, planes_per_block (a weight for each), or 0 (they are in `ordered`)
  float* ordered;  // those in device memory, one for each weight of the batch
  BatchIndex ordered_of;  // the number of a plane's
  uint16_t rows[max_length / 2];  // the frequency k of each packed row
};

// A packed row: frequencies k and -k of the columns, after separation one complex row, k, of twice the length.
struct alignas(4) RowPair {
  uint16_t first, second;  // rows of the plane's storage: the one of k, and of -k (k = 0: of height / 2)
};

// The storage of a plane: rows of packed_columns points. An odd pitch keeps both walks over it, along a row and down
// a column, free of bank conflicts; planes lie so that the next one goes on where the columns of one end.
template <class Shape>
SAGD_INLINE int pitch(const Shape& shape) {
  return shape.packed_columns | 1;
}
template <class Shape>
SAGD_INLINE int plane_points(const Shape& shape) {
  const int points = (shape.columns.length + shape.columns.length % 2) * pitch(shape);  // an odd height: one row more
  return points + ((shape.packed_columns - points) & 15);
}

// Where frequency l stands in a packed row of the weight: what the lanes of a line read at a time, in other banks.
template <class Shape>
SAGD_INLINE int packed_place(int l) {
  return l + l / (decltype(Shape::rows)::length / Shape::lanes) * (32 / Shape::lanes);
}

// The weight table in shared memory: rows in the order in which the column transforms leave them, again with an odd
// pitch; for lines in registers the packed rows, all frequencies of each, and row height / 2.
template <class Shape>
SAGD_INLINE int table_pitch(const Shape& shape) {
  if constexpr (Shape::in_registers) return packed_place<Shape>(shape.rows.length) | 1;
  else return shape.orbits | 1;
}
template <class Shape>
SAGD_INLINE int table_size(const Shape& shape) {
  if constexpr (Shape::in_registers) return (shape.packed_rows + 1) * table_pitch(shape);
  else return shape.columns.length * table_pitch(shape);
}

// What a plane's results are multiplied by; see Job.
struct Scales {
  float scale, signal_scale;
};

// Whether scales stand in front of all else, or behind the tables of weights: where registers are spilled otherwise.
template <class Shape>
constexpr bool scales_in_front = Shape::in_registers || std::is_same_v<Shape, AnyShape>;

// Shared memory, from the coarsest alignment to the finest.
template <class Shape>
struct Shared {
  Scales* scales;  // two for each plane of the block: of the plane that is worked on, and of the next one
  Point *column_roots, *row_roots;  // exp(-2 pi i k / length)
  Point* sums;  // a thread's part of its plane's loss, and its number of bins
  Point* planes;
  float* tables;
  RowPair* pairs;
  uint16_t* pair_frequency;  // k of each packed row
  uint16_t *column_position, *row_position, *row_frequency;  // row_position also of frequency `width`, which is 0
  size_t bytes;

  SAGD_INLINE Shared(unsigned char* memory, const Shape& shape, int planes_per_block, int tables_, bool measure) {
    unsigned char* at = memory;
    constexpr int indexed = !Shape::in_registers;  // lines in registers need no tables of what is where
    if constexpr (scales_in_front<Shape>) scales = take<Scales>(at, 2 * planes_per_block);
    column_roots = take<Point>(at, indexed * shape.columns.length);
    row_roots = take<Point>(at, indexed * shape.rows.length);
    sums = take<Point>(at, measure ? planes_per_block * shape.threads : 0);
    planes = take<Point>(at, planes_per_block * plane_points(shape));
    tables = take<float>(at, tables_ * table_size(shape));
    if constexpr (!scales_in_front<Shape>) scales = take<Scales>(at, 2 * planes_per_block);
    pairs = take<RowPair>(at, indexed * shape.packed_rows);
    pair_frequency = take<uint16_t>(at, indexed * shape.packed_rows);
    column_position = take<uint16_t>(at, indexed * shape.columns.length);
    row_position = take<uint16_t>(at, indexed * (shape.rows.length + 1));
    row_frequency = take<uint16_t>(at, indexed * shape.rows.length);
    bytes = size_t(at - memory);
  }

 private:
  template <class T>
  static SAGD_INLINE T* take(unsigned char*& at, int n) {
    T* taken = reinterpret_cast<T*>(at);
    at += n * sizeof(T);
    return taken;
  }
};

// exp(-2 pi i k / n): the argument is reduced to [-pi/4, pi/4] in integers.
__device__ __forceinline__ Point root(int k, int n) {
  const int quadrant = (8 * k + n) / (2 * n);
  float s, c;
  sincospif(float(4 * k - quadrant * n) / float(2 * n), &s, &c);
  switch (quadrant % 4) {
    case 0: return {c, -s};
    case 1: return {-s, -c};
    case 2: return {-c, s};
    default: return {s, c};
  }
}

template <class Memory, class Shape>
__device__ void fill_tables(const Memory& shared, const Call<Shape>& call) {
  const Shape& shape = call.shape;
  const int height = shape.columns.length, width = shape.rows.length;
  for (int k = threadIdx.x; k < height; k += blockDim.x) {
    shared.column_roots[k] = root(k, height);
    shared.column_position[k] = uint16_t(position(shape.columns, k));
  }
  for (int l = threadIdx.x; l < width; l += blockDim.x) {
    const int at = position(shape.rows, l);
    shared.row_roots[l] = root(l, width);
    shared.row_position[l] = uint16_t(at);
    if (l == 0) shared.row_position[width] = uint16_t(at);
    shared.row_frequency[at] = uint16_t(l);
  }
  for (int i = threadIdx.x; i < shape.packed_rows; i += blockDim.x) {
    const int k = call.rows[i];
    const int partner = k > 0 ? height - k : height / 2;
    const int second = k == 0 && height % 2 ? height : position(shape.columns, partner);
    shared.pairs[i] = {uint16_t(position(shape.columns, k)), uint16_t(second)};
    shared.pair_frequency[i] = uint16_t(k);
  }
}

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ __forceinline__ float factor(const Factors& factors, int64_t plane) {
  if (!factors.data) return 1;
  const int64_t at = factors.batch.offset(plane);
  switch (factors.dtype) {
    case Dtype::float32: return static_cast<const float*>(factors.data)[at];
    case Dtype::float64: return float(static_cast<const double*>(factors.data)[at]);
    case Dtype::bfloat16: return widen(static_cast<const __nv_bfloat16*>(factors.data)[at]);
    default: return widen(static_cast<const __half*>(factors.data)[at]);
  }
}

// The scales of a plane: one thread looks them up, as that takes as long as several pixels; the others find them in
// shared memory, after a barrier.
template <int scales>
__device__ __forceinline__ Scales scales_of(const Job& job, int64_t plane) {
  return {factor(job.scale, plane), scales > 1 ? factor(job.signal_scale, plane) : 0};
}

// What the threads of a plane are to do.
struct Task {
  int64_t plane;
  bool idle;  // the slot has no plane: this is another one's
  int slot;   // which of the block's planes
  const Scales& scales;
};

// Waits for the other threads of a plane, which are a warp's, or the block's.
template <bool in_a_warp>
__device__ __forceinline__ void wait_for_plane() {
  if constexpr (in_a_warp) __syncwarp();
  else __syncthreads();
}

// What is made of a weight w: w itself, or 1 / w^2 where w > 0 and -1 elsewhere.
enum class WeightMap { value, inverse_square };

template <WeightMap map>
__device__ __forceinline__ float mapped(float w, float factor) {
  if constexpr (map == WeightMap::value) return w * factor;
  else return w > 0 ? factor / (w * w) : -1.0f;
}

// The weight of one plane where the caller has it, mapped and even.
template <WeightMap map>
struct Weight {
  const float* data;
  int64_t row_stride, column_stride;
  int width;
  float factor;

  // of frequency (k, l), 0 < l < width / 2, where every weight is even
  __device__ __forceinline__ float inner(int k, int l) const {
    return mapped<map>(data[k * row_stride + l * column_stride], factor);
  }

  // of frequency (k, l); `negative` is the row of -k
  __device__ __forceinline__ float operator()(int k, int negative, int l) const {
    float w = data[k * row_stride + l * column_stride];
    if (l == 0 || 2 * l == width) w = 0.5f * (w + data[negative * row_stride + l * column_stride]);
    return mapped<map>(w, factor);
  }
};

// The same as a table: the rows where the column transforms leave them.
struct WeightTable {
  const float* data;
  int row_step, column_step, width;

  // of frequency (k, l), 0 <= l < width, k that of the pair's first row; `mirrored` if it is to be read as that of
  // (-k, -l), which it must where l > width / 2, and may where l = width / 2
  __device__ __forceinline__ float operator()(const RowPair& pair, int l, bool mirrored) const {
    return at(mirrored ? pair.second : pair.first, mirrored ? width - l : l);
  }

  // of frequencies (0, l) and (height / 2, l), 0 <= l <= width / 2, as rows of the same factor
  __device__ __forceinline__ void of_packed_row(const RowPair& pair, bool odd, int l, float& top, float& bottom) const {
    top = at(pair.first, l);
    bottom = odd ? 0 : at(pair.second, l);
  }

  // of the frequencies of row k or -k, in a pair's place `row`; l as `at` has it
  struct Row {
    const float* data;
    int step;

    __device__ __forceinline__ float operator()(int l) const { return data[l * step]; }
  };
  __device__ __forceinline__ Row row(int row) const {
    const float* start = data + row * row_step;
#ifdef __CUDA_ARCH__
    // in device memory: the compiler would rather add the row to every index, in 64 bits
    if (column_step != 1) asm("" : "+l"(start));
#endif
    return {start, column_step};
  }

  // for lines in registers, of the frequencies of a packed row, each in its packed_place; row height / 2 is the last one
  __device__ __forceinline__ const float* packed_row(int row) const { return data + row * row_step; }

 private:
  __device__ __forceinline__ float at(int row, int l) const { return data[row * row_step + l * column_step]; }
};

// Brings a weight into a table in shared memory, with the threads first, first + step, ...
template <WeightMap map, class Shape>
__device__ __forceinline__ WeightTable stage_weight(const Weight<map>& from, float* table, const Shared<Shape>& shared,
                                                    const Shape& shape, int first, int step) {
  const int height = shape.columns.length;
  const auto negative = [=](int k) { return k > 0 ? height - k : 0; };
  if constexpr (Shape::in_registers) {
    const int width = shape.rows.length;
    for (int i = first; i < (shape.packed_rows + 1) * width; i += step) {
      const int k = i / width, l = i - k * width;
      table[k * table_pitch(shape) + packed_place<Shape>(l)] =
          2 * l > width ? from(negative(k), k, width - l) : from(k, negative(k), l);
    }
  } else {
    for (int i = first; i < height * shape.orbits; i += step) {
      const int k = quotient(i, shape.orbits), l = i - k * shape.orbits;
      table[shared.column_position[k] * table_pitch(shape) + l] = from(k, negative(k), l);
    }
  }
  return {table, table_pitch(shape), 1, from.width};
}

// A table in device memory lies the other way: neighbouring threads, on neighbouring rows, use whole sectors.
template <class Shape>
__device__ __forceinline__ WeightTable ordered_weight(const Call<Shape>& call, int64_t plane) {
  const int height = call.shape.columns.length;
  // in bytes: an offset in elements the compiler would add to every index
  const int64_t bytes = call.ordered_of.offset(plane) * height * call.shape.orbits * int64_t(sizeof(float));
  const auto* table = reinterpret_cast<const float*>(reinterpret_cast<const char*>(call.ordered) + bytes);
  return {table, 1, height, call.shape.rows.length};
}

}  // namespace sagd::cuda
