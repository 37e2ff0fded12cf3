// The two-dimensional transform of one real plane, and what happens to its spectrum.
//
// Layout. A real plane is half a complex plane, by itself: columns j and j + W2, W2 = ceil(W / 2), are the real and
// imaginary part of one complex column (an odd one out has a zero partner). L neighbouring columns, one a lane, are
// transformed at a time (a strip, H points). Their half spectra come apart by symmetry, rows k = 0 .. ceil(H / 2) - 1
// remain, in the order in which the transform leaves them (Plan::half), and L x L register transposes turn them into
// strips of L rows, W points each: the plane's spectrum,
//   spectrum[strip of rows][position of l][lane k], H W numbers in all.
// Rows 0 and H / 2 are real before the row transform. Row H / 2 has the lane behind the other rows; where these leave
// no lane empty it shares lane 0 of the first strip with row 0, as real and imaginary part: the packed row. Nothing of
// one plane ever meets another.
//
// Cost per pixel for H = W = N, per direction: 4 log2 N additions and multiplications in the butterflies and twiddle
// products, 2 loads and 2 stores of the spectrum per stage, 4 shuffles / L per transpose step; device memory: each
// input pixel is read once, each output pixel written once.
//
// Threads may share a plane (Job::parallel): its strips of columns, then those of rows, then again those of columns are
// independent of each other. They share the spectrum and the weight; each has its own column to work on.
#pragma once

#include "cpu/fetch.h"
#include "cpu/fft.h"
#include "cpu/job.h"
#include "cpu/normals.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/weights.h"

namespace sagd::SAGD_ISA {

template <class T>
class PlaneTransform {
 public:
  static constexpr int L = lanes<T>;
  static constexpr int planes = 1;  // at a time

  explicit PlaneTransform(const Job& job)
      : parallel_(job.parallel),
        height_(int(job.height)),
        width_(int(job.width)),
        packed_columns_((width_ + 1) / 2),
        packed_(packs_row<T>(height_)),
        column_strips_((packed_columns_ + L - 1) / L),
        row_strips_((spectrum_rows<T>(height_) + L - 1) / L),
        // tiles of the last column strip reach beyond the plane
        pitch_(packed_columns_ + column_strips_ * L),
        column_plan_(plan<T>(height_)),
        row_plan_(plan<T>(width_)) {
    const int64_t spectrum = int64_t(row_strips_) * pitch_, weight = int64_t(row_strips_) * width_;
    Carver carve(scratch(spectrum * sizeof(Point<T>) + buffer_bytes() + weight * sizeof(Vec<T>) +
                         row_strips_ * sizeof(double) + 2 * int64_t(width_) * sizeof(T)));
    spectrum_ = carve.take<Point<T>>(spectrum);
    take_buffers(carve.take<char>(buffer_bytes()));
    weight_.table = carve.take<Vec<T>>(weight);
    strip_sums_ = carve.take<double>(row_strips_);
    weight_.bottom = carve.take<T>(width_);
    weight_.bottom_excess = carve.take<T>(width_);
    for (int strip = 0; strip < row_strips_; ++strip) {
      for (int w = width_; w < pitch_; ++w) spectrum_[strip * int64_t(pitch_) + w] = Point<T>{};
    }
  }

  WeightTable<T>& weight() { return weight_; }

  // Fills a table (weights.h).
  template <WeightMap map>
  void fill(WeightTable<T>& to, const T* weight, int64_t row_stride, int64_t column_stride, T factor) const {
    to.kept = 0;
    in_ranges(parallel_, row_strips_, [&](int64_t begin, int64_t end) {
      SAGD_ISA::fill<map>(to, weight, row_stride, column_stride, column_plan_, row_plan_, factor, int(begin), int(end));
    });
  }

  // The column transforms of the plane whose L values from (h, w) on, n of them real ones, are read(0, h, w, n).
  // Leaves every value of the spectrum doubled.
  template <class Read>
  void forward_columns(Read read) {
    // The last strip's tiles may reach beyond its columns, into what strip 0 writes: one thread takes both, backwards.
    const int last = column_strips_ - 1;
    const bool overlap = last > 0 && packed_columns_ % L > 0;
    share(column_strips_ - overlap, [=](PlaneTransform& part, int begin, int end) {
      if (overlap && begin == 0) part.forward_strips(read, last, last + 1);
      part.forward_strips(read, begin, end);
    });
  }

