// A weight over the frequencies of one plane, in the order in which the transforms of plane.h leave the spectrum.
#pragma once

#include "cpu/job.h"
#include "cpu/plan.h"
#include "cpu/simd.h"

namespace sagd::SAGD_ISA {

// What the table holds of the weight w: w itself, or 1 / w^2 where w > 0 and 0 elsewhere.
enum class WeightMap { value, inverse_square };

// table[strip * width + position]: one vector over the strip's rows k for each position of the row transform.
// For the packed row: bottom holds row height / 2 (for odd heights: row 0 again) by position, bottom_excess half of
// what it exceeds row 0 by.
// Memory: 2 height width values, filled by one transpose of the weight.
template <class T>
struct WeightTable {
  Vec<T>* table;
  T *bottom, *bottom_excess;
  int64_t kept;  // bins of the full plane with w > 0
};

// `weight` is [height, width / 2 + 1] with any strides; every entry is multiplied by `factor`.
template <WeightMap map, class T>
void fill(WeightTable<T>& to, const T* weight, int64_t row_stride, int64_t column_stride, const Plan<T>& column_plan,
          const Plan<T>& row_plan, T factor) {
  constexpr int L = lanes<T>;
  const int height = column_plan.length, width = row_plan.length;
  const int rows = (height + 1) / 2, columns = width / 2 + 1;
  const auto mapped = [&](auto w) {
    if constexpr (map == WeightMap::value) return w * factor;
    else return w > 0 ? factor / (w * w) : w * 0;
  };
  const auto row = [&](int k, int l, int n) {
    const T* from = weight + k * row_stride + l * column_stride;
    return column_stride == 1 ? load_first(from, n) : load_strided(from, column_stride, n);
  };

  double kept = 0;  // bins with w > 0
  for (int k0 = 0; k0 < rows; k0 += L) {
    Vec<T> count = {};
    Vec<T>* strip = to.table + k0 / L * int64_t(width);
    for (int l0 = 0; l0 < columns; l0 += L) {
      const int n = columns - l0 < L ? columns - l0 : L;
      Vec<T> direct[L] = {}, mirrored[L] = {};  // w(k, l) and w(-k, l) = w(k, -l)
      for (int i = 0; i < L && k0 + i < rows; ++i) {
        const int k = column_plan.half[k0 + i];
        direct[i] = row(k, l0, n);
        mirrored[i] = row((height - k) % height, l0, n);
      }
      transpose<T>(direct);
      transpose<T>(mirrored);
      for (int j = 0; j < n; ++j) {
        const int l = l0 + j;
        const bool own_negative = 2 * l % width == 0;
        const Vec<T> w = own_negative ? (direct[j] + mirrored[j]) * T(0.5) : direct[j];
        strip[row_plan.position[l]] = mapped(w);
        count += w > 0 ? broadcast(T(1)) : Vec<T>{};
        if (!own_negative) {
          strip[row_plan.position[width - l]] = mapped(mirrored[j]);
          count += mirrored[j] > 0 ? broadcast(T(1)) : Vec<T>{};
        }
      }
    }
    for (int i = 0; i < L; ++i) kept += 2 * double(count[i]);  // each row k stands for -k, too
  }

  const int middle = height % 2 == 0 ? height / 2 : 0;
  for (int l = 0; l < width; ++l) {
    const int64_t column = (l < columns ? l : width - l) * column_stride;
    const T top = weight[column], bottom = weight[middle * row_stride + column];
    const int i = row_plan.position[l];
    to.bottom[i] = mapped(bottom);
    to.bottom_excess[i] = (mapped(bottom) - mapped(top)) / 2;
    kept += (middle > 0 && bottom > 0) - (top > 0);  // row 0 was counted twice, row height / 2 not at all
  }
  to.kept = int64_t(kept);
}

}  // namespace sagd::SAGD_ISA
