// Optimizer steps with float32 states, and the norms of both kinds of states: one launch for any
// number of tensors.
#include <type_traits>

#include "cuda/common/cast.cuh"
#include "cuda/optimizer_launch.cuh"
#include "cuda/optimizer_update.cuh"
#include "validate.h"

namespace lowbit::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerLane = 4;

/// Four elements in one access: 16 bytes, or 8 of 16-bit elements.
template <typename T>
struct alignas(4 * sizeof(T)) Pack4 {
  T values[4];
};
template <typename T>
using Word4 = std::conditional_t<sizeof(T) == 4, uint4, uint2>;

template <typename T>
__device__ __forceinline__ Pack4<T> load4(const T* p, int valid, bool aligned) {
  Pack4<T> pack;
  if (valid == kPerLane && aligned) {
    *reinterpret_cast<Word4<T>*>(&pack) = __ldcs(reinterpret_cast<const Word4<T>*>(p));
  } else {
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) pack.values[j] = j < valid ? p[j] : from_float<T>(0.0f);
  }
  return pack;
}
template <typename T>
__device__ __forceinline__ void store4(T* p, const Pack4<T>& pack, int valid, bool aligned) {
  if (valid == kPerLane && aligned) {
    __stcs(reinterpret_cast<Word4<T>*>(p), *reinterpret_cast<const Word4<T>*>(&pack));
  } else {
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      if (j < valid) p[j] = pack.values[j];
    }
  }
}

/// `counted`: chunks * kOptimizerChunk before the tensor's first one, in the call.
template <typename T, OptimizerKind kKind, bool kRare>
__device__ __forceinline__ void step_elements(const DeviceTensor& t, const OptimizerCoefficients& c,
                                              int64_t i, int valid, int64_t counted) {
  constexpr bool kSecond = has_second_state(kKind), kSlow = kKind == OptimizerKind::kAdEMAMix;
  const bool aligned = t.aligned != 0;
  T* p = static_cast<T*>(t.p) + i;
  float* state1 = static_cast<float*>(t.state1) + i;
  float* state2 = kSecond ? static_cast<float*>(t.state2) + i : nullptr;
  Pack4<T> pack_p = load4(p, valid, aligned);
  const Pack4<T> pack_g = load4(static_cast<const T*>(t.g) + i, valid, aligned);
  Pack4<float> s1 = load4(state1, valid, aligned), slow{}, s2{};
  if constexpr (kSlow) slow = load4(state1 + t.numel, valid, aligned);
  if constexpr (kSecond) s2 = load4(state2, valid, aligned);
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    DeviceElement e{to_float(pack_p.values[j]), to_float(pack_g.values[j]), s1.values[j],
                    slow.values[j], s2.values[j]};
    update_element<kKind, false, kRare>(c, e);
    pack_p.values[j] = rounded<T, kRare>(c, e.p, counted + i + j);
    s1.values[j] = e.state1;
    slow.values[j] = e.slow;
    s2.values[j] = e.state2;
  }
  store4(p, pack_p, valid, aligned);
  store4(state1, s1, valid, aligned);
  if constexpr (kSlow) store4(state1 + t.numel, slow, valid, aligned);
  if constexpr (kSecond) store4(state2, s2, valid, aligned);
}

template <typename T, OptimizerKind kKind>
__global__ void __launch_bounds__(kThreads)
    step_kernel(const __grid_constant__ OptimizerLaunch launch) {
  for_chunks_of_block<kKind>(
      launch, [&](const DeviceTensor& t, const OptimizerCoefficients& c, int64_t first, int chunk) {
        const int64_t counted = (launch.chunks_before + chunk) * kOptimizerChunk - first;
        const int64_t last = min(first + kOptimizerChunk, t.numel);
        for (int64_t i = first + threadIdx.x * kPerLane; i < last; i += kThreads * kPerLane) {
          const int valid = static_cast<int>(min(int64_t{kPerLane}, last - i));
          if (c.skip_zeros || c.stochastic_rounding) {
            step_elements<T, kKind, true>(t, c, i, valid, counted);
          } else {
            step_elements<T, kKind, false>(t, c, i, valid, counted);
          }
        }
      });
}

