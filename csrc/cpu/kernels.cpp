// The operators on a range of planes. Compiled once per instruction set.
#include "cpu/bundle.h"
#include "cpu/job.h"
#include "cpu/lane_plane.h"
#include "cpu/plane.h"

namespace sagd::SAGD_ISA {
namespace {

SAGD_INLINE double factor(const Factors& factors, int64_t plane) {
  if (!factors.data) return 1;
  const int64_t at = factors.batch.offset(plane);
  switch (factors.dtype) {
    case Dtype::float32: return static_cast<const float*>(factors.data)[at];
    case Dtype::float64: return static_cast<const double*>(factors.data)[at];
    case Dtype::bfloat16: return widen(static_cast<const BFloat16*>(factors.data)[at]);
    default: return widen(static_cast<const Half*>(factors.data)[at]);
  }
}

template <class T>
SAGD_INLINE const T* at(const Planes& tensor, int64_t plane) {
  return static_cast<const T*>(tensor.data) + tensor.batch.offset(plane);
}

// Planes of at most this many bytes are fetched into the cache while the ones before them are worked on.
constexpr int64_t max_prefetched_bytes = 1 << 18;

// Planes of at most this many pixels are small: what a transform works on stays in the first cache.
constexpr int64_t max_small_pixels = 1 << 11;

// Planes whose columns do not follow each other in memory are brought together first: a loop that may have to gather its
// values takes up to a sixth longer even where it need not, and a second copy of it might round differently.
template <class S, int planes>
[[gnu::noinline]] void gather(S* to, const S* const* from, int64_t row_stride, int64_t column_stride, const Job& job,
                              int64_t begin, int64_t end) {
  const int64_t width = job.width, pixels = job.height * width;
  to += begin * width;
  for (int64_t h = begin; h < end; ++h, to += width) {
    for (int64_t w = 0; w < width; ++w) {  // planes last: channels often are neighbours in memory
      for (int lane = 0; lane < planes; ++lane) {
        to[lane * pixels + w] = from[lane][h * row_stride + w * column_stride];
      }
    }
  }
}

// A plane's strips of columns are taken from right to left: from a value to the one of the next strip in its row.
template <class S>
constexpr int next_strip = -lanes<Compute<S>>;

// The planes of a group, one for each lane of the transform. `own`: whose scratch takes what is gathered. `fetches`: a
// read fetches the line that the next strip has in its row.
template <class S, int planes, bool fetches = false>
struct Reader {
  const S* base[planes];
  int64_t row_stride;
  int64_t ahead = 0;  // to the values to be fetched; beyond the last plane, a prefetch of anything does no harm

  // Lanes beyond n read the first plane, for nothing.
  Reader(const Planes& tensor, const Job& job, int64_t plane, int n, Scratch own = Scratch::input)
      : row_stride(tensor.row_stride) {
    for (int lane = 0; lane < planes; ++lane) base[lane] = at<S>(tensor, lane < n ? plane + lane : plane);
    const int64_t pixels = job.height * job.width;
    if (tensor.column_stride != 1) {
      S* to = static_cast<S*>(scratch(planes * pixels * sizeof(S), own));
      in_ranges(job.parallel, job.height, [&](int64_t begin, int64_t end) {
        gather<S, planes>(to, base, tensor.row_stride, tensor.column_stride, job, begin, end);
      });
      for (int lane = 0; lane < planes; ++lane) base[lane] = to + lane * pixels;
      row_stride = job.width;
    } else if (pixels * int64_t(sizeof(S)) <= max_prefetched_bytes) {
      const int64_t next = planes > 1 ? 2 * planes : 1;  // the next bundle would come too late
      ahead = tensor.batch.offset(plane + next) - tensor.batch.offset(plane);
    }
  }

  SAGD_INLINE Vec<Compute<S>> operator()(int lane, int h, int w, int n) const {
    const S* const from = base[lane] + h * row_stride + w;
    if (fetches) __builtin_prefetch(from + next_strip<S>, 0, 2);
    return load_first(from, n);
  }

  // The next group's values at the same place.
  SAGD_INLINE void fetch_next(int lane, int h, int w) const {
    __builtin_prefetch(base[lane] + h * row_stride + w + ahead, 0, 2);
  }

  // The group's planes, and the next one's, to be fetched as if they were contiguous. If they are not, it does no harm.
  const S* these() const { return base[0]; }
  const S* next() const { return base[0] + ahead; }
};

template <class S>
S* output_at(void* output, const Job& job, int64_t plane) {
  return static_cast<S*>(output) + plane * job.height * job.width;
}

// The same of a contiguous output.
template <class S, int planes, bool fetches = false>
struct Writer {
  S* base;
  int count;
  int64_t height, width;

