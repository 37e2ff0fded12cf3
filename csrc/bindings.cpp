// The operators' schemas, and their CPU implementation: arguments are checked and described to the kernels.
// The only file that knows torch, through its stable ABI. The errors are those of sagd_kernels/ops.py, word for word.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/describe.h"
#include "cpu/job.h"

namespace sagd {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;

// ---- checks ----------------------------------------------------------------------------------------------------

std::string to_string(const Sizes& sizes) {
  std::ostringstream out;
  out << '[';
  for (size_t i = 0; i < sizes.size(); ++i) out << (i ? ", " : "") << sizes[i];
  out << ']';
  return out.str();
}

Sizes sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return Sizes(sizes.begin(), sizes.end());
}

std::string dtype_name(ScalarType type) {
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

Dtype floating_dtype(const char* name, ScalarType type) {
  switch (type) {
    case ScalarType::Float: return Dtype::float32;
    case ScalarType::Double: return Dtype::float64;
    case ScalarType::BFloat16: return Dtype::bfloat16;
    case ScalarType::Half: return Dtype::float16;
    default:
      STD_TORCH_CHECK(false, name, ": expected float32, float64, bfloat16 or float16, got ", dtype_name(type));
  }
}

void check_size(const char* name, const Sizes& size) {
  STD_TORCH_CHECK(size.size() >= 2, name, ": expected at least 2 dimensions [..., H, W], got ", to_string(size));
  for (int64_t n : size) STD_TORCH_CHECK(n >= 0, name, ": expected no negative size, got ", to_string(size));
  const int64_t height = size[size.size() - 2], width = size.back();
  STD_TORCH_CHECK(height > 0 && width > 0, name, ": expected planes of at least 1 x 1, got ", to_string(size));
  STD_TORCH_CHECK(height < (1 << 24) && width < (1 << 24) && height * width < (int64_t(1) << 30), name,
                  ": expected planes of less than 2^30 values, got ", to_string(size));
}

std::string device_name(const Tensor& tensor) {
  using torch::headeronly::DeviceType;
  std::string name;
  switch (tensor.device().type()) {
    case DeviceType::Meta: return "meta";
    case DeviceType::CUDA: name = "cuda"; break;
    case DeviceType::XPU: name = "xpu"; break;
    case DeviceType::MPS: name = "mps"; break;
    default: name = "device type " + std::to_string(int(tensor.device().type()));
  }
  return name + ':' + std::to_string(tensor.get_device_index());
}

void check_cpu(const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, ": expected a tensor on cpu, the device of the other arguments, got ",
                  device_name(tensor));
}

int64_t product(const Sizes& sizes) {
  int64_t n = 1;
  for (int64_t size : sizes) n *= size;
  return n;
}

// ---- descriptions ----------------------------------------------------------------------------------------------

// The batch dimensions with one stride each, 0 where broadcast; neighbours that step alike become one.
BatchIndex merge(const Sizes& sizes, const Sizes& strides) {
  BatchIndex merged;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 1) continue;
    const int last = merged.dims - 1;
    if (last >= 0 && merged.stride[last] == strides[d] * sizes[d]) {
      merged.size[last] *= sizes[d];
      merged.stride[last] = strides[d];
    } else {
      STD_TORCH_CHECK(merged.dims < max_batch_dims, "input: more than ", max_batch_dims, " batch dimensions");
      merged.size[merged.dims] = sizes[d];
      merged.stride[merged.dims++] = strides[d];
    }
  }
  if (merged.dims == 1 && merged.stride[0] == 0) merged.dims = 0;
  return merged;
}

// A tensor [..., rows, columns] whose leading dimensions broadcast against the batch from the right.
Planes describe_planes(const Tensor& tensor, const Sizes& batch) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  const int64_t dims = tensor.dim(), missing = int64_t(batch.size()) + 2 - dims;
  Sizes batch_strides(batch.size(), 0);
  for (int64_t d = 0; d < dims - 2; ++d) batch_strides[missing + d] = sizes[d] == 1 ? 0 : strides[d];
  return {tensor.const_data_ptr(), strides[dims - 2], strides[dims - 1], merge(batch, batch_strides)};
}

