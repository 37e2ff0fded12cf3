// The operators on CUDA, as private operators with the signatures of the public ones.
#include "cuda/operators.h"
#include "operators.h"
#include "stream.h"

// Where the tests run the kernels on the CPU, they register them as operators of another library.
#ifndef SAGD_CUDA_LIBRARY
#define SAGD_CUDA_LIBRARY sagd
#define SAGD_CUDA_KEY CUDA
#endif

namespace sagd {
namespace {

struct Cuda {
  Device device;

  explicit Cuda(Device device_) : device(device_), guard_(device_.index) { cuda::use_device(device.index); }

  void spectral_filter(const Job& job) const { run(cuda::spectral_filter, job); }
  void shaped_noise(const Job& job) const { run(cuda::shaped_noise, job); }
  void add_noise(const Job& job) const { run(cuda::add_noise, job); }

  Tensor whitened_mse(Job& job) const {
    const Tensor plane_loss = empty({job.planes}, Dtype::float64, device), loss = empty({}, Dtype::float32, device);
    job.plane_loss = static_cast<double*>(plane_loss.mutable_data_ptr());
    run(cuda::whitened_mse, job);
    cuda::mean_loss(job.plane_loss, job.planes, static_cast<float*>(loss.mutable_data_ptr()), stream());
    return loss;
  }

 private:
  void run(void (*queue)(const Job&, void*, void*), const Job& job) const {
    const Tensor workspace = empty({cuda::workspace_bytes(job) / int64_t(sizeof(float))}, Dtype::float32, device);
    queue(job, workspace.mutable_data_ptr(), stream());
  }

  void* stream() const { return current_stream(device.index); }

  DeviceGuard guard_;
};

std::string plan(int64_t height, int64_t width, int64_t shared_bytes, int64_t device) {
  if (shared_bytes < 0) shared_bytes = cuda::shared_bytes_per_block(int(device));
  return cuda::describe_plan(height, width, shared_bytes);
}

}  // namespace
}  // namespace sagd

STABLE_TORCH_LIBRARY_FRAGMENT(SAGD_CUDA_LIBRARY, m) {
  m.def("_cuda_spectral_filter(Tensor input, Tensor weight, Tensor? scale=None) -> Tensor");
  m.def(
      "_cuda_shaped_noise(Tensor key, SymInt[] size, Tensor weight, Tensor? scale=None, *, SymInt plane_offset=0, "
      "ScalarType? dtype=None) -> Tensor");
  m.def(
      "_cuda_add_noise(Tensor input, Tensor key, Tensor weight, Tensor signal_scale, Tensor noise_scale, *, "
      "SymInt plane_offset=0) -> (Tensor noisy, Tensor noise)");
  m.def(
      "_cuda_whitened_mse(Tensor input, Tensor target, Tensor weight, bool with_residual) -> (Tensor loss, Tensor "
      "whitened)");
  // how planes of this size are transformed; empty where there is no kernel on a device that gives a block so much
  // shared memory (-1: on `device`, or the current one)
  m.def("_cuda_plan(int height, int width, int shared_bytes=-1, int device=-1) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(SAGD_CUDA_LIBRARY, SAGD_CUDA_KEY, m) {
  m.impl("_cuda_spectral_filter", TORCH_BOX(&sagd::spectral_filter<sagd::Cuda>));
  m.impl("_cuda_shaped_noise", TORCH_BOX(&sagd::shaped_noise<sagd::Cuda>));
  m.impl("_cuda_add_noise", TORCH_BOX(&sagd::add_noise<sagd::Cuda>));
  m.impl("_cuda_whitened_mse", TORCH_BOX(&sagd::whitened_mse<sagd::Cuda>));
}

STABLE_TORCH_LIBRARY_IMPL(SAGD_CUDA_LIBRARY, CompositeImplicitAutograd, m) {
  m.impl("_cuda_plan", TORCH_BOX(&sagd::plan));
}
