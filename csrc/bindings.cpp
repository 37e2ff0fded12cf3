// The operators' schemas, and their CPU implementation.
#include "cpu/describe.h"
#include "cpu/job.h"
#include "operators.h"
#include "sagd/philox.h"

namespace sagd {
namespace {

// Threads take runs of planes with at least this many values, so that handing out work costs little beside it.
constexpr int64_t values_per_task = 1 << 14;

// To share a plane costs threads as much as about this many pixels, because they wait for each other after each of its
// phases, and a quarter of their work, because half of what they read is in another's cache.
constexpr int64_t pixels_to_share = 1 << 14;

// Planes whose spectrum takes this many bytes are all shared: one for each thread would be too much for the caches.
constexpr int64_t spectrum_to_share = 1 << 22;

struct Cpu {
  Device device{torch::headeronly::DeviceType::CPU, 0};

  explicit Cpu(Device) {}

  void spectral_filter(const Job& job) const { run(kernels().spectral_filter, job); }
  void shaped_noise(const Job& job) const { run(kernels().shaped_noise, job); }
  void add_noise(const Job& job) const { run(kernels().add_noise, job); }

  Tensor whitened_mse(Job& job) const {
    std::vector<double> plane_loss(job.planes);
    job.plane_loss = plane_loss.data();
    run(kernels().whitened_mse, job);

    double sum = 0;  // in the planes' order, whatever the threads did
    for (double loss : plane_loss) sum += loss;
    const Tensor loss = empty({}, job.dtype == Dtype::float64 ? Dtype::float64 : Dtype::float32, device);
    if (job.dtype == Dtype::float64) {
      *static_cast<double*>(loss.mutable_data_ptr()) = sum / double(job.planes);
    } else {
      *static_cast<float*>(loss.mutable_data_ptr()) = float(sum / double(job.planes));
    }
    return loss;
  }

  static void run(Kernel kernel, const Job& job) {
    const int64_t shared = shared_planes(job), whole = job.planes - shared;
    const int64_t grain = (values_per_task + job.height * job.width - 1) / (job.height * job.width);
    if (whole > grain) {
      torch::stable::parallel_for(0, whole, grain, [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
    } else if (whole > 0) {
      kernel(job, 0, whole);
    }
    if (shared == 0) return;
    Job last = job;
    last.parallel = parallel;
    kernel(last, whole, job.planes);
  }

  // How many planes, the last ones, the threads share: all that are large; else those that are left when all threads have
  // had equally many, if together they take them one by one in less time than a single thread takes for one.
  static int64_t shared_planes(const Job& job) {
    const int64_t pixels = job.height * job.width;
    if (pixels < pixels_to_share) return 0;
    const int64_t threads = torch::stable::get_num_threads(), shares = std::min(threads, kernels().shares(job));
    const int64_t spectrum = pixels * (job.dtype == Dtype::float64 ? sizeof(double) : sizeof(float));
    if (threads > 1 && shares == threads && spectrum >= spectrum_to_share) return job.planes;
    const int64_t left = job.planes % threads;
    return left * (pixels / shares * 5 / 4 + pixels_to_share) <= pixels ? left : 0;
  }

  static void parallel(int64_t n, void (*f)(int64_t begin, int64_t end, void* context), void* context) {
    torch::stable::parallel_for(0, n, 1, [=](int64_t begin, int64_t end) { f(begin, end, context); });
  }
};

Tensor block_keys(const Tensor& key) {
  check_key(key);
  const Tensor parents = key.is_contiguous() ? key : torch::stable::contiguous(key);
  const Tensor children = empty(sizes_of(key), aoti_torch_dtype_uint64(), device_of(key));
  const auto* from = static_cast<const uint64_t*>(parents.const_data_ptr());
  auto* to = static_cast<uint64_t*>(children.mutable_data_ptr());
  for (int64_t i = 0, end = product(sizes_of(key)); i < end; i += 2) {
    const uint64_t seed = from[i], offset = from[i + 1];
    uint32_t words[4] = {uint32_t(offset), uint32_t(offset >> 32), 0, 0};
    philox(words, PhiloxKeys<uint32_t>(seed), [](uint32_t a, uint32_t m, uint32_t& high, uint32_t& low) {
      const uint64_t wide = uint64_t(a) * m;
      high = uint32_t(wide >> 32);
      low = uint32_t(wide);
    });
    to[i] = words[0] | uint64_t(words[1]) << 32;
    to[i + 1] = words[2] | uint64_t(words[3]) << 32;
  }
  return children;
}

std::string cpu_isa() { return kernels().name; }

std::string cpu_plan(int64_t length) {
  STD_TORCH_CHECK(length > 0 && length < (1 << 24), "length: expected 1 to 2^24 - 1, got ", length);
  return describe_plan(int(length));
}

}  // namespace
}  // namespace sagd

STABLE_TORCH_LIBRARY(sagd, m) {
  m.def("spectral_filter(Tensor input, Tensor weight, Tensor? scale=None) -> Tensor");
  m.def(
      "shaped_noise(Tensor key, SymInt[] size, Tensor weight, Tensor? scale=None, *, SymInt plane_offset=0, "
      "ScalarType? dtype=None) -> Tensor");
  m.def(
      "add_noise(Tensor input, Tensor key, Tensor weight, Tensor signal_scale, Tensor noise_scale, *, "
      "SymInt plane_offset=0) -> (Tensor noisy, Tensor noise)");
  m.def("whitened_mse(Tensor input, Tensor target, Tensor weight) -> Tensor");
  // the loss, and with_residual the residual F^-1[F(input - target) / w^2] height width / (bins with w > 0):
  // 2 / numel times it is the loss's gradient
  m.def("_whitened_mse(Tensor input, Tensor target, Tensor weight, bool with_residual) -> (Tensor loss, Tensor whitened)");
  m.def("_block_keys(Tensor key) -> Tensor");  // of the Philox block at each key's offset: random.block_keys
  m.def("_cpu_isa() -> str");
  m.def("_cpu_plan(int length) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(sagd, CPU, m) {
  m.impl("spectral_filter", TORCH_BOX(&sagd::spectral_filter<sagd::Cpu>));
  m.impl("shaped_noise", TORCH_BOX(&sagd::shaped_noise<sagd::Cpu>));
  m.impl("add_noise", TORCH_BOX(&sagd::add_noise<sagd::Cpu>));
  m.impl("_whitened_mse", TORCH_BOX(&sagd::whitened_mse<sagd::Cpu>));
  m.impl("_block_keys", TORCH_BOX(&sagd::block_keys));
}

STABLE_TORCH_LIBRARY_IMPL(sagd, CompositeImplicitAutograd, m) {
  m.impl("_cpu_isa", TORCH_BOX(&sagd::cpu_isa));
  m.impl("_cpu_plan", TORCH_BOX(&sagd::cpu_plan));
}
