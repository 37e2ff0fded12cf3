// Questions to CUDA's runtime. Every error that it reports becomes an exception.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>

namespace sagd::cuda {

inline void check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // what is reported here need not be reported again
  throw std::runtime_error(std::string("sagd: ") + call + ": " + cudaGetErrorString(error));
}
#define SAGD_CHECK(call) ::sagd::cuda::check(call, #call)

inline int attribute(cudaDeviceAttr name) {
  int device = 0, value = 0;
  SAGD_CHECK(cudaGetDevice(&device));
  SAGD_CHECK(cudaDeviceGetAttribute(&value, name, device));
  return value;
}

// What ask(limit) finds out about a kernel on the current device: once for each device, kernel and key, by whichever
// thread is first. `limit` is the shared memory that a block may have there, in bytes; the kernel is allowed all of it.
template <class Kernel, class Ask, class... Key>
const auto& ask_once(Kernel kernel, Ask&& ask, Key... key) {
  static std::mutex mutex;
  static std::map<std::tuple<int, Kernel, Key...>, std::invoke_result_t<Ask, int>> known;
  int device = 0;
  SAGD_CHECK(cudaGetDevice(&device));
  const std::tuple question(device, kernel, key...);
  const std::lock_guard<std::mutex> lock(mutex);
  auto answer = known.find(question);
  if (answer == known.end()) {
    const int limit = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    SAGD_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit));
    answer = known.emplace(question, ask(limit)).first;
  }
  return answer->second;  // a map's elements stay where they are
}

}  // namespace sagd::cuda
