// Block-wise 8-bit quantization through any ascending 256-entry map.
#include <type_traits>

#include "cuda/common/cast.cuh"
#include "cuda/common/launch.h"
#include "cuda/common/nearest_code.cuh"
#include "validate.h"

namespace lowbit::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr float kNothing = -3.402823466e38f;  // absmax of a block that holds only NaN
constexpr int kCtasPerMultiprocessor = 8;  // the tables are built once a CTA: few, long-lived CTAs

/// kLanes threads share a block of kLanes * kVectors * 8 elements; blocks of more than 256 elements
/// span warps.
template <typename T, int kLanes, int kVectors>
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(const T* __restrict__ input, int64_t numel, const float* __restrict__ code,
                    uint8_t* __restrict__ codes, float* __restrict__ absmax) {
  constexpr int kBlocksize = kLanes * kVectors * 8;
  constexpr int kGroups = kThreads / kLanes;
  __shared__ NearestCode nearest;
  nearest.fill(code);
  __shared__ float partial[kThreads / 32];
  const int lane = threadIdx.x % kLanes;
  const int64_t nblocks = ceil_div(numel, kBlocksize);
  // Every lane of a warp takes the same number of turns: the shuffles need all of them.
  for (int64_t base = int64_t{blockIdx.x} * kGroups; base < nblocks;
       base += int64_t{gridDim.x} * kGroups) {
    const int64_t block = base + threadIdx.x / kLanes;
    const int64_t start = block * kBlocksize + lane * 8;
    Pack8<T> x[kVectors];
    float largest = kNothing;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int64_t i = start + v * kLanes * 8;
      x[v] = i + 8 <= numel ? load8(input + i) : load8_tail(input + i, numel - i);
#pragma unroll
      for (int j = 0; j < 8; ++j) largest = fmaxf(largest, fabsf(to_float(x[v].values[j])));
    }
    largest = group_max<(kLanes < 32 ? kLanes : 32)>(largest);
    if constexpr (kLanes > 32) {
      __syncthreads();  // the last turn's readers are done
      if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = largest;
      __syncthreads();
#pragma unroll
      for (int w = 0; w < kLanes / 32; ++w) {
        largest = fmaxf(largest, partial[threadIdx.x / kLanes * (kLanes / 32) + w]);
      }
    }
    const float reciprocal = fast_reciprocal(largest);
    if (block < nblocks && lane == 0) absmax[block] = largest;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int64_t i = start + v * kLanes * 8;
      uint32_t words[2] = {0, 0};
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        words[j / 4] |= nearest(to_float(x[v].values[j]) * reciprocal) << (8 * (j % 4));
      }
      if (i + 8 <= numel) {
        __stcs(reinterpret_cast<uint2*>(codes + i), make_uint2(words[0], words[1]));
      } else {
        for (int j = 0; j < 8 && i + j < numel; ++j) {
          codes[i + j] = static_cast<uint8_t>(words[j / 4] >> (8 * (j % 4)));
        }
      }
    }
  }
}

/// Any blocksize, any alignment: a warp walks a block twice.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    quantize_general_kernel(const T* __restrict__ input, int64_t numel, int64_t blocksize,
                            const float* __restrict__ code, uint8_t* __restrict__ codes,
                            float* __restrict__ absmax) {
  __shared__ NearestCode nearest;
  nearest.fill(code);
  const int lane = threadIdx.x % 32;
  const int64_t warps = int64_t{gridDim.x} * (kThreads / 32);
  for (int64_t block = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
       block * blocksize < numel; block += warps) {
    const int64_t begin = block * blocksize, end = min(begin + blocksize, numel);
    float largest =
        end - begin < blocksize ? 0.0f : kNothing;  // a short block is padded with zeros
    for (int64_t i = begin + lane; i < end; i += 32)
      largest = fmaxf(largest, fabsf(to_float(input[i])));
    largest = group_max<32>(largest);
    if (lane == 0) absmax[block] = largest;
    const float reciprocal = fast_reciprocal(largest);
    for (int64_t i = begin + lane; i < end; i += 32) {
      codes[i] = static_cast<uint8_t>(nearest(to_float(input[i]) * reciprocal));
    }
  }
}

template <typename T>
Status quantize(const QuantizeBlockwiseParams& p, Stream stream) noexcept {
  const auto* input = static_cast<const T*>(p.input);
  const int64_t most = multiprocessors() * kCtasPerMultiprocessor;
  const auto run = [&](auto lanes, auto vectors) {
    constexpr int kLanes = decltype(lanes)::value, kVectors = decltype(vectors)::value;
    const int64_t ctas = ceil_div(ceil_div(p.numel, p.blocksize), kThreads / kLanes);
    return launch(quantize_kernel<T, kLanes, kVectors>, ctas < most ? ctas : most, kThreads, stream,
                  input, p.numel, p.code, p.codes, p.absmax);
  };
  if (aligned(p.input, 16) && aligned(p.codes, 8)) {
    using std::integral_constant;
    switch (p.blocksize) {
      case 32:
        return run(integral_constant<int, 4>{}, integral_constant<int, 1>{});
      case 64:
        return run(integral_constant<int, 8>{}, integral_constant<int, 1>{});
      case 128:
        return run(integral_constant<int, 16>{}, integral_constant<int, 1>{});
      case 256:
        return run(integral_constant<int, 32>{}, integral_constant<int, 1>{});
      case 512:
        return run(integral_constant<int, 64>{}, integral_constant<int, 1>{});
      case 1024:
        return run(integral_constant<int, 128>{}, integral_constant<int, 1>{});
      case 2048:
        return run(integral_constant<int, 256>{}, integral_constant<int, 1>{});
      case 4096:
        return run(integral_constant<int, 256>{}, integral_constant<int, 2>{});
      default:
        break;
    }
  }
  const int64_t ctas = ceil_div(ceil_div(p.numel, p.blocksize), kThreads / 32);
  return launch(quantize_general_kernel<T>, ctas < most ? ctas : most, kThreads, stream, input,
                p.numel, p.blocksize, p.code, p.codes, p.absmax);
}

}  // namespace

Status quantize_blockwise(const QuantizeBlockwiseParams& params, Stream stream) noexcept {
  if (const Status status = check(params); !status.ok()) return status;
  return visit_device_dtype(params.input_dtype, [&](auto* tag) {
    return quantize<std::remove_pointer_t<decltype(tag)>>(params, stream);
  });
}

}  // namespace lowbit::kernels::cuda
