// The two-dimensional transform of one real plane whose numbers stay in the lanes of their columns: planes of W = 32 V
// columns, V = 1 or 2, where a vector has 16 lanes. Its rows are transformed in registers, so it makes fewer passes over
// the first cache than plane.h, which transposes.
//
// Layout. As in plane.h, columns j and j + W / 2 are the real and imaginary part of one complex column, 16 neighbouring
// ones (a strip) are transformed at a time, and their half spectra A and B come apart by symmetry: H / 2 rows, of which
// the first one packs rows 0 and H / 2. A row is V vectors of A and V of B, and it is transformed along them:
//   - A + B has the even frequencies, A - B, times roots of unity, the odd ones: the row's halves, of W / 2 points each;
//   - a half is transformed lane by lane across its V vectors;
//   - what is left are transforms of the 16 lanes of a vector (a unit), of four rows (a quad) at a time (lane_quad.h).
// Register k of a unit then has, of row lane / 4, the frequency h + 2 (v + V (lane mod 4 + 4 k)), h the half, v the vector.
// It meets the weight there, and goes back in the same way. The spectrum is only stored where the columns need it:
//   spectrum[quad][half][vector][row of the quad].
//
// The rows of a quad are what the last stage of the columns' transform leaves together. It has H / R blocks of R points:
// block b has the frequencies b + m H / R, and the negatives of these are block -b, backwards. Such a pair of blocks makes
// R rows; the blocks of 0 and of H / (2 R), each of which has its own negatives, are a pair, too.
//
// Cost per pixel: the operations of plane.h, and of loads and stores of the spectrum in both directions 3 at 32 x 32, where
// a pair of blocks is all that a quad needs, and 5 at 64 x 64, where plane.h has 9; device memory as in plane.h. Threads do
// not share such a plane.
#pragma once

#include "cpu/fetch.h"
#include "cpu/fft.h"
#include "cpu/job.h"
#include "cpu/lane_quad.h"
#include "cpu/scratch.h"
#include "cpu/weights.h"

namespace sagd::SAGD_ISA {

// GCC writes independent chains of instructions one after the other, as the source has them. In an order that lets them
// overlap, the processor takes a tenth less; but that takes registers, which not every function has.
#if defined(__GNUC__) && !defined(__clang__)
#define SAGD_SCHEDULED [[gnu::noinline, gnu::optimize("schedule-insns")]]
#else
#define SAGD_SCHEDULED [[gnu::noinline]]
#endif

template <class T, int V>
class LaneTransform {
 public:
  static constexpr int L = lanes<T>;
  static constexpr int W = 32 * V;
  static constexpr int planes = 1;  // at a time

  // Whether planes of this size can be transformed so.
  static bool fits(const Job& job) {
    if (L != 16 || job.width != W) return false;
    const Plan<T>& columns = plan<T>(int(job.height));
    if (columns.stages < 2) return false;
    const Stage<T>& last = columns.stage[columns.stages - 1];
    return (last.radix == 4 || last.radix == 8) && last.blocks % 2 == 0;
  }

  explicit LaneTransform(const Job& job)
      : height_(int(job.height)), column_plan_(plan<T>(height_)), roots_(lane_roots<T>(W)) {
    const int64_t spectrum = int64_t(height_) * V;
    Carver carve(scratch((spectrum + height_ + column_plan_.scratch) * sizeof(Point<T>) + spectrum * sizeof(Vec<T>) +
                         2 * W * sizeof(T)));
    spectrum_ = carve.take<Point<T>>(spectrum);
    columns_ = carve.take<Point<T>>(height_);
    prime_scratch_ = carve.take<Point<T>>(column_plan_.scratch);
    weight_.table = carve.take<Vec<T>>(spectrum);
    weight_.bottom = carve.take<T>(W);
    weight_.bottom_excess = carve.take<T>(W);
  }

  WeightTable<T>& weight() { return weight_; }

