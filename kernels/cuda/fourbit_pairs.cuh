// The table of pairs that the tensor-core kernels decode with: a byte of codes -> two elements of
// T.
#pragma once

#include "codebook.h"
#include "cuda/common/cast.cuh"
#include "lowbit/kernels/fourbit.h"
#include "scalar.h"

namespace lowbit::kernels::cuda {

/// Sixteen elements of 16 bits; read by immediates, since an index costs a cold cache line.
struct PairTable {
  uint64_t words[4];
};

/// The values times `factor`.
inline PairTable pair_table(const Matmul4bitParams& p, float factor = 1.0f) noexcept {
  const float* values = p.quant_type == QuantType::kNF4 ? codebook::kNf4 : codebook::kFp4;
  PairTable table = {};
  for (int i = 0; i < 16; ++i) {
    const float value = values[i] * factor;
    const uint64_t bits = p.dtype == DType::kFloat16 ? to_half_bits(value) : to_bfloat_bits(value);
    table.words[i / 4] |= bits << (16 * (i % 4));
  }
  return table;
}

/// What the table is multiplied by before it is rounded. NF4: where the errors of the sixteen
/// values, weighted by how often each occurs, add up to nearly nothing (a mean error does not
/// average out over inputs of one sign) and their root mean square is small, too (bfloat16: 1.5e-5
/// and 9.5e-4 of the values'; unscaled it is 4.6e-4 and 1.4e-3). FP4 has no error there. float16
/// has room below and little above: a sixteenth of it.
inline float table_factor(const Matmul4bitParams& p) noexcept {
  const bool half = p.dtype == DType::kFloat16;
  if (p.quant_type == QuantType::kFP4) return half ? 0.75f : 12.0f;
  return half ? 1.5752f / 16.0f : 1.2418f;
}

/// The table of pairs: 256 rows of 32 copies of a word, the element of the high nibble in its low
/// half.
template <int kWarps>
__device__ __forceinline__ void fill_pair_table(uint8_t* shared, const PairTable& t, int warp,
                                                int lane) {
  const uint64_t(&table)[4] = t.words;
  for (int high = warp; high < 16; high += kWarps) {
    const uint64_t four =
        high < 8 ? (high < 4 ? table[0] : table[1]) : (high < 12 ? table[2] : table[3]);
    const uint32_t first = static_cast<uint32_t>(four >> (16 * (high & 3))) & 0xffffu;
    auto* row = reinterpret_cast<uint32_t*>(shared) + high * 16 * 32 + lane;
#pragma unroll
    for (int low = 0; low < 16; ++low) {
      const uint32_t second = static_cast<uint32_t>(table[low / 4] >> (16 * (low & 3)));
      row[low * 32] = first | second << 16;
    }
  }
}

// ---- arithmetic on pairs of elements
/// code * high + code * low, rounded once but for the small product.
__device__ __forceinline__ uint32_t scaled(__nv_bfloat16, uint32_t code, uint32_t high,
                                           uint32_t low) {
  uint32_t d;
  asm("{\n.reg .b32 rest;\n"
      "mul.rn.bf16x2 rest, %1, %3;\n"
      "fma.rn.bf16x2 %0, %1, %2, rest;\n}"
      : "=r"(d)
      : "r"(code), "r"(high), "r"(low));
  return d;
}
__device__ __forceinline__ uint32_t scaled(__half, uint32_t code, uint32_t high, uint32_t low) {
  uint32_t d;
  asm("{\n.reg .b32 rest;\n"
      "mul.rn.f16x2 rest, %1, %3;\n"
      "fma.rn.f16x2 %0, %1, %2, rest;\n}"
      : "=r"(d)
      : "r"(code), "r"(high), "r"(low));
  return d;
}
template <typename T>
__device__ __forceinline__ uint32_t pair_of(T low, T high) {
  return uint32_t{*reinterpret_cast<const uint16_t*>(&low)} |
         uint32_t{*reinterpret_cast<const uint16_t*>(&high)} << 16;
}
template <typename T>
__device__ __forceinline__ uint32_t rounded_pair(float low, float high) {
  return pair_of(from_float<T>(low), from_float<T>(high));
}

/// A scale as the sum of two elements: the rounded one in the low half, the rest in the high half.
template <typename T>
__device__ __forceinline__ uint32_t split(float scale) {
  const T high = from_float<T>(scale);
  return pair_of(high, from_float<T>(scale - to_float(high)));
}

__device__ __forceinline__ float bias_at(const void* bias, DType dtype, int i) {
  if (bias == nullptr) return 0.0f;
  if (dtype == DType::kFloat32) return static_cast<const float*>(bias)[i];
  if (dtype == DType::kFloat16) return __half2float(static_cast<const __half*>(bias)[i]);
  return __bfloat162float(static_cast<const __nv_bfloat16*>(bias)[i]);
}

}  // namespace lowbit::kernels::cuda
