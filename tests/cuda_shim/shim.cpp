// Fibers for the threads of a block, and the shared memory that they share.
#include "cuda_runtime.h"

#include <dlfcn.h>
#include <ucontext.h>

#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

// This file is compiled without the sanitizer, which shall watch the kernels alone.
#ifdef SHIM_FOR_THREAD_SANITIZER
#include <sanitizer/tsan_interface.h>
#else
namespace {
void* __tsan_create_fiber(unsigned) { return nullptr; }
void* __tsan_get_current_fiber() { return nullptr; }
void __tsan_destroy_fiber(void*) {}
void __tsan_switch_to_fiber(void*, unsigned) {}
void __tsan_acquire(void*) {}
void __tsan_release(void*) {}
}  // namespace
#endif

namespace sagd::cuda {

constexpr size_t guard_bytes = 1024;
alignas(1024) unsigned char shared_memory[shim::all_shared_bytes];  // what the kernels declare extern

}  // namespace sagd::cuda

namespace shim {
namespace {

using sagd::cuda::guard_bytes;
using sagd::cuda::shared_memory;

constexpr unsigned warp_size = 32;
constexpr size_t stack_bytes = 128 << 10;
constexpr unsigned no_synchronisation = 1;  // of the fiber switches, for ThreadSanitizer: only barriers order accesses

enum class State { ready, at_warp_barrier, at_block_barrier, at_cluster_barrier, done };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[stack_bytes]};
  void* sanitizer = __tsan_create_fiber(0);
  State state = State::done;

  Fiber() = default;
  Fiber(const Fiber&) = delete;
  ~Fiber() { __tsan_destroy_fiber(sanitizer); }
};

std::vector<std::unique_ptr<Fiber>> fibers;
Place place;
ucontext_t scheduler;
void* scheduler_sanitizer;
const std::function<void()>* kernel;
// what the sanitizer hangs the order of accesses on
char launch_edge, warp_edge[2][1024 / warp_size], block_edge[2], cluster_edge[2], end_edge;
unsigned warp_generation, block_generation, cluster_generation;
float given[1024];  // to shuffles

int resident_here(const char*, int threads, size_t shared_bytes) {
  constexpr int warps_per_multiprocessor = 16;
  const int by_memory = int(shared_capacity / (shared_bytes + 1024)), warps = (threads + 31) / 32;
  return std::min(by_memory, std::max(warps_per_multiprocessor / warps, 1));
}

int clusters_here(const char*, unsigned, int, size_t) { return 2; }

constexpr Device here_device{0, int(shared_capacity), 2, 50 << 20, 90, resident_here, clusters_here, nullptr};

Fiber& running() { return *fibers[place.rank * place.threads + place.thread]; }

void switch_to_scheduler() {
  ucontext_t* own = &running().context;
  __tsan_switch_to_fiber(scheduler_sanitizer, no_synchronisation);
  swapcontext(own, &scheduler);
}

void run_thread() {
  __tsan_acquire(&launch_edge);
  (*kernel)();
  __tsan_release(&end_edge);
  running().state = State::done;
  switch_to_scheduler();
}

void start(Fiber& fiber) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = stack_bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, run_thread, 0);
  fiber.state = State::ready;
}

// Lets some threads of a block run to their next barrier, or to their end, which all of them meet in the same state.
State run_to_barrier(unsigned first, unsigned end) {
  for (place.thread = first; place.thread < end; ++place.thread) {
    Fiber& fiber = running();
    if (fiber.state == State::done) continue;
    fiber.state = State::ready;
    __tsan_switch_to_fiber(fiber.sanitizer, no_synchronisation);
    swapcontext(&scheduler, &fiber.context);
  }
  ++warp_generation;
  place.thread = first;
  const State state = running().state;
  for (; place.thread < end; ++place.thread) {
    if (running().state != state) throw std::runtime_error("shim: not all threads reached a barrier");
  }
  return state;
}

// The same, of all warps of a block to a barrier that is not of a warp alone.
State run_warps_to_barrier() {
  State state = State::done;
  for (unsigned first = 0; first < place.threads; first += warp_size) {
    const unsigned end = std::min(first + warp_size, place.threads);
    State of_warp;
    do of_warp = run_to_barrier(first, end);
    while (of_warp == State::at_warp_barrier);
    if (first > 0 && of_warp != state) throw std::runtime_error("shim: not all threads reached a barrier");
    state = of_warp;
  }
  ++block_generation;
  return state;
}