Planes describe_weight(const Tensor& weight, const Sizes& size, Dtype dtype) {
  check_cpu("weight", weight);
  const ScalarType expected = dtype == Dtype::float64 ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(weight.scalar_type() == expected, "weight: expected ", dtype_name(expected), ", got ",
                  dtype_name(weight.scalar_type()));
  const Sizes batch(size.begin(), size.end() - 2), got = sizes_of(weight);
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
Factors describe_scale(const char* name, const Tensor& scale, const Sizes& size) {
  check_cpu(name, scale);
  const Dtype dtype = floating_dtype(name, scale.scalar_type());
  const Sizes batch(size.begin(), size.end() - 2), got = sizes_of(scale);
  bool fits = got.size() <= size.size();
  for (size_t d = 0; fits && d < got.size(); ++d) fits = got[d] == 1 || (d < batch.size() && got[d] == batch[d]);
  STD_TORCH_CHECK(fits, name, ": expected dimensions that broadcast from the left against the batch ",
                  to_string(batch), ", got ", to_string(got));
  Sizes strides(batch.size(), 0);
  for (size_t d = 0; d < got.size() && d < batch.size(); ++d) strides[d] = got[d] == 1 ? 0 : scale.stride(d);
  return {scale.const_data_ptr(), dtype, merge(batch, strides)};
}

Job describe(const Sizes& size, Dtype dtype, const Tensor& weight) {
  Job job{};
  job.planes = product(Sizes(size.begin(), size.end() - 2));
  job.height = size[size.size() - 2];
  job.width = size.back();
  job.dtype = dtype;
  job.weight = describe_weight(weight, size, dtype);
  return job;
}

// Keys may come with any strides; the copy, if one is needed, must outlive the job.
Tensor describe_keys(Job& job, const Tensor& key, const Sizes& size, int64_t plane_offset) {
  check_cpu("key", key);
  const Sizes got = sizes_of(key);
  STD_TORCH_CHECK(key.scalar_type() == ScalarType::UInt64 && !got.empty() && got.back() == 2,
                  "key: expected a uint64 tensor [..., 2], got ", dtype_name(key.scalar_type()), " ", to_string(got));
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

// A new contiguous tensor. The shim's function is called directly: through the dispatcher it would take as long as a
// small plane's transform.
Tensor empty(const Sizes& size, Dtype dtype) {
  Sizes strides(size.size());
  int64_t stride = 1;
  for (size_t d = size.size(); d-- > 0; stride *= std::max<int64_t>(size[d], 1)) strides[d] = stride;
  int32_t type = 0;
  switch (dtype) {
    case Dtype::float32: type = aoti_torch_dtype_float32(); break;
    case Dtype::float64: type = aoti_torch_dtype_float64(); break;
    case Dtype::bfloat16: type = aoti_torch_dtype_bfloat16(); break;
    case Dtype::float16: type = aoti_torch_dtype_float16(); break;
  }
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(size.size()), size.data(), strides.data(), type,
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

// ---- running ---------------------------------------------------------------------------------------------------

// Threads take runs of planes with at least this many values, so that handing out work costs little beside it.
constexpr int64_t values_per_task = 1 << 14;

void run(Kernel kernel, const Job& job) {
  const int64_t grain = (values_per_task + job.height * job.width - 1) / (job.height * job.width);
  if (job.planes <= grain) {
    if (job.planes > 0) kernel(job, 0, job.planes);
    return;
  }
  torch::stable::parallel_for(0, job.planes, grain, [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
}

Tensor spectral_filter(const Tensor& input, const Tensor& weight, std::optional<Tensor> scale) {
  const Sizes size = sizes_of(input);
  check_size("input", size);
  Job job = describe(size, floating_dtype("input", input.scalar_type()), weight);
  job.input = describe_planes(input, Sizes(size.begin(), size.end() - 2));
  if (scale) job.scale = describe_scale("scale", *scale, size);
  const Tensor output = empty(size, job.dtype);
  job.output = output.mutable_data_ptr();
  run(kernels().spectral_filter, job);
  return output;
}

Tensor shaped_noise(const Tensor& key, Sizes size, const Tensor& weight, std::optional<Tensor> scale,
                    int64_t plane_offset, std::optional<ScalarType> dtype) {
  check_size("size", size);
  const ScalarType type = dtype.value_or(weight.scalar_type());
  Job job = describe(size, floating_dtype("dtype", type), weight);
  const Tensor keys = describe_keys(job, key, size, plane_offset);
  if (scale) job.scale = describe_scale("scale", *scale, size);
  const Tensor output = empty(size, job.dtype);
  job.output = output.mutable_data_ptr();
  run(kernels().shaped_noise, job);
  return output;
}

std::tuple<Tensor, Tensor> add_noise(const Tensor& input, const Tensor& key, const Tensor& weight,
                                     const Tensor& signal_scale, const Tensor& noise_scale, int64_t plane_offset) {
  const Sizes size = sizes_of(input);
  check_size("input", size);
  Job job = describe(size, floating_dtype("input", input.scalar_type()), weight);
  const Tensor keys = describe_keys(job, key, size, plane_offset);
  job.input = describe_planes(input, Sizes(size.begin(), size.end() - 2));
  job.signal_scale = describe_scale("signal_scale", signal_scale, size);
  job.scale = describe_scale("noise_scale", noise_scale, size);
  const Tensor noisy = empty(size, job.dtype), noise = empty(size, job.dtype);
  job.output = noisy.mutable_data_ptr();
  job.noise = noise.mutable_data_ptr();
  run(kernels().add_noise, job);
  return {noisy, noise};
}

std::tuple<Tensor, Tensor> whitened_mse(const Tensor& input, const Tensor& target, const Tensor& weight,
                                        bool with_residual) {
  const Sizes size = sizes_of(input), batch(size.begin(), size.end() < size.begin() + 2 ? size.begin() : size.end() - 2);
  check_size("input", size);
  check_cpu("target", target);
  STD_TORCH_CHECK(sizes_of(target) == size, "target: expected the shape of input ", to_string(size), ", got ",
                  to_string(sizes_of(target)));
  STD_TORCH_CHECK(target.scalar_type() == input.scalar_type(), "target: expected the dtype of input ",
                  dtype_name(input.scalar_type()), ", got ", dtype_name(target.scalar_type()));
  Job job = describe(size, floating_dtype("input", input.scalar_type()), weight);
  job.input = describe_planes(input, batch);
  job.target = describe_planes(target, batch);
  const Tensor whitened = empty(with_residual ? size : Sizes{0}, job.dtype);
  if (with_residual) job.output = whitened.mutable_data_ptr();
  std::vector<double> plane_loss(job.planes);
  job.plane_loss = plane_loss.data();
  run(kernels().whitened_mse, job);

  double sum = 0;  // in the planes' order, whatever the threads did
  for (double loss : plane_loss) sum += loss;
  const Tensor loss = empty({}, job.dtype == Dtype::float64 ? Dtype::float64 : Dtype::float32);
  if (job.dtype == Dtype::float64) {
    *static_cast<double*>(loss.mutable_data_ptr()) = sum / double(job.planes);
  } else {
    *static_cast<float*>(loss.mutable_data_ptr()) = float(sum / double(job.planes));
  }
  return {loss, whitened};
}

std::string cpu_isa() { return kernels().name; }

std::string cpu_plan(int64_t length) {
  STD_TORCH_CHECK(length > 0 && length < (1 << 24), "length: expected 1 to 2^24 - 1, got ", length);
  return describe_plan(int(length));
}

}  // namespace
}  // namespace sagd

STABLE_TORCH_LIBRARY(sagd, m) {
  m.def("spectral_filter(Tensor input, Tensor weight, Tensor? scale=None) -> Tensor");
  m.def(
      "shaped_noise(Tensor key, SymInt[] size, Tensor weight, Tensor? scale=None, *, SymInt plane_offset=0, "
      "ScalarType? dtype=None) -> Tensor");
  m.def(
      "add_noise(Tensor input, Tensor key, Tensor weight, Tensor signal_scale, Tensor noise_scale, *, "
      "SymInt plane_offset=0) -> (Tensor noisy, Tensor noise)");
  m.def("whitened_mse(Tensor input, Tensor target, Tensor weight) -> Tensor");
  // the loss, and with_residual the residual F^-1[F(input - target) / w^2] height width / (bins with w > 0):
  // 2 / numel times it is the loss's gradient
  m.def("_whitened_mse(Tensor input, Tensor target, Tensor weight, bool with_residual) -> (Tensor loss, Tensor whitened)");
  m.def("_cpu_isa() -> str");
  m.def("_cpu_plan(int length) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(sagd, CPU, m) {
  m.impl("spectral_filter", TORCH_BOX(&sagd::spectral_filter));
  m.impl("shaped_noise", TORCH_BOX(&sagd::shaped_noise));
  m.impl("add_noise", TORCH_BOX(&sagd::add_noise));
  m.impl("_whitened_mse", TORCH_BOX(&sagd::whitened_mse));
}

STABLE_TORCH_LIBRARY_IMPL(sagd, CompositeImplicitAutograd, m) {
  m.impl("_cpu_isa", TORCH_BOX(&sagd::cpu_isa));
  m.impl("_cpu_plan", TORCH_BOX(&sagd::cpu_plan));
}
