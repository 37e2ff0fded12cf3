// An operator's arguments: checked, and described to the kernels by pointers, sizes and strides.
// Knows torch through its stable ABI alone. The errors are those of sagd_kernels/ops.py, word for word.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <span>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "sagd/job.h"

namespace sagd {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::span<const int64_t>;

// ---- checks ----------------------------------------------------------------------------------------------------

inline std::string to_string(Sizes sizes) {
  std::ostringstream out;
  out << '[';
  for (size_t i = 0; i < sizes.size(); ++i) out << (i ? ", " : "") << sizes[i];
  out << ']';
  return out.str();
}

// The tensor's own, which it must outlive.
inline Sizes sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.data(), sizes.size()};
}

// Those before a plane's, [..., H, W].
inline Sizes batch_of(Sizes size) { return size.first(size.size() - 2); }

inline std::string dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "torch.float32";
    case ScalarType::Double: return "torch.float64";
    case ScalarType::BFloat16: return "torch.bfloat16";
    case ScalarType::Half: return "torch.float16";
    case ScalarType::UInt64: return "torch.uint64";
    case ScalarType::UInt32: return "torch.uint32";
    case ScalarType::UInt16: return "torch.uint16";
    case ScalarType::Long: return "torch.int64";
    case ScalarType::Int: return "torch.int32";
    case ScalarType::Short: return "torch.int16";
    case ScalarType::Char: return "torch.int8";
    case ScalarType::Byte: return "torch.uint8";
    case ScalarType::Bool: return "torch.bool";
    case ScalarType::Float8_e5m2: return "torch.float8_e5m2";
    case ScalarType::Float8_e5m2fnuz: return "torch.float8_e5m2fnuz";
    case ScalarType::Float8_e4m3fn: return "torch.float8_e4m3fn";
    case ScalarType::Float8_e4m3fnuz: return "torch.float8_e4m3fnuz";
    case ScalarType::ComplexHalf: return "torch.complex32";
    case ScalarType::ComplexFloat: return "torch.complex64";
    case ScalarType::ComplexDouble: return "torch.complex128";
    default: return "dtype " + std::to_string(int(type));
  }
}

inline Dtype floating_dtype(const char* name, ScalarType type) {
  switch (type) {
    case ScalarType::Float: return Dtype::float32;
    case ScalarType::Double: return Dtype::float64;
    case ScalarType::BFloat16: return Dtype::bfloat16;
    case ScalarType::Half: return Dtype::float16;
    default:
      STD_TORCH_CHECK(false, name, ": expected float32, float64, bfloat16 or float16, got ", dtype_name(type));
  }
}

inline void check_size(const char* name, Sizes size) {
  STD_TORCH_CHECK(size.size() >= 2, name, ": expected at least 2 dimensions [..., H, W], got ", to_string(size));
  for (int64_t n : size) STD_TORCH_CHECK(n >= 0, name, ": expected no negative size, got ", to_string(size));
  const int64_t height = size[size.size() - 2], width = size.back();
  STD_TORCH_CHECK(height > 0 && width > 0, name, ": expected planes of at least 1 x 1, got ", to_string(size));
  STD_TORCH_CHECK(height < (1 << 24) && width < (1 << 24) && height * width < (int64_t(1) << 30), name,
                  ": expected planes of less than 2^30 values, got ", to_string(size));
  int64_t values = 1;
  bool fits = true;
  for (int64_t n : size) fits = fits && !__builtin_mul_overflow(values, std::max<int64_t>(n, 1), &values);
  STD_TORCH_CHECK(fits && values < (int64_t(1) << 60), name, ": expected less than 2^60 values, got ", to_string(size));
}

inline std::string device_name(torch::headeronly::DeviceType type, int index) {
  using torch::headeronly::DeviceType;
  std::string name;
  switch (type) {
    case DeviceType::CPU: return "cpu";
    case DeviceType::Meta: return "meta";
    case DeviceType::CUDA: name = "cuda"; break;
    case DeviceType::XPU: name = "xpu"; break;
    case DeviceType::MPS: name = "mps"; break;
    default: name = "device type " + std::to_string(int(type));
  }
  return name + ':' + std::to_string(index);
}