  // Row transforms and the weight; with `filter`, the inverse row transforms too, else the rows are left undefined.
  // With `measure`, sums[0] becomes the sum over the full plane's bins of weight |F|^2, F the spectrum of what was read.
  // Calls fetch(run, n) meanwhile (fetch.h), for as many values as the plane has at least.
  template <bool filter, bool measure, class Fetch>
  void weigh_rows(double* sums, Fetch fetch) {
    share(row_strips_, [=](PlaneTransform& part, int begin, int end) {
      part.template weigh_strips<filter, measure>(fetch, begin, end);
    });
    if constexpr (measure) {
      double total = 0;  // in the strips' order, whatever the threads did
      for (int strip = 0; strip < row_strips_; ++strip) total += strip_sums_[strip];
      sums[0] = total / 4;  // forward_columns doubled every value
    }
  }

  // The weighted spectrum of white noise from the stream's blocks (see random.py and docs/contract.md), rows
  // transformed back. The table must hold the weight times 1 / sqrt(2 height width). `fetch`: see weigh_rows.
  template <class Fetch>
  void noise_rows(Stream stream, uint64_t /* blocks to the next plane */, Fetch fetch) {
    share(row_strips_, [=](PlaneTransform& part, int begin, int end) { part.noise_strips(stream, fetch, begin, end); });
  }

  // The inverse column transforms; the L values from (h, w) on, n of them real ones, go to write(0, h, w, n, values).
  // `fused`: from within the last stage, which pays as long as `write` touches nothing but one output.
  template <bool fused, class Write>
  void inverse_columns(Write write) {
    share(column_strips_, [=](PlaneTransform& part, int begin, int end) {
      part.template inverse_strips<fused>(write, begin, end);
    });
  }

 private:
  // Row k and its mirror -k of the packed columns, which are the same if it is real; for the packed row 0 and H / 2.
  struct Rows {
    Point<T>*here, *mirror;
  };

  // What one thread works on: a strip of columns, a prime's transform, the packed row's noise.
  void take_buffers(void* memory) {
    Carver carve(memory);
    columns_ = carve.take<Point<T>>(height_ + 1);
    prime_scratch_ = carve.take<Point<T>>(prime_points());
    rows_ = carve.take<Rows>(row_strips_ * L);
    bottom_noise_ = carve.take<T>(width_ + 2);
    const auto row = [&](int k) { return columns_ + column_plan_.position[k % height_]; };
    Point<T>* const zero = columns_ + height_;  // for lanes beyond the last row
    for (int i = 0; i < row_strips_ * L; ++i) rows_[i] = {zero, zero};
    for (int i = 0; i < spectrum_rows<T>(height_); ++i) {
      const int k = spectrum_row(column_plan_, i);
      rows_[i] = {row(k), row(height_ - k)};
    }
    if (packed_) rows_->mirror = row(height_ / 2);
  }

  int64_t buffer_bytes() const {
    const int64_t bytes = (height_ + 1 + prime_points()) * int64_t(sizeof(Point<T>)) +
                          row_strips_ * L * int64_t(sizeof(Rows)) + (width_ + 2) * int64_t(sizeof(T));
    return (bytes + 63) / 64 * 64;  // what lies behind them is aligned, too
  }

  int prime_points() const {
    return column_plan_.scratch > row_plan_.scratch ? column_plan_.scratch : row_plan_.scratch;
  }

  // Calls phase(part, begin, end) for ranges of n strips. Threads that share the plane have parts with buffers of their
  // own; for them ranges count from the end, so that the one from 0 on, which may have more to do, is not the longest.
  template <class Phase>
  SAGD_INLINE void share(int n, Phase phase) {
    if (!parallel_) return phase(*this, opaque(0), n);
    hand_out(parallel_, n, [=, this](int64_t begin, int64_t end) {
      PlaneTransform part = *this;
      part.take_buffers(scratch(buffer_bytes(), Scratch::buffers));
      phase(part, n - int(end), n - int(begin));
    });
  }

  // The phases above on the strips [begin, end). Not inlined, so that there is one of each: see parallel.h.

