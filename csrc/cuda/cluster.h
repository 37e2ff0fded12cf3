// Planes that no block holds, but a cluster of blocks does: their transform with one pass over device memory.
//
// A cluster has Shape::ranks blocks, which read and write each other's shared memory. The plane is packed as in
// plane.h: columns j and j + W2 are the real and imaginary part of one complex column, and after the column transforms
// rows k and -k come apart into one packed row. Every block has its share of both: packed columns while columns are
// transformed, packed rows while rows are. The first row stage gathers its points from the column storage of all
// blocks, the last one back scatters them there, each with neighbouring threads on neighbouring points, which use whole
// sectors; all other stages stay in the block.
//
// Cost per pixel of a square of N = radix1 * radix2, there and back: 2 words through device memory and 1/2 of the
// weight through L2; 12 words through shared memory, two of them, but for one in Shape::ranks, of another block; 5
// barriers of the block and 3 of the cluster.
#pragma once

#include <bit>

#include "cuda/plane.h"

namespace sagd::cuda {

// ---- the cluster ---------------------------------------------------------------------------------------------------

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define SAGD_CLUSTER(code)  // never launched there
#else
#define SAGD_CLUSTER(code) code
#endif

#ifdef __CUDACC__

__device__ __forceinline__ int cluster_rank() {
  unsigned rank = 0;
  SAGD_CLUSTER(asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank)));
  return int(rank);
}

// Waits for all threads of the cluster, and for what they have written.
__device__ __forceinline__ void cluster_barrier() {
  SAGD_CLUSTER(asm volatile("barrier.cluster.arrive;\n\tbarrier.cluster.wait;" ::: "memory"));
}

// Points in the shared memory of the block `rank`, at the place that `mine` has in this block's.
class Peer {
 public:
  __device__ __forceinline__ Peer(Point* mine, int rank) {
    SAGD_CLUSTER(asm("mapa.shared::cluster.u32 %0, %1, %2;"
                     : "=r"(address_)
                     : "r"(uint32_t(__cvta_generic_to_shared(mine))), "r"(rank)));
  }
  __device__ __forceinline__ Point read(int i) const {
    Point value{0, 0};
    SAGD_CLUSTER(asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];"
                              : "=f"(value.re), "=f"(value.im)
                              : "r"(address_ + i * uint32_t(sizeof(Point)))));
    return value;
  }
  __device__ __forceinline__ void write(int i, Point value) const {
    SAGD_CLUSTER(asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(address_ + i * uint32_t(sizeof(Point))),
                              "f"(value.re), "f"(value.im)
                              : "memory"));
  }

 private:
  uint32_t address_ = 0;
};

// This block's own part of what a kernel declares as its shared memory.
__device__ __forceinline__ unsigned char* own_memory(unsigned char* memory) { return memory; }

#else  // tests/cuda_shim

using shim::cluster_barrier;
using shim::cluster_rank;
using shim::own_memory;

class Peer {
 public:
  Peer(Point* mine, int rank) : points_(shim::peer_memory(mine, rank)) {}
  Point read(int i) const { return points_[i]; }
  void write(int i, Point value) const { points_[i] = value; }

 private:
  Point* points_;
};

#endif

// Shared memory of a block.
template <class Shape>
struct ClusterMemory {
  Point *column_roots, *row_roots;
  Point* totals;  // two of every block: its sum of the loss
  Point* sums;    // a thread's part of it
  Point *columns, *rows;
  Scales* scales;            // see Shared
  RowPair* pairs;            // of all packed rows
  uint16_t* pair_frequency;  // see Shared
  uint16_t *column_position, *row_position, *row_frequency;
  size_t bytes;

  SAGD_INLINE ClusterMemory(unsigned char* memory, bool measure) {
    constexpr int height = decltype(Shape::columns)::length, width = decltype(Shape::rows)::length;
    column_roots = reinterpret_cast<Point*>(memory);
    row_roots = column_roots + height;
    totals = row_roots + width;
    sums = totals + (measure ? 2 * Shape::ranks : 0);
    columns = sums + (measure ? Shape::threads : 0);
    rows = columns + height * Shape::block_columns;
    scales = reinterpret_cast<Scales*>(rows + width * Shape::pitch);
    pairs = reinterpret_cast<RowPair*>(scales + 2);
    pair_frequency = reinterpret_cast<uint16_t*>(pairs + Shape::packed_rows);
    column_position = pair_frequency + Shape::packed_rows;
    row_position = column_position + height;
    row_frequency = row_position + width + 1;
    bytes = size_t(reinterpret_cast<unsigned char*>(row_frequency + width) - memory);
  }
};