  // Fills a table (weights.h) in the order of the units, [quad][half][vector][k]; of the packed row, the four lanes of
  // each vector of the first quad's.
  template <WeightMap map>
  void fill(WeightTable<T>& to, const T* weight, int64_t row_stride, int64_t column_stride, T factor) const {
    constexpr bool count_kept = map == WeightMap::inverse_square;
    // Row k of the full spectrum; `apart`: from four of its values to the next four.
    const auto read_row = [&](int k, T* row, int apart) {
      const T* const here = weight + k * row_stride;
      const T* const negative = weight + (height_ - k) % height_ * row_stride;
      for (int j = 0; j < L; ++j) {
#pragma GCC unroll 4
        for (int l = 0; l < 2 * V; ++l) {
          const int at = j * 2 * V + l, unit = l % 2 * V + l / 2;
          T* const value = row + (unit * 4 + j / 4) * apart + j % 4;
          *value = at < W / 2 ? here[at * column_stride] : negative[(W - at) * column_stride];
        }
      }
      // where l is its own negative, the weights of k and -k should agree
      const int64_t middle = W / 2 * column_stride;
      row[0] = (here[0] + negative[0]) / 2;
      row[2 * apart] = (here[middle] + negative[middle]) / 2;
    };

    double kept = 0;  // bins with w > 0
    for (int quad = 0; quad < height_ / 8; ++quad) {
      Vec<T>* const table = to.table + quad * 8 * V;
      for (int r = 0; r < 4; ++r) read_row(row(4 * quad + r), reinterpret_cast<T*>(table) + 4 * r, L);
      Vec<T> count = {};
      for (int i = 0; i < 8 * V; ++i) {
        if constexpr (count_kept) count += one_where_positive(table[i]);
        table[i] = mapped<map>(table[i], factor);
      }
      if constexpr (count_kept) {
        for (int lane = 0; lane < L; ++lane) kept += (quad == 0 && lane < 4 ? 1 : 2) * double(count[lane]);
      }
    }
    read_row(height_ / 2, to.bottom, 4);
    for (int i = 0; i < W; ++i) {
      if constexpr (count_kept) kept += to.bottom[i] > 0;
      to.bottom[i] = mapped<map>(to.bottom[i], factor);
      to.bottom_excess[i] = (to.bottom[i] - to.table[i / 4][i % 4]) / 2;
    }
    to.kept = int64_t(kept);
  }

  // The column transforms of the plane whose L values from (h, w) on are read(0, h, w, L). Leaves every value of the
  // spectrum doubled.
  template <class Read>
  void forward_columns(Read read) {
    for (int v = V - 1; v >= 0; --v) {
      const int stages = column_plan_.stages - 1;
      forward(column_plan_, stages, columns_, prime_scratch_, [=, w = v * L, partner = (v + V) * L](int h) {
        h = opaque(h);  // or the loop would keep an address for each of the butterfly's points, more than registers
        return Point<T>{read(0, h, w, L), read(0, h, partner, L)};
      });
      if (in_registers()) return;
      with_last_radix([&]<int R>() {
        separate_pair<R, true>(0, v);
        for (int pair = 1; pair < pairs(); ++pair) separate_pair<R, false>(pair, v);
      });
    }
  }

  // Row transforms and the weight; with `filter`, the inverse row transforms too, else the rows are left undefined.
  // With `measure`, sums[0] becomes the sum over the full plane's bins of weight |F|^2, F the spectrum of what was read.
  // Calls fetch(run, n) meanwhile (fetch.h), for as many values as the plane has.
  template <bool filter, bool measure, class Fetch>
  void weigh_rows(double* sums, Fetch fetch) {
    Sum sum;
    if (in_registers()) {
      weigh_pairs<filter, measure>(sum, fetch);
    } else {
      weigh_spectrum<filter, measure>(sum, fetch);
    }
    if constexpr (measure) sums[0] = sum.total() / 4;  // forward_columns doubled every value
  }

  // The inverse column transforms; the L values from (h, w) on go to write(0, h, w, L, values).
  template <bool /* fused */, class Write>
  void inverse_columns(Write write) {
    for (int v = V - 1; v >= 0; --v) {
      if (!in_registers()) {
        with_last_radix([&]<int R>() {
          join_pair<R, true>(0, v);
          for (int pair = 1; pair < pairs(); ++pair) join_pair<R, false>(pair, v);
        });
      }
      const int stages = column_plan_.stages - 1;
      inverse(column_plan_, stages, columns_, prime_scratch_,
              [=, w = v * L, partner = (v + V) * L](int h, Point<T> x) {
                h = opaque(h);  // as above
                write(0, h, w, L, x.re);
                write(0, h, partner, L, x.im);
              });
    }
  }