struct Device {
  torch::headeronly::DeviceType type;
  int32_t index;
};

inline Device device_of(const Tensor& tensor) { return {tensor.device().type(), tensor.get_device_index()}; }

inline void check_device(const char* name, const Tensor& tensor, Device expected) {
  const Device got = device_of(tensor);
  const bool same = got.type == expected.type &&
                    (got.type == torch::headeronly::DeviceType::CPU || got.index == expected.index);
  STD_TORCH_CHECK(same, name, ": expected a tensor on ", device_name(expected.type, expected.index),
                  ", the device of the other arguments, got ", device_name(got.type, got.index));
}

inline int64_t product(Sizes sizes) {
  int64_t n = 1;
  for (int64_t size : sizes) n *= size;
  return n;
}

// ---- descriptions ----------------------------------------------------------------------------------------------

// The batch dimensions with one stride each, 0 where broadcast; neighbours that step alike become one.
template <class StrideOf>
BatchIndex merge(Sizes sizes, StrideOf stride_of) {
  BatchIndex merged;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 1) continue;
    const int last = merged.dims - 1;
    const int64_t stride = stride_of(d);
    if (last >= 0 && merged.stride[last] == stride * sizes[d]) {
      merged.size[last] *= sizes[d];
      merged.stride[last] = stride;
    } else {
      STD_TORCH_CHECK(merged.dims < max_batch_dims, "input: more than ", max_batch_dims, " batch dimensions");
      merged.size[merged.dims] = sizes[d];
      merged.stride[merged.dims++] = stride;
    }
  }
  if (merged.dims == 1 && merged.stride[0] == 0) merged.dims = 0;
  return merged;
}

// A tensor [..., rows, columns] whose leading dimensions broadcast against the batch from the right.
inline Planes describe_planes(const Tensor& tensor, Sizes batch) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  const size_t lead = sizes.size() - 2, missing = batch.size() - lead;
  const auto stride_of = [&](size_t d) { return d < missing || sizes[d - missing] == 1 ? 0 : strides[d - missing]; };
  return {tensor.const_data_ptr(), strides[lead], strides[lead + 1], merge(batch, stride_of)};
}

inline Planes describe_weight(const Tensor& weight, Sizes size, Dtype dtype, Device device) {
  check_device("weight", weight, device);
  const ScalarType expected = dtype == Dtype::float64 ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(weight.scalar_type() == expected, "weight: expected ", dtype_name(expected), ", got ",
                  dtype_name(weight.scalar_type()));
  const Sizes batch = batch_of(size), got = sizes_of(weight);
  const int64_t height = size[size.size() - 2], columns = size.back() / 2 + 1;
  bool fits = got.size() >= 2 && got.size() <= size.size() && got[got.size() - 2] == height && got.back() == columns;
  for (size_t d = 0; fits && d < got.size() - 2; ++d) {
    const int64_t n = batch[batch.size() - (got.size() - 2) + d];
    fits = got[d] == 1 || got[d] == n;
  }
  STD_TORCH_CHECK(fits, "weight: expected [..., ", height, ", ", columns,
                  "] with leading dimensions that broadcast against the batch ", to_string(batch), ", got ",
                  to_string(got));
  return describe_planes(weight, batch);
}

// A factor per plane: the dimensions are those of the batch from the left, further ones are 1.
inline Factors describe_scale(const char* name, const Tensor& scale, Sizes size, Device device) {
  check_device(name, scale, device);
  const Dtype dtype = floating_dtype(name, scale.scalar_type());
  const Sizes batch = batch_of(size), got = sizes_of(scale);
  bool fits = got.size() <= size.size();
  for (size_t d = 0; fits && d < got.size(); ++d) fits = got[d] == 1 || (d < batch.size() && got[d] == batch[d]);
  STD_TORCH_CHECK(fits, name, ": expected dimensions that broadcast from the left against the batch ",
                  to_string(batch), ", got ", to_string(got));
  const auto strides = scale.strides();
  const auto stride_of = [&](size_t d) { return d >= got.size() || got[d] == 1 ? 0 : strides[d]; };
  return {scale.const_data_ptr(), dtype, merge(batch, stride_of)};
}

