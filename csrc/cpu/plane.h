// The two-dimensional transform of one real plane, and what happens to its spectrum.
//
// Layout. A real plane is half a complex plane, by itself: columns j and j + W2, W2 = ceil(W / 2), are the real and
// imaginary part of one complex column (an odd one out has a zero partner). L neighbouring columns, one a lane, are
// transformed at a time (a strip, H points). Their half spectra come apart by symmetry, rows k = 0 .. ceil(H / 2) - 1
// remain, in the order in which the transform leaves them (Plan::half), and L x L register transposes turn them into
// strips of L rows, W points each: the plane's spectrum,
//   spectrum[strip of rows][position of l][lane k], H W numbers in all.
// Rows 0 and H / 2 are real before the row transform and share lane 0 of the first strip as real and imaginary part.
// Nothing of one plane ever meets another.
//
// Cost per pixel for H = W = N, per direction: 4 log2 N additions and multiplications in the butterflies and twiddle
// products, 2 loads and 2 stores of the spectrum per stage, 4 shuffles / L per transpose step; device memory: each
// input pixel is read once, each output pixel written once.
#pragma once

#include "cpu/fetch.h"
#include "cpu/fft.h"
#include "cpu/job.h"
#include "cpu/normals.h"
#include "cpu/scratch.h"
#include "cpu/weights.h"

namespace sagd::SAGD_ISA {

template <class T>
class PlaneTransform {
 public:
  static constexpr int L = lanes<T>;
  static constexpr int planes = 1;  // at a time

  PlaneTransform(int64_t height, int64_t width)
      : height_(int(height)),
        width_(int(width)),
        packed_columns_((width_ + 1) / 2),
        packed_rows_((height_ + 1) / 2),
        row_strips_((packed_rows_ + L - 1) / L),
        // tiles of the last column strip reach beyond the plane
        pitch_(packed_columns_ + (packed_columns_ + L - 1) / L * L),
        column_plan_(plan<T>(height_)),
        row_plan_(plan<T>(width_)) {
    const int prime = column_plan_.scratch > row_plan_.scratch ? column_plan_.scratch : row_plan_.scratch;
    const int64_t spectrum = int64_t(row_strips_) * pitch_, weight = int64_t(row_strips_) * width_;
    const int64_t points = spectrum + (height_ + 2) + prime;
    Carver carve(scratch(points * sizeof(Point<T>) + weight * sizeof(Vec<T>) + row_strips_ * L * sizeof(Rows) +
                         (3 * int64_t(width_) + 2) * sizeof(T)));
    spectrum_ = carve.take<Point<T>>(spectrum);
    columns_ = carve.take<Point<T>>(height_ + 2);
    prime_scratch_ = carve.take<Point<T>>(prime);
    weight_.table = carve.take<Vec<T>>(weight);
    rows_ = carve.take<Rows>(row_strips_ * L);
    weight_.bottom = carve.take<T>(width_);
    weight_.bottom_excess = carve.take<T>(width_);
    bottom_noise_ = carve.take<T>(width_ + 2);
    // behind the columns: the missing partner of row 0 where the height is odd, and rows beyond the last
    for (int i = 0; i < packed_rows_; ++i) {
      const int k = column_plan_.half[i];
      rows_[i] = {columns_ + column_plan_.position[k], columns_ + partner(column_plan_, k)};
    }
    Point<T>* const beyond = columns_ + height_ + 1;
    for (int i = packed_rows_; i < row_strips_ * L; ++i) rows_[i] = {beyond, beyond};
    for (int strip = 0; strip < row_strips_; ++strip) {
      for (int w = width_; w < pitch_; ++w) spectrum_[strip * int64_t(pitch_) + w] = Point<T>{};
    }
  }

  WeightTable<T>& weight() { return weight_; }
  const Plan<T>& column_plan() const { return column_plan_; }
  const Plan<T>& row_plan() const { return row_plan_; }

