// The scalar truth of the decoder family: dot products and softmax in double.
#include "lowbit/kernels/decoder.h"

#include <algorithm>
#include <cmath>

#include "decoder_check.h"
#include "scalar.h"

namespace lowbit::kernels {

int64_t attention_units(const AttentionParams& p) noexcept {
  return p.kv_heads * ceil_div(p.tokens, kAttentionTokens);
}

int64_t attention_workspace(const AttentionParams& p) noexcept {
  const int64_t group = p.kv_heads > 0 ? p.heads / p.kv_heads : 1;
  const int64_t tokens = std::min(p.tokens, kAttentionTokens);
  const int64_t rows = ceil_div(std::max<int64_t>(tokens * group, 1), 16) * 16;
  // Queries and outputs, keys and values, scores, and per row: maximum, sum, rescaling.
  return 2 * rows * p.head_dim + 2 * kAttentionKeys * p.head_dim + kAttentionKeys * rows + 3 * rows;
}

namespace ref {

Status rms_norm(const RmsNormParams& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, units(p));
  if (!status.ok()) return status;
  for (int64_t row = begin; row < end; ++row) {
    float* hidden = p.hidden + row * p.cols;
    double sum = 0.0;
    for (int64_t i = 0; i < p.cols; ++i) {
      if (p.delta != nullptr) hidden[i] += p.delta[row * p.cols + i];
      sum += double{hidden[i]} * hidden[i];
    }
    if (p.output == nullptr) continue;
    const double scale = 1.0 / std::sqrt(sum / static_cast<double>(p.cols) + double{p.eps});
    for (int64_t i = 0; i < p.cols; ++i) {
      p.output[row * p.cols + i] = static_cast<float>(hidden[i] * scale) * p.weight[i];
    }
  }
  return ok_status();
}

Status rotary_append(const RotaryAppendParams& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, units(p));
  if (!status.ok()) return status;
  const int64_t half = p.head_dim / 2;
  for (int64_t t = begin; t < end; ++t) {
    const float* cos = p.cos + t * half;
    const float* sin = p.sin + t * half;
    for (int64_t h = 0; h < p.heads; ++h) {
      float* q = p.query + (t * p.heads + h) * p.head_dim;
      for (int64_t d = 0; d < half; ++d) {
        const float a = q[d], b = q[d + half];
        q[d] = a * cos[d] - b * sin[d];
        q[d + half] = b * cos[d] + a * sin[d];
      }
    }
    for (int64_t h = 0; h < p.kv_heads; ++h) {
      const float* k = p.key + (t * p.kv_heads + h) * p.head_dim;
      const float* v = p.value + (t * p.kv_heads + h) * p.head_dim;
      const int64_t at = (h * p.capacity + p.past + t) * p.head_dim;
      for (int64_t d = 0; d < half; ++d) {
        store_element(p.key_cache, p.cache_dtype, at + d, k[d] * cos[d] - k[d + half] * sin[d]);
        store_element(p.key_cache, p.cache_dtype, at + d + half,
                      k[d + half] * cos[d] + k[d] * sin[d]);
      }
      for (int64_t d = 0; d < p.head_dim; ++d) {
        store_element(p.value_cache, p.cache_dtype, at + d, v[d]);
      }
    }
  }
  return ok_status();
}

namespace {

/// One query row over the keys [first, last] of a cache that starts at element `base`. Two passes
/// over the scores, which are computed twice: no memory is needed for them.
void attend(const AttentionParams& p, const float* query, int64_t base, int64_t first, int64_t last,
            float* output) {
  const auto score = [&](int64_t position) {
    double dot = 0.0;
    for (int64_t d = 0; d < p.head_dim; ++d) {
      dot += double{query[d]} *
             load_element(p.key_cache, p.cache_dtype, base + position * p.head_dim + d);
    }
    return dot * p.scale;
  };
  double maximum = -INFINITY, sum = 0.0;
  for (int64_t i = first; i <= last; ++i) maximum = std::max(maximum, score(i));
  for (int64_t i = first; i <= last; ++i) sum += std::exp(score(i) - maximum);
  std::fill_n(output, p.head_dim, 0.0f);
  for (int64_t i = first; i <= last; ++i) {
    const double weight = std::exp(score(i) - maximum) / sum;
    for (int64_t d = 0; d < p.head_dim; ++d) {
      output[d] += static_cast<float>(
          weight * load_element(p.value_cache, p.cache_dtype, base + i * p.head_dim + d));
    }
  }
}

}  // namespace

Status attention(const AttentionParams& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, units(p));
  if (!status.ok()) return status;
  const int64_t group = p.heads / p.kv_heads;
  for (int64_t u = begin; u < end; ++u) {
    const AttentionUnit unit = attention_unit(p, u);
    for (int64_t t = unit.first_token; t < unit.first_token + unit.tokens; ++t) {
      const int64_t last = p.past + t;
      const int64_t first = p.window > 0 ? std::max<int64_t>(0, last - p.window + 1) : 0;
      for (int64_t g = 0; g < group; ++g) {
        const int64_t row = (t * p.heads + unit.kv_head * group + g) * p.head_dim;
        attend(p, p.query + row, unit.kv_head * p.capacity * p.head_dim, first, last,
               p.output + row);
      }
    }
  }
  return ok_status();
}

Status silu_mul(const SiluMulParams& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, units(p));
  if (!status.ok()) return status;
  for (int64_t i = begin; i < end; ++i) {
    const double gate = p.gate[i];
    p.output[i] = static_cast<float>(gate / (1.0 + std::exp(-gate)) * p.up[i]);
  }
  return ok_status();
}

Status linear_dense(const LinearDenseParams& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, units(p));
  if (!status.ok()) return status;
  for (int64_t n = begin; n < end; ++n) {
    for (int64_t m = 0; m < p.m; ++m) {
      double sum = p.bias != nullptr ? p.bias[n] : 0.0f;
      for (int64_t k = 0; k < p.k; ++k) {
        sum += double{p.input[m * p.k + k]} * load_element(p.weight, p.weight_dtype, n * p.k + k);
      }
      p.output[m * p.n + n] = static_cast<float>(sum);
    }
  }
  return ok_status();
}

Status widen(const WidenParams& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, units(p));
  if (!status.ok()) return status;
  for (int64_t i = begin; i < end; ++i) p.output[i] = load_element(p.input, p.input_dtype, i);
  return ok_status();
}

}  // namespace ref
}  // namespace lowbit::kernels