  Writer(void* output, const Job& job, int64_t plane, int n)
      : base(output_at<S>(output, job, plane)), count(n), height(job.height), width(job.width) {}

  SAGD_INLINE void operator()(int lane, int h, int w, int n, Vec<Compute<S>> v) const {
    if (planes > 1 && lane >= count) return;
    S* const to = base + (lane * height + h) * width + w;
    if (fetches) __builtin_prefetch(to + next_strip<S>, 1, 2);
    store_first(to, v, n);
  }
};

// The factors of a group's planes.
template <class T, int planes>
struct Scale {
  T of[planes];

  Scale(const Factors& factors, int64_t plane, int n) : of{} {
    for (int lane = 0; lane < n; ++lane) of[lane] = T(factor(factors, plane + lane));
  }
};

// The weights of the current group of planes, brought into the transform's order where the group before had others.
template <WeightMap map, class T, class Transform>
class Weights {
 public:
  int64_t kept[Transform::planes] = {};  // with inverse_square: bins with w > 0, for each plane of the group

  Weights(const Job& job, Transform& transform, double factor)
      : weight_(job.weight), transform_(transform), factor_(T(factor)) {}

  // Lanes beyond n get the first plane's weight, for nothing.
  void load(int64_t plane, int n) {
    if (from_[0] && weight_.batch.dims == 0) return;  // one weight for all
    bool loaded = true;
    for (int lane = 0; lane < Transform::planes; ++lane) {
      const T* from = at<T>(weight_, lane < n ? plane + lane : plane);
      loaded = loaded && from == from_[lane];
      from_[lane] = from;
    }
    if (loaded) return;
    transform_.template load_weights<map>(from_, weight_.row_stride, weight_.column_stride, factor_, kept);
  }

 private:
  const Planes& weight_;
  Transform& transform_;
  const T factor_;
  const T* from_[Transform::planes] = {};
};

// Planes that are taken one at a time: the tables of several weights are kept.
template <WeightMap map, class T, class Transform>
  requires(Transform::planes == 1)
class Weights<map, T, Transform> {
 public:
  int64_t kept[1] = {};

  Weights(const Job& job, Transform& transform, double factor)
      : job_(job), transform_(transform), factor_(T(factor)), tables_(job, transform.weight()) {}

  void load(int64_t plane, int) {
    const T* from = at<T>(job_.weight, plane);
    transform_.weight() = tables_.get(from, [&](WeightTable<T>& table) {
      transform_.template fill<map>(table, from, job_.weight.row_stride, job_.weight.column_stride, factor_);
    });
    kept[0] = transform_.weight().kept;
  }

