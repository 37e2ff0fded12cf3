// The device and the stream that torch works on, taken from the torch that is loaded.
#pragma once

#include <cstdint>
#include <memory>

namespace sagd {

// Makes the device torch's current one until the end of the scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int32_t index);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// torch's current stream of a CUDA device
void* current_stream(int32_t index);

}  // namespace sagd
