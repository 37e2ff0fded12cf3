#pragma once

#include <cstddef>
#include <cstdint>

namespace sagd {

enum class Scratch { transform, buffers, weights, input, target };

// This thread's scratch memory of at least `bytes` for one purpose, 64-byte aligned; it grows to the largest request
// and is kept until the thread ends. One user at a time.
void* scratch(std::size_t bytes, Scratch purpose = Scratch::transform);

}  // namespace sagd
