// Every error that CUDA reports becomes an exception.
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

}  // namespace sagd::cuda
