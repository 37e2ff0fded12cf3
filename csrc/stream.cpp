#include "stream.h"

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/Exception.h>

namespace sagd {

struct DeviceGuard::State {
  torch::stable::accelerator::DeviceGuard guard;
};

DeviceGuard::DeviceGuard(int32_t index) : state_(new State{torch::stable::accelerator::DeviceGuard(index)}) {}
DeviceGuard::~DeviceGuard() = default;

// A direct call would be an undefined symbol wherever torch was built without CUDA: the library could not be loaded.
void* current_stream(int32_t index) {
  using Get = AOTITorchError (*)(int32_t, void**);
  static const Get get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library ? reinterpret_cast<Get>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  STD_TORCH_CHECK(get, "sagd: a CUDA tensor, but no CUDA in the torch that is loaded");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(get(index, &stream));
  return stream;
}

}  // namespace sagd
