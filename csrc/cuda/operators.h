// The CUDA kernels as the bindings see them: jobs in, work on a stream out. Needs neither torch nor CUDA's headers.
#pragma once

#include <string>

#include "sagd/job.h"

namespace sagd::cuda {

// How planes of this size are transformed on a device that gives a block `shared_bytes` of shared memory, for people:
// "columns 8 x 8, rows 8 x 8 points, 256 threads a plane", or "three passes: ..." where no block holds a plane. Empty
// where there is no kernel.
std::string describe_plan(int64_t height, int64_t width, int64_t shared_bytes);

// Makes a device current for what follows. torch's own runtime library has done so; this one is linked statically.
void use_device(int index);

// Shared memory that a block may have on a device, which then is the current one (-1: on the one that is). 0 where
// there is no such device, or no code for its kind of GPU.
int64_t shared_bytes_per_block(int device = -1);

// Device memory that the job needs besides, in bytes. Later work on the stream may use it again.
int64_t workspace_bytes(const Job& job);

// Each queues the job on the current device's stream and returns. std::runtime_error where there is no kernel
// (describe_plan is empty) or CUDA reports an error. dtypes: float32, bfloat16 and float16.
void spectral_filter(const Job& job, void* workspace, void* stream);
void shaped_noise(const Job& job, void* workspace, void* stream);
void add_noise(const Job& job, void* workspace, void* stream);
void whitened_mse(const Job& job, void* workspace, void* stream);  // job.plane_loss: one number a plane, on the device

// *loss = the mean of plane_loss, added in the same order every time
void mean_loss(const double* plane_loss, int64_t planes, float* loss, void* stream);

}  // namespace sagd::cuda