inline Job describe(Sizes size, Dtype dtype, const Tensor& weight, Device device) {
  Job job{};
  job.planes = product(batch_of(size));
  job.height = size[size.size() - 2];
  job.width = size.back();
  job.dtype = dtype;
  job.weight = describe_weight(weight, size, dtype, device);
  return job;
}

inline void check_key(const Tensor& key) {
  const Sizes size = sizes_of(key);
  STD_TORCH_CHECK(key.scalar_type() == ScalarType::UInt64 && !size.empty() && size.back() == 2,
                  "key: expected a uint64 tensor [..., 2], got ", dtype_name(key.scalar_type()), " ", to_string(size));
}

// Keys may come with any strides; the copy, if one is needed, must outlive the job.
inline Tensor describe_keys(Job& job, const Tensor& key, Sizes size, int64_t plane_offset, Device device) {
  check_device("key", key, device);
  check_key(key);
  const Sizes got = sizes_of(key);
  bool fits = got.size() - 1 <= size.size() - 2;
  int64_t keys = 1;
  for (size_t d = 0; fits && d < got.size() - 1; ++d) {
    fits = got[d] == size[d];
    keys *= size[d];
  }
  STD_TORCH_CHECK(fits, "key: expected [2] or one key for each index of the first batch dimensions, of size ",
                  to_string(size), ", got ", to_string(got));
  STD_TORCH_CHECK(plane_offset >= 0, "plane_offset: expected at least 0, got ", plane_offset);
  const Tensor contiguous = key.is_contiguous() ? key : torch::stable::contiguous(key);
  job.keys = static_cast<const uint64_t*>(contiguous.const_data_ptr());
  job.planes_per_key = keys > 0 ? job.planes / keys : 1;
  job.plane_offset = uint64_t(plane_offset);
  return contiguous;
}

// What the last error of a function of torch's shim says; null before torch 2.13, which writes it to stderr.
extern "C" __attribute__((weak, visibility("default"))) const char* torch_exception_get_what_without_backtrace();

// A new contiguous tensor of an aoti_torch_dtype. The shim's function is called directly: through the dispatcher it
// would take as long as a small plane's transform.
inline Tensor empty(Sizes size, int32_t type, Device device) {
  std::vector<int64_t> strides(size.size());
  int64_t stride = 1;
  for (size_t d = size.size(); d-- > 0; stride *= std::max<int64_t>(size[d], 1)) strides[d] = stride;
  AtenTensorHandle handle = nullptr;
  const auto failed = aoti_torch_empty_strided(int64_t(size.size()), size.data(), strides.data(), type,
                                               int32_t(device.type), device.index, &handle);
  if (failed) {
    const bool told = torch_exception_get_what_without_backtrace != nullptr;
    STD_TORCH_CHECK(false, "cannot allocate a tensor of size ", to_string(size), " on ",
                    device_name(device.type, device.index), ": ",
                    told ? torch_exception_get_what_without_backtrace() : "torch says why on stderr");
  }
  return Tensor(handle);
}

inline Tensor empty(Sizes size, Dtype dtype, Device device) {
  switch (dtype) {
    case Dtype::float64: return empty(size, aoti_torch_dtype_float64(), device);
    case Dtype::bfloat16: return empty(size, aoti_torch_dtype_bfloat16(), device);
    case Dtype::float16: return empty(size, aoti_torch_dtype_float16(), device);
    default: return empty(size, aoti_torch_dtype_float32(), device);
  }
}

inline Tensor empty(std::initializer_list<int64_t> size, Dtype dtype, Device device) {
  return empty(Sizes(size.begin(), size.size()), dtype, device);
}

}  // namespace sagd
