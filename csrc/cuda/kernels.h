// The operators on planes that a block's shared memory holds. Each reads and writes device memory once.
#pragma once

#include <bit>
#include <type_traits>

#include "cuda/cluster.h"
#include "cuda/plane.h"
#include "cuda/register_plane.h"

namespace sagd::cuda {

// ---- device memory -------------------------------------------------------------------------------------------------

template <class S>
__device__ __forceinline__ S narrow(float x) {
  if constexpr (sizeof(S) == sizeof(float)) return x;
  else if constexpr (std::is_same_v<S, __half>) return __float2half_rn(x);
  else return __float2bfloat16_rn(x);
}

// Two neighbours in a row, in one access.
template <class S>
struct Pair {
  S first, second;
};
template <class S>
using Word = std::conditional_t<sizeof(S) == 4, uint64_t, uint32_t>;

template <class S>
__device__ __forceinline__ void put(S* to, float x) {
  *to = narrow<S>(x);
}
template <class S>
__device__ __forceinline__ void put(S* to, Point x) {
  *reinterpret_cast<Word<S>*>(to) = std::bit_cast<Word<S>>(Pair<S>{narrow<S>(x.re), narrow<S>(x.im)});
}
template <class S>
__device__ __forceinline__ Point get_pair(const S* from) {
  const auto both = std::bit_cast<Pair<S>>(__ldg(reinterpret_cast<const Word<S>*>(from)));
  return {widen(both.first), widen(both.second)};
}

// A plane of a tensor with any strides. Where it is dense, offsets are made of the shape's constants.
template <class S>
class Reader {
 public:
  __device__ __forceinline__ Reader(const Planes& tensor, int64_t plane, int width)
      : from_(static_cast<const S*>(tensor.data) + tensor.batch.offset(plane)),
        row_stride_(tensor.row_stride),
        column_stride_(tensor.column_stride),
        dense_(tensor.column_stride == 1 && tensor.row_stride == width),
        paired_(dense_ && reinterpret_cast<uintptr_t>(from_) % sizeof(Word<S>) == 0) {}

  // f(m, x) for the values x of rows h + m step, 0 <= m < R, in one column
  template <int R, class F>
  __device__ __forceinline__ void operator()(int width, int h, int step, int column, F&& f) const {
    if (dense_) {
      const S* from = from_ + h * width + column;
      SAGD_UNROLL
      for (int m = 0; m < R; ++m) f(m, widen(__ldg(from + m * step * width)));
    } else {
      const S* from = from_ + h * row_stride_ + column * column_stride_;
      SAGD_UNROLL
      for (int m = 0; m < R; ++m) f(m, widen(__ldg(from + m * step * row_stride_)));
    }
  }

  // v[m]: row h + m step in columns `column` and column + 1, as real and imaginary part; width is even
  template <int R>
  __device__ __forceinline__ void pairs(int width, int h, int step, int column, Point* v) const {
    if (paired_) {
      const S* from = from_ + h * width + column;
      SAGD_UNROLL
      for (int m = 0; m < R; ++m) v[m] = get_pair(from + m * step * width);
    } else {
      const S* from = from_ + h * row_stride_ + column * column_stride_;
      SAGD_UNROLL
      for (int m = 0; m < R; ++m) {
        const S* row = from + m * step * row_stride_;
        v[m] = {widen(__ldg(row)), widen(__ldg(row + column_stride_))};
      }
    }
  }

 private:
  const S* from_;
  int64_t row_stride_, column_stride_;
  bool dense_, paired_;
};

// Packed columns of a plane, as a transform's `forward` asks for them: columns j and j + W2, or `adjacent` ones.
template <class S, class Shape>
struct ReadPacked {
  const Shape& shape;
  Reader<S> plane;

  template <int R>
  __device__ __forceinline__ void operator()(int h, int j, int step, Point* v) const {
    const int width = shape.rows.length, partner = j + shape.packed_columns;
    if constexpr (Shape::adjacent) {
      plane.template pairs<R>(width, h, step, 2 * j, v);
    } else {
      plane.template operator()<R>(width, h, step, j, [&](int m, float x) { v[m] = {x, 0}; });
      if (partner < width) plane.template operator()<R>(width, h, step, partner, [&](int m, float x) { v[m].im = x; });
    }
  }
};

template <class S, class Shape>
__device__ __forceinline__ S* output_plane(void* output, const Shape& shape, int64_t plane) {
  return static_cast<S*>(output) + plane * (shape.columns.length * shape.rows.length);
}

// Calls write(h, column, x) for every value that a transform's `inverse` hands over, or for every two neighbours.
template <class Shape, class F>
struct WritePacked {
  const Shape& shape;
  F write;