  // The column transforms of the plane whose L values from (h, w) on, n of them real ones, are read(0, h, w, n).
  // Leaves every value of the spectrum doubled.
  template <class Read>
  void forward_columns(Read read) {
    // backwards: the last strip's tiles reach beyond their columns, into what the others write
    for (int j0 = (packed_columns_ - 1) / L * L; j0 >= 0; j0 -= L) {
      const int n = packed_columns_ - j0 < L ? packed_columns_ - j0 : L;
      const int partners = width_ - packed_columns_ - j0 < n ? width_ - packed_columns_ - j0 : n;
      if (many_registers && partners > 0) {
        forward(column_plan_, columns_, prime_scratch_, [=, partner = j0 + packed_columns_](int h) {
          h = opaque(h);  // or the loop would keep an address for each of the butterfly's points, more than registers
          return Point<T>{read(0, h, j0, n), read(0, h, partner, partners)};
        });
      } else {
        for (int h = 0; h < height_; ++h) {
          columns_[h].re = read(0, h, j0, n);
          columns_[h].im = partners > 0 ? read(0, h, j0 + packed_columns_, partners) : Vec<T>{};
        }
        forward(column_plan_, columns_, prime_scratch_);
      }
      columns_[height_] = columns_[height_ + 1] = Point<T>{};
      // rows 0 and H / 2, both real, become what the other rows and their mirrors are: z + i y and z - i y
      const Point<T> z = *rows_->here, y = quarter_turn<true>(*rows_->mirror);
      *rows_->here = z + y;
      *rows_->mirror = z - y;
      for (int strip = 0; strip < row_strips_; ++strip) separate(strip, j0);
    }
    if (width_ % 2) {  // the missing partner's spectrum is zero, not what rounding left there
      for (int strip = 0; strip < row_strips_; ++strip) spectrum_[strip * int64_t(pitch_) + width_] = Point<T>{};
    }
  }

  // Row transforms and the weight; with `filter`, the inverse row transforms too, else the rows are left undefined.
  // With `measure`, sums[0] becomes the sum over the full plane's bins of weight |F|^2, F the spectrum of what was read.
  // With `fetches`, the values of `fetch` are fetched meanwhile, as many as the plane's at least.
  template <bool filter, bool measure, bool fetches>
  [[gnu::noinline]] void weigh_rows(double* sums, Fetch fetch) {
    double total = 0;
    for (int strip = 0; strip < row_strips_; ++strip) {
      Point<T>* x = spectrum_ + strip * int64_t(pitch_);
      const Vec<T>* weight = weight_.table + strip * int64_t(width_);
      Vec<T> sum = {};
      double row_sums[L] = {};
      const auto add = [&](int i, Vec<T> value) {
        sum += value;
        if (i % 64 < 63) [[likely]] return;  // sums of a few dozen values in T, of the rest in double
        for (int lane = 0; lane < L; ++lane) row_sums[lane] += double(sum[lane]);
        sum = Vec<T>{};
      };
      const auto weigh = [&](int i, Point<T> point) {
        if (fetches) fetch(strip * width_ + i, 2 * L);
        const Point<T> y = point * weight[i];
        if constexpr (measure) add(i, power(point, y));
        return y;
      };
      // Lane 0 of the first strip holds P = top + i bottom, the spectra of rows 0 and H / 2, each of a real row:
      // 2 top(l) = P(l) + conj P(-l), 2 i bottom(l) = P(l) - conj P(-l). The table has the top's weight there.
      const auto weigh_packed = [&](int i, Point<T> point, Point<T> negative) {
        if (fetches) fetch(strip * width_ + i, 2 * L);
        const Point<T> bottom = {point.re - negative.re, point.im + negative.im};
        const Point<T> y = point * weight[i] + bottom * lane_0(weight_.bottom_excess[i]);
        if constexpr (measure) {
          const Point<T> top = {point.re + negative.re, point.im - negative.im};
          const Vec<T> packed = (power(top, top) * weight[i] + power(bottom, bottom) * weight_.bottom[i]) * T(0.25);
          add(i, in_lane_0(packed, power(point, y)));
        }
        return y;
      };
      if constexpr (filter) {
        if (strip == 0) {
          convolve_pairs(row_plan_, x, prime_scratch_, weigh_packed);
        } else {
          convolve(row_plan_, x, prime_scratch_, weigh);
        }
      } else {
        forward(row_plan_, x, prime_scratch_);
        for (int i = 0; i < width_; ++i) {
          if (strip == 0) {
            weigh_packed(i, x[i], x[row_plan_.mirror[i]]);
          } else {
            weigh(i, x[i]);
          }
        }
      }
      if constexpr (measure) {
        // row k stands for -k too, but not the two packed ones
        for (int i = 0; i < L; ++i) total += (strip == 0 && i == 0 ? 1 : 2) * (row_sums[i] + double(sum[i]));
      }
    }
    if constexpr (measure) sums[0] = total / 4;  // forward_columns doubled every value
  }

