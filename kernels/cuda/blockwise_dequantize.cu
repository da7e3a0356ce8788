// Block-wise 8-bit dequantization: one table look-up, one multiply, one rounding an element.
#include <type_traits>

#include "cuda/common/cast.cuh"
#include "cuda/common/launch.h"
#include "validate.h"

namespace lowbit::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 4;

/// Blocksize 2^shift >= 8: eight elements share a scale.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    dequantize_kernel(const uint2* __restrict__ codes, const float* __restrict__ absmax,
                      const float* __restrict__ code, int64_t numel, int shift,
                      T* __restrict__ output) {
  __shared__ float table[256];
  table[threadIdx.x] = code[threadIdx.x];
  __syncthreads();
  const int64_t packs = numel / 8;
  const int64_t first = int64_t{blockIdx.x} * kThreads * kUnroll + threadIdx.x;
  uint2 bytes[kUnroll];
  float scale[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t pack = first + u * kThreads;
    if (pack < packs) {
      bytes[u] = __ldcs(codes + pack);
      scale[u] = __ldg(absmax + (pack * 8 >> shift));
    }
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t pack = first + u * kThreads;
    if (pack < packs) {
      Pack8<T> result;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const uint32_t word = i < 4 ? bytes[u].x : bytes[u].y;
        result.values[i] = from_float<T>(table[word >> (8 * (i % 4)) & 255] * scale[u]);
      }
      store8(output + pack * 8, result);
    }
  }
  if (blockIdx.x == 0 && threadIdx.x < numel % 8) {  // the last few elements
    const int64_t i = packs * 8 + threadIdx.x;
    output[i] =
        from_float<T>(table[reinterpret_cast<const uint8_t*>(codes)[i]] * absmax[i >> shift]);
  }
}

/// Any blocksize, any alignment.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    dequantize_general_kernel(const uint8_t* __restrict__ codes, const float* __restrict__ absmax,
                              const float* __restrict__ code, int64_t numel, int64_t blocksize,
                              T* __restrict__ output) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < numel) output[i] = from_float<T>(__ldg(code + codes[i]) * __ldg(absmax + i / blocksize));
}

}  // namespace

Status dequantize_blockwise(const DequantizeBlockwiseParams& p, Stream stream) noexcept {
  if (const Status status = check(p); !status.ok()) return status;
  return visit_device_dtype(p.output_dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    auto* output = static_cast<T*>(p.output);
    const bool power_of_two = (p.blocksize & (p.blocksize - 1)) == 0;
    if (p.blocksize >= 8 && power_of_two && aligned(p.codes, 8) && aligned(output, 16)) {
      int shift = 0;
      while (int64_t{1} << shift < p.blocksize) ++shift;
      return launch(dequantize_kernel<T>, ceil_div(ceil_div(p.numel, 8), kThreads * kUnroll),
                    kThreads, stream, reinterpret_cast<const uint2*>(p.codes), p.absmax, p.code,
                    p.numel, shift, output);
    }
    return launch(dequantize_general_kernel<T>, ceil_div(p.numel, kThreads), kThreads, stream,
                  p.codes, p.absmax, p.code, p.numel, p.blocksize, output);
  });
}

}  // namespace lowbit::kernels::cuda