 private:
  // A sum of a few dozen vectors in T, of the rest in double.
  struct Sum {
    Vec<T> values = {};
    int count = 0;
    double whole = 0;

    SAGD_INLINE void add(Vec<T> v, int vectors) {
      values += v;
      count += vectors;
      if (count >= 64) [[unlikely]] flush();
    }
    void flush() {
      for (int lane = 0; lane < L; ++lane) whole += double(values[lane]);
      values = Vec<T>{};
      count = 0;
    }
    double total() {
      flush();
      return whole;
    }
  };

  const Stage<T>& last_stage() const { return column_plan_.stage[column_plan_.stages - 1]; }
  int pairs() const { return last_stage().blocks / 2; }
  // Whether a pair of blocks is all that its rows need, which then never leave registers.
  bool in_registers() const { return V == 1 && last_stage().radix == 4; }

  template <class F>
  SAGD_INLINE void with_last_radix(F&& f) {
    if (last_stage().radix == 4) f.template operator()<4>();
    else f.template operator()<8>();
  }

  // The frequency of a row of the spectrum; the first one is row 0, packed with row H / 2.
  int row(int i) const {
    const int R = last_stage().radix, blocks = last_stage().blocks, pair = i / R, m = i % R;
    if (pair == 0 && m >= R / 2) return blocks / 2 + (m - R / 2) * blocks;
    return pair + m * blocks;
  }

  // ---- columns: a pair of blocks and its R rows

  // The block of the pair and that of the negatives.
  Point<T>* block(int pair) { return columns_ + column_plan_.position[pair]; }
  Point<T>* negative_block(int pair) {
    return columns_ + column_plan_.position[pair == 0 ? last_stage().blocks / 2 : last_stage().blocks - pair];
  }

  // The last stage: rows `here` and their negatives of the packed columns. Of rows 0 and H / 2, which are real parts of
  // what packs them, z + i y and z - i y are what other rows and their negatives are.
  template <int R, bool first>
  SAGD_INLINE void transform_pair(int pair, Point<T>* here, Point<T>* negative) {
    Point<T> x[R], y[R];
    const Point<T>*from = block(pair), *back = negative_block(pair);
#pragma GCC unroll 16
    for (int m = 0; m < R; ++m) x[m] = loaded(from[m]);
    Butterfly<R, false, T, Vec<T>>::run(x);
#pragma GCC unroll 16
    for (int m = 0; m < R; ++m) y[m] = loaded(back[m]);
    Butterfly<R, false, T, Vec<T>>::run(y);
#pragma GCC unroll 16
    for (int m = 0; m < R; ++m) {
      if constexpr (!first) {
        here[m] = x[m];
        negative[m] = y[R - 1 - m];
      } else if (m == 0) {
        const Point<T> turned = quarter_turn<true>(x[R / 2]);
        here[0] = x[0] + turned;
        negative[0] = x[0] - turned;
      } else {
        here[m] = m < R / 2 ? x[m] : y[m - R / 2];
        negative[m] = m < R / 2 ? x[R - m] : y[R - 1 - (m - R / 2)];
      }
    }
  }

  template <int R, bool first>
  SAGD_INLINE void transform_pair_back(int pair, const Point<T>* here, const Point<T>* negative) {
    Point<T> x[R], y[R];
#pragma GCC unroll 16
    for (int m = 0; m < R; ++m) {
      if constexpr (!first) {
        x[m] = here[m];
        y[R - 1 - m] = negative[m];
      } else if (m == 0) {
        x[0] = (here[0] + negative[0]) * T(0.5);
        x[R / 2] = quarter_turn<false>(here[0] - negative[0]) * T(0.5);
      } else {
        (m < R / 2 ? x[m] : y[m - R / 2]) = here[m];
        (m < R / 2 ? x[R - m] : y[R - 1 - (m - R / 2)]) = negative[m];
      }
    }
    Point<T>*to = block(pair), *back = negative_block(pair);
    Butterfly<R, true, T, Vec<T>>::run(x);
#pragma GCC unroll 16
    for (int m = 0; m < R; ++m) to[m] = x[m];
    Butterfly<R, true, T, Vec<T>>::run(y);
#pragma GCC unroll 16
    for (int m = 0; m < R; ++m) back[m] = y[m];
  }