/// Sums of squares of p and of the direction without weight decay, for each chunk. States are read
/// as they are stored; nothing but the norms is written.
template <typename T, OptimizerKind kKind, bool kBlockwise>
__global__ void __launch_bounds__(kThreads)
    norms_kernel(const __grid_constant__ OptimizerLaunch launch) {
  constexpr bool kSecond = has_second_state(kKind);
  __shared__ float map1[256], map2[256];
  __shared__ float sums[2][kThreads / 32];
  if constexpr (kBlockwise) {
    for (int k = threadIdx.x; k < 256; k += kThreads) {
      map1[k] = launch.map1[k];
      if constexpr (kSecond) map2[k] = launch.map2[k];
    }
    __syncthreads();
  }
  for_chunks_of_block<kKind>(launch, [&](const DeviceTensor& t, const OptimizerCoefficients& shared,
                                         int64_t first, int chunk) {
    OptimizerCoefficients c = shared;
    c.coupled_decay = 0.0f;
    const int64_t last = min(first + kOptimizerChunk, t.numel);
    float p2 = 0.0f, d2 = 0.0f;
    for (int64_t i = first + threadIdx.x; i < last; i += kThreads) {
      DeviceElement e{to_float(static_cast<const T*>(t.p)[i]),
                      to_float(static_cast<const T*>(t.g)[i])};
      p2 = __fmaf_rn(e.p, e.p, p2);
      if constexpr (kBlockwise) {
        const int64_t block = i / kOptimizerBlocksize;
        e.state1 = map1[static_cast<const uint8_t*>(t.state1)[i]] * t.absmax1[block];
        if constexpr (kSecond) {
          e.state2 = map2[static_cast<const uint8_t*>(t.state2)[i]] * t.absmax2[block];
        }
      } else {
        e.state1 = static_cast<const float*>(t.state1)[i];
        if constexpr (kSecond) e.state2 = static_cast<const float*>(t.state2)[i];
      }
      const float g = e.g * c.grad_scale;
      float direction = update_element<kKind, false, false>(c, e);
      // The exceptions of the step: an element that stays does not move.
      if (c.skip_zeros && g == 0.0f) direction = 0.0f;
      if (kBlockwise && kSecond && !(fabsf(g) <= 3.402823466e38f)) direction = 0.0f;
      d2 = __fmaf_rn(direction, direction, d2);
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      p2 += __shfl_xor_sync(0xffffffffu, p2, offset);
      d2 += __shfl_xor_sync(0xffffffffu, d2, offset);
    }
    if (threadIdx.x % 32 == 0) {
      sums[0][threadIdx.x / 32] = p2;
      sums[1][threadIdx.x / 32] = d2;
    }
    __syncthreads();
    if (threadIdx.x < 2) {
      float sum = 0.0f;
      for (int w = 0; w < kThreads / 32; ++w) sum += sums[threadIdx.x][w];
      launch.norms[2 * int64_t{chunk} + threadIdx.x] = sum;
    }
    __syncthreads();
  });
}

/// What the limits need of one launch's tensors.
struct LimitLaunch {
  const float* norms;
  float* limits;
  int32_t ntensors;
  int32_t nchunks;
  DeviceHyper hypers[OptimizerLaunch::kHypers];
  float* unorm[OptimizerLaunch::kTensors];
  int32_t first_chunk[OptimizerLaunch::kTensors];
  int16_t hyper[OptimizerLaunch::kTensors];
};

