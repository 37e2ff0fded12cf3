// CUDA for the CPU: with this directory first on the include path, g++ compiles csrc/cuda/*.cu as it stands.
//
// A thread of CUDA is a fiber, a block's fibers take turns at their barriers, blocks run one after another. Covered is
// what the kernels use: barriers, dynamic shared memory, launches and the functions below. What memory holds before
// it is written is NaN; a block whose threads do not all meet at a barrier, or that writes behind its shared memory,
// is an error. Special functions are those of the C++ library: they differ from a GPU's by a few roundings.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <algorithm>
#include <functional>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct dim3 {
  unsigned x, y = 1, z = 1;
  explicit dim3(unsigned x_ = 1) : x(x_) {}
};

namespace shim {

struct Place {
  unsigned block, thread, blocks, threads;
};

// Where the running fiber is.
Place here();
// Waits for the other threads of the block.
void barrier();
// Runs a kernel: body once on every thread of every block.
void run(unsigned blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& body);
// Notes a launch, for emulators of the same kernel's PTX: see shim_last_launch in shim.cpp.
void note(const void* kernel, unsigned blocks, unsigned threads, size_t shared_bytes, const void* argument,
          size_t size);

}  // namespace shim

#define threadIdx (dim3(shim::here().thread))
#define blockIdx (dim3(shim::here().block))
#define blockDim (dim3(shim::here().threads))
#define gridDim (dim3(shim::here().blocks))

inline void __syncthreads() { shim::barrier(); }

template <class T>
T __ldg(const T* p) {
  return *p;
}
inline float __logf(float x) { return std::log(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __sinf(float x) { return std::sin(x); }
inline void sincospif(float x, float* s, float* c) {
  *s = float(std::sin(M_PI * double(x)));
  *c = float(std::cos(M_PI * double(x)));
}

// ---- the host's side ------------------------------------------------------------------------------------------------

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaDevAttrMultiProcessorCount };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

namespace shim {

// The device that the functions describe: an H100's shared memory, so few multiprocessors that blocks take many planes.
constexpr int shared_bytes_per_block = 227 << 10, multiprocessors = 2, warps_per_multiprocessor = 16;

}  // namespace shim

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "invalid argument"; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int) {
  *value = name == cudaDevAttrMultiProcessorCount ? shim::multiprocessors : shim::shared_bytes_per_block;
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int threads, size_t shared_bytes) {
  const int by_memory = shim::shared_bytes_per_block / int(shared_bytes + 1024), warps = (threads + 31) / 32;
  *blocks = std::min(by_memory, shim::warps_per_multiprocessor / warps);
  return cudaSuccess;
}

template <class... P>
cudaError_t cudaLaunchKernel(void (*kernel)(P...), dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                             cudaStream_t) {
  if (shared_bytes > size_t(shim::shared_bytes_per_block) || block.x > 1024) return cudaErrorInvalidValue;
  [&]<size_t... i>(std::index_sequence<i...>) {
    shim::note(reinterpret_cast<const void*>(kernel), grid.x, block.x, shared_bytes, arguments[0],
               std::max({sizeof(P)...}));
    shim::run(grid.x, block.x, shared_bytes, [&] { kernel(*static_cast<std::remove_const_t<P>*>(arguments[i])...); });
  }(std::index_sequence_for<P...>{});
  return cudaSuccess;
}