  // Z = A + i B and its negative row -> twice A + B and twice (A - B) root: the two halves of a row's frequencies.
  static SAGD_INLINE void separate(Point<T>& z, Point<T>& y, Point<T> root) {
    const Point<T> a = {z.re + y.re, z.im - y.im}, b = {z.im + y.im, y.re - z.re};
    z = a + b;
    y = times<false>(a - b, root);
  }

  static SAGD_INLINE void join(Point<T>& even, Point<T>& odd, Point<T> root) {
    const Point<T> turned = times<true>(odd, root), a = even + turned, b = even - turned;
    even = {a.re - b.im, a.im + b.re};
    odd = {a.re + b.im, b.re - a.im};
  }

  // Row i of a strip of columns in the spectrum; its odd half lies `odd_half` points behind.
  Point<T>* row_at(int i, int v) { return spectrum_ + (i / 4 * 2 * V + v) * 4 + i % 4; }
  int odd_half() const { return 4 * V; }

  template <int R, bool first>
  SAGD_INLINE void separate_pair(int pair, int v) {
    Point<T> x[R], y[R];
    transform_pair<R, first>(pair, x, y);
    const Point<T> root = lane_factors(roots_.halves)[v];
#pragma GCC unroll 16
    for (int m = 0; m < R; ++m) {
      separate(x[m], y[m], root);
      Point<T>* const to = row_at(pair * R + m, v);
      to[0] = x[m];
      to[odd_half()] = y[m];
    }
  }

  template <int R, bool first>
  SAGD_INLINE void join_pair(int pair, int v) {
    Point<T> x[R], y[R];
    const Point<T> root = lane_factors(roots_.halves)[v];
#pragma GCC unroll 16
    for (int m = 0; m < R; ++m) {
      const Point<T>* const from = row_at(pair * R + m, v);
      x[m] = from[0];
      y[m] = from[odd_half()];
      join(x[m], y[m], root);
    }
    transform_pair_back<R, first>(pair, x, y);
  }

  // ---- rows

  static SAGD_INLINE Vec<T> power(Point<T> a, Point<T> b) { return a.re * b.re + a.im * b.im; }