/// One thread block a tensor: sums in a fixed order, in double.
__global__ void __launch_bounds__(kThreads)
    limits_kernel(OptimizerKind kind, const __grid_constant__ LimitLaunch launch) {
  __shared__ double sums[2][kThreads];
  const int t = blockIdx.x;
  const DeviceHyper& h = launch.hypers[launch.hyper[t]];
  if (!(h.hyper.max_unorm > 0.0f)) return;
  const int begin = launch.first_chunk[t];
  const int end = t + 1 < launch.ntensors ? launch.first_chunk[t + 1] : launch.nchunks;
  double p2 = 0.0, d2 = 0.0;
  for (int chunk = begin + threadIdx.x; chunk < end; chunk += kThreads) {
    p2 += launch.norms[2 * int64_t{chunk}];
    d2 += launch.norms[2 * int64_t{chunk} + 1];
  }
  sums[0][threadIdx.x] = p2;
  sums[1][threadIdx.x] = d2;
  for (int width = kThreads / 2; width > 0; width /= 2) {
    __syncthreads();
    if (threadIdx.x < width) {
      sums[0][threadIdx.x] += sums[0][threadIdx.x + width];
      sums[1][threadIdx.x] += sums[1][threadIdx.x + width];
    }
  }
  if (threadIdx.x != 0) return;
  OptimizerCoefficients c = h.coefficients;
  if (h.hyper.step_value != nullptr) device_coefficients(kind, h, &c);
  const double squares = sums[1][0] * c.norm_factor;
  if (launch.unorm[t] != nullptr) *launch.unorm[t] = static_cast<float>(squares);
  const double param_norm = h.hyper.param_norm >= 0.0f ? h.hyper.param_norm : sqrt(sums[0][0]);
  launch.limits[t] = optimizer_limit(h.hyper.max_unorm, param_norm, sqrt(squares));
}

template <typename T, OptimizerKind kKind>
Status norms(const OptimizerParams& params, const OptimizerLaunch& batch, int64_t grid,
             Stream stream) noexcept {
  if constexpr (has_update_limit(kKind)) {
    return params.blockwise ? launch(norms_kernel<T, kKind, true>, grid, kThreads, stream, batch)
                            : launch(norms_kernel<T, kKind, false>, grid, kThreads, stream, batch);
  } else {
    return unsupported("this update rule has no update limit");
  }
}

}  // namespace

namespace optimizer {

Status limits(const OptimizerParams& params, Stream stream) noexcept {
  const int64_t most = multiprocessors() * 8;
  return for_batches(params, [&](OptimizerLaunch& batch, int64_t first) {
    batch.limits = nullptr;  // not yet known
    const int64_t grid = batch.nchunks < most ? batch.nchunks : most;
    const Status status = visit_dtype_and_kind(params, [&](auto* tag, auto kind) {
      using T = std::remove_pointer_t<decltype(tag)>;
      return norms<T, decltype(kind)::value>(params, batch, grid, stream);
    });
    if (!status.ok()) return status;
    LimitLaunch limits{
        batch.norms, optimizer_limits_of(params) + first, batch.ntensors, batch.nchunks, {}, {}, {},
        {}};
    for (int h = 0; h < OptimizerLaunch::kHypers; ++h) limits.hypers[h] = batch.hypers[h];
    for (int t = 0; t < batch.ntensors; ++t) {
      limits.unorm[t] = params.tensors[first + t].unorm;
      limits.first_chunk[t] = batch.tensors[t].first_chunk;
      limits.hyper[t] = batch.tensors[t].hyper;
    }
    return launch(limits_kernel, batch.ntensors, kThreads, stream, params.kind, limits);
  });
}

Status step_32bit(const OptimizerParams& params, Stream stream) noexcept {
  const int64_t most = multiprocessors() * 8;
  return for_batches(params, [&](const OptimizerLaunch& batch, int64_t) {
    const int64_t grid = batch.nchunks < most ? batch.nchunks : most;
    return visit_dtype_and_kind(params, [&](auto* tag, auto kind) {
      using T = std::remove_pointer_t<decltype(tag)>;
      return launch(step_kernel<T, decltype(kind)::value>, grid, kThreads, stream, batch);
    });
  });
}

}  // namespace optimizer

Status optimizer_step(const OptimizerParams& params, Stream stream) noexcept {
  if (const Status status = check(params); !status.ok()) return status;
  if (optimizer_workspace_bytes(params) > 0) {
    if (const Status status = optimizer::limits(params, stream); !status.ok()) return status;
  }
  return params.blockwise ? optimizer::step_8bit(params, stream)
                          : optimizer::step_32bit(params, stream);
}

}  // namespace lowbit::kernels::cuda