  template <int R>
  __device__ __forceinline__ void operator()(int h, int j, int step, const Point* v) const {
    const int partner = j + shape.packed_columns;
    if constexpr (Shape::adjacent) {
      SAGD_UNROLL
      for (int m = 0; m < R; ++m) write(h + m * step, 2 * j, v[m]);
    } else if constexpr (Shape::in_registers) {
      SAGD_UNROLL
      for (int m = 0; m < R; ++m) write(h + m * step, j, v[m].re), write(h + m * step, partner, v[m].im);
    } else {
      SAGD_UNROLL
      for (int m = 0; m < R; ++m) write(h + m * step, j, v[m].re);
      if (partner >= shape.rows.length) return;
      SAGD_UNROLL
      for (int m = 0; m < R; ++m) write(h + m * step, partner, v[m].im);
    }
  }
};
template <class Shape, class F>
WritePacked(const Shape&, F) -> WritePacked<Shape, F>;

// ---- the frame of every kernel -------------------------------------------------------------------------------------

template <class Shape>
__device__ __forceinline__ float pixels(const Shape& shape) {
  return float(shape.columns.length * shape.rows.length);
}

// The weight whose first element is element `start` of the batch of weights, with the factor of the transforms: forward
// and inverse multiply by height width, the separation of the columns by 2 besides; the inverse alone, of a spectrum of
// variance 1, by the root of as much; what is drawn has another variance (normals.h).
template <WeightMap map, class Shape>
__device__ __forceinline__ Weight<map> weight_of(const Job& job, const Shape& shape, int64_t start) {
  const float factor = 0.5f / pixels(shape);
  return {static_cast<const float*>(job.weight.data) + start, job.weight.row_stride, job.weight.column_stride,
          shape.rows.length, job.keys ? deviation * sqrtf(factor) : factor};
}

// body(transform, weight, task, shared) for every plane of the block, of which it is told the first `scales` scales. The
// threads of an idle slot keep the same barriers. The next plane begins without a barrier: body must have one after its
// last use of the weight, and one after it has read the scales; a thread may last read only points that it is first to
// write.
template <WeightMap map, int scales, class Shape, class Body>
__device__ __forceinline__ void for_block_planes(const Call<Shape>& call, Body&& body) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const Shape& shape = call.shape;
  const Job& job = call.job;
  constexpr bool measure = map == WeightMap::inverse_square;
  const Shared<Shape> shared(shared_memory, shape, call.planes_per_block, call.tables, measure);
  if constexpr (!Shape::in_registers) fill_tables(shared, call);
  __syncthreads();

  const int slot = Shape::alone ? 0 : int(threadIdx.x) / shape.threads;
  const int thread = int(threadIdx.x) - slot * shape.threads, planes = Shape::alone ? 1 : call.planes_per_block;
  const bool one_table = call.tables == 1;
  int64_t staged = -1;  // where the weight in the table came from
  int turn = 0;
  for (int64_t bundle = blockIdx.x; bundle * planes < job.planes; bundle += gridDim.x) {
    const int64_t first = bundle * planes;
    const bool idle = !Shape::alone && first + slot >= job.planes;
    const int64_t plane = idle ? first : first + slot;
    Scales& own_scales = shared.scales[2 * slot + (turn ^= 1)];
    if (scales > 0 && thread == 0) own_scales = scales_of<scales>(job, plane);
    WeightTable weight;
    if (Shape::never_staged || (!Shape::always_staged && call.tables == 0)) {
      weight = ordered_weight(call, plane);
    } else {
      const int64_t of_weight = job.weight.batch.offset(one_table ? first : plane);
      float* table = shared.tables + (one_table ? 0 : slot * table_size(shape));
      const int step = one_table ? int(blockDim.x) : shape.threads;
      const int start = of_weight == staged ? table_size(shape) : one_table ? int(threadIdx.x) : thread;
      weight = stage_weight(weight_of<map>(job, shape, of_weight), table, shared, shape, start, step);
      // Of several warps, each with planes of its own, none waits for another but here: all have one weight.
      if (Shape::in_registers && one_table && staged < 0) __syncthreads();
      staged = of_weight;
    }
    using Transform = std::conditional_t<Shape::in_registers, RegisterTransform<Shape>, PlaneTransform<Shape>>;
    Transform transform(shape, shared, shared.planes + slot * plane_points(shape), thread, idle);
    body(transform, weight, Task{plane, idle, slot, own_scales}, shared);
  }
}

