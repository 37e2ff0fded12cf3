// The operators for any backend: arguments in, a described job to the backend, outputs back.
//
// A backend is made for the device of the call. It has that `device`; spectral_filter, shaped_noise and add_noise,
// which run a job; and whitened_mse, which also returns the loss, the mean over planes.
#pragma once

#include "arguments.h"

namespace sagd {

template <class Backend>
Tensor spectral_filter(const Tensor& input, const Tensor& weight, std::optional<Tensor> scale) {
  Backend backend(device_of(input));
  const Device device = backend.device;
  const Sizes size = sizes_of(input);
  check_size("input", size);
  Job job = describe(size, floating_dtype("input", input.scalar_type()), weight, device);
  job.input = describe_planes(input, batch_of(size));
  if (scale) job.scale = describe_scale("scale", *scale, size, device);
  const Tensor output = empty(size, job.dtype, device);
  job.output = output.mutable_data_ptr();
  backend.spectral_filter(job);
  return output;
}

template <class Backend>
Tensor shaped_noise(const Tensor& key, std::vector<int64_t> size, const Tensor& weight, std::optional<Tensor> scale,
                    int64_t plane_offset, std::optional<ScalarType> dtype) {
  Backend backend(device_of(weight));
  const Device device = backend.device;
  check_size("size", size);
  const ScalarType type = dtype.value_or(weight.scalar_type());
  Job job = describe(size, floating_dtype("dtype", type), weight, device);
  const Tensor keys = describe_keys(job, key, size, plane_offset, device);
  if (scale) job.scale = describe_scale("scale", *scale, size, device);
  const Tensor output = empty(size, job.dtype, device);
  job.output = output.mutable_data_ptr();
  backend.shaped_noise(job);
  return output;
}

template <class Backend>
std::tuple<Tensor, Tensor> add_noise(const Tensor& input, const Tensor& key, const Tensor& weight,
                                     const Tensor& signal_scale, const Tensor& noise_scale, int64_t plane_offset) {
  Backend backend(device_of(input));
  const Device device = backend.device;
  const Sizes size = sizes_of(input);
  check_size("input", size);
  Job job = describe(size, floating_dtype("input", input.scalar_type()), weight, device);
  const Tensor keys = describe_keys(job, key, size, plane_offset, device);
  job.input = describe_planes(input, batch_of(size));
  job.signal_scale = describe_scale("signal_scale", signal_scale, size, device);
  job.scale = describe_scale("noise_scale", noise_scale, size, device);
  const Tensor noisy = empty(size, job.dtype, device), noise = empty(size, job.dtype, device);
  job.output = noisy.mutable_data_ptr();
  job.noise = noise.mutable_data_ptr();
  backend.add_noise(job);
  return {noisy, noise};
}

template <class Backend>
std::tuple<Tensor, Tensor> whitened_mse(const Tensor& input, const Tensor& target, const Tensor& weight,
                                        bool with_residual) {
  Backend backend(device_of(input));
  const Device device = backend.device;
  const Sizes size = sizes_of(input);
  check_size("input", size);
  check_device("target", target, device);
  STD_TORCH_CHECK(std::ranges::equal(sizes_of(target), size), "target: expected the shape of input ", to_string(size),
                  ", got ", to_string(sizes_of(target)));
  STD_TORCH_CHECK(target.scalar_type() == input.scalar_type(), "target: expected the dtype of input ",
                  dtype_name(input.scalar_type()), ", got ", dtype_name(target.scalar_type()));
  Job job = describe(size, floating_dtype("input", input.scalar_type()), weight, device);
  job.input = describe_planes(input, batch_of(size));
  job.target = describe_planes(target, batch_of(size));
  const Tensor whitened = with_residual ? empty(size, job.dtype, device) : empty({0}, job.dtype, device);
  if (with_residual) job.output = whitened.mutable_data_ptr();
  const Tensor loss = backend.whitened_mse(job);
  return {loss, whitened};
}

}  // namespace sagd
