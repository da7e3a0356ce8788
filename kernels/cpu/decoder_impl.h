// The decoder family for one instruction set: included by decoder_avx2.cpp and decoder_avx512.cpp.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/decoder_attention.h"
#include "cpu/decoder_isa.h"
#include "cpu/decoder_vec.h"
#include "decoder_check.h"

namespace lowbit::kernels {
namespace {

void rms_norm_rows(const RmsNormParams& p, int64_t begin, int64_t end) {
  const int64_t whole = p.cols / kLanes * kLanes;
  for (int64_t row = begin; row < end; ++row) {
    float* hidden = p.hidden + row * p.cols;
    if (p.delta != nullptr) {
      const float* delta = p.delta + row * p.cols;
      for (int64_t i = 0; i < p.cols; ++i) hidden[i] += delta[i];
    }
    if (p.output == nullptr) continue;
    Vec sums[2] = {splat(0.0f), splat(0.0f)};
    for (int64_t i = 0; i < whole; i += kLanes) {
      const Vec x = load(hidden + i);
      Vec& s = sums[i / kLanes % 2];
      s = fma(x, x, s);
    }
    float total = sum(sums[0] + sums[1]);
    for (int64_t i = whole; i < p.cols; ++i) total += hidden[i] * hidden[i];
    const float scale = 1.0f / std::sqrt(total / static_cast<float>(p.cols) + p.eps);
    float* output = p.output + row * p.cols;
    for (int64_t i = 0; i < p.cols; ++i) output[i] = hidden[i] * scale * p.weight[i];
  }
}

/// x rotated into `output`, which may be x.
template <typename T>
void rotate(const float* x, const float* cos, const float* sin, int64_t half, T* output) {
  for (int64_t d = 0; d < half; ++d) {
    const float a = x[d], b = x[d + half];
    output[d] = from_float<T>(a * cos[d] - b * sin[d]);
    output[d + half] = from_float<T>(b * cos[d] + a * sin[d]);
  }
}

template <typename T>
void rotary_append_tokens(const RotaryAppendParams& p, int64_t begin, int64_t end) {
  const int64_t half = p.head_dim / 2;
  for (int64_t t = begin; t < end; ++t) {
    const float* cos = p.cos + t * half;
    const float* sin = p.sin + t * half;
    for (int64_t h = 0; h < p.heads; ++h) {
      float* q = p.query + (t * p.heads + h) * p.head_dim;
      rotate(q, cos, sin, half, q);
    }
    for (int64_t h = 0; h < p.kv_heads; ++h) {
      const int64_t from = (t * p.kv_heads + h) * p.head_dim;
      const int64_t to = (h * p.capacity + p.past + t) * p.head_dim;
      rotate(p.key + from, cos, sin, half, static_cast<T*>(p.key_cache) + to);
      T* value = static_cast<T*>(p.value_cache) + to;
      for (int64_t d = 0; d < p.head_dim; ++d) value[d] = from_float<T>(p.value[from + d]);
    }
  }
}

void silu_mul_range(const SiluMulParams& p, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    const Vec gate = load(p.gate + i);
    store(p.output + i, gate / (splat(1.0f) + exp(splat(0.0f) - gate)) * load(p.up + i));
  }
  for (; i < end; ++i) p.output[i] = p.gate[i] / (1.0f + std::exp(-p.gate[i])) * p.up[i];
}

/// Rows of the weight ahead of the one in use, in bytes: memory latency times bandwidth of one
/// core.
constexpr int64_t kPrefetchBytes = 2048;

/// M rows of the input against weight rows [begin, end). Four partial sums for one row hide the
/// latency of the FMA.
template <int kM, typename T>
void linear_dense_rows(const LinearDenseParams& p, int64_t first_m, int64_t begin, int64_t end) {
  constexpr int kSums = kM == 1 ? 4 : 1;
  const int64_t step = kSums * kLanes;
  const int64_t whole = p.k / step * step;
  const float* x = p.input + first_m * p.k;
  for (int64_t n = begin; n < end; ++n) {
    const T* weight = static_cast<const T*>(p.weight) + n * p.k;
    Vec sums[kM][kSums];
#pragma GCC unroll 4
    for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 4
      for (int s = 0; s < kSums; ++s) sums[m][s] = splat(0.0f);
    }
    for (int64_t k = 0; k < whole; k += step) {
      __builtin_prefetch(reinterpret_cast<const char*>(weight + k) + kPrefetchBytes);
#pragma GCC unroll 4
      for (int s = 0; s < kSums; ++s) {
        const Vec w = load(weight + k + s * kLanes);
#pragma GCC unroll 4
        for (int m = 0; m < kM; ++m) {
          sums[m][s] = fma(w, load(x + m * p.k + k + s * kLanes), sums[m][s]);
        }
      }
    }
    for (int m = 0; m < kM; ++m) {
      Vec all = sums[m][0];
      if constexpr (kSums == 4) all = (sums[m][0] + sums[m][1]) + (sums[m][2] + sums[m][3]);
      float total = sum(all);
      for (int64_t k = whole; k < p.k; ++k) total += to_float(weight[k]) * x[m * p.k + k];
      p.output[(first_m + m) * p.n + n] = p.bias != nullptr ? total + p.bias[n] : total;
    }
  }
}