  // The weighted spectrum of white noise from the stream's blocks (see random.py and docs/contract.md), rows
  // transformed back. The table must hold the weight times 1 / sqrt(2 height width). `fetches`: see weigh_rows.
  template <bool fetches>
  void noise_rows(Stream stream, uint64_t /* blocks to the next plane */, Fetch fetch) {
    const int orbits = width_ / 2 + 1;
    // lanes are rows; one behind the last row has row H / 2, which is drawn with the others if there is such a lane
    const auto rows_apart = [&](int strip) {
      return words([&](int i) {
        const int at = strip * L + i;
        return uint64_t(at < packed_rows_ ? column_plan_.half[at] : height_ / 2) * orbits;
      });
    };
    const bool spare_lane = packed_rows_ < L;
    if (!spare_lane) draw_bottom(stream);
    Words apart = rows_apart(0);
    Normals<T> normals(stream, apart, uint64_t(height_) * orbits);
    for (int strip = 0; strip < row_strips_; ++strip) {
      Point<T>* x = spectrum_ + strip * int64_t(pitch_);
      const Vec<T>* weight = weight_.table + strip * int64_t(width_);
      for (int l = 0; l < orbits; ++l) {
        int next = l + 1;
        if (next == orbits) {
          next = 0;
          apart = rows_apart(strip + 1);
        }
        if (fetches) fetch(strip * orbits + l, 4 * L);
        Vec<T> g[4];
        normals.draw(g, stream.counter + next, apart);
        const int here = row_plan_.position[l], mirror = row_plan_.mirror[here];
        Point<T> point = Point<T>{g[0], g[1]} * weight[here], negative = Point<T>{g[2], g[3]} * weight[mirror];
        if (spare_lane) weigh_bottom(l, g[0][packed_rows_], g[1][packed_rows_]);
        if (strip == 0) pack_noise(point, negative, mirror == here, bottom_noise_ + 2 * l);
        x[mirror] = negative;
        x[here] = point;
      }
      inverse(row_plan_, x, prime_scratch_);
    }
  }

  // The inverse column transforms; the L values from (h, w) on, n of them real ones, go to write(0, h, w, n, values).
  // `fused`: from within the last stage, which pays as long as `write` touches nothing but one output.
  template <bool fused, class Write>
  void inverse_columns(Write write) {
    // in the order of forward_columns: what is fetched while this plane is written is read in that order
    for (int j0 = (packed_columns_ - 1) / L * L; j0 >= 0; j0 -= L) {
      const int n = packed_columns_ - j0 < L ? packed_columns_ - j0 : L;
      const int partners = width_ - packed_columns_ - j0 < n ? width_ - packed_columns_ - j0 : n;
      for (int strip = 0; strip < row_strips_; ++strip) join(strip, j0);
      const Point<T> z = *rows_->here, y = *rows_->mirror;
      *rows_->here = (z + y) * T(0.5);
      *rows_->mirror = quarter_turn<false>(z - y) * T(0.5);
      if (fused && many_registers && partners > 0) {
        inverse(column_plan_, columns_, prime_scratch_, [=, partner = j0 + packed_columns_](int h, Point<T> v) {
          h = opaque(h);  // as above
          write(0, h, j0, n, v.re);
          write(0, h, partner, partners, v.im);
        });
      } else {
        inverse(column_plan_, columns_, prime_scratch_);
        for (int h = 0; h < height_; ++h) {
          write(0, h, j0, n, columns_[h].re);
          if (partners > 0) write(0, h, j0 + packed_columns_, partners, columns_[h].im);
        }
      }
    }
  }

 private:
  // Row k and its mirror -k of the packed columns, or the two rows that are real.
  struct Rows {
    Point<T>*here, *mirror;
  };

  // One tile of columns j0 ..: Z = A + i B on the full column -> twice the half spectra A and B, transposed.
  SAGD_INLINE void separate(int strip, int j0) {
    Point<T>* a = spectrum_ + strip * int64_t(pitch_) + j0;
    Point<T>* b = a + packed_columns_;
    const auto tile = [&](auto&& combine, auto&& put) {
      const Rows* rows = opaque(rows_ + strip * L);  // read again for each tile: there are more than registers
      Vec<T> r[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) r[i] = combine(*rows[i].here, *rows[i].mirror);
      transpose<T>(r);
#pragma GCC unroll 16
      for (int j = 0; j < L; ++j) put(j, r[j]);
    };
    using P = const Point<T>&;
    tile([](P z, P y) { return z.re + y.re; }, [&](int j, Vec<T> v) { a[j].re = v; });
    tile([](P z, P y) { return z.im - y.im; }, [&](int j, Vec<T> v) { a[j].im = v; });
    tile([](P z, P y) { return z.im + y.im; }, [&](int j, Vec<T> v) { b[j].re = v; });
    tile([](P z, P y) { return y.re - z.re; }, [&](int j, Vec<T> v) { b[j].im = v; });
  }

