// A weight over the frequencies of one plane, in the order in which the transforms of plane.h leave the spectrum.
// lane_plane.h fills a table of the same kind in an order of its own.
#pragma once

#include "cpu/job.h"
#include "cpu/parallel.h"
#include "cpu/plan.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"

namespace sagd::SAGD_ISA {

// What the table holds of the weight w: w itself, or 1 / w^2 where w > 0 and 0 elsewhere.
enum class WeightMap { value, inverse_square };

template <WeightMap map, class V, class T>
SAGD_INLINE V mapped(V w, T factor) {
  if constexpr (map == WeightMap::value) return w * factor;
  else return w > 0 ? factor / (w * w) : V{};
}

template <class V>
SAGD_INLINE V one_where_positive(V w) {
  return w > 0 ? V{} + 1 : V{};
}

// Whether row height / 2 shares the lane of row 0: where the rows before it fill all lanes.
template <class T>
bool packs_row(int height) {
  return height % (2 * lanes<T>) == 0;
}

// The rows of half a spectrum that have lanes of their own, and their frequencies.
template <class T>
int spectrum_rows(int height) {
  return height / 2 + !packs_row<T>(height);
}

template <class T>
int spectrum_row(const Plan<T>& plan, int i) {
  return i < (plan.length + 1) / 2 ? plan.half[i] : plan.length / 2;
}

// Whether that row is its own negative and so real before its row transform. The others stand for theirs, too.
template <class T>
bool is_real_row(const Plan<T>& plan, int i) {
  const int k = spectrum_row(plan, i);
  return k == 0 || 2 * k == plan.length;
}

// table[strip * width + position]: one vector over the strip's rows k for each position of the row transform.
// For the packed row: bottom holds row height / 2 by position, bottom_excess half of what it exceeds row 0 by.
// Memory: 2 height width values, filled by one transpose of the weight.
template <class T>
struct WeightTable {
  Vec<T>* table;
  T *bottom, *bottom_excess;
  int64_t kept;  // with inverse_square: bins of the full plane with w > 0
};

// The table's strips [begin, end), the packed row with strip 0; adds to `kept`. `weight` is [height, width / 2 + 1]
// with any strides; every entry is multiplied by `factor`.
template <WeightMap map, class T>
[[gnu::noinline]] void fill(WeightTable<T>& to, const T* weight, int64_t row_stride, int64_t column_stride,
                            const Plan<T>& column_plan, const Plan<T>& row_plan, T factor, int begin, int end) {
  constexpr int L = lanes<T>;
  constexpr bool count_kept = map == WeightMap::inverse_square;
  const int height = column_plan.length, width = row_plan.length;
  const int rows = spectrum_rows<T>(height), columns = width / 2 + 1;

  double kept = 0;  // bins with w > 0
  for (int k0 = begin * L; k0 < rows && k0 < end * L; k0 += L) {
    const int strip_rows = rows - k0 < L ? rows - k0 : L;
    Vec<T> count = {};
    Vec<T>* strip = to.table + k0 / L * int64_t(width);
    const auto put = [&](int position, Vec<T> w) {
      strip[position] = mapped<map>(w, factor);
      if constexpr (count_kept) count += one_where_positive(w);
    };
    for (int l0 = 0; l0 < columns; l0 += L) {
      const int n = columns - l0 < L ? columns - l0 : L;
      Vec<T> direct[L] = {}, mirrored[L] = {};  // w(k, l) and w(-k, l) = w(k, -l)
      const auto at = [&](int k) { return weight + k * row_stride + l0 * column_stride; };
      const auto row = [&](int i) { return at(spectrum_row(column_plan, i)); };
      const auto negative = [&](int i) { return at((height - spectrum_row(column_plan, i)) % height); };
      if (n <= 2) {  // the column width / 2 and no other, most often
        for (int j = 0; j < n; ++j) {
          for (int i = 0; i < strip_rows; ++i) {
            direct[j][i] = row(k0 + i)[j * column_stride];
            mirrored[j][i] = negative(k0 + i)[j * column_stride];
          }
        }
      } else {
        for (int i = 0; i < strip_rows; ++i) {
          direct[i] = load_some(row(k0 + i), column_stride, n);
          mirrored[i] = load_some(negative(k0 + i), column_stride, n);
        }
        transpose<T>(direct);
        transpose<T>(mirrored);
      }
      for (int j = 0; j < n; ++j) {
        const int here = row_plan.position[l0 + j], mirror = row_plan.mirror[here];
        put(here, here == mirror ? (direct[j] + mirrored[j]) * T(0.5) : direct[j]);
        if (mirror != here) put(mirror, mirrored[j]);
      }
    }
    if constexpr (count_kept) {
      for (int i = 0; i < L; ++i) kept += (is_real_row(column_plan, k0 + i) ? 1 : 2) * double(count[i]);
    }
  }
  if (packs_row<T>(height) && begin == 0) {
    for (int l = 0; l < columns; ++l) {
      const int here = row_plan.position[l], mirror = row_plan.mirror[here];
      const T top = weight[l * column_stride], bottom = weight[height / 2 * row_stride + l * column_stride];
      to.bottom[here] = to.bottom[mirror] = mapped<map>(bottom, factor);
      to.bottom_excess[here] = to.bottom_excess[mirror] = (to.bottom[here] - mapped<map>(top, factor)) / 2;
      if constexpr (count_kept) kept += bottom > 0 ? here == mirror ? 1 : 2 : 0;
    }
  }
  __atomic_fetch_add(&to.kept, int64_t(kept), __ATOMIC_RELAXED);
}

// A table for each weight of a call, so that weights which take turns (one for each channel) are brought into order
// once, not for every plane. A single table if they are more than stay in the second cache.
template <class T>
class WeightTables {
 public:
  // `own` has memory for one table.
  WeightTables(const Job& job, const WeightTable<T>& own) {
    int64_t weights = 1;
    const BatchIndex& batch = job.weight.batch;
    for (int d = 0; d < batch.dims; ++d) weights *= batch.stride[d] != 0 ? batch.size[d] : 1;
    const int64_t vectors = (spectrum_rows<T>(int(job.height)) + lanes<T> - 1) / lanes<T> * job.width;
    const int64_t bytes = vectors * sizeof(Vec<T>) + 2 * job.width * sizeof(T);
    table_[0] = own;
    if (weights < 2 || weights > max_tables || weights * bytes > max_bytes) return;
    tables_ = int(weights);
    Carver carve(scratch((tables_ - 1) * bytes, Scratch::weights));
    for (int i = 1; i < tables_; ++i) table_[i].table = carve.take<Vec<T>>(vectors);
    for (int i = 1; i < tables_; ++i) {
      table_[i].bottom = carve.take<T>(job.width);
      table_[i].bottom_excess = carve.take<T>(job.width);
    }
  }

  // The weight's table, filled by fill(table) unless it is there already.
  template <class Fill>
  const WeightTable<T>& get(const T* weight, Fill&& fill) {
    for (int i = 0; i < tables_; ++i) {
      if (weight_[i] == weight) return table_[i];
    }
    next_ = (next_ + 1) % tables_;
    weight_[next_] = weight;
    fill(table_[next_]);
    return table_[next_];
  }

 private:
  static constexpr int max_tables = 16;
  static constexpr int64_t max_bytes = 1 << 18;

  int tables_ = 1, next_ = 0;
  const T* weight_[max_tables] = {};
  WeightTable<T> table_[max_tables];
};

}  // namespace sagd::SAGD_ISA
