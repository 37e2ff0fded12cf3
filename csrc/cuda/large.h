// Planes larger than a block's shared memory, but for those of cluster.h: three passes over a workspace of half
// spectra.
//
//   forward_rows    A block takes some pairs of rows. Rows 2 i and 2 i + 1 of a plane are the real and imaginary part
//                   of one complex line (an odd one out has a zero partner); their spectra come apart on the way out.
//   filter_columns  A block takes a slab of neighbouring columns: there, times the weight, and back, in place.
//   draw_columns    In the place of both, for noise: draws a slab's spectrum and transforms it back.
//   inverse_rows    The first pass backwards, with the factors of the result.
//
// Workspace: [planes, height, W2] complex numbers, W2 = ceil(W / 2): frequency l of each row in column l. The
// frequencies 0 and W / 2 of a row are real: column 0 holds both. The batch is cut into chunks of planes whose half
// spectra stay in L2 from pass to pass (large.cu), so device memory sees one read and one write.
//
// Cost per pixel of a plane whose axes have S stages: 2 words through device memory; through L2 besides 16 bytes
// (noise: 8) and 2 of the weight for each plane; through shared memory 8 S - 4 words (noise: 4 S) for the points, and
// the twiddle factors; 4 log2 N operations of butterflies each way; about 4 S barriers (noise: 2 S).
#pragma once

#include <bit>

#include "cuda/lines.h"

namespace sagd::cuda {

// Lines along one axis, and how blocks take them. Here along any axis.
struct AnyLines {
  using Number = Count;
  static constexpr int max_threads = 512, min_blocks = 1;  // of a block, on a multiprocessor
  Axis axis;
  Count lines;  // that a block holds at a time
  int threads;
};

// Along one that the kernel is compiled for.
template <int lines_, int threads_, int min_blocks_, class Axis_>
struct FixedLines {
  using Number = int;
  static constexpr int max_threads = threads_, min_blocks = min_blocks_;
  Axis_ axis;
  static constexpr int lines = lines_, threads = threads_;
};

// A number of the workspace, read and written at once.
struct Stored {
  uint64_t bits;

  __device__ __forceinline__ Stored(Point value) : bits(std::bit_cast<uint64_t>(value)) {}
  __device__ __forceinline__ operator Point() const { return std::bit_cast<Point>(bits); }
};

// Planes first, ..., first + planes - 1 of a job on their way through the passes.
struct Chunk {
  Job job;
  Count packed_columns;  // W2
  int slabs;             // of a plane's packed columns
  Stored* workspace;
  int64_t sums;  // where in it those of the slabs begin
  int64_t first, planes;

  __device__ __forceinline__ Stored* spectra(int64_t plane) const {
    return workspace + (plane - first) * (job.height * packed_columns);
  }
  // of every slab of a plane: its part of the loss, and the number of bins that count
  __device__ __forceinline__ Complex<double>* slab_sums(int64_t plane) const {
    return reinterpret_cast<Complex<double>*>(workspace + sums) + plane * slabs;
  }
};

// One launch: every block takes every gridDim.x-th bundle of shape.lines lines.
template <class Shape>
struct Pass : Chunk {
  Shape shape;
  int bundles;  // of a plane
};

// Shared memory of a block.
struct LineMemory {
  Point* roots;
  Point* sums;  // a thread's part of a sum
  Point* storage;
  uint16_t *place, *frequency;  // where the first line's frequency k lies, and that of point p after the forward stages
  size_t bytes;

  template <class Shape>
  SAGD_INLINE LineMemory(unsigned char* memory, const Shape& shape) {
    const int length = shape.axis.length;
    roots = reinterpret_cast<Point*>(memory);
    sums = roots + length;
    storage = sums + shape.threads;
    place = reinterpret_cast<uint16_t*>(storage + length * (shape.lines | 1) + shape.axis.radix(0));
    frequency = place + length;
    bytes = size_t(reinterpret_cast<unsigned char*>(frequency + length) - memory);
  }
};

template <class Shape>
using LinesOf = Lines<decltype(Shape::axis), typename Shape::Number>;

// body(lines, memory, plane, first) for every bundle of the block: `first` is the number of its first line in the
// plane. Lines behind the plane's last one are computed with, but neither read nor written.
template <class Shape, class Body>
__device__ __forceinline__ void for_lines(const Pass<Shape>& pass, Body&& body) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const Shape& shape = pass.shape;
  const LineMemory memory(shared_memory, shape);
  const LinesOf<Shape> lines{shape.axis,   shape.lines,    shape.lines | 1,  1 - shape.axis.first_span() % 2,
                             memory.roots, memory.storage, int(threadIdx.x), shape.threads};
  for (int k = threadIdx.x; k < shape.axis.length; k += shape.threads) {
    const int p = position(shape.axis, k);
    memory.roots[k] = root(k, shape.axis.length);
    memory.place[k] = uint16_t(lines.place(p));
    memory.frequency[p] = uint16_t(k);
  }
  __syncthreads();
  for (unsigned task = blockIdx.x; task < unsigned(pass.planes * pass.bundles); task += gridDim.x) {
    const unsigned plane = task / unsigned(pass.bundles), bundle = task - plane * unsigned(pass.bundles);
    body(lines, memory, pass.first + plane, int(bundle) * shape.lines);
    __syncthreads();  // the storage is read
  }
}

#define SAGD_PASS __global__ void __launch_bounds__(Shape::max_threads, Shape::min_blocks)

__device__ __forceinline__ float pixels(const Job& job) { return float(job.height * job.width); }

// What the loss of a plane is divided by, given the sums of all of its slabs.
__device__ __forceinline__ Complex<double> plane_sum(const Chunk& chunk, int64_t plane) {
  const Complex<double>* parts = chunk.slab_sums(plane);
  Complex<double> total{0, 0};
  for (int i = 0; i < chunk.slabs; ++i) total = total + parts[i];
  return {total.re, total.im > 0 ? total.im : 1};
}

}  // namespace sagd::cuda
