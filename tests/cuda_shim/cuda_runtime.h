// CUDA for the CPU: with this directory first on the include path, g++ compiles csrc/cuda/*.cu as it stands.
//
// A thread of CUDA is a fiber, a block's fibers take turns at their barriers, blocks run one after another, but those of a
// cluster take turns at the cluster's barriers. Covered is what the kernels use: barriers, dynamic shared memory, launches and the functions below. What memory holds before
// it is written is NaN; a block whose threads do not all meet at a barrier, or that writes behind its shared memory,
// is an error. Special functions are those of the C++ library: they differ from a GPU's by a few roundings.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <algorithm>
#include <cstring>
#include <functional>
#include <type_traits>
#include <utility>
#include <vector>

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
  unsigned block, thread, blocks, threads, rank;  // rank: of the block in its cluster
};

// Where the running fiber is.
Place here();
// Waits for the other threads of the block, or of the warp.
void barrier();
void warp_barrier();
// x of the thread of the warp whose number differs in the bits of `lanes`.
float shuffle(float x, unsigned lanes);
// Runs a kernel: body once on every thread of every block, `ranks` blocks in a cluster.
void run(unsigned blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& body, unsigned ranks = 1);

// The device that the functions below describe. At first it has an H100's shared memory, so few multiprocessors that
// blocks take many planes, and runs kernels here; emulators of the same kernels' PTX put theirs in its place.
struct Device {
  int number, shared_bytes_per_block, multiprocessors, l2_bytes;
  int code;  // the compute capability, times ten, of the code that runs on it; 0: there is none for it
  // Blocks of a kernel that a multiprocessor holds; the kernel is named as in its PTX.
  int (*resident)(const char* kernel, int threads, size_t shared_bytes);
  // Clusters of a kernel that it holds, of `ranks` blocks each; null: it knows none.
  int (*clusters)(const char* kernel, unsigned ranks, int threads, size_t shared_bytes);
  // A launch, unless null: the parameters one behind the other, each where its alignment puts it, and where among them
  // there are pointers. They are valid during the call.
  void (*launch)(const char* kernel, unsigned blocks, unsigned ranks, unsigned threads, size_t shared_bytes,
                 const char* parameters, size_t size, const size_t* pointers, size_t pointer_count);
};
extern Device device;
constexpr size_t shared_capacity = 227 << 10;  // of the memory that kernels share here
constexpr size_t cluster_stride = 80 << 10;    // from block to block of a cluster
constexpr size_t all_shared_bytes = 8 * cluster_stride;

// For the threads of a cluster; see csrc/cuda/cluster.h.
void cluster_barrier();
int cluster_rank();
inline unsigned char* own_memory(unsigned char* memory) { return memory + cluster_rank() * cluster_stride; }
template <class T>
T* peer_memory(T* mine, int rank) {
  return reinterpret_cast<T*>(reinterpret_cast<char*>(mine) + (rank - cluster_rank()) * int64_t(cluster_stride));
}

// The name of a kernel as in its PTX.
const char* name(const void* kernel);

// The parameters of a launch as shim::Device::launch gets them.
struct Parameters {
  std::vector<char> data;
  std::vector<size_t> pointers;

  template <class T>
  void add(const T& value) {
    const size_t at = (data.size() + alignof(T) - 1) / alignof(T) * alignof(T);
    data.resize(at + sizeof(T));
    std::memcpy(data.data() + at, &value, sizeof(T));
    const auto note = [&](const auto& pointer) {
      pointers.push_back(at + (reinterpret_cast<const char*>(&pointer) - reinterpret_cast<const char*>(&value)));
    };
    if constexpr (std::is_pointer_v<T>) {
      note(value);
    } else if constexpr (requires { value.job; }) {
      const auto& job = value.job;
      note(job.input.data), note(job.target.data), note(job.weight.data), note(job.scale.data);
      note(job.signal_scale.data), note(job.keys), note(job.output), note(job.noise), note(job.plane_loss);
      if constexpr (requires { value.workspace; }) note(value.workspace);
      if constexpr (requires { value.ordered; }) note(value.ordered);
    }
  }
};

}  // namespace shim

