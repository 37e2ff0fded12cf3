// Transforms along one axis of lines that lie side by side in shared memory, in place, by a group of threads.
//
// Stages go forward by decimation in frequency and back by decimation in time (axis.h). The first stage forward reads
// its points from device memory, the last one back writes them there.
#pragma once

#include "cuda/block.h"
#include "sagd/butterflies.h"

namespace sagd::cuda {

// v[m] times the root of number m * step
template <int R, bool inverse>
__device__ __forceinline__ void twiddle(Point* v, const Point* roots, int step) {
  SAGD_UNROLL
  for (int m = 1; m < R; ++m) {
    const Point w = roots[m * step];
    v[m] = rotate<inverse>(v[m], w.re, w.im);
  }
}

// What neighbouring threads work on. Neighbouring lines have the same twiddle factors and meet in no bank; where a
// stage meets device memory in which a line's points are neighbours, neighbouring points use whole sectors.
enum class Neighbours { lines, points };

template <class Axis, class Number>
struct Lines {
  const Axis& axis;
  Number count;        // of lines
  int pitch;           // from point to point
  int skew;            // added for every span of the first stage: 1 where frequencies are taken in their order, else 0
  const Point* roots;  // exp(-2 pi i k / length)
  Point* storage;
  int thread, threads;

  // Where point p of the first line lies.
  __device__ __forceinline__ int place(int p) const { return p * pitch + quotient(p, axis.first_span()) * skew; }

  // All stages forward, or all but the last. read(p, j, step, v): v[m] = point p + m step of line j, m < R.
  template <Neighbours at_memory = Neighbours::lines, bool but_last = false, class Read>
  __device__ __forceinline__ void forward(Read&& read) const {
    axis.template forward<but_last>([&]<int R>(int s, auto stage) {
      for_butterflies<R>(stage, count, s == 0 ? at_memory : Neighbours::lines, [&](int p, int q, int j) {
        Point v[R];
        if (s == 0) read.template operator()<R>(p, j, int(stage.span), v);
        else load<R>(s, stage, p, j, v);
        Butterfly<R, false, float, float>::run(v);
        if (stage.span > 1) twiddle<R, false>(v, roots, q * stage.blocks);
        store<R>(s, stage, p, j, v);
      });
      __syncthreads();
    });
  }

  // The way back. write(p, j, step, v) is given the points.
  template <Neighbours at_memory = Neighbours::lines, bool but_last = false, class Write>
  __device__ __forceinline__ void inverse(Write&& write) const {
    axis.template backward<but_last>([&]<int R>(int s, auto stage) {
      for_butterflies<R>(stage, count, s == 0 ? at_memory : Neighbours::lines, [&](int p, int q, int j) {
        Point v[R];
        load<R>(s, stage, p, j, v);
        if (stage.span > 1) twiddle<R, true>(v, roots, q * stage.blocks);
        Butterfly<R, true, float, float>::run(v);
        if (s == 0) write.template operator()<R>(p, j, int(stage.span), v);
        else store<R>(s, stage, p, j, v);
      });
      if (s > 0) __syncthreads();
    });
  }

  // The last stage forward, weigh(p, j, step, v), and its counterpart back unless weigh returns false. What it is given
  // are frequencies: that of point p, and every step further one. The axis has another stage.
  template <class Weigh>
  __device__ __forceinline__ void turn(Weigh&& weigh) const {
    axis.last([&]<int R>(int s, auto stage) {
      for_butterflies<R>(stage, count, Neighbours::lines, [&](int p, int, int j) {
        Point v[R];
        load<R>(s, stage, p, j, v);
        Butterfly<R, false, float, float>::run(v);
        if (weigh.template operator()<R>(p, j, stage.blocks, v)) Butterfly<R, true, float, float>::run(v);
        store<R>(s, stage, p, j, v);
      });
    });
    __syncthreads();
  }

  // That counterpart in the first line.
  __device__ __forceinline__ void turn_back_first_line() const {
    axis.last([&]<int R>(int s, auto stage) {
      for_butterflies<R>(stage, Number(1), Neighbours::lines, [&](int p, int, int) {
        Point v[R];
        load<R>(s, stage, p, 0, v);
        Butterfly<R, true, float, float>::run(v);
        store<R>(s, stage, p, 0, v);
      });
    });
    __syncthreads();
  }

 private:
  // f(p, q, j) for every butterfly of the first n lines: on points p + m span of line j, p = q modulo R span.
  template <int R, class Stage, class F>
  __device__ __forceinline__ void for_butterflies(const Stage& stage, Number n, Neighbours neighbours, F&& f) const {
    const int tasks = n * (axis.length / R);
    for (int task = thread; task < tasks; task += threads) {
      int i, j;
      if (neighbours == Neighbours::lines) {
        i = quotient(task, n), j = task - i * n;
      } else {  // of the first stage, which is one block
        j = quotient(task, stage.span), i = task - j * stage.span;
      }
      const int block = quotient(i, stage.span), q = i - block * stage.span;
      f(block * R * stage.span + q, q, j);
    }
  }

  template <int R, class Stage>
  __device__ __forceinline__ void load(int s, const Stage& stage, int p, int j, Point* v) const {
    const Point* from = storage + place(p) + j;
    const int step = stage.span * pitch + (s == 0 ? skew : 0);
    SAGD_UNROLL
    for (int m = 0; m < R; ++m) v[m] = from[m * step];
  }
  template <int R, class Stage>
  __device__ __forceinline__ void store(int s, const Stage& stage, int p, int j, const Point* v) const {
    Point* to = storage + place(p) + j;
    const int step = stage.span * pitch + (s == 0 ? skew : 0);
    SAGD_UNROLL
    for (int m = 0; m < R; ++m) to[m * step] = v[m];
  }
};

}  // namespace sagd::cuda