  template <class Read>
  [[gnu::noinline]] void forward_strips(Read read, int begin, int end) {
    for (int j0 = (end - 1) * L; j0 >= begin * L; j0 -= L) {
      const int n = packed_columns_ - j0 < L ? packed_columns_ - j0 : L;
      const int partners = width_ - packed_columns_ - j0 < n ? width_ - packed_columns_ - j0 : n;
      if (many_registers && partners > 0) {
        forward(column_plan_, column_plan_.stages, columns_, prime_scratch_, [=, partner = j0 + packed_columns_](int h) {
          h = opaque(h);  // or the loop would keep an address for each of the butterfly's points, more than registers
          return Point<T>{read(0, h, j0, n), read(0, h, partner, partners)};
        });
      } else {
        if (partners == L) read_strip(read, j0, L, L);
        else read_strip(read, j0, n, partners);
        forward(column_plan_, columns_, prime_scratch_);
      }
      columns_[height_] = Point<T>{};
      if (packed_) {  // both real rows become what the other rows and their mirrors are: z + i y and z - i y
        const Point<T> z = *rows_->here, y = quarter_turn<true>(*rows_->mirror);
        *rows_->here = z + y;
        *rows_->mirror = z - y;
      }
      for (int strip = 0; strip < row_strips_; ++strip) separate(strip, j0);
    }
    if (width_ % 2 && end == column_strips_) {  // the missing partner's spectrum is zero, not what rounding left there
      for (int strip = 0; strip < row_strips_; ++strip) spectrum_[strip * int64_t(pitch_) + width_] = Point<T>{};
    }
  }

  // With `measure`, strip_sums_ becomes four times each strip's share of the sum.
  template <bool filter, bool measure, class Fetch>
  [[gnu::noinline]] void weigh_strips(Fetch fetch, int begin, int end) {
    for (int strip = begin; strip < end; ++strip) {
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
        fetch(strip * width_ + i, 2 * L);
        const Point<T> y = point * weight[i];
        if constexpr (measure) add(i, power(point, y));
        return y;
      };
      // Lane 0 of the first strip holds P = top + i bottom, the spectra of rows 0 and H / 2, each of a real row:
      // 2 top(l) = P(l) + conj P(-l), 2 i bottom(l) = P(l) - conj P(-l). The table has the top's weight there.
      const auto weigh_packed = [&](int i, Point<T> point, Point<T> negative) {
        fetch(strip * width_ + i, 2 * L);
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
        if (packed_ && strip == 0) {
          convolve_pairs(row_plan_, x, prime_scratch_, weigh_packed);
        } else {
          convolve(row_plan_, x, prime_scratch_, weigh);
        }
      } else {
        forward(row_plan_, x, prime_scratch_);
        for (int i = 0; i < width_; ++i) {
          if (packed_ && strip == 0) {
            weigh_packed(i, x[i], x[row_plan_.mirror[i]]);
          } else {
            weigh(i, x[i]);
          }
        }
      }
      if constexpr (measure) {
        double total = 0;
        for (int i = 0; i < L; ++i) {
          total += (is_real_row(column_plan_, strip * L + i) ? 1 : 2) * (row_sums[i] + double(sum[i]));
        }
        strip_sums_[strip] = total;
      }
    }
  }

  template <class Fetch>
  [[gnu::noinline]] void noise_strips(const Stream& stream, Fetch fetch, int begin, int end) {
    const int orbits = width_ / 2 + 1;
    const auto rows_apart = [&](int strip) {
      return words([&](int i) { return uint64_t(spectrum_row(column_plan_, strip * L + i)) * orbits; });
    };
    if (packed_ && begin == 0) draw_bottom(stream);
    Words apart = rows_apart(begin);
    Normals<T> normals(stream, apart, uint64_t(height_) * orbits);
    for (int strip = begin; strip < end; ++strip) {
      Point<T>* x = spectrum_ + strip * int64_t(pitch_);
      const Vec<T>* weight = weight_.table + strip * int64_t(width_);
      const Vec<T> real = real_rows(strip);
      const bool has_real = strip == 0 || (!packed_ && strip == row_strips_ - 1);
      for (int l = 0; l < orbits; ++l) {
        int next = l + 1;
        if (next == orbits) {
          next = 0;
          apart = rows_apart(strip + 1);
        }
        fetch(strip * orbits + l, 4 * L);
        Vec<T> g[4];
        normals.draw(g, stream.counter + next, apart);
        const int here = row_plan_.position[l], mirror = row_plan_.mirror[here];
        Point<T> point = Point<T>{g[0], g[1]} * weight[here], negative = Point<T>{g[2], g[3]} * weight[mirror];
        if (has_real) make_real(real, point, negative, mirror == here);
        if (packed_ && strip == 0) pack_bottom(point, negative, bottom_noise_ + 2 * l);
        x[mirror] = negative;
        x[here] = point;
      }
      inverse(row_plan_, x, prime_scratch_);
    }
  }