  // The way back: A and B of one tile -> Z = A + i B and its mirror row conj(A) + i conj(B).
  SAGD_INLINE void join(int strip, int j0) {
    const Point<T>* a = spectrum_ + strip * int64_t(pitch_) + j0;
    const Point<T>* b = a + packed_columns_;
    const auto tile = [&](auto&& combine, auto&& put) {
      const Rows* rows = opaque(rows_ + strip * L);  // read again for each tile: there are more than registers
      Vec<T> r[L];
#pragma GCC unroll 16
      for (int j = 0; j < L; ++j) r[j] = combine(a[j], b[j]);
      transpose<T>(r);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) put(rows[i], r[i]);
    };
    using P = const Point<T>&;
    tile([](P a, P b) { return a.re - b.im; }, [](Rows row, Vec<T> v) { row.here->re = v; });
    tile([](P a, P b) { return a.im + b.re; }, [](Rows row, Vec<T> v) { row.here->im = v; });
    tile([](P a, P b) { return a.re + b.im; }, [](Rows row, Vec<T> v) { row.mirror->re = v; });
    tile([](P a, P b) { return b.re - a.im; }, [](Rows row, Vec<T> v) { row.mirror->im = v; });
  }

  static SAGD_INLINE Vec<T> power(Point<T> a, Point<T> b) { return a.re * b.re + a.im * b.im; }

  // a in lane 0, b in the others.
  static SAGD_INLINE Vec<T> in_lane_0(Vec<T> a, Vec<T> b) { return lane_0(1) != 0 ? a : b; }

  static SAGD_INLINE Vec<T> lane_0(T a) {
    Vec<T> v = {};
    v[0] = a;
    return v;
  }

  // The weighted noise spectrum of row H / 2, (re, im) pairs for l = 0 .. W / 2; zero if the height is odd.
  void draw_bottom(Stream stream) {
    const int orbits = width_ / 2 + 1;
    stream.counter += uint64_t(height_ / 2) * orbits;
    const Words apart = multiples(1);
    Normals<T> normals(stream, apart, L);
    for (int l0 = 0; l0 < orbits; l0 += L) {
      Vec<T> g[4];
      normals.draw(g, stream.counter + l0 + L, apart);
      for (int i = 0; i < L && l0 + i < orbits; ++i) weigh_bottom(l0 + i, g[0][i], g[1][i]);
    }
  }

  SAGD_INLINE void weigh_bottom(int l, T re, T im) {
    const T weight = height_ % 2 == 0 ? weight_.bottom[row_plan_.position[l]] : T(0);
    bottom_noise_[2 * l] = weight * re;
    bottom_noise_[2 * l + 1] = weight * im;
  }

  // Makes lane 0 of the spectrum at l and at -l that of the packed row, top + i bottom: both rows are real, so
  // F(-l) = conj F(l), and F is real where l is its own negative.
  SAGD_INLINE void pack_noise(Point<T>& point, Point<T>& negative, bool own_negative, const T* bottom) {
    T bottom_re = bottom[0], bottom_im = bottom[1];
    if (own_negative) {
      const T root2 = T(1.41421356237309504880);
      point = {in_lane_0(point.re * root2, point.re), in_lane_0(Vec<T>{}, point.im)};
      bottom_re *= root2;
      bottom_im = 0;
    }
    const Vec<T> re = lane_0(bottom_re), im = lane_0(bottom_im);
    negative = {in_lane_0(point.re, negative.re) + im, in_lane_0(-point.im, negative.im) + re};
    point = {point.re - im, point.im + re};
  }

  int height_, width_, packed_columns_, packed_rows_, row_strips_, pitch_;
  const Plan<T>&column_plan_, &row_plan_;
  Point<T>*spectrum_, *columns_, *prime_scratch_;
  Rows* rows_;
  WeightTable<T> weight_;
  T* bottom_noise_;
};

}  // namespace sagd::SAGD_ISA