// A block's part in the transform of a plane, with what PlaneTransform has for all of it.
template <class Shape>
class ClusterTransform {
 public:
  __device__ __forceinline__ ClusterTransform(const Shape& shape, const ClusterMemory<Shape>& memory)
      : shape_(shape), memory_(memory), rank_(cluster_rank()) {}

  template <bool measure, class Read>
  __device__ __forceinline__ Point forward(Read&& read, const WeightTable& weight, bool filter) const {
    columns().forward(
        [&]<int R>(int h, int j, int step, Point* v) { read.template operator()<R>(h, column(j), step, v); });
    cluster_barrier();
    return weigh_rows<measure>(weight, filter);
  }
  template <class Write>
  __device__ __forceinline__ void inverse(Write&& write) const {
    columns().inverse(
        [&]<int R>(int h, int j, int step, const Point* v) { write.template operator()<R>(h, column(j), step, v); });
  }

  // The sum over all blocks of what each of them has summed, the same in every block; whether this is the first one.
  __device__ __forceinline__ Complex<double> total(Complex<double> part) const {
    if (int(threadIdx.x) < shape_.ranks) {
      const Peer peer(memory_.totals + 2 * rank_, int(threadIdx.x));
      peer.write(0, std::bit_cast<Point>(part.re));
      peer.write(1, std::bit_cast<Point>(part.im));
    }
    cluster_barrier();
    Complex<double> sum{0, 0};
    for (int i = 0; i < shape_.ranks; ++i) {
      sum = sum + Complex<double>{std::bit_cast<double>(memory_.totals[2 * i]),
                                  std::bit_cast<double>(memory_.totals[2 * i + 1])};
    }
    return sum;
  }
  __device__ __forceinline__ bool first() const { return rank_ == 0; }

  __device__ __forceinline__ void draw(const Stream& stream, const WeightTable& weight) const {
    for (int l = threadIdx.x; rank_ == 0 && l < shape_.orbits; l += shape_.threads) {
      draw_packed_row(shape_, memory_.pairs[0], stream, weight, l, frequencies(0));
    }
    const int orbits = shape_.orbits * (shape_.columns.length / 2 + 1);
    if (stream.carries(uint32_t(orbits))) draw_rows(stream, weight);  // hardly ever
    else draw_rows(QuickStream(stream), weight);
    scatter<false>();
  }

 private:
  // All packed rows but the first. Neighbouring threads draw neighbouring rows, each stays in its own.
  template <class From>
  __device__ __forceinline__ void draw_rows(const From& from, const WeightTable& weight) const {
    constexpr int step = Shape::threads / Shape::block_rows;
    static_assert(Shape::threads % Shape::block_rows == 0);
    const int j = int(threadIdx.x) % shape_.block_rows;
    if (row(j) == 0) return;
    const DrawnRow drawn(shape_, memory_, weight, row(j));
    const auto to = [&](int p) { return memory_.rows + p * shape_.pitch + j; };
    SAGD_UNROLL_TWICE
    for (int l = int(threadIdx.x) / shape_.block_rows; l < shape_.orbits; l += step) drawn(from, l, to);
  }

  template <bool measure>
  __device__ __forceinline__ Point weigh_rows(const WeightTable& weight, bool filter) const {
    Point sum{0, 0};
    const auto lines = rows();
    lines.template forward<Neighbours::points, true>([&]<int R>(int p, int j, int step, Point* v) {
      for_packed_points<R>(p, j, step, [&](const Peer& peer, int first, int second, int m) {
        v[m] = peer.read(first);
        v[m + R / 2] = peer.read(second);
      });
      SAGD_UNROLL
      for (int m = 0; m < R / 2; ++m) separate(row(j) == 0, v[m], v[m + R / 2]);
    });
    lines.turn([&]<int R>(int p, int j, int step, Point* v) {
      if (row(j) == 0) return false;
      const RowPair pair = memory_.pairs[row(j)];
      const int l0 = memory_.row_frequency[p];
      SAGD_UNROLL
      for (int m = 0; m < R; ++m) {
        const int l = l0 + m * step;
        v[m] = weigh<measure>(v[m], weight(pair, l, 2 * m >= R), 2, sum);
      }
      return true;
    });
    if (rank_ == 0) {
      for (int l = threadIdx.x; l < shape_.orbits; l += shape_.threads) {
        weigh_packed_row<measure>(shape_, memory_.pairs[0], weight, l, frequencies(0), sum);
      }
      __syncthreads();
      lines.turn_back_first_line();
    }
    if (filter) scatter<true>();
    return sum;
  }