template <WeightMap map, int scales, class Shape, class Body>
__device__ __forceinline__ void for_planes(const Call<Shape>& call, Body&& body) {
  if constexpr (Clustered<Shape>) return for_cluster_planes<map, scales>(call, body);
  else return for_block_planes<map, scales>(call, body);
}

namespace kernel {

#define SAGD_KERNEL(min_blocks) __global__ void __launch_bounds__(Shape::max_threads, min_blocks)

// Fills the weight tables in device memory.
template <WeightMap map, class Shape>
__global__ void order_weights(const __grid_constant__ Call<Shape> call, int64_t weights) {
  const Shape& shape = call.shape;
  const BatchIndex& batch = call.job.weight.batch;
  const int height = shape.columns.length, n = height * shape.orbits;
  for (int64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < weights * n; i += gridDim.x * blockDim.x) {
    const int64_t number = i / n;
    const int bin = int(i - number * n), k = quotient(bin, shape.orbits), l = bin - k * shape.orbits;
    int64_t start = 0, rest = number;
    for (int d = batch.dims - 1; d >= 0; --d) {
      if (batch.stride[d] == 0) continue;
      start += rest % batch.size[d] * batch.stride[d];
      rest /= batch.size[d];
    }
    call.ordered[number * n + l * height + position(shape.columns, k)] =
        weight_of<map>(call.job, shape, start)(k, k > 0 ? height - k : 0, l);
  }
}

// Forward, times the weight, inverse.
template <class S, class Shape>
SAGD_KERNEL(Shape::min_blocks) spectral_filter(const __grid_constant__ Call<Shape> call) {
  const Shape& shape = call.shape;
  for_planes<WeightMap::value, 1>(
      call, [&](auto& transform, const auto& weight, const Task& task, const auto&) SAGD_INLINE_LAMBDA {
        const ReadPacked<S, Shape> input{shape, {call.job.input, task.plane, shape.rows.length}};
        transform.template forward<false>(input, weight, true);
        const float scale = task.scales.scale;
        S* to = output_plane<S>(call.job.output, shape, task.plane);
        transform.inverse(WritePacked(shape, [=, &shape](int h, int column, auto x) {
          put(to + h * shape.rows.length + column, x * scale);
        }));
      });
}

// The inverse alone, of a spectrum that is drawn where it is used. With `add`, noisy = signal_scale input + scale noise
// and the noise; else scale noise.
template <bool add, class S, class Shape>
SAGD_KERNEL(add ? Shape::fewer_blocks : Shape::min_blocks) shaped_noise(const __grid_constant__ Call<Shape> call) {
  const Shape& shape = call.shape;
  for_planes<WeightMap::value, add ? 2 : 1>(
      call, [&](auto& transform, const auto& weight, const Task& task, const auto&) SAGD_INLINE_LAMBDA {
        transform.draw(plane_stream(call.job, task.plane), weight);
        const auto [scale, signal_scale] = task.scales;
        S* to = output_plane<S>(call.job.output, shape, task.plane);
        if constexpr (add) {
          const Job& job = call.job;
          const ReadPacked<S, Shape> input{shape, {job.input, task.plane, shape.rows.length}};
          const auto write_to = [&shape](S* to) {
            return WritePacked(shape, [=, &shape](int h, int column, auto x) {
              put(to + h * shape.rows.length + column, x);
            });
          };
          const auto write_noisy = write_to(to);
          const auto write_noise = write_to(output_plane<S>(job.noise, shape, task.plane));
          transform.inverse([&]<int R>(int h, int j, int step, const Point* v) {
            constexpr int n = Shape::in_registers ? R : 1;  // at a time: all loads first, where there are registers
            SAGD_UNROLL
            for (int first = 0; first < R; first += n) {
              const int row = h + first * step;
              Point noisy[n];
              input.template operator()<n>(row, j, step, noisy);
              SAGD_UNROLL
              for (int m = 0; m < n; ++m) noisy[m] = noisy[m] * signal_scale + v[first + m] * scale;
              write_noise.template operator()<n>(row, j, step, v + first);
              write_noisy.template operator()<n>(row, j, step, noisy);
            }
          });
        } else {
          transform.inverse(WritePacked(shape, [=, &shape](int h, int column, auto x) {
            put(to + h * shape.rows.length + column, x * scale);
          }));
        }
      });
}

// The sum over the threads of a plane, in an order that depends on their number alone; every thread gets it.
template <bool in_a_warp>
__device__ __forceinline__ Complex<double> sum_of(Point* parts, int thread, int threads, Point part) {
  constexpr int leaders = 16;
  parts[thread] = part;
  wait_for_plane<in_a_warp>();
  if (thread < leaders) {
    for (int i = thread + leaders; i < threads; i += leaders) part = part + parts[i];
    parts[thread] = part;
  }
  wait_for_plane<in_a_warp>();
  Complex<double> total{0, 0};
  for (int i = 0; i < leaders && i < threads; ++i) total = total + Complex<double>{parts[i].re, parts[i].im};
  return total;
}

// plane_loss = mean over the bins with w > 0 of |F(input - target)|^2 / w^2, F unitary; output, unless null, the
// residual times 1 / w^2 times height width over the number of those bins: 2 output / numel is the gradient.
template <class S, class Shape>
SAGD_KERNEL(Shape::fewer_blocks) whitened_mse(const __grid_constant__ Call<Shape> call) {
  const Shape& shape = call.shape;
  for_planes<WeightMap::inverse_square, 0>(
      call, [&](auto& transform, const auto& weight, const Task& task, const auto& shared) SAGD_INLINE_LAMBDA {
        const bool filter = call.job.output != nullptr;
        const ReadPacked<S, Shape> input{shape, {call.job.input, task.plane, shape.rows.length}};
        const ReadPacked<S, Shape> target{shape, {call.job.target, task.plane, shape.rows.length}};
        const auto difference = [&]<int R>(int h, int j, int step, Point* v) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
          constexpr int few = R / 2;
#else
          constexpr int few = 2;
#endif
          constexpr int n = Shape::max_threads > 768 && R % 2 == 0 ? few : R;  // of the target: 72 registers are few
          input.template operator()<R>(h, j, step, v);
          SAGD_UNROLL
          for (int first = 0; first < R; first += n) {
            Point other[n];
            target.template operator()<n>(h + first * step, j, step, other);
            SAGD_UNROLL
            for (int m = 0; m < n; ++m) v[first + m] = v[first + m] - other[m];
          }
        };
        const Point part = transform.template forward<true>(difference, weight, filter);
        const int before = task.slot * shape.threads, thread = int(threadIdx.x) - before;
        const Complex<double> sum =
            transform.total(sum_of<Shape::in_a_warp>(shared.sums + before, thread, shape.threads, part));
        const double kept = sum.im > 0 ? sum.im : 1;
        if (thread == 0 && !task.idle && transform.first()) call.job.plane_loss[task.plane] = sum.re / kept;
        if (!filter) return;
        const float scale = float(pixels(shape) / kept);
        S* to = output_plane<S>(call.job.output, shape, task.plane);
        transform.inverse(WritePacked(shape, [=, &shape](int h, int column, auto x) {
          put(to + h * shape.rows.length + column, x * scale);
        }));
      });
}

}  // namespace kernel

// *loss = the mean of plane_loss, by one block
template <int threads>
__global__ void __launch_bounds__(threads) mean_of(const double* plane_loss, int64_t planes, float* loss) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  double* parts = reinterpret_cast<double*>(shared_memory);
  double sum = 0;
  for (int64_t plane = threadIdx.x; plane < planes; plane += threads) sum += plane_loss[plane];
  parts[threadIdx.x] = sum;
  for (int n = threads / 2; n > 0; n /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < n) parts[threadIdx.x] += parts[threadIdx.x + n];
  }
  if (threadIdx.x == 0) *loss = float(parts[0] / double(planes));
}

}  // namespace sagd::cuda