  // The units of half h of a quad, there and back; the first quad's have the packed row. `unit`: the first one's number.
  template <bool filter, bool measure, int h, bool first>
  SAGD_INLINE void weigh_half(Quad<T> (&x)[V], int unit, Sum& sum) const {
    const Point<T>* const root = lane_factors(roots_.units) + 1;
    if constexpr (V == 2) {
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        const Point<T> a = x[0][r], b = x[1][r];
        x[0][r] = a + b;
        x[1][r] = times<false>(a - b, *root);
      }
    }
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) forward_lanes<T>(x[v], roots_.values);
    if constexpr (first) {
      Quad<T> negative[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
          if (h == 0 && v == 0) negative[v][k] = negatives_of_zero<T>(x[0], k);
          else negative[v][k] = negatives<T>(x[h == 0 ? V - v : V - 1 - v], k);
        }
      }
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) weigh_packed<measure>(x[v], negative[v], unit + v, sum);
    } else {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) weigh<measure>(x[v], unit + v, sum);
    }
    if constexpr (!filter) return;
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) inverse_lanes<T>(x[v], roots_.values);
    if constexpr (V == 2) {
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        const Point<T> a = x[0][r], b = times<true>(x[1][r], *root);
        x[0][r] = a + b;
        x[1][r] = a - b;
      }
    }
  }

  template <bool measure>
  SAGD_INLINE void weigh(Quad<T>& x, int unit, Sum& sum) const {
    const Vec<T>* const weight = weight_.table + 4 * unit;
    Vec<T> measured = {};
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const Point<T> y = x[k] * loaded(weight[k]);
      if constexpr (measure) measured += power(x[k], y);
      x[k] = y;
    }
    if constexpr (measure) sum.add(measured + measured, 8);  // these rows stand for their negatives, too
  }

  // The packed row is P = top + i bottom, the spectra of rows 0 and H / 2, each of a real row:
  // 2 top(l) = P(l) + conj P(-l), 2 i bottom(l) = P(l) - conj P(-l). The table has the top's weight there, and its excess
  // is 0 in the other lanes.
  template <bool measure>
  SAGD_INLINE void weigh_packed(Quad<T>& x, const Quad<T>& negative, int unit, Sum& sum) const {
    Vec<T> measured = {};
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const Vec<T> weight = weight_.table[4 * unit + k];
      const Vec<T> excess = load_first(weight_.bottom_excess + 4 * (4 * unit + k), 4);
      const Point<T> bottom = {x[k].re - negative[k].re, x[k].im + negative[k].im};
      const Point<T> y = x[k] * weight + bottom * excess;
      if constexpr (measure) {
        const Point<T> top = {x[k].re + negative[k].re, x[k].im - negative[k].im};
        const Vec<T> bottom_weight = load_first(weight_.bottom + 4 * (4 * unit + k), 4);
        const Vec<T> packed = (power(top, top) * weight + power(bottom, bottom) * bottom_weight) * T(0.25);
        const Vec<T> single = power(x[k], y);
        measured += first_row() != 0 ? packed : single + single;
      }
      x[k] = y;
    }
    if constexpr (measure) sum.add(measured, 4);
  }

  // A pair of blocks from the columns' last stage and back to it.
  template <bool filter, bool measure, bool first, class Fetch>
  SAGD_INLINE void weigh_pair(int pair, Sum& sum, Fetch fetch) {
    fetch(2 * pair, 8 * L);
    fetch(2 * pair + 1, 8 * L);
    Quad<T> even[1], odd[1];
    transform_pair<4, first>(pair, even[0], odd[0]);
    const Point<T>* const root = lane_factors(roots_.halves);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) separate(even[0][r], odd[0][r], *root);
    weigh_half<filter, measure, 0, first>(even, 2 * pair, sum);
    weigh_half<filter, measure, 1, first>(odd, 2 * pair + 1, sum);
    if constexpr (!filter) return;
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) join(even[0][r], odd[0][r], *root);
    transform_pair_back<4, first>(pair, even[0], odd[0]);
  }

  template <bool filter, bool measure, class Fetch>
  SAGD_SCHEDULED void weigh_pairs(Sum& sum, Fetch fetch) {
    if constexpr (V == 1) {
      weigh_pair<filter, measure, true>(0, sum, fetch);
      for (int pair = 1; pair < pairs(); ++pair) weigh_pair<filter, measure, false>(pair, sum, fetch);
    }
  }

  // Half a quad from the spectrum and back to it.
  template <bool filter, bool measure, int h, bool first, class Fetch>
  SAGD_INLINE void weigh_stored(int quad, Sum& sum, Fetch fetch) {
    const int unit = (2 * quad + h) * V;
    Point<T>* const at = spectrum_ + 4 * unit;
    Quad<T> x[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      fetch(unit + v, 8 * L);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) x[v][r] = loaded(at[4 * v + r]);
    }
    weigh_half<filter, measure, h, first>(x, unit, sum);
    if constexpr (!filter) return;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) at[4 * v + r] = x[v][r];
    }
  }

  template <bool filter, bool measure, class Fetch>
  SAGD_SCHEDULED void weigh_spectrum(Sum& sum, Fetch fetch) {
    weigh_stored<filter, measure, 0, true>(0, sum, fetch);
    weigh_stored<filter, measure, 1, true>(0, sum, fetch);
    for (int quad = 1; quad < height_ / 8; ++quad) {
      weigh_stored<filter, measure, 0, false>(quad, sum, fetch);
      weigh_stored<filter, measure, 1, false>(quad, sum, fetch);
    }
  }

  // 1 in the lanes of a quad's first row, 0 in the others.
  static SAGD_INLINE Vec<T> first_row() {
    Vec<T> v = {};
    for (int lane = 0; lane < 4; ++lane) v[lane] = 1;
    return v;
  }

  int height_;
  const Plan<T>& column_plan_;
  const LaneRoots<T>& roots_;
  Point<T>*spectrum_, *columns_, *prime_scratch_;
  WeightTable<T> weight_;
};

}  // namespace sagd::SAGD_ISA
