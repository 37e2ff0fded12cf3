// Small planes, where a strip of one plane's columns would leave lanes empty: L planes at a time, one a lane.
//
// The method is that of plane.h (packed columns, packed rows, the same one-dimensional transforms), but every step is
// the same for all lanes, so nothing is transposed between the axes and no row needs care of its own. The only
// transposes are those of the input and output. Which of the two layouts a plane gets depends on its size alone, and
// lanes never meet, so its bits still do not depend on its neighbours.
//
// Cost per pixel as in plane.h; scratch 1.5 L values a pixel, which stay in the first two caches. Rows are taken out of
// the columns and put back one at a time, so that little besides these is touched.
#pragma once

#include "cpu/fetch.h"
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

  explicit BundleTransform(const Job& job)
      : height_(int(job.height)),
        width_(int(job.width)),
        packed_columns_((width_ + 1) / 2),
        packed_rows_((height_ + 1) / 2),
        column_plan_(plan<T>(height_)),
        row_plan_(plan<T>(width_)) {
    const int64_t points = int64_t(packed_columns_) * (height_ + 1), half = int64_t(packed_rows_) * width_;
    const int64_t prime = column_plan_.scratch > row_plan_.scratch ? column_plan_.scratch : row_plan_.scratch;
    Carver carve(scratch(sizeof(Vec<T>) * (2 * (points + (width_ + 1) + prime + width_) + half)));
    columns_ = carve.take<Point<T>>(points);
    row_ = carve.take<Point<T>>(width_ + 1);  // an odd column out has its partner, zero, at the end
    row_[width_] = Point<T>{};
    prime_scratch_ = carve.take<Point<T>>(prime);
    weight_ = carve.take<Vec<T>>(half);
    bottom_ = carve.take<Vec<T>>(width_);
    bottom_excess_ = carve.take<Vec<T>>(width_);
  }

  // Fills the table, lane i from the weight at from[i]: fill of weights.h for L planes at once. With inverse_square,
  // kept[i] becomes the number of bins of the full plane with w > 0. Inlined, it would take registers from its callers.
  template <WeightMap map>
  [[gnu::noinline]] void load_weights(const T* const* from, int64_t row_stride, int64_t column_stride, T factor,
                                      int64_t* kept) {
    const int columns = width_ / 2 + 1;
    const Vec<T>* w = gather_weights(from, row_stride, column_stride, columns);
    Vec<T> count = {}, packed_count = {};
    for (int k = 0; k < packed_rows_; ++k) {
      const Vec<T>*direct = w + k * columns, *mirrored = w + (height_ - k) % height_ * columns;
      for (int l = 0; l < columns; ++l) {
        const int here = row_plan_.position[l], mirror = row_plan_.mirror[here];
        const auto put = [&](int i, Vec<T> value) {
          weight_[k * width_ + i] = mapped<map>(value, factor);
          if constexpr (map == WeightMap::inverse_square) (k == 0 ? packed_count : count) += one_where_positive(value);
        };
        put(here, here == mirror ? (direct[l] + mirrored[l]) * T(0.5) : direct[l]);
        if (mirror != here) put(mirror, mirrored[l]);
      }
    }
    const bool has_bottom = height_ % 2 == 0;
    for (int l = 0; l < columns; ++l) {
      const int here = row_plan_.position[l], mirror = row_plan_.mirror[here];
      const Vec<T> value = has_bottom ? w[height_ / 2 * columns + l] : w[l], bottom = mapped<map>(value, factor);
      bottom_[here] = bottom_[mirror] = bottom;
      bottom_excess_[here] = bottom_excess_[mirror] = (bottom - weight_[here]) * T(0.5);
      if (has_bottom && map == WeightMap::inverse_square) {
        packed_count += one_where_positive(value) * T(here == mirror ? 1 : 2);
      }
    }
    if constexpr (map == WeightMap::inverse_square) {
      for (int lane = 0; lane < L; ++lane) kept[lane] = int64_t(2 * count[lane] + packed_count[lane]);
    }
  }

  // As PlaneTransform::forward_columns, for the planes of all lanes.
  template <class Read>
  void forward_columns(Read&& read) {
    for (int h = 0; h < height_; ++h) {
      for (int w = 0; w < width_; w += L) {
        const int n = width_ - w < L ? width_ - w : L;
        Vec<T> r[L];
#pragma GCC unroll 16
        for (int lane = 0; lane < L; ++lane) r[lane] = read(lane, h, w, n);
        transpose<T>(r);
#pragma GCC unroll 16
        for (int j = 0; j < L; ++j) if (j < n) value(h, w + j) = r[j];
      }
      if (width_ % 2) column(packed_columns_ - 1)[h].im = Vec<T>{};
    }
    for (int j = 0; j < packed_columns_; ++j) {
      forward(column_plan_, column(j), prime_scratch_);
      column(j)[height_] = Point<T>{};
    }
  }

  // As PlaneTransform::weigh_rows, with a sum for each lane.
  template <bool filter, bool measure, class Fetch>
  void weigh_rows(double* sums, Fetch fetch) {
    Vec<T> packed = {}, sum = {};
    const auto weigh_packed = [&](int i, Point<T> point, Point<T> negative) {
      const Point<T> bottom = {point.re - negative.re, point.im + negative.im};
      if constexpr (measure) {
        const Point<T> top = {point.re + negative.re, point.im - negative.im};
        packed += (power(top, top) * weight_[i] + power(bottom, bottom) * bottom_[i]) * T(0.25);
      }
      return point * weight_[i] + bottom * bottom_excess_[i];
    };
    separate(0, fetch);
    if constexpr (filter) {
      convolve_pairs(row_plan_, row_, prime_scratch_, weigh_packed);
      join(0);
    } else {
      forward(row_plan_, row_, prime_scratch_);
      for (int i = 0; i < width_; ++i) weigh_packed(i, row_[i], row_[row_plan_.mirror[i]]);
    }
    for (int k = 1; k < packed_rows_; ++k) {
      const Vec<T>* weight = weight_ + k * width_;
      const auto weigh = [&](int i, Point<T> point) {
        const Point<T> y = point * weight[i];
        if constexpr (measure) sum += power(point, y);
        return y;
      };
      separate(k, fetch);
      if constexpr (filter) {
        convolve(row_plan_, row_, prime_scratch_, weigh);
        join(k);
      } else {
        forward(row_plan_, row_, prime_scratch_);
        for (int i = 0; i < width_; ++i) weigh(i, row_[i]);
      }
    }
    if constexpr (measure) {
      for (int lane = 0; lane < L; ++lane) sums[lane] = (double(packed[lane]) + 2 * double(sum[lane])) / 4;
    }
  }

  // As PlaneTransform::noise_rows: the planes of the lanes are `blocks_per_plane` blocks apart in the stream.
  template <class Fetch>
  void noise_rows(Stream stream, uint64_t blocks_per_plane, Fetch fetch) {
    const unsigned __int128 origin = stream.counter;
    const int orbits = width_ / 2 + 1;
    const auto orbit = [&](int k, int l) { return origin + uint64_t(k) * orbits + l; };
    const auto row_after = [&](int k) { return k + 1 < packed_rows_ ? k + 1 : 0; };  // row 0 comes last
    stream.counter = orbit(row_after(0), 0);
    const Words planes_apart = multiples(blocks_per_plane);
    Normals<T> normals(stream, planes_apart, L * blocks_per_plane);
    for (int k = 1; k < packed_rows_; ++k) {
      const Vec<T>* weight = weight_ + k * width_;
      for (int l = 0; l < orbits; ++l) {
        fetch((k - 1) * orbits + l, 4 * L);
        Vec<T> g[4];
        normals.draw(g, l + 1 < orbits ? orbit(k, l + 1) : orbit(row_after(k), 0), planes_apart);
        const int here = row_plan_.position[l], mirror = row_plan_.mirror[here];
        if (mirror != here) row_[mirror] = Point<T>{g[2], g[3]} * weight[mirror];
        row_[here] = Point<T>{g[0], g[1]} * weight[here];
      }
      inverse(row_plan_, row_, prime_scratch_);
      join(k);
    }
    // rows 0 and H / 2 of real signals: F(-l) = conj F(l), real where l is its own negative; packed as top + i bottom
    const bool has_bottom = height_ % 2 == 0;
    for (int l = 0; l < orbits; ++l) {
      const int here = row_plan_.position[l], mirror = row_plan_.mirror[here];
      const auto coefficient = [&](const Vec<T>* weight, unsigned __int128 next) {
        Vec<T> g[4];
        normals.draw(g, next, planes_apart);
        const T root2 = T(1.41421356237309504880);
        return here == mirror ? Point<T>{g[0] * weight[here] * root2, Vec<T>{}} : Point<T>{g[0], g[1]} * weight[here];
      };
      const Point<T> top = coefficient(weight_, has_bottom ? orbit(height_ / 2, l) : orbit(0, l + 1));
      const Point<T> bottom = has_bottom ? coefficient(bottom_, orbit(0, l + 1)) : Point<T>{};
      row_[mirror] = {top.re + bottom.im, bottom.re - top.im};
      row_[here] = {top.re - bottom.im, top.im + bottom.re};
    }
    inverse(row_plan_, row_, prime_scratch_);
    join(0);
  }

  // As PlaneTransform::inverse_columns, for the planes of all lanes.
  template <bool, class Write>
  void inverse_columns(Write&& write) {
    for (int j = 0; j < packed_columns_; ++j) inverse(column_plan_, column(j), prime_scratch_);
    for (int h = 0; h < height_; ++h) {
      for (int w = 0; w < width_; w += L) {
        const int n = width_ - w < L ? width_ - w : L;
        Vec<T> r[L];
#pragma GCC unroll 16
        for (int j = 0; j < L; ++j) r[j] = j < n ? value(h, w + j) : Vec<T>{};
        transpose<T>(r);
#pragma GCC unroll 16
        for (int lane = 0; lane < L; ++lane) write(lane, h, w, n, r[lane]);
      }
    }
  }

 private:
  // Where the column transforms leave the row that is packed with row k by symmetry: -k, or height / 2 for row 0; one
  // behind the end if there is none (row 0 of an odd height).
  SAGD_INLINE int partner(int k) const {
    if (k > 0) return column_plan_.position[height_ - k];
    return height_ % 2 == 0 ? column_plan_.position[height_ / 2] : height_;
  }

  // Rows k and -k of the packed columns Z = A + i B -> twice row k of the half spectra A and B.
  template <class Fetch>
  SAGD_INLINE void separate(int k, Fetch fetch) {
    const int here = column_plan_.position[k], mirror = partner(k);
    for (int j = 0; j < packed_columns_; ++j) {
      fetch(k * packed_columns_ + j, 4 * L);
      const Point<T> z = column(j)[here], y = column(j)[mirror];
      row_[2 * j] = k == 0 ? Point<T>{z.re + z.re, y.re + y.re} : Point<T>{z.re + y.re, z.im - y.im};
      row_[2 * j + 1] = k == 0 ? Point<T>{z.im + z.im, y.im + y.im} : Point<T>{z.im + y.im, y.re - z.re};
    }
    row_[width_] = Point<T>{};  // not what rounding left there
  }

  // The way back: rows k of A and B -> Z = A + i B and its mirror row conj(A) + i conj(B).
  SAGD_INLINE void join(int k) {
    const int here = column_plan_.position[k], mirror = partner(k);
    for (int j = 0; j < packed_columns_; ++j) {
      const Point<T> a = row_[2 * j], b = row_[2 * j + 1];
      column(j)[here] = k == 0 ? Point<T>{a.re, b.re} : Point<T>{a.re - b.im, a.im + b.re};
      column(j)[mirror] = k == 0 ? Point<T>{a.im, b.im} : Point<T>{a.re + b.im, b.re - a.im};
    }
  }

  // A packed column, and one point more: where the missing partner of row 0 goes.
  SAGD_INLINE Point<T>* column(int j) { return columns_ + j * (height_ + 1); }

  SAGD_INLINE Vec<T>& value(int h, int w) {
    Point<T>& point = column(w / 2)[h];
    return w % 2 == 0 ? point.re : point.im;
  }

  static SAGD_INLINE Vec<T> power(Point<T> a, Point<T> b) { return a.re * b.re + a.im * b.im; }

  // The weights as they are, [height][columns] with a plane a lane, where the planes will be. Rows without gaps between
  // them are read as one, as the last vector of each would be partly empty.
  const Vec<T>* gather_weights(const T* const* from, int64_t row_stride, int64_t column_stride, int columns) {
    Vec<T>* const w = &columns_->re;
    const bool joined = row_stride == columns * column_stride;
    const int runs = joined ? 1 : height_, length = joined ? height_ * columns : columns;
    for (int run = 0; run < runs; ++run) {
      for (int at = 0; at < length; at += L) {
        const int n = length - at < L ? length - at : L;
        const int64_t offset = run * row_stride + at * column_stride;
        Vec<T> r[L];
#pragma GCC unroll 16
        for (int lane = 0; lane < L; ++lane) r[lane] = load_some(from[lane] + offset, column_stride, n);
        transpose<T>(r);
#pragma GCC unroll 16
        for (int j = 0; j < L; ++j) if (j < n) w[run * length + at + j] = r[j];
      }
    }
    return w;
  }

  int height_, width_, packed_columns_, packed_rows_;
  const Plan<T>&column_plan_, &row_plan_;
  Point<T>*columns_, *row_, *prime_scratch_;
  Vec<T>*weight_, *bottom_, *bottom_excess_;  // weights.h's table, a plane a lane
};

}  // namespace sagd::SAGD_ISA