  template <bool fused, class Write>
  [[gnu::noinline]] void inverse_strips(Write write, int begin, int end) {
    // in the order of forward_strips: what is fetched while this plane is written is read in that order
    for (int j0 = (end - 1) * L; j0 >= begin * L; j0 -= L) {
      const int n = packed_columns_ - j0 < L ? packed_columns_ - j0 : L;
      const int partners = width_ - packed_columns_ - j0 < n ? width_ - packed_columns_ - j0 : n;
      for (int strip = 0; strip < row_strips_; ++strip) join(strip, j0);
      if (packed_) {
        const Point<T> z = *rows_->here, y = *rows_->mirror;
        *rows_->here = (z + y) * T(0.5);
        *rows_->mirror = quarter_turn<false>(z - y) * T(0.5);
      }
      if (fused && many_registers && partners > 0) {
        inverse(column_plan_, column_plan_.stages, columns_, prime_scratch_, [=, partner = j0 + packed_columns_](int h, Point<T> v) {
          h = opaque(h);  // as above
          write(0, h, j0, n, v.re);
          write(0, h, partner, partners, v.im);
        });
      } else {
        inverse(column_plan_, columns_, prime_scratch_);
        if (partners == L) write_strip(write, j0, L, L);
        else write_strip(write, j0, n, partners);
      }
    }
  }

  // The columns j0 .. as they are, n of them with so many partners. Where both are L, the caller says so: the loop then
  // has no test for it.
  template <class Read>
  SAGD_INLINE void read_strip(Read read, int j0, int n, int partners) {
    for (int h = 0; h < height_; ++h) {
      columns_[h].re = read(0, h, j0, n);
      columns_[h].im = partners > 0 ? read(0, h, j0 + packed_columns_, partners) : Vec<T>{};
    }
  }

  template <class Write>
  SAGD_INLINE void write_strip(Write write, int j0, int n, int partners) {
    for (int h = 0; h < height_; ++h) {
      write(0, h, j0, n, columns_[h].re);
      if (partners > 0) write(0, h, j0 + packed_columns_, partners, columns_[h].im);
    }
  }

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

  // 1 in the lanes of real rows, 0 in the others.
  Vec<T> real_rows(int strip) const {
    Vec<T> real = {};
    for (int i = 0; i < L; ++i) real[i] = is_real_row(column_plan_, strip * L + i);
    return real;
  }

  // The weighted noise spectrum of the packed row H / 2, (re, im) pairs for l = 0 .. W / 2.
  void draw_bottom(Stream stream) {
    const int orbits = width_ / 2 + 1;
    stream.counter += uint64_t(height_ / 2) * orbits;
    const Words apart = multiples(1);
    Normals<T> normals(stream, apart, L);
    for (int l0 = 0; l0 < orbits; l0 += L) {
      Vec<T> g[4];
      normals.draw(g, stream.counter + l0 + L, apart);
      for (int i = 0; i < L && l0 + i < orbits; ++i) {
        const int l = l0 + i, here = row_plan_.position[l];
        const bool own_negative = row_plan_.mirror[here] == here;
        bottom_noise_[2 * l] = weight_.bottom[here] * g[0][i] * (own_negative ? root2 : T(1));
        bottom_noise_[2 * l + 1] = weight_.bottom[here] * g[1][i] * (own_negative ? T(0) : T(1));
      }
    }
  }

  // The spectrum at l and -l of a real row: F(-l) = conj F(l), and F is real where l is its own negative.
  SAGD_INLINE static void make_real(Vec<T> real, Point<T>& point, Point<T>& negative, bool own_negative) {
    if (own_negative) point = {real != 0 ? point.re * root2 : point.re, real != 0 ? Vec<T>{} : point.im};
    negative = {real != 0 ? point.re : negative.re, real != 0 ? -point.im : negative.im};
  }

  // Adds i F to lane 0 at l and at -l, F the spectrum of a real row.
  SAGD_INLINE static void pack_bottom(Point<T>& point, Point<T>& negative, const T* bottom) {
    const Vec<T> re = lane_0(bottom[0]), im = lane_0(bottom[1]);
    negative = {negative.re + im, negative.im + re};
    point = {point.re - im, point.im + re};
  }

  static constexpr T root2 = T(1.41421356237309504880);

  Parallel parallel_;
  int height_, width_, packed_columns_;
  bool packed_;  // row 0
  int column_strips_, row_strips_, pitch_;
  const Plan<T>&column_plan_, &row_plan_;
  // shared
  Point<T>* spectrum_;
  WeightTable<T> weight_;
  double* strip_sums_;
  // a thread's own
  Point<T>*columns_, *prime_scratch_;
  Rows* rows_;
  T* bottom_noise_;
};

}  // namespace sagd::SAGD_ISA