 private:
  const Job& job_;
  Transform& transform_;
  const T factor_;
  WeightTables<T> tables_;
};

double pixels(const Job& job) { return double(job.height) * double(job.width); }

uint64_t blocks_per_plane(const Job& job) { return uint64_t(job.height / 2 + 1) * uint64_t(job.width / 2 + 1); }

Stream stream(const Job& job, int64_t plane) {
  const uint64_t* key = job.keys + 2 * (plane / job.planes_per_key);
  const uint64_t number = job.plane_offset + uint64_t(plane % job.planes_per_key);
  return {PhiloxKeys<uint64_t>(key[0]), key[1] + static_cast<unsigned __int128>(number) * blocks_per_plane(job)};
}

// Calls f(plane, n) for groups of planes that the transform takes at a time; a group has one key. Not inlined where the
// tables are made: GCC then keeps more of f in registers (the filter at 64 x 64 took 6 % longer).
template <class Transform, class F>
[[gnu::noinline]] void for_groups(const Job& job, int64_t begin, int64_t end, F&& f) {
  for (int64_t plane = begin, n; plane < end; plane += n) {
    n = end - plane < Transform::planes ? end - plane : Transform::planes;
    if (job.keys) {
      const int64_t of_key = job.planes_per_key - plane % job.planes_per_key;
      n = n < of_key ? n : of_key;
    }
    f(plane, int(n));
  }
}

template <class Transform>
constexpr bool bundle = Transform::planes > 1;

// Calls f.operator()<small>(), small as above or a bundle.
template <class Transform, class F>
void by_size(const Job& job, F&& f) {
  if constexpr (!bundle<Transform>) {
    if (job.height * job.width > max_small_pixels) return f.template operator()<false>();
  }
  f.template operator()<true>();
}

// Forward, times the weight, inverse: 2 transforms a plane. The transforms multiply by height width, the forward one
// of the columns by 2 besides; the table undoes both.
template <class S, class Transform>
void spectral_filter(const Job& job, int64_t begin, int64_t end) {
  using T = Compute<S>;
  constexpr int planes = Transform::planes;
  Transform transform(job);
  Weights<WeightMap::value, T, Transform> weights(job, transform, 0.5 / pixels(job));
  by_size<Transform>(job, [&]<bool small>() {
    for_groups<Transform>(job, begin, end, [&](int64_t plane, int n) {
      weights.load(plane, n);
      const Reader<S, planes, !small> read(job.input, job, plane, n);
      const Writer<S, planes> write(job.output, job, plane, n);
      transform.forward_columns(read);
      // Large planes are fetched while the ones before them are written, the lines that these are written to before
      // that: more lines at a time would be more than the processor waits for.
      if constexpr (bundle<Transform>) {
        transform.template weigh_rows<true, false>(nullptr, fetch(read.next(), write.base));
      } else {
        transform.template weigh_rows<true, false>(nullptr, fetch(small ? read.next() : write.base));
      }
      const Scale<T, planes> scale(job.scale, plane, n);
      transform.template inverse_columns<true>([=](int lane, int h, int w, int k, Vec<T> v) {
        if (!small) read.fetch_next(lane, h, w);
        write(lane, h, w, k, v * scale.of[lane]);
      });
    });
  });
}

// The inverse alone, of a spectrum that is drawn where it is used.
template <class S, class Transform>
void shaped_noise(const Job& job, int64_t begin, int64_t end) {
  using T = Compute<S>;
  constexpr int planes = Transform::planes;
  Transform transform(job);
  Weights<WeightMap::value, T, Transform> weights(job, transform, std::sqrt(0.5 / pixels(job)));
  for_groups<Transform>(job, begin, end, [&](int64_t plane, int n) {
    weights.load(plane, n);
    const Writer<S, planes> write(job.output, job, plane, n);
    transform.noise_rows(stream(job, plane), blocks_per_plane(job), fetch(write.base));
    const Scale<T, planes> scale(job.scale, plane, n);
    transform.template inverse_columns<true>(
        [=](int lane, int h, int w, int k, Vec<T> v) { write(lane, h, w, k, v * scale.of[lane]); });
  });
}

template <class S, class Transform>
void add_noise(const Job& job, int64_t begin, int64_t end) {
  using T = Compute<S>;
  constexpr int planes = Transform::planes;
  Transform transform(job);
  Weights<WeightMap::value, T, Transform> weights(job, transform, std::sqrt(0.5 / pixels(job)));
  by_size<Transform>(job, [&]<bool small>() {
    for_groups<Transform>(job, begin, end, [&](int64_t plane, int n) {
      weights.load(plane, n);
      const Reader<S, planes> read(job.input, job, plane, n);
      const Writer<S, planes, !small> write_noisy(job.output, job, plane, n), write_noise(job.noise, job, plane, n);
      const Stream noise = stream(job, plane);
      if constexpr (bundle<Transform>) {
        transform.noise_rows(noise, blocks_per_plane(job), fetch(read.these(), write_noisy.base, write_noise.base));
      } else {
        transform.noise_rows(noise, blocks_per_plane(job), fetch(read.these()));
      }
      const Scale<T, planes> signal_scale(job.signal_scale, plane, n), noise_scale(job.scale, plane, n);
      transform.template inverse_columns<small>([=](int lane, int h, int w, int k, Vec<T> v) {
        // read before anything is written: tensors often lie whole pages apart, and a load waits for a store that may
        // have the same address. opaque: this product is rounded, the other one fused, wherever the compiler repeats it
        const Vec<T> signal = opaque(read(lane, h, w, k) * signal_scale.of[lane]);
        write_noise(lane, h, w, k, v);
        write_noisy(lane, h, w, k, signal + v * noise_scale.of[lane]);
      });
    });
  });
}

// plane_loss = mean over the bins with w > 0 of |F(input - target)|^2 / w^2, F unitary; output, unless null, the
// residual times 1 / w^2 times height width over the number of those bins: 2 output / numel is the gradient.
template <class S, class Transform>
void whitened_mse(const Job& job, int64_t begin, int64_t end) {
  using T = Compute<S>;
  constexpr int planes = Transform::planes;
  Transform transform(job);
  Weights<WeightMap::inverse_square, T, Transform> weights(job, transform, 0.5 / pixels(job));
  by_size<Transform>(job, [&]<bool small>() {
    for_groups<Transform>(job, begin, end, [&](int64_t plane, int n) {
      weights.load(plane, n);
      const Reader<S, planes, !small> input(job.input, job, plane, n);
      const Reader<S, planes, !small> target(job.target, job, plane, n, Scratch::target);
      const Writer<S, planes> write(job.output, job, plane, n);
      // Fetched as by the filter, but that both of a large plane's inputs would be too much for one pass.
      transform.forward_columns([=](int lane, int h, int w, int k) {
        if (!small) target.fetch_next(lane, h, w);
        return input(lane, h, w, k) - target(lane, h, w, k);
      });
      double sums[planes];
      if (!job.output) {
        transform.template weigh_rows<false, true>(sums, fetch(input.next(), target.next()));
      } else if constexpr (bundle<Transform>) {
        transform.template weigh_rows<true, true>(sums, fetch(input.next(), target.next(), write.base));
      } else if constexpr (small) {
        transform.template weigh_rows<true, true>(sums, fetch(input.next(), target.next()));
      } else {
        transform.template weigh_rows<true, true>(sums, fetch(write.base));
      }
      T scale[planes] = {};
      for (int lane = 0; lane < n; ++lane) {
        const double kept = weights.kept[lane] > 0 ? double(weights.kept[lane]) : 1;
        job.plane_loss[plane + lane] = sums[lane] * 2 / kept;
        scale[lane] = T(pixels(job) / kept);
      }
      if (!job.output) return;
      transform.template inverse_columns<true>([=](int lane, int h, int w, int k, Vec<T> v) {
        if (!small) input.fetch_next(lane, h, w);
        write(lane, h, w, k, v * scale[lane]);
      });
    });
  });
}

// Planes of at most this many pixels leave lanes of a strip empty and are taken a bundle at a time. The choice must
// depend on nothing but the size, or a plane's bits would depend on its batch.
constexpr int64_t max_bundled_pixels = 256;

// Calls f.operator()<Transform>() with the transform for planes of the job's size; `in_lanes`: LaneTransform where it fits,
// which draws no noise.
template <class T, bool in_lanes, class F>
void with_transform(const Job& job, F&& f) {
  if (job.height * job.width <= max_bundled_pixels) return f.template operator()<BundleTransform<T>>();
  if constexpr (in_lanes && lanes<T> == 16) {
    if (LaneTransform<T, 1>::fits(job)) return f.template operator()<LaneTransform<T, 1>>();
    if (LaneTransform<T, 2>::fits(job)) return f.template operator()<LaneTransform<T, 2>>();
  }
  f.template operator()<PlaneTransform<T>>();
}

// Threads divide a plane by strips of columns and of rows; LaneTransform has too few of columns.
int64_t shares(const Job& job) {
  const bool doubles = job.dtype == Dtype::float64;
  if (!doubles && (LaneTransform<float, 1>::fits(job) || LaneTransform<float, 2>::fits(job))) return 1;
  const int64_t strip = 2 * (doubles ? lanes<double> : lanes<float>);
  const int64_t side = job.height < job.width ? job.height : job.width;
  return (side + strip - 1) / strip;
}

#define SAGD_STRING_(x) #x
#define SAGD_STRING(x) SAGD_STRING_(x)

}  // namespace

// The kernel of an operator for the job's stored type and size.
#define SAGD_CASE(operator_, in_lanes, dtype, S)                                                              \
  case Dtype::dtype:                                                                                          \
    return with_transform<Compute<S>, in_lanes>(                                                              \
        job, [&]<class Transform>() { operator_<S, Transform>(job, begin, end); });
#define SAGD_KERNEL(operator_, in_lanes)                                                                      \
  [](const Job& job, int64_t begin, int64_t end) {                                                            \
    switch (job.dtype) {                                                                                      \
      SAGD_CASE(operator_, in_lanes, float32, float)                                                          \
      SAGD_CASE(operator_, in_lanes, float64, double)                                                         \
      SAGD_CASE(operator_, in_lanes, bfloat16, BFloat16)                                                      \
      SAGD_CASE(operator_, in_lanes, float16, Half)                                                           \
    }                                                                                                         \
  }

extern const KernelTable table;
const KernelTable table = {SAGD_STRING(SAGD_ISA), SAGD_KERNEL(spectral_filter, true), SAGD_KERNEL(shaped_noise, false),
                           SAGD_KERNEL(add_noise, false), SAGD_KERNEL(whitened_mse, true), shares};

}  // namespace sagd::SAGD_ISA
