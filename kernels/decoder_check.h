// Argument checks of the decoder family.
#pragma once

#include "lowbit/kernels/decoder.h"
#include "validate.h"

namespace lowbit::kernels {

inline Status check(const RmsNormParams& p) noexcept {
  if (p.rows < 0 || p.cols < 0) return invalid_argument("rows or cols < 0");
  if (p.rows == 0 || p.cols == 0) return ok_status();
  if (p.hidden == nullptr || (p.output != nullptr && p.weight == nullptr)) {
    return invalid_argument("null pointer");
  }
  return ok_status();
}

inline Status check(const RotaryAppendParams& p) noexcept {
  if (p.tokens < 0 || p.heads < 1 || p.kv_heads < 1 || p.past < 0) {
    return invalid_argument("tokens, heads, kv_heads or past out of range");
  }
  if (p.head_dim < 2 || p.head_dim % 2 != 0) return invalid_argument("head_dim must be even");
  if (p.past > p.capacity - p.tokens) return invalid_argument("past + tokens > capacity");
  if (p.tokens > 0 &&
      (p.query == nullptr || p.key == nullptr || p.value == nullptr || p.cos == nullptr ||
       p.sin == nullptr || p.key_cache == nullptr || p.value_cache == nullptr)) {
    return invalid_argument("null pointer");
  }
  return ok_status();
}

inline Status check(const AttentionParams& p) noexcept {
  if (p.tokens < 0 || p.heads < 1 || p.kv_heads < 1 || p.head_dim < 1 || p.past < 0 ||
      p.window < 0) {
    return invalid_argument("a size is out of range");
  }
  if (p.heads % p.kv_heads != 0) return invalid_argument("heads must be a multiple of kv_heads");
  if (p.past > p.capacity - p.tokens) return invalid_argument("past + tokens > capacity");
  if (p.tokens > 0 && (p.query == nullptr || p.key_cache == nullptr || p.value_cache == nullptr ||
                       p.output == nullptr || p.workspace == nullptr)) {
    return invalid_argument("null pointer");
  }
  return ok_status();
}

inline Status check(const SiluMulParams& p) noexcept {
  if (p.count < 0) return invalid_argument("count < 0");
  if (p.count > 0 && (p.gate == nullptr || p.up == nullptr || p.output == nullptr)) {
    return invalid_argument("null pointer");
  }
  return ok_status();
}

inline Status check(const LinearDenseParams& p) noexcept {
  if (p.m < 0 || p.n < 0 || p.k < 0) return invalid_argument("m, n or k < 0");
  if (p.m == 0 || p.n == 0) return ok_status();
  if (p.output == nullptr) return invalid_argument("null pointer");
  if (p.k > 0 && (p.input == nullptr || p.weight == nullptr)) {
    return invalid_argument("null pointer");
  }
  return ok_status();
}

inline Status check(const WidenParams& p) noexcept {
  if (p.count < 0) return invalid_argument("count < 0");
  if (p.count > 0 && (p.input == nullptr || p.output == nullptr)) {
    return invalid_argument("null pointer");
  }
  return ok_status();
}

inline Status check(const RmsNormCudaParams& p) noexcept {
  if (p.rows < 0 || p.cols < 0 || p.cols > (int64_t{1} << 30)) {
    return invalid_argument("rows or cols out of range");
  }
  if (p.rows > 0 && p.cols > 0 &&
      (p.hidden == nullptr || p.weight == nullptr || p.output == nullptr)) {
    return invalid_argument("null pointer");
  }
  return ok_status();
}

inline Status check(const RotaryAppendCudaParams& p) noexcept {
  if (p.batch < 0 || p.tokens < 0 || p.heads < 1 || p.kv_heads < 1) {
    return invalid_argument("batch, tokens, heads or kv_heads out of range");
  }
  if (p.head_dim < 2 || p.head_dim % 2 != 0) return invalid_argument("head_dim must be even");
  if (p.heads + 2 * p.kv_heads > (int64_t{1} << 30) / p.head_dim) {
    return unsupported("a token of 2^30 elements and more");
  }
  if (p.batch > 0 && p.tokens > 0 &&
      (p.query == nullptr || p.key == nullptr || p.value == nullptr || p.inv_freq == nullptr ||
       p.slot == nullptr)) {
    return invalid_argument("null pointer");
  }
  return ok_status();
}

inline Status check(const AttentionCudaParams& p) noexcept {
  if (p.batch < 0 || p.tokens < 0 || p.heads < 1 || p.kv_heads < 1 || p.window < 0) {
    return invalid_argument("a size is out of range");
  }
  if (p.heads % p.kv_heads != 0) return invalid_argument("heads must be a multiple of kv_heads");
  if (p.head_dim < 8 || p.head_dim % 8 != 0 || p.head_dim > 256) {
    return unsupported("head_dim must be a multiple of 8, at most 256");
  }
  if (p.batch > 0 && p.tokens > 0 &&
      (p.query == nullptr || p.slot == nullptr || p.output == nullptr || p.workspace == nullptr)) {
    return invalid_argument("null pointer");
  }
  return ok_status();
}

inline Status check(const SiluMulCudaParams& p) noexcept {
  if (p.count < 0) return invalid_argument("count < 0");
  if (p.count > 0 && (p.gate == nullptr || p.up == nullptr || p.output == nullptr)) {
    return invalid_argument("null pointer");
  }
  return ok_status();
}

inline Status check(const ArgmaxCudaParams& p) noexcept {
  if (p.rows < 0 || p.cols < 0) return invalid_argument("rows or cols < 0");
  if (p.rows > 0 && (p.output == nullptr || (p.cols > 0 && p.values == nullptr))) {
    return invalid_argument("null pointer");
  }
  return ok_status();
}

/// Units of every entry: what its [begin, end) counts.
inline int64_t units(const RmsNormParams& p) noexcept { return p.rows; }
inline int64_t units(const RotaryAppendParams& p) noexcept { return p.tokens; }
inline int64_t units(const AttentionParams& p) noexcept { return attention_units(p); }
inline int64_t units(const SiluMulParams& p) noexcept { return p.count; }
inline int64_t units(const LinearDenseParams& p) noexcept { return p.n; }
inline int64_t units(const WidenParams& p) noexcept { return p.count; }

/// A unit of attention: a kv head and a block of tokens. A long prompt's late blocks cost more than
/// its early ones, so they are dealt in turn from both ends: contiguous ranges of units then cost
/// about the same.
struct AttentionUnit {
  int64_t kv_head, first_token, tokens;
};
inline AttentionUnit attention_unit(const AttentionParams& p, int64_t unit) noexcept {
  const int64_t blocks = ceil_div(p.tokens, kAttentionTokens);
  const int64_t i = unit % blocks;
  const int64_t block = i % 2 == 0 ? i / 2 : blocks - 1 - i / 2;
  const int64_t first = block * kAttentionTokens;
  const int64_t rest = p.tokens - first;
  return {unit / blocks, first, rest < kAttentionTokens ? rest : kAttentionTokens};
}

}  // namespace lowbit::kernels
