// How a step reaches the device: tensors and hyper-parameters by value, in the parameters of the
// launch. Nothing is copied to the device before it and nothing has to outlive it, so that a
// captured graph holds all it needs. 480 tensors fit into the 32764 bytes that kernels may take
// since CUDA 12.1; longer lists take several launches.
#pragma once

#include <cuda_runtime.h>

#include "cuda/common/cast.cuh"
#include "cuda/common/launch.h"
#include "optimizer_math.h"

namespace lowbit::kernels::cuda {

struct DeviceTensor {
  void* p;
  const void* g;
  void* state1;
  void* state2;
  float* absmax1;
  float* absmax2;
  int64_t numel;
  int32_t first_chunk;  ///< of this launch
  int16_t hyper;
  int16_t aligned;  ///< vector accesses are allowed
};

struct DeviceHyper {
  OptimizerHyper hyper;
  OptimizerCoefficients coefficients;  ///< of the values that the host knows
};

struct OptimizerLaunch {
  static constexpr int kTensors = 480, kHypers = 10;

  const float* map1;
  const float* map2;
  float* norms;           ///< [chunks of this launch, 2]
  const float* limits;    ///< [tensors of this launch]
  int64_t chunks_before;  ///< of the call, in earlier launches
  int32_t ntensors;
  int32_t nchunks;
  DeviceHyper hypers[kHypers];
  DeviceTensor tensors[kTensors];