template <typename T>
void linear_dense_range(const LinearDenseParams& p, int64_t begin, int64_t end) {
  // A strip of weight rows stays in the first-level cache while all rows of the input pass over it.
  const int64_t strip =
      std::max<int64_t>(1, int64_t{16384} / std::max<int64_t>(1, p.k * int64_t{sizeof(T)}));
  for (int64_t n = begin; n < end; n += strip) {
    const int64_t stop = std::min(n + strip, end);
    int64_t m = 0;
    for (; m + 4 <= p.m; m += 4) linear_dense_rows<4, T>(p, m, n, stop);
    if (p.m - m == 3) linear_dense_rows<3, T>(p, m, n, stop);
    if (p.m - m == 2) linear_dense_rows<2, T>(p, m, n, stop);
    if (p.m - m == 1) linear_dense_rows<1, T>(p, m, n, stop);
  }
}

template <typename T>
void widen_range(const WidenParams& p, int64_t begin, int64_t end) {
  const T* input = static_cast<const T*>(p.input);
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) store(p.output + i, load(input + i));
  for (; i < end; ++i) p.output[i] = to_float(input[i]);
}

}  // namespace

Status LOWBIT_ISA::rms_norm(const RmsNormParams& p, int64_t begin, int64_t end) noexcept {
  rms_norm_rows(p, begin, end);
  return ok_status();
}

Status LOWBIT_ISA::rotary_append(const RotaryAppendParams& p, int64_t begin, int64_t end) noexcept {
  visit_dtype(p.cache_dtype, [&](auto* tag) {
    rotary_append_tokens<std::remove_pointer_t<decltype(tag)>>(p, begin, end);
  });
  return ok_status();
}

Status LOWBIT_ISA::attention(const AttentionParams& p, int64_t begin, int64_t end) noexcept {
  visit_dtype(p.cache_dtype, [&](auto* tag) {
    attention_range<std::remove_pointer_t<decltype(tag)>>(p, begin, end);
  });
  return ok_status();
}

Status LOWBIT_ISA::silu_mul(const SiluMulParams& p, int64_t begin, int64_t end) noexcept {
  silu_mul_range(p, begin, end);
  return ok_status();
}

Status LOWBIT_ISA::linear_dense(const LinearDenseParams& p, int64_t begin, int64_t end) noexcept {
  visit_dtype(p.weight_dtype, [&](auto* tag) {
    linear_dense_range<std::remove_pointer_t<decltype(tag)>>(p, begin, end);
  });
  return ok_status();
}

Status LOWBIT_ISA::widen(const WidenParams& p, int64_t begin, int64_t end) noexcept {
  visit_dtype(p.input_dtype,
              [&](auto* tag) { widen_range<std::remove_pointer_t<decltype(tag)>>(p, begin, end); });
  return ok_status();
}

}  // namespace lowbit::kernels
