// Chooses the instruction set, and keeps what the kernels share.
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "cpu/job.h"
#include "cpu/scratch.h"

namespace sagd {

#define SAGD_DECLARE(isa) namespace isa { extern const KernelTable table; }
#ifdef SAGD_HAVE_AVX512
SAGD_DECLARE(avx512)
#endif
#ifdef SAGD_HAVE_AVX2
SAGD_DECLARE(avx2)
#endif
SAGD_DECLARE(portable)

namespace {

struct Candidate {
  const KernelTable* table;
  bool available;
};

const KernelTable& choose() {
  const Candidate candidates[] = {
#ifdef SAGD_HAVE_AVX512
      {&avx512::table, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")},
#endif
#ifdef SAGD_HAVE_AVX2
      {&avx2::table, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                         __builtin_cpu_supports("f16c")},
#endif
      {&portable::table, true},
  };
  const char* wanted = std::getenv("SAGD_CPU_ISA");
  std::string known;
  for (const Candidate& c : candidates) {
    if (!c.available) continue;
    if (!wanted || !*wanted || std::string(wanted) == c.table->name) return *c.table;
    known += std::string(known.empty() ? "" : ", ") + c.table->name;
  }
  throw std::runtime_error("SAGD_CPU_ISA: expected one of " + known + " on this processor, got " + wanted);
}

struct Release {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{64}); }
};

}  // namespace

const KernelTable& kernels() {
  static const KernelTable& chosen = choose();
  return chosen;
}

void* scratch(std::size_t bytes, Scratch purpose) {
  struct Memory {
    std::unique_ptr<void, Release> data;
    std::size_t size = 0;
  };
  thread_local Memory memories[int(Scratch::target) + 1];
  Memory& memory = memories[int(purpose)];
  if (memory.size < bytes) {
    memory.data.reset();
    memory.size = 0;
    memory.data.reset(::operator new(bytes, std::align_val_t{64}));
    memory.size = bytes;
  }
  return memory.data.get();
}

}  // namespace sagd