  /// Whether all thread blocks go through one tensor together, then through the next one: worth it
  /// when a tensor keeps all of them busy. Otherwise each has a run of chunks of its own.
  LOWBIT_HOST_DEVICE bool is_swept() const { return nchunks / ntensors >= kSweptChunks; }
  static constexpr int kSweptChunks = 2048;  // 2^23 elements
};
static_assert(sizeof(OptimizerLaunch) <= 32764, "kernel parameters");

namespace optimizer {
Status step_8bit(const OptimizerParams& params, Stream stream) noexcept;
}

/// lr, step and scale of the gradient may be values in device memory.
__device__ __noinline__ inline void device_coefficients(OptimizerKind kind, const DeviceHyper& h,
                                                        OptimizerCoefficients* out) {
  *out = optimizer_coefficients(kind, h.hyper);
}

/// Writes the coefficients of tensor `t` to shared memory. All threads of the block; begins and
/// ends with a barrier.
__device__ __forceinline__ void share_coefficients(OptimizerKind kind,
                                                   const OptimizerLaunch& launch,
                                                   const DeviceTensor& t,
                                                   OptimizerCoefficients* shared) {
  __syncthreads();
  if (threadIdx.x == 0) {
    const DeviceHyper& h = launch.hypers[t.hyper];
    if (h.hyper.lr_value != nullptr || h.hyper.step_value != nullptr) {
      device_coefficients(kind, h, shared);
    } else {
      *shared = h.coefficients;
      if (h.hyper.gnorm_scale_value != nullptr) shared->grad_scale *= *h.hyper.gnorm_scale_value;
    }
    const int64_t index = &t - launch.tensors;
    if (h.hyper.max_unorm > 0.0f && launch.limits != nullptr) {
      shared->step_size *= launch.limits[index];
    }
  }
  __syncthreads();
}

/// The tensor that holds `chunk`.
__device__ __forceinline__ int tensor_of_chunk(const OptimizerLaunch& launch, int chunk) {
  int low = 0, high = launch.ntensors - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (launch.tensors[middle].first_chunk <= chunk) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

/// Calls f(tensor, coefficients, first chunk, last chunk + 1) for the chunks of this block: a
/// contiguous run, or all of them. Chunks count in the launch. The coefficients are shared anew,
/// with barriers, where they change only.
template <OptimizerKind kKind, typename F>
__device__ __forceinline__ void for_runs_of_block(const OptimizerLaunch& launch, bool all,
                                                  const F& f) {
  __shared__ OptimizerCoefficients coefficients;
  const int64_t part = all ? 0 : blockIdx.x, parts = all ? 1 : gridDim.x;
  const int begin = static_cast<int>(launch.nchunks * part / parts);
  const int end = static_cast<int>(launch.nchunks * (part + 1) / parts);
  if (begin == end) return;
  int at = tensor_of_chunk(launch, begin), hyper = -1;
  for (int chunk = begin; chunk < end;) {
    while (at + 1 < launch.ntensors && launch.tensors[at + 1].first_chunk <= chunk) ++at;
    const DeviceTensor& t = launch.tensors[at];
    const int after =
        min(end, at + 1 < launch.ntensors ? launch.tensors[at + 1].first_chunk : launch.nchunks);
    if (t.hyper != hyper || launch.hypers[t.hyper].hyper.max_unorm > 0.0f) {
      share_coefficients(kKind, launch, t, &coefficients);
      hyper = t.hyper;
    }
    f(t, coefficients, chunk, after);
    chunk = after;
  }
}

/// Calls f(tensor, coefficients, first element, chunk) for the chunks of this block.
template <OptimizerKind kKind, typename F>
__device__ __forceinline__ void for_chunks_of_block(const OptimizerLaunch& launch, const F& f) {
  for_runs_of_block<kKind>(
      launch, /*all=*/false,
      [&](const DeviceTensor& t, const OptimizerCoefficients& c, int begin, int end) {
        for (int chunk = begin; chunk < end; ++chunk) {
          f(t, c, int64_t{chunk - t.first_chunk} * kOptimizerChunk, chunk);
        }
      });
}

/// Calls step(launch, first tensor) -> Status for batches of tensors that fit into one launch.
template <typename Step>
Status for_batches(const OptimizerParams& p, const Step& step) noexcept {
  OptimizerLaunch launch;
  constexpr int64_t kMostChunks = INT32_MAX / (kOptimizerChunk / kOptimizerBlocksize);
  int64_t chunks_before = 0;
  for (int64_t begin = 0; begin < p.ntensors;) {
    launch.map1 = p.map1;
    launch.map2 = p.map2;
    launch.norms = p.workspace != nullptr ? optimizer_norms_of(p) + 2 * chunks_before : nullptr;
    launch.limits = p.workspace != nullptr ? optimizer_limits_of(p) + begin : nullptr;
    launch.chunks_before = chunks_before;
    launch.ntensors = launch.nchunks = 0;
    int32_t known[OptimizerLaunch::kHypers];
    int nhypers = 0;
    int64_t t = begin;
    for (; t < p.ntensors && launch.ntensors < OptimizerLaunch::kTensors; ++t) {
      const OptimizerTensor& tensor = p.tensors[t];
      const int64_t chunks = ceil_div(tensor.numel, kOptimizerChunk);
      if (launch.nchunks + chunks > kMostChunks) break;
      int slot = 0;
      while (slot < nhypers && known[slot] != tensor.hyper) ++slot;
      if (slot == nhypers) {
        if (nhypers == OptimizerLaunch::kHypers) break;
        known[nhypers++] = tensor.hyper;
        OptimizerHyper host = p.hypers[tensor.hyper];
        launch.hypers[slot].hyper = host;
        host.lr_value = host.step_value = host.gnorm_scale_value = nullptr;
        launch.hypers[slot].coefficients = optimizer_coefficients(p.kind, host);
      }
      const int64_t state_bytes = p.blockwise ? 8 : 16;
      const bool rows_aligned =
          state1_rows(p.kind) == 1 || tensor.numel % (p.blockwise ? 8 : 4) == 0;
      const bool is_aligned = aligned(tensor.p, 16) && aligned(tensor.g, 16) &&
                              aligned(tensor.state1, state_bytes) &&
                              aligned(tensor.state2, state_bytes) && rows_aligned;
      launch.tensors[launch.ntensors++] = {.p = tensor.p,
                                           .g = tensor.g,
                                           .state1 = tensor.state1,
                                           .state2 = tensor.state2,
                                           .absmax1 = tensor.absmax1,
                                           .absmax2 = tensor.absmax2,
                                           .numel = tensor.numel,
                                           .first_chunk = launch.nchunks,
                                           .hyper = static_cast<int16_t>(slot),
                                           .aligned = is_aligned};
      launch.nchunks += static_cast<int32_t>(chunks);
    }
    if (t == begin) return unsupported("a tensor has more than 2^39 elements");
    if (launch.nchunks > 0) {
      if (const Status status = step(launch, begin); !status.ok()) return status;
    }
    chunks_before += launch.nchunks;
    begin = t;
  }
  return ok_status();
}

/// Calls f(integral_constant<OptimizerKind>).
template <typename F>
Status visit_kind(OptimizerKind kind, const F& f) noexcept {
  using Kind = OptimizerKind;
  switch (kind) {
    case Kind::kAdam:
      return f(std::integral_constant<Kind, Kind::kAdam>{});
    case Kind::kAdEMAMix:
      return f(std::integral_constant<Kind, Kind::kAdEMAMix>{});
    case Kind::kMomentum:
      return f(std::integral_constant<Kind, Kind::kMomentum>{});
    case Kind::kRMSprop:
      return f(std::integral_constant<Kind, Kind::kRMSprop>{});
    case Kind::kAdagrad:
      return f(std::integral_constant<Kind, Kind::kAdagrad>{});
    case Kind::kLion:
      return f(std::integral_constant<Kind, Kind::kLion>{});
  }
  return invalid_argument("unknown optimizer");
}

/// Calls f(null T*, integral_constant<OptimizerKind>) for the dtype and the rule of a call.
template <typename F>
Status visit_dtype_and_kind(const OptimizerParams& p, const F& f) noexcept {
  return visit_device_dtype(p.dtype, [&](auto* tag) {
    return visit_kind(p.kind, [&](auto kind) { return f(tag, kind); });
  });
}

}  // namespace lowbit::kernels::cuda
