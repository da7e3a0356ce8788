// What a transformer decoder does between its quantized linear layers, on the CPU: norm, rotary
// embedding, attention over a cache, gated activation, and products with weights that are not
// quantized. Activations are float32 throughout.
//
// Entries are serial over [begin, end) of the unit that each one names; the caller spreads ranges
// over threads.
#pragma once

#include <cstdint>

#include "lowbit/kernels/types.h"

namespace lowbit::kernels {

/// hidden += delta (when there is one), then output = hidden / sqrt(mean(hidden^2) + eps) * weight.
struct RmsNormParams {
  float* hidden = nullptr;        ///< [rows, cols]
  const float* delta = nullptr;   ///< [rows, cols] or null
  const float* weight = nullptr;  ///< [cols]
  float* output = nullptr;        ///< [rows, cols] or null: only the sum
  int64_t rows = 0, cols = 0;
  float eps = 1e-6f;
};

/// Rotates queries in place and keys on their way into the cache ("half" layout: element d pairs
/// with d + head_dim / 2), and appends values. Token t goes to position past + t.
struct RotaryAppendParams {
  float* query = nullptr;      ///< [tokens, heads, head_dim]
  const float* key = nullptr;  ///< [tokens, kv_heads, head_dim]
  const float* value = nullptr;
  const float* cos = nullptr;  ///< [tokens, head_dim / 2]
  const float* sin = nullptr;
  void* key_cache = nullptr;  ///< [kv_heads, capacity, head_dim]
  void* value_cache = nullptr;
  DType cache_dtype = DType::kFloat32;
  int64_t tokens = 0, heads = 0, kv_heads = 0, head_dim = 0;
  int64_t capacity = 0, past = 0;
};

/// Causal softmax attention of grouped query heads: token t sees positions (past + t - window, past
/// + t].
struct AttentionParams {
  const float* query =
      nullptr;  ///< [tokens, heads, head_dim]; head h reads kv head h / (heads / kv_heads)
  const void* key_cache =
      nullptr;  ///< [kv_heads, capacity, head_dim], holds past + tokens positions
  const void* value_cache = nullptr;
  DType cache_dtype = DType::kFloat32;
  int64_t tokens = 0, heads = 0, kv_heads = 0, head_dim = 0;
  int64_t capacity = 0, past = 0;
  int64_t window = 0;  ///< 0: no limit
  float scale = 1.0f;
  float* output = nullptr;     ///< [tokens, heads, head_dim]
  float* workspace = nullptr;  ///< attention_workspace() floats for each concurrent caller
};

/// output = silu(gate) * up
struct SiluMulParams {
  const float* gate = nullptr;  ///< [count]
  const float* up = nullptr;
  float* output = nullptr;  ///< may be gate
  int64_t count = 0;
};

/// output[M,N] = input[M,K] * weight[N,K]^T + bias[N], for small M: reads the weight once.
struct LinearDenseParams {
  const float* input = nullptr;  ///< [M, K], contiguous
  const void* weight = nullptr;  ///< [N, K], contiguous
  DType weight_dtype = DType::kFloat32;
  const float* bias = nullptr;
  float* output = nullptr;  ///< [M, N]
  int64_t m = 0, n = 0, k = 0;
};

/// output = float32(input)
struct WidenParams {
  const void* input = nullptr;  ///< [count]
  DType input_dtype = DType::kBFloat16;
  float* output = nullptr;
  int64_t count = 0;
};

/// Query tokens that one unit of attention takes.
inline constexpr int64_t kAttentionTokens = 32;
/// Cache positions that attention looks at together.
inline constexpr int64_t kAttentionKeys = 64;

/// Units of attention: kv_heads * ceil(tokens / kAttentionTokens). The last units are the longest
/// for a long prompt.
int64_t attention_units(const AttentionParams& params) noexcept;
/// Floats of workspace that one caller of attention needs.
int64_t attention_workspace(const AttentionParams& params) noexcept;

namespace ref {
/// Unit: row.
Status rms_norm(const RmsNormParams& params, int64_t begin, int64_t end) noexcept;
/// Unit: token.
Status rotary_append(const RotaryAppendParams& params, int64_t begin, int64_t end) noexcept;
/// Unit: see attention_units(). Scores and sums in double: the oracle.
Status attention(const AttentionParams& params, int64_t begin, int64_t end) noexcept;
/// Unit: element.
Status silu_mul(const SiluMulParams& params, int64_t begin, int64_t end) noexcept;
/// Unit: output column n.
Status linear_dense(const LinearDenseParams& params, int64_t begin, int64_t end) noexcept;
/// Unit: element.
Status widen(const WidenParams& params, int64_t begin, int64_t end) noexcept;
}  // namespace ref

namespace cpu {
Status rms_norm(const RmsNormParams& params, int64_t begin, int64_t end) noexcept;
Status rotary_append(const RotaryAppendParams& params, int64_t begin, int64_t end) noexcept;
Status attention(const AttentionParams& params, int64_t begin, int64_t end) noexcept;
Status silu_mul(const SiluMulParams& params, int64_t begin, int64_t end) noexcept;
Status linear_dense(const LinearDenseParams& params, int64_t begin, int64_t end) noexcept;
Status widen(const WidenParams& params, int64_t begin, int64_t end) noexcept;
}  // namespace cpu

}  // namespace lowbit::kernels
