// What a transformer decoder does between its quantized linear layers: norm, rotary embedding,
// attention over a cache, gated activation; on the CPU also products with weights that are not
// quantized.
//
// CPU: activations are float32 throughout; entries are serial over [begin, end) of the unit that
// each one names; the caller spreads ranges over threads. CUDA: activations have one dtype, sums
// are float32; see the end.
#pragma once

#include <cstdint>

#include "lowbit/kernels/device.h"
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

/// A layer's cache and how many tokens it holds. The CUDA kernels read it from device memory, so
/// that a captured graph is good for any cache and any position.
struct KvSlot {
  void* key = nullptr;  ///< [batch, kv_heads, capacity, head_dim], 16-byte aligned
  void* value = nullptr;
  int64_t capacity = 0;
  int64_t past = 0;  ///< tokens in front of the new ones
};

/// hidden += delta (when there is one; rounded), then output = round(hidden * rsqrt(mean(hidden^2)
/// + eps)) * weight, as LlamaRMSNorm rounds.
struct RmsNormCudaParams {
  void* hidden = nullptr;        ///< [rows, cols]
  const void* delta = nullptr;   ///< [rows, cols] or null
  const void* weight = nullptr;  ///< [cols]
  void* output = nullptr;        ///< [rows, cols]
  DType dtype = DType::kBFloat16;
  int64_t rows = 0, cols = 0;
  float eps = 1e-6f;
  bool programmatic_launch = false;  ///< as in Matmul4bitParams
};

/// Rotates queries in place and keys on their way into the cache ("half" layout), and appends
/// values. Token t of every sequence goes to position slot->past + t; past the capacity nothing is
/// written. Angles are position * inv_freq in float32.
struct RotaryAppendCudaParams {
  void* query = nullptr;      ///< [batch, tokens, heads, head_dim]
  const void* key = nullptr;  ///< [batch, tokens, kv_heads, head_dim]
  const void* value = nullptr;
  const float* inv_freq = nullptr;  ///< [head_dim / 2]
  const KvSlot* slot = nullptr;
  DType dtype = DType::kBFloat16;  ///< of the cache, too
  int64_t batch = 0, tokens = 0, heads = 0, kv_heads = 0, head_dim = 0;
  bool programmatic_launch = false;
};

/// Causal softmax attention over the cache for few tokens (each reads the cache by itself): token t
/// sees positions (past + t - window, past + t], which the cache holds. head_dim: a multiple of 8,
/// at most 256.
struct AttentionCudaParams {
  const void* query = nullptr;  ///< [batch, tokens, heads, head_dim], 16-byte aligned; head h reads
                                ///< kv head h / (heads / kv_heads)
  const KvSlot* slot = nullptr;
  DType dtype = DType::kBFloat16;  ///< of the cache, too
  int64_t batch = 0, tokens = 0, heads = 0, kv_heads = 0, head_dim = 0;
  int64_t window = 0;  ///< 0: no limit
  float scale = 1.0f;
  void* output = nullptr;  ///< [batch, tokens, heads, head_dim]
  /// workspace_bytes of the plan, 16-byte aligned. All zeros before the first call; every call
  /// leaves its counters at zero. Calls that share it run one after the other.
  void* workspace = nullptr;
  bool programmatic_launch = false;
};

/// How attention runs: a pure function of the sizes and the device.
struct AttentionCudaPlan {
  int32_t query_heads = 0;  ///< of one kv head that a block serves
  int64_t units = 0;        ///< blocks for one slice of the keys; 0 for an empty problem
  int32_t splits = 0;       ///< most slices of the keys; how many are used depends on the length
  int64_t workspace_bytes = 0;
};

/// output = silu(gate) * up, rounded once
struct SiluMulCudaParams {
  const void* gate = nullptr;  ///< [count]
  const void* up = nullptr;
  void* output = nullptr;  ///< may be gate
  DType dtype = DType::kBFloat16;
  int64_t count = 0;
  bool programmatic_launch = false;
};

/// The index of the largest value of each row, of equal ones the first; NaN is passed over, -1 for
/// a row of nothing else.
struct ArgmaxCudaParams {
  const void* values = nullptr;  ///< [rows, cols]
  DType dtype = DType::kBFloat16;
  int64_t rows = 0, cols = 0;
  int64_t* output = nullptr;  ///< [rows]
  bool programmatic_launch = false;
};

/// They enqueue on the stream and return; every pointer is device memory. Results repeat bit for
/// bit. With programmatic_launch, weights, inv_freq and slots are read while the kernel before may
/// still run.
namespace cuda {
Status rms_norm(const RmsNormCudaParams& params, Stream stream) noexcept;
Status rotary_append(const RotaryAppendCudaParams& params, Stream stream) noexcept;
/// Plain C++, part of every build. Checks nothing.
AttentionCudaPlan plan_attention(const AttentionCudaParams& params,
                                 const DeviceProperties& device) noexcept;
Status attention(const AttentionCudaPlan& plan, const AttentionCudaParams& params,
                 Stream stream) noexcept;
Status silu_mul(const SiluMulCudaParams& params, Stream stream) noexcept;
Status argmax(const ArgmaxCudaParams& params, Stream stream) noexcept;
}  // namespace cuda

}  // namespace lowbit::kernels
