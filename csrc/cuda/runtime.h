// Questions to CUDA's runtime. Every error that it reports becomes an exception.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

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

}  // namespace sagd::cuda