// A cluster of blocks, most often of one: each runs alone until it waits for the others.
void run_cluster(unsigned ranks, size_t shared_bytes) {
  const unsigned first = place.block;
  const size_t used = ranks > 1 ? ranks * cluster_stride : shared_capacity + guard_bytes;
  if (used > sizeof(shared_memory)) throw std::runtime_error("shim: a cluster of too many blocks");
  std::memset(shared_memory, 0xff, used);  // NaN
  __tsan_release(&launch_edge);
  for (unsigned fiber = 0; fiber < ranks * place.threads; ++fiber) start(*fibers[fiber]);
  unsigned waiting;
  do {
    waiting = 0;
    for (place.rank = 0; place.rank < ranks; ++place.rank) {
      place.block = first + place.rank;
      State state;
      while ((state = run_warps_to_barrier()) == State::at_block_barrier) {}
      waiting += state == State::at_cluster_barrier;
    }
    ++cluster_generation;
    if (waiting != 0 && waiting != ranks) throw std::runtime_error("shim: not all blocks reached a cluster's barrier");
  } while (waiting > 0);
  __tsan_acquire(&end_edge);
  place.rank = 0;
  place.block = first;
  for (unsigned rank = 0; rank < ranks; ++rank) {
    const size_t end = ranks > 1 ? (rank + 1) * cluster_stride : used;
    for (size_t i = rank * cluster_stride + shared_bytes; i < end; ++i) {
      if (shared_memory[i] != 0xff) throw std::runtime_error("shim: a write behind the shared memory");
    }
  }
}

void wait(State barrier) {
  running().state = barrier;
  switch_to_scheduler();
}
void wait(State barrier, char* edge) {
  __tsan_release(edge);
  wait(barrier);
  __tsan_acquire(edge);
}

}  // namespace

Device device = here_device;

Place here() { return place; }

const char* name(const void* kernel) {
  Dl_info symbol{};
  dladdr(kernel, &symbol);
  if (!symbol.dli_sname) throw std::runtime_error("shim: a kernel without a name");
  return symbol.dli_sname;
}

void warp_barrier() { wait(State::at_warp_barrier, &warp_edge[warp_generation % 2][place.thread / warp_size]); }
void barrier() { wait(State::at_block_barrier, &block_edge[block_generation % 2]); }
void cluster_barrier() { wait(State::at_cluster_barrier, &cluster_edge[cluster_generation % 2]); }
int cluster_rank() { return int(place.rank); }

// It makes the warp's threads meet, but promises nothing about the order of their accesses to memory.
float shuffle(float x, unsigned lanes) {
  given[place.thread] = x;
  wait(State::at_warp_barrier);
  const float other = given[place.thread ^ lanes];
  wait(State::at_warp_barrier);
  return other;
}

void run(unsigned blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& body, unsigned ranks) {
  while (fibers.size() < ranks * threads) fibers.push_back(std::make_unique<Fiber>());
  scheduler_sanitizer = __tsan_get_current_fiber();
  kernel = &body;
  place = {0, 0, blocks, threads, 0};
  for (; place.block < blocks; place.block += ranks) run_cluster(ranks, shared_bytes);
}

}  // namespace shim

// Puts a device in the place of the shim's own, or this one back (null).
extern "C" void shim_use_device(const shim::Device* device) { shim::device = device ? *device : shim::here_device; }
// The shim's own device with less shared memory and cache, under another number: what is chosen for a device is kept.
extern "C" void shim_use_small_device(int shared_bytes_per_block, int l2_bytes) {
  shim::device = shim::here_device;
  shim::device.number = shim::device.shared_bytes_per_block = shared_bytes_per_block;
  shim::device.l2_bytes = l2_bytes;
  shim::device.clusters = nullptr;
}
// The shim's own device, for which the kernels were compiled as for this older one, or not at all.
extern "C" void shim_use_code_for(int capability) {
  shim::device = shim::here_device;
  shim::device.number = -1 - capability;
  shim::device.code = capability;
}
