// Small planes, where a strip of one plane's columns would leave lanes empty: L planes at a time, one a lane.
//
// The method is that of plane.h (packed columns, packed rows, the same one-dimensional transforms), but every step is
// the same for all lanes, so nothing is transposed between the axes and no row needs care of its own. The only
// transposes are those of the input and output. Which of the two layouts a plane gets depends on its size alone, and
// lanes never meet, so its bits still do not depend on its neighbours.
//
// Cost per pixel as in plane.h; scratch 3 L values a pixel, which stay in the first two caches.
#pragma once

#include "cpu/fft.h"
#include "cpu/job.h"
#include "cpu/normals.h"
#include "cpu/scratch.h"
#include "cpu/weights.h"

namespace sagd::SAGD_ISA {

template <class T>
class BundleTransform {
 public:
  static constexpr int L = lanes<T>;
  static constexpr int planes = L;  // at a time

  BundleTransform(int64_t height, int64_t width)
      : height_(int(height)),
        width_(int(width)),
        packed_columns_((width_ + 1) / 2),
        packed_rows_((height_ + 1) / 2),
        column_plan_(plan<T>(height_)),
        row_plan_(plan<T>(width_)) {
    const int64_t pixels = height * width, half = int64_t(packed_rows_) * width_;
    const int64_t prime = column_plan_.scratch > row_plan_.scratch ? column_plan_.scratch : row_plan_.scratch;
    const int64_t strips = (packed_rows_ + L - 1) / L;
    Carver carve(scratch(sizeof(Vec<T>) * (pixels + 3 * half + 2 * (height_ + 1 + prime + width_) + 2 * width_) +
                         sizeof(Vec<T>) * strips * width_ + 2 * sizeof(T) * width_));
    values_ = carve.take<Vec<T>>(pixels);
    spectrum_ = carve.take<Point<T>>(half);
    columns_ = carve.take<Point<T>>(height_ + 1);
    prime_scratch_ = carve.take<Point<T>>(prime);
    packed_row_ = carve.take<Point<T>>(width_);
    weight_ = carve.take<Vec<T>>(half);
    top_ = carve.take<Vec<T>>(width_);
    bottom_ = carve.take<Vec<T>>(width_);
    one_.table = carve.take<Vec<T>>(strips * width_);
    one_.top = carve.take<T>(width_);
    one_.bottom = carve.take<T>(width_);
  }

  const Plan<T>& row_plan() const { return row_plan_; }

  // One plane's weight table: fill it, then give it to the lanes [first, end).
  WeightTable<T>& weight() { return one_; }

  void spread_weight(int first, int end) {
    const T* table = reinterpret_cast<const T*>(one_.table);
    for (int k = 0; k < packed_rows_; ++k) {
      const T* row = table + int64_t(k / L) * width_ * L + k % L;
      for (int i = 0; i < width_; ++i) put(weight_[k * width_ + i], row[i * L], first, end);
    }
    for (int i = 0; i < width_; ++i) {
      put(top_[i], one_.top[i], first, end);
      put(bottom_[i], one_.bottom[i], first, end);
    }
  }

  // As PlaneTransform::forward_columns, for the planes of all lanes.
  template <class Read>
  void forward_columns(Read&& read) {
    for (int h = 0; h < height_; ++h) {
      for (int w = 0; w < width_; w += L) {
        const int n = width_ - w < L ? width_ - w : L;
        Vec<T> r[L];
        for (int lane = 0; lane < L; ++lane) r[lane] = read(lane, h, w, n);
        transpose<T>(r);
        for (int j = 0; j < n; ++j) values_[h * width_ + w + j] = r[j];
      }
    }
    for (int j = 0; j < packed_columns_; ++j) {
      const int b = j + packed_columns_;
      for (int h = 0; h < height_; ++h) {
        columns_[h] = {values_[h * width_ + j], b < width_ ? values_[h * width_ + b] : Vec<T>{}};
      }
      forward(column_plan_, columns_, prime_scratch_);
      columns_[height_] = Point<T>{};
      for (int k = 0; k < packed_rows_; ++k) {
        const Point<T> z = columns_[row(k)], y = columns_[partner(k)];
        Point<T>* x = spectrum_ + k * width_;
        if (k == 0) {
          x[j] = {z.re + z.re, y.re + y.re};
          if (b < width_) x[b] = {z.im + z.im, y.im + y.im};
        } else {
          x[j] = {z.re + y.re, z.im - y.im};
          if (b < width_) x[b] = {z.im + y.im, y.re - z.re};
        }
      }
    }
  }