#define threadIdx (dim3(shim::here().thread))
#define blockIdx (dim3(shim::here().block))
#define blockDim (dim3(shim::here().threads))
#define gridDim (dim3(shim::here().blocks))

inline void __syncthreads() { shim::barrier(); }
inline void __syncwarp() { shim::warp_barrier(); }
inline float __shfl_xor_sync(unsigned, float x, int lanes) { return shim::shuffle(x, lanes); }

template <class T>
T __ldg(const T* p) {
  return *p;
}
inline float __cosf(float x) { return std::cos(x); }
inline float __sinf(float x) { return std::sin(x); }
inline void sincospif(float x, float* s, float* c) {
  *s = float(std::sin(M_PI * double(x)));
  *c = float(std::cos(M_PI * double(x)));
}

// ---- the host's side ------------------------------------------------------------------------------------------------

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorNoKernelImageForDevice };
enum cudaDeviceAttr {
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrL2CacheSize,
  cudaDevAttrClusterLaunch
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "invalid argument"; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = shim::device.number, cudaSuccess; }

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int) {
  const shim::Device& device = shim::device;
  switch (name) {
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return *value = device.shared_bytes_per_block, cudaSuccess;
    case cudaDevAttrMultiProcessorCount: return *value = device.multiprocessors, cudaSuccess;
    case cudaDevAttrL2CacheSize: return *value = device.l2_bytes, cudaSuccess;
    case cudaDevAttrClusterLaunch: return *value = device.clusters != nullptr, cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

struct cudaFuncAttributes {
  int ptxVersion;
};

template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel) {
  attributes->ptxVersion = shim::device.code;
  return shim::device.code ? cudaSuccess : cudaErrorNoKernelImageForDevice;
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel kernel, int threads,
                                                          size_t shared_bytes) {
  *blocks = shim::device.resident(shim::name(reinterpret_cast<const void*>(kernel)), threads, shared_bytes);
  return cudaSuccess;
}

namespace shim {

// Runs a kernel here, or hands it to the device that has been put in this one's place.
template <class... P>
void launch(void (*kernel)(P...), unsigned blocks, unsigned ranks, unsigned threads, size_t shared_bytes,
            const P&... arguments) {
  if (!device.launch) return run(blocks, threads, shared_bytes, [&] { kernel(arguments...); }, ranks);
  Parameters given;
  (given.add(arguments), ...);
  device.launch(name(reinterpret_cast<const void*>(kernel)), blocks, ranks, threads, shared_bytes, given.data.data(),
                given.data.size(), given.pointers.data(), given.pointers.size());
}

}  // namespace shim

template <class... P>
cudaError_t cudaLaunchKernel(void (*kernel)(P...), dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                             cudaStream_t) {
  if (shared_bytes > size_t(shim::device.shared_bytes_per_block) || block.x > 1024) return cudaErrorInvalidValue;
  [&]<size_t... i>(std::index_sequence<i...>) {
    shim::launch<P...>(kernel, grid.x, 1, block.x, shared_bytes, *static_cast<std::remove_const_t<P>*>(arguments[i])...);
  }(std::index_sequence_for<P...>{});
  return cudaSuccess;
}

// Clusters: of one attribute, their size.
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 grid, block;
  size_t shared_bytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

template <class Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, Kernel kernel, const cudaLaunchConfig_t* config) {
  *clusters = shim::device.clusters(shim::name(reinterpret_cast<const void*>(kernel)), config->attrs->val.clusterDim.x,
                                    int(config->block.x), config->shared_bytes);
  return cudaSuccess;
}

template <class... P>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...),
                               const std::type_identity_t<P>&... arguments) {
  const unsigned ranks = config->attrs->val.clusterDim.x;
  if (config->shared_bytes > shim::cluster_stride || config->grid.x % ranks) return cudaErrorInvalidValue;
  shim::launch<P...>(kernel, config->grid.x, ranks, config->block.x, config->shared_bytes, arguments...);
  return cudaSuccess;
}