  template <class Axis>
  __device__ __forceinline__ Lines<Axis, int> lines(const Axis& axis, int n, int pitch, Point* roots, Point* at) const {
    return {axis, n, pitch, 0, roots, at, int(threadIdx.x), shape_.threads};
  }
  __device__ __forceinline__ auto columns() const {
    return lines(shape_.columns, shape_.block_columns, shape_.block_columns, memory_.column_roots, memory_.columns);
  }
  __device__ __forceinline__ auto rows() const {
    return lines(shape_.rows, shape_.block_rows, shape_.pitch, memory_.row_roots, memory_.rows);
  }

  // The packed column or row that is the block's j-th.
  __device__ __forceinline__ int column(int j) const { return rank_ * shape_.block_columns + j; }
  __device__ __forceinline__ int row(int j) const { return rank_ * shape_.block_rows + j; }

  // Where frequency l of the block's j-th packed row lies.
  __device__ __forceinline__ auto frequencies(int j) const {
    return [this, j](int l) { return memory_.rows + memory_.row_position[l] * shape_.pitch + j; };
  }

  // f(peer, first, second, m) for the points p + m step and p + (m + R / 2) step of a packed row, m < R / 2: where they
  // lie in the peer's column storage.
  template <int R, class F>
  __device__ __forceinline__ void for_packed_points(int p, int j, int step, F&& f) const {
    const RowPair pair = memory_.pairs[row(j)];
    SAGD_UNROLL
    for (int m = 0; m < R / 2; ++m) {
      const int column = p + m * step, at = column % shape_.block_columns;
      f(Peer(memory_.columns, column / shape_.block_columns), pair.first * shape_.block_columns + at,
        pair.second * shape_.block_columns + at, m);
    }
  }

  // The inverse row transforms, all or without the last stage's counterpart, of what was drawn or weighed in the row
  // storage, into the column storage of all blocks: first nobody may read there any more, then everything is there.
  template <bool but_last>
  __device__ __forceinline__ void scatter() const {
    cluster_barrier();
    rows().template inverse<Neighbours::points, but_last>([&]<int R>(int p, int j, int step, const Point* from) {
      Point v[R];
      SAGD_UNROLL
      for (int m = 0; m < R; ++m) v[m] = from[m];
      SAGD_UNROLL
      for (int m = 0; m < R / 2; ++m) join(row(j) == 0, v[m], v[m + R / 2]);
      for_packed_points<R>(p, j, step, [&](const Peer& peer, int first, int second, int m) {
        peer.write(first, v[m]);
        peer.write(second, v[m + R / 2]);
      });
    });
    cluster_barrier();
  }

  const Shape& shape_;
  const ClusterMemory<Shape>& memory_;
  int rank_;
};

// As for_planes of kernels.h, for every plane of the block's cluster.
template <WeightMap map, int scales, class Shape, class Body>
__device__ __forceinline__ void for_cluster_planes(const Call<Shape>& call, Body&& body) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const ClusterMemory<Shape> memory(own_memory(shared_memory), map == WeightMap::inverse_square);
  fill_tables(memory, call);
  __syncthreads();
  ClusterTransform<Shape> transform(call.shape, memory);
  int turn = 0;
  for (int64_t plane = blockIdx.x / Shape::ranks; plane < call.job.planes; plane += gridDim.x / Shape::ranks) {
    Scales& own_scales = memory.scales[turn ^= 1];
    if (scales > 0 && threadIdx.x == 0) own_scales = scales_of<scales>(call.job, plane);
    body(transform, ordered_weight(call, plane), Task{plane, false, 0, own_scales}, memory);
  }
}

}  // namespace sagd::cuda
