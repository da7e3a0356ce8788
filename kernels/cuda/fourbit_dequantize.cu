// NF4/FP4 dequantization: one table look-up, one multiply, one rounding an element. Memory-bound.
#include <cstring>

#include "codebook.h"
#include "cuda/common/cast.cuh"
#include "cuda/common/launch.h"
#include "cuda/common/scales.cuh"
#include "validate.h"

namespace lowbit::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 4;  // four bytes of codes, eight elements, each

/// The table in shared memory: sixteen words lie in sixteen banks, so reads never conflict.
/// `custom` (device memory) replaces it unless null.
__device__ __forceinline__ void fill_table(float* shared, const Table16& table,
                                           const float* custom) {
  if (threadIdx.x < 16) {
    shared[threadIdx.x] = custom != nullptr ? custom[threadIdx.x] : table.values[threadIdx.x];
  }
  __syncthreads();
}

/// Blocksize 2^kShift >= 8: eight elements share a scale.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    dequantize_kernel(const uint32_t* __restrict__ packed, BlockScales scales, int64_t numel,
                      int shift, T* __restrict__ output, const __grid_constant__ Table16 code,
                      const float* __restrict__ custom) {
  __shared__ float table[16];
  fill_table(table, code, custom);
  const int64_t words = numel / 8;
  const int64_t first = int64_t{blockIdx.x} * kThreads * kUnroll + threadIdx.x;
  uint32_t codes[kUnroll];
  float scale[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t word = first + u * kThreads;
    if (word < words) {
      codes[u] = __ldcs(packed + word);
      scale[u] = block_scale(scales, word * 8 >> shift);
    }
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t word = first + u * kThreads;
    if (word < words) {
      Pack8<T> result;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        result.values[i] = from_float<T>(table[codes[u] >> (4 * (i ^ 1)) & 15] * scale[u]);
      }
      store8(output + word * 8, result);
    }
  }
  // The last few elements: fewer than eight.
  if (blockIdx.x == 0 && threadIdx.x < numel % 8) {
    const int64_t i = words * 8 + threadIdx.x;
    const int byte = reinterpret_cast<const uint8_t*>(packed)[i / 2];
    output[i] =
        from_float<T>(table[i % 2 == 0 ? byte >> 4 : byte & 15] * block_scale(scales, i >> shift));
  }
}

/// Any blocksize, any alignment: a byte a thread.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    dequantize_general_kernel(const uint8_t* __restrict__ packed, BlockScales scales, int64_t numel,
                              int64_t blocksize, T* __restrict__ output,
                              const __grid_constant__ Table16 code,
                              const float* __restrict__ custom) {
  __shared__ float table[16];
  fill_table(table, code, custom);
  const int64_t i = 2 * (int64_t{blockIdx.x} * kThreads + threadIdx.x);
  if (i >= numel) return;
  const float scale =
      block_scale(scales, i / blocksize);  // blocksize is even: both elements share it
  const int byte = packed[i / 2];
  output[i] = from_float<T>(table[byte >> 4] * scale);
  if (i + 1 < numel) output[i + 1] = from_float<T>(table[byte & 15] * scale);
}

bool power_of_two(int64_t x) { return (x & (x - 1)) == 0; }

}  // namespace

Status dequantize_4bit(const Dequantize4bitParams& p, Stream stream) noexcept {
  if (const Status status = check(p); !status.ok()) return status;
  Table16 table;
  std::memcpy(table.values, p.quant_type == QuantType::kNF4 ? codebook::kNf4 : codebook::kFp4,
              sizeof table.values);
  return visit_device_dtype(p.output_dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    auto* output = static_cast<T*>(p.output);
    if (p.blocksize >= 8 && power_of_two(p.blocksize) && aligned(p.packed, 4) &&
        aligned(output, 16)) {
      int shift = 0;
      while (int64_t{1} << shift < p.blocksize) ++shift;
      const int64_t grid = p.numel == 0 ? 0 : ceil_div(ceil_div(p.numel, 8), kThreads * kUnroll);
      return launch(dequantize_kernel<T>, grid, kThreads, stream,
                    reinterpret_cast<const uint32_t*>(p.packed), p.scales, p.numel, shift, output,
                    table, p.code);
    }
    return launch(dequantize_general_kernel<T>, ceil_div(ceil_div(p.numel, 2), kThreads), kThreads,
                  stream, p.packed, p.scales, p.numel, p.blocksize, output, table, p.code);
  });
}

}  // namespace lowbit::kernels::cuda
