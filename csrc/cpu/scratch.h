#pragma once

#include <cstddef>
#include <cstdint>

namespace sagd {

// This thread's scratch memory of at least `bytes`, 64-byte aligned; it grows to the largest request and is kept
// until the thread ends. One user at a time.
void* scratch(std::size_t bytes);

}  // namespace sagd