  // As PlaneTransform::weigh_rows, with a sum for each lane.
  template <bool filter, bool measure>
  void weigh_rows(double* sums) {
    Vec<T> packed = {}, sum = {};
    forward(row_plan_, spectrum_, prime_scratch_);
    for (int i = 0; i < width_; ++i) {
      const Point<T> here = spectrum_[i], mirror = spectrum_[row_plan_.mirror[i]];
      const Point<T> top = Point<T>{here.re + mirror.re, here.im - mirror.im} * T(0.5);
      const Point<T> bottom = Point<T>{here.re - mirror.re, here.im + mirror.im} * T(0.5);
      const Point<T> weighted_top = top * top_[i], weighted_bottom = bottom * bottom_[i];
      packed_row_[i] = weighted_top + weighted_bottom;
      if constexpr (measure) packed += power(top, weighted_top) + power(bottom, weighted_bottom);
    }
    for (int i = 0; i < width_; ++i) spectrum_[i] = packed_row_[i];
    if constexpr (filter) inverse(row_plan_, spectrum_, prime_scratch_);
    for (int k = 1; k < packed_rows_; ++k) {
      Point<T>* x = spectrum_ + k * width_;
      const Vec<T>* weight = weight_ + k * width_;
      const auto weigh = [&](int i, Point<T> point) {
        const Point<T> y = point * weight[i];
        if constexpr (measure) sum += power(point, y);
        return y;
      };
      if constexpr (filter) {
        convolve(row_plan_, x, prime_scratch_, weigh);
      } else {
        forward(row_plan_, x, prime_scratch_);
        for (int i = 0; i < width_; ++i) weigh(i, x[i]);
      }
    }
    if constexpr (measure) {
      for (int lane = 0; lane < L; ++lane) sums[lane] = (double(packed[lane]) + 2 * double(sum[lane])) / 4;
    }
  }

  // As PlaneTransform::noise_rows: the planes of the lanes are `blocks_per_plane` blocks apart in the stream.
  void noise_rows(Stream stream, uint64_t blocks_per_plane) {
    const unsigned __int128 origin = stream.counter;
    const int orbits = width_ / 2 + 1;
    const auto draw_orbit = [&](int k, int l, Vec<T> g[4]) {
      stream.counter = origin + uint64_t(k) * orbits + l;
      draw(stream, blocks_per_plane, g);
    };
    for (int k = 1; k < packed_rows_; ++k) {
      Point<T>* x = spectrum_ + k * width_;
      const Vec<T>* weight = weight_ + k * width_;
      for (int l = 0; l < orbits; ++l) {
        Vec<T> g[4];
        draw_orbit(k, l, g);
        const int here = row_plan_.position[l], mirror = row_plan_.mirror[here];
        if (mirror != here) x[mirror] = Point<T>{g[2], g[3]} * weight[mirror];
        x[here] = Point<T>{g[0], g[1]} * weight[here];
      }
      inverse(row_plan_, x, prime_scratch_);
    }
    // rows 0 and H / 2 of real signals: F(-l) = conj F(l), real where l is its own negative; packed as top + i bottom
    for (int l = 0; l < orbits; ++l) {
      const int here = row_plan_.position[l], mirror = row_plan_.mirror[here];
      const auto coefficient = [&](int k, const Vec<T>* weight) {
        Vec<T> g[4];
        draw_orbit(k, l, g);
        const T root2 = T(1.41421356237309504880);
        return here == mirror ? Point<T>{g[0] * weight[here] * root2, Vec<T>{}} : Point<T>{g[0], g[1]} * weight[here];
      };
      const Point<T> top = coefficient(0, top_);
      const Point<T> bottom = height_ % 2 == 0 ? coefficient(height_ / 2, bottom_) : Point<T>{};
      spectrum_[mirror] = {top.re + bottom.im, bottom.re - top.im};
      spectrum_[here] = {top.re - bottom.im, top.im + bottom.re};
    }
    inverse(row_plan_, spectrum_, prime_scratch_);
  }

  // As PlaneTransform::inverse_columns, for the planes of all lanes.
  template <class Write>
  void inverse_columns(Write&& write) {
    for (int j = 0; j < packed_columns_; ++j) {
      const int b = j + packed_columns_;
      for (int k = 0; k < packed_rows_; ++k) {
        const Point<T>* x = spectrum_ + k * width_;
        const Point<T> p = x[j], q = b < width_ ? x[b] : Point<T>{};
        columns_[row(k)] = k == 0 ? Point<T>{p.re, q.re} : Point<T>{p.re - q.im, p.im + q.re};
        columns_[partner(k)] = k == 0 ? Point<T>{p.im, q.im} : Point<T>{p.re + q.im, q.re - p.im};
      }
      inverse(column_plan_, columns_, prime_scratch_);
      for (int h = 0; h < height_; ++h) {
        values_[h * width_ + j] = columns_[h].re;
        if (b < width_) values_[h * width_ + b] = columns_[h].im;
      }
    }
    for (int h = 0; h < height_; ++h) {
      for (int w = 0; w < width_; w += L) {
        const int n = width_ - w < L ? width_ - w : L;
        Vec<T> r[L];
        for (int j = 0; j < L; ++j) r[j] = j < n ? values_[h * width_ + w + j] : Vec<T>{};
        transpose<T>(r);
        for (int lane = 0; lane < L; ++lane) write(lane, h, w, n, r[lane]);
      }
    }
  }

 private:
  int row(int k) const { return column_plan_.position[k]; }
  int partner(int k) const { return sagd::SAGD_ISA::partner(column_plan_, k); }

  static SAGD_INLINE Vec<T> power(Point<T> a, Point<T> b) { return a.re * b.re + a.im * b.im; }

  static void put(Vec<T>& to, T value, int first, int end) {
    if (end - first == L) {
      to = broadcast(value);
    } else {
      for (int lane = first; lane < end; ++lane) to[lane] = value;
    }
  }

  int height_, width_, packed_columns_, packed_rows_;
  const Plan<T>&column_plan_, &row_plan_;
  Vec<T>* values_;  // [height][width], a plane a lane
  Point<T>*spectrum_, *columns_, *prime_scratch_, *packed_row_;
  Vec<T>*weight_, *top_, *bottom_;  // weights.h's table, a plane a lane
  WeightTable<T> one_;
};

}  // namespace sagd::SAGD_ISA
