// The operators on a range of planes. Compiled once per instruction set.
#include "cpu/job.h"
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

// One plane of a tensor of any strides, L values at a time.
template <class S>
struct Reader {
  const S* base;
  int64_t row_stride, column_stride;

  Reader(const Planes& planes, int64_t plane)
      : base(static_cast<const S*>(planes.data) + planes.batch.offset(plane)),
        row_stride(planes.row_stride),
        column_stride(planes.column_stride) {}

  SAGD_INLINE Vec<Compute<S>> operator()(int h, int w, int n) const {
    const S* from = base + h * row_stride + w * column_stride;
    return column_stride == 1 ? load_first(from, n) : load_strided(from, column_stride, n);
  }
};

// One plane of a contiguous output.
template <class S>
struct Writer {
  S* base;
  int64_t width;

  Writer(void* output, const Job& job, int64_t plane)
      : base(static_cast<S*>(output) + plane * job.height * job.width), width(job.width) {}

  SAGD_INLINE void operator()(int h, int w, int n, Vec<Compute<S>> v) const { store_first(base + h * width + w, v, n); }
};

// Keeps the table of the current plane's weight: refilled only where the next plane has another one.
template <WeightMap map, class T>
class Weights {
 public:
  Weights(const Job& job, PlaneTransform<T>& transform, double factor)
      : job_(job), transform_(transform), factor_(T(factor)) {}

  void load(int64_t plane) {
    const T* weight = static_cast<const T*>(job_.weight.data) + job_.weight.batch.offset(plane);
    if (weight == loaded_) return;
    fill<map>(transform_.weight(), weight, job_.weight.row_stride, job_.weight.column_stride, int(job_.height),
              int(job_.width), transform_.row_plan(), factor_);
    loaded_ = weight;
  }

 private:
  const Job& job_;
  PlaneTransform<T>& transform_;
  const T factor_;
  const T* loaded_ = nullptr;
};

double pixels(const Job& job) { return double(job.height) * double(job.width); }

Stream stream(const Job& job, int64_t plane) {
  const uint64_t* key = job.keys + 2 * (plane / job.planes_per_key);
  const uint64_t number = job.plane_offset + uint64_t(plane % job.planes_per_key);
  const uint64_t orbits = uint64_t(job.height / 2 + 1) * uint64_t(job.width / 2 + 1);
  return {PhiloxKeys<uint64_t>(key[0]), key[1] + static_cast<unsigned __int128>(number) * orbits};
}

// Forward, times the weight, inverse: 2 transforms a plane. The transforms multiply by height width, the forward one
// of the columns by 2 besides; the table undoes both.
template <class S>
void spectral_filter(const Job& job, int64_t begin, int64_t end) {
  using T = Compute<S>;
  PlaneTransform<T> transform(job.height, job.width);
  Weights<WeightMap::value, T> weights(job, transform, 0.5 / pixels(job));
  for (int64_t plane = begin; plane < end; ++plane) {
    weights.load(plane);
    transform.forward_columns(Reader<S>(job.input, plane));
    transform.template weigh_rows<true, false>();
    const T scale = T(factor(job.scale, plane));
    const Writer<S> write(job.output, job, plane);
    transform.inverse_columns([&](int h, int w, int n, Vec<T> v) { write(h, w, n, v * scale); });
  }
}

// The inverse alone, of a spectrum that is drawn where it is used.
template <class S>
void shaped_noise(const Job& job, int64_t begin, int64_t end) {
  using T = Compute<S>;
  PlaneTransform<T> transform(job.height, job.width);
  Weights<WeightMap::value, T> weights(job, transform, std::sqrt(0.5 / pixels(job)));
  for (int64_t plane = begin; plane < end; ++plane) {
    weights.load(plane);
    transform.noise_rows(stream(job, plane));
    const T scale = T(factor(job.scale, plane));
    const Writer<S> write(job.output, job, plane);
    transform.inverse_columns([&](int h, int w, int n, Vec<T> v) { write(h, w, n, v * scale); });
  }
}

template <class S>
void add_noise(const Job& job, int64_t begin, int64_t end) {
  using T = Compute<S>;
  PlaneTransform<T> transform(job.height, job.width);
  Weights<WeightMap::value, T> weights(job, transform, std::sqrt(0.5 / pixels(job)));
  for (int64_t plane = begin; plane < end; ++plane) {
    weights.load(plane);
    transform.noise_rows(stream(job, plane));
    const T signal_scale = T(factor(job.signal_scale, plane)), noise_scale = T(factor(job.scale, plane));
    const Reader<S> read(job.input, plane);
    const Writer<S> write_noisy(job.output, job, plane), write_noise(job.noise, job, plane);
    transform.inverse_columns([&](int h, int w, int n, Vec<T> v) {
      write_noise(h, w, n, v);
      write_noisy(h, w, n, read(h, w, n) * signal_scale + v * noise_scale);
    });
  }
}

// plane_loss = mean over the bins with w > 0 of |F(input - target)|^2 / w^2, F unitary; output, unless null, the
// residual times 1 / w^2 times height width over the number of those bins: 2 output / numel is the gradient.
template <class S>
void whitened_mse(const Job& job, int64_t begin, int64_t end) {
  using T = Compute<S>;
  PlaneTransform<T> transform(job.height, job.width);
  Weights<WeightMap::inverse_square, T> weights(job, transform, 0.5 / pixels(job));
  for (int64_t plane = begin; plane < end; ++plane) {
    weights.load(plane);
    const Reader<S> input(job.input, plane), target(job.target, plane);
    transform.forward_columns([&](int h, int w, int n) { return input(h, w, n) - target(h, w, n); });
    const double kept = transform.weight().kept > 0 ? double(transform.weight().kept) : 1;
    if (!job.output) {
      job.plane_loss[plane] = transform.template weigh_rows<false, true>() * 2 / kept;
      continue;
    }
    job.plane_loss[plane] = transform.template weigh_rows<true, true>() * 2 / kept;
    const T scale = T(pixels(job) / kept);
    const Writer<S> write(job.output, job, plane);
    transform.inverse_columns([&](int h, int w, int n, Vec<T> v) { write(h, w, n, v * scale); });
  }
}

#define SAGD_STRING_(x) #x
#define SAGD_STRING(x) SAGD_STRING_(x)

// A kernel for each stored type, chosen by the job's.
template <Kernel f32, Kernel f64, Kernel bf16, Kernel f16>
void by_dtype(const Job& job, int64_t begin, int64_t end) {
  switch (job.dtype) {
    case Dtype::float32: return f32(job, begin, end);
    case Dtype::float64: return f64(job, begin, end);
    case Dtype::bfloat16: return bf16(job, begin, end);
    case Dtype::float16: return f16(job, begin, end);
  }
}

}  // namespace

#define SAGD_KERNEL(op) by_dtype<op<float>, op<double>, op<BFloat16>, op<Half>>

extern const KernelTable table;
const KernelTable table = {SAGD_STRING(SAGD_ISA), SAGD_KERNEL(spectral_filter), SAGD_KERNEL(shaped_noise),
                           SAGD_KERNEL(add_noise), SAGD_KERNEL(whitened_mse)};

}  // namespace sagd::SAGD_ISA
