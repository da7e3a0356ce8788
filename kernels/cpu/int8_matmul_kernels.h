// Matmuls over int8 weights for the instruction set of the including file: exact int32 sums with a
// fused epilogue, and the weight-only product with float32 sums.
#pragma once

#include "int8_matmul.h"
#include "matmul_panel.h"

namespace lowbit::kernels::cpu {
namespace {

constexpr int64_t kFewRows = 4;        // up to here, one pass over the weight without panels
constexpr int64_t kSegment = 2048;     // elements of each input row widened at a time
constexpr int64_t kInt8Depth = 384;    // elements of K in an int16 panel
constexpr int64_t kInt8Rows = 96;      // input rows widened to int16 for it
constexpr int64_t kFloatDepth8 = 256;  // the same in float32
constexpr int64_t kFloatRow8 = kFloatDepth8 + 16;
constexpr int64_t kFloatRows8 = 64;
constexpr int64_t kPrefetch8 = 2048;  // bytes ahead in the weight

LOWBIT_INLINE __m256i sign_bytes(__m256i v) { return _mm256_cmpgt_epi8(_mm256_setzero_si256(), v); }

// ---- strips of 32 rows into panels

/// store(step of 16 elements, their columns) for `depth` elements; what lies past them is zero.
template <typename Store>
LOWBIT_INLINE void for_columns(const int8_t* b, int64_t stride, int64_t count, int64_t depth,
                               const Store& store) {
  const uint8_t* rows[kStrip];
  for (int64_t r = 0; r < kStrip; ++r) {
    rows[r] = reinterpret_cast<const uint8_t*>(b + std::min(r, count - 1) * stride);
  }
  __m256i columns[16];
  int64_t k = 0;
  for (; k + 16 <= depth; k += 16) {
    load_columns(rows, k, columns);
    store(k, columns);
  }
  if (k < depth) {
    uint8_t tails[kStrip][16] = {};
    for (int64_t r = 0; r < kStrip; ++r) {
      std::memcpy(tails[r], rows[r] + k, static_cast<size_t>(depth - k));
      rows[r] = tails[r];
    }
    load_columns(rows, 0, columns);
    store(k, columns);
  }
}

inline void decode_int8_pairs(const int8_t* b, int64_t stride, int64_t count, int64_t depth,
                              char* panel, int64_t line_stride) {
  for_columns(b, stride, count, depth, [&](int64_t k, const __m256i(&columns)[16]) {
    LOWBIT_UNROLL for (int i = 0; i < 8; ++i) {
      char* line = panel + (k / 2 + i) * 64;
      const __m256i even = columns[2 * i], odd = columns[2 * i + 1];
      store_pairs(line, line + line_stride, even, sign_bytes(even), odd, sign_bytes(odd));
    }
  });
}

inline void decode_int8_floats(const int8_t* b, int64_t stride, int64_t count, int64_t depth,
                               char* panel, int64_t line_stride) {
  for_columns(b, stride, count, depth, [&](int64_t k, const __m256i(&columns)[16]) {
    LOWBIT_UNROLL for (int i = 0; i < 16; ++i) {
      const __m256i sign = sign_bytes(columns[i]);
      LOWBIT_UNROLL for (int l = 0; l < 2; ++l) {
        const __m256i words = l == 0 ? _mm256_unpacklo_epi8(columns[i], sign)
                                     : _mm256_unpackhi_epi8(columns[i], sign);
        const __m256i signs = _mm256_srai_epi16(words, 15);
        auto* out = reinterpret_cast<float*>(panel + l * line_stride + (k + i) * 64);
        _mm256_store_ps(out, _mm256_cvtepi32_ps(_mm256_unpacklo_epi16(words, signs)));
        _mm256_store_ps(out + 8, _mm256_cvtepi32_ps(_mm256_unpackhi_epi16(words, signs)));
      }
    }
  });
}

// ---- C = A * B^T in int32

inline void widen_int8(const int8_t* in, int64_t count, int16_t* out) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_cvtepi8_epi16(v));
  }
  for (; i < count; ++i) out[i] = in[i];
}

/// Column statistics and bias of one strip, zero past the last column.
struct Epilogue {
  alignas(32) float col_stats[kStrip] = {}, bias[kStrip] = {};
};

/// Writes `columns` columns from n0 of rows [m0, m0 + rows).
inline void write_products(const MatmulInt8Params& p, const int32_t* c, int64_t m0, int64_t rows,
                           int64_t n0, int64_t columns, const Epilogue& e) {
  const __m256 inverse = _mm256_castsi256_ps(_mm256_set1_epi32(0x38820610));  // 1 / 127^2
  for (int64_t r = 0; r < rows; ++r, c += kStrip) {
    const int64_t at = (m0 + r) * p.n + n0;
    if (p.c != nullptr) std::memcpy(p.c + at, c, static_cast<size_t>(columns) * 4);
    if (p.output == nullptr) continue;
    const __m256 row_stat = _mm256_set1_ps(p.row_stats[m0 + r]);
    alignas(32) float y[kStrip];
    LOWBIT_UNROLL for (int j = 0; j < kStrip; j += 8) {
      const __m256 sums = _mm256_cvtepi32_ps(load_bytes(c + j));
      const __m256 v =
          _mm256_mul_ps(_mm256_mul_ps(sums, row_stat), _mm256_load_ps(e.col_stats + j));
      _mm256_store_ps(y + j, _mm256_fmadd_ps(v, inverse, _mm256_load_ps(e.bias + j)));
    }
    narrow(p.output, p.output_dtype, at, columns, y);
  }
}

inline void load_epilogue(const MatmulInt8Params& p, int64_t n0, int64_t columns, Epilogue& e) {
  if (p.output == nullptr) return;
  std::memcpy(e.col_stats, p.col_stats + n0, static_cast<size_t>(columns) * 4);
  if (p.bias != nullptr) widen(p.bias, p.bias_dtype, n0, columns, e.bias);
}

/// Dot products of one weight row's segment with kM input rows, whose padding is zero.
template <int kM>
LOWBIT_INLINE void dot_int8(const int8_t* b, int64_t count, const int16_t* a, int32_t* sums) {
  __m256i s[kM];
  LOWBIT_UNROLL for (int r = 0; r < kM; ++r) s[r] = _mm256_setzero_si256();
  const auto step = [&](const int8_t* at, int64_t k) {
    const __m256i w = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
    LOWBIT_UNROLL for (int r = 0; r < kM; ++r) {
      s[r] = dot_pairs8(s[r], w, load_bytes(a + r * kSegment + k));
    }
  };
  int64_t k = 0;
  for (; k + 64 <= count; k += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(b + k + kPrefetch8), _MM_HINT_T0);
    LOWBIT_UNROLL for (int i = 0; i < 64; i += 16) step(b + k + i, k + i);
  }
  for (; k + 16 <= count; k += 16) step(b + k, k);
  if (k < count) {
    int8_t tail[16] = {};
    std::memcpy(tail, b + k, static_cast<size_t>(count - k));
    step(tail, k);
  }
  for (int r = 0; r < kM; ++r) {
    sums[r * kStrip] =
        static_cast<int32_t>(static_cast<uint32_t>(sums[r * kStrip]) +
                             static_cast<uint32_t>(sum(s[r])));  // wraps like the products' sum
  }
}

template <int kM>
void matmul_int8_rows(const MatmulInt8Params& p, int64_t begin, int64_t end) {
  alignas(32) int16_t a[kM * kSegment];
  const auto widen_segment = [&](int64_t k0) {
    const int64_t count = std::min(kSegment, p.k - k0);
    std::memset(a, 0, sizeof a);
    for (int m = 0; m < kM; ++m) widen_int8(p.a + m * p.k + k0, count, a + m * kSegment);
  };
  if (p.k <= kSegment) widen_segment(0);
  for (int64_t n0 = begin; n0 < end; n0 += kStrip) {
    const int64_t columns = std::min(kStrip, end - n0);
    int32_t c[kM * kStrip] = {};
    Epilogue e;
    load_epilogue(p, n0, columns, e);
    for (int64_t k0 = 0; k0 < p.k; k0 += kSegment) {
      if (p.k > kSegment) widen_segment(k0);
      const int64_t count = std::min(kSegment, p.k - k0);
      for (int64_t j = 0; j < columns; ++j) {
        dot_int8<kM>(p.b + (n0 + j) * p.k + k0, count, a, c + j);
      }
    }
    write_products(p, c, 0, kM, n0, columns, e);
  }
}

inline void matmul_int8_panels(const MatmulInt8Params& p, int64_t begin, int64_t end) {
  constexpr int64_t kLine = kInt8Depth / 2 * 64;
  alignas(64) char panel[2 * kLine];
  alignas(64) int16_t a[kInt8Rows * kInt8Depth];
  alignas(64) int32_t c[kInt8Rows * kStrip];
  const bool one_piece = p.k <= kInt8Depth;
  for (int64_t m0 = 0; m0 < p.m; m0 += kInt8Rows) {
    const int64_t rows = std::min(kInt8Rows, p.m - m0);
    for (int64_t n0 = begin; n0 < end; n0 += kStrip) {
      const int64_t columns = std::min(kStrip, end - n0);
      Epilogue e;
      load_epilogue(p, n0, columns, e);
      std::memset(c, 0, sizeof c);
      for (int64_t k0 = 0; k0 < p.k; k0 += kInt8Depth) {
        const int64_t depth = std::min(kInt8Depth, p.k - k0);
        if (!one_piece || n0 == begin) {
          for (int64_t r = 0; r < rows; ++r) {
            int16_t* row = a + r * kInt8Depth;
            widen_int8(p.a + (m0 + r) * p.k + k0, depth, row);
            if (depth % 2 != 0) row[depth] = 0;
          }
        }
        decode_int8_pairs(p.b + n0 * p.k + k0, p.k, columns, depth, panel, kLine);
        PanelPass pass;
        pass.x = reinterpret_cast<const char*>(a);
        pass.x_stride = kInt8Depth * 2;
        pass.panel = panel;
        pass.line_stride = kLine;
        pass.steps = ceil_div(depth, 2);
        pass.c = c;
        run_panel<IntegerPairTile>(pass, rows);
      }
      write_products(p, c, m0, rows, n0, columns, e);
    }
  }
}

void matmul_int8_range(const MatmulInt8Params& p, int64_t begin, int64_t end) {
  switch (p.m) {
    case 1:
      return matmul_int8_rows<1>(p, begin, end);
    case 2:
      return matmul_int8_rows<2>(p, begin, end);
    case 3:
      return matmul_int8_rows<3>(p, begin, end);
    case kFewRows:
      return matmul_int8_rows<4>(p, begin, end);
    default:
      return matmul_int8_panels(p, begin, end);
  }
}

// ---- weight-only: output = input * (q * stats / 127)^T in float32

/// Scales and bias of one strip.
struct LinearEpilogue {
  alignas(32) float scale[kStrip] = {}, bias[kStrip] = {};
  LinearEpilogue(const LinearInt8Params& p, int64_t n0, int64_t columns) {
    constexpr float kInverse = 1.0f / 127.0f;
    for (int64_t j = 0; j < columns; ++j) scale[j] = p.stats[n0 + j] * kInverse;
    if (p.bias != nullptr) widen(p.bias, p.bias_dtype, n0, columns, bias);
  }
  /// c is scaled in place, then written.
  void write(const LinearInt8Params& p, float* c, int64_t m0, int64_t rows, int64_t n0,
             int64_t columns) const {
    for (int64_t r = 0; r < rows; ++r) {
      LOWBIT_UNROLL for (int j = 0; j < kStrip; j += 8) {
        float* at = c + r * kStrip + j;
        _mm256_storeu_ps(at, _mm256_mul_ps(_mm256_loadu_ps(at), _mm256_load_ps(scale + j)));
      }
    }
    write_slab(c, rows, columns, bias, 1.0f, p.output, p.dtype, m0 * p.n + n0, p.n);
  }
};

template <int kM>
LOWBIT_INLINE void dot_float(const int8_t* q, int64_t count, const float* const (&x)[kM],
                             float* sums) {
  __m256 s[kM][2];
  LOWBIT_UNROLL for (int r = 0; r < kM; ++r) s[r][0] = s[r][1] = _mm256_setzero_ps();
  int64_t k = 0;
  for (; k + 64 <= count; k += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(q + k + kPrefetch8), _MM_HINT_T0);
    LOWBIT_UNROLL for (int i = 0; i < 8; ++i) {
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(q + k + i * 8));
      const __m256 w = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
      LOWBIT_UNROLL for (int r = 0; r < kM; ++r) {
        s[r][i % 2] = _mm256_fmadd_ps(w, _mm256_loadu_ps(x[r] + k + i * 8), s[r][i % 2]);
      }
    }
  }
  float tails[kM] = {};
  for (; k < count; ++k) {
    for (int r = 0; r < kM; ++r) tails[r] += static_cast<float>(q[k]) * x[r][k];
  }
  for (int r = 0; r < kM; ++r) sums[r * kStrip] += sum(_mm256_add_ps(s[r][0], s[r][1])) + tails[r];
}

template <int kM>
void linear_int8_rows(const LinearInt8Params& p, int64_t begin, int64_t end) {
  const bool in_place = p.dtype == DType::kFloat32;
  const int64_t segment = in_place ? p.k : kSegment;
  alignas(32) float widened[kM * kSegment];
  const float* x[kM] = {};
  const auto take_segment = [&](int64_t k0) {
    for (int m = 0; m < kM; ++m) {
      const int64_t at = m * p.input_stride + k0;
      x[m] = in_place ? static_cast<const float*>(p.input) + at : widened + m * kSegment;
      if (!in_place) {
        widen(p.input, p.dtype, at, std::min(segment, p.k - k0), widened + m * kSegment);
      }
    }
  };
  if (p.k <= segment) take_segment(0);
  for (int64_t n0 = begin; n0 < end; n0 += kStrip) {
    const int64_t columns = std::min(kStrip, end - n0);
    alignas(32) float c[kM * kStrip] = {};
    for (int64_t k0 = 0; k0 < p.k; k0 += segment) {
      if (p.k > segment) take_segment(k0);
      for (int64_t j = 0; j < columns; ++j) {
        dot_float<kM>(p.q + (n0 + j) * p.k + k0, std::min(segment, p.k - k0), x, c + j);
      }
    }
    LinearEpilogue(p, n0, columns).write(p, c, 0, kM, n0, columns);
  }
}

inline void linear_int8_panels(const LinearInt8Params& p, int64_t begin, int64_t end) {
  constexpr int64_t kLine = kFloatDepth8 * 64;
  alignas(64) char panel[2 * kLine];
  alignas(64) float widened[kFloatRows8 * kFloatRow8];
  alignas(64) float c[kFloatRows8 * kStrip];
  // Rows a multiple of 4096 bytes apart would share one set of the L1 cache.
  const bool in_place = p.dtype == DType::kFloat32 && p.input_stride % 1024 != 0;
  for (int64_t m0 = 0; m0 < p.m; m0 += kFloatRows8) {
    const int64_t rows = std::min(kFloatRows8, p.m - m0);
    for (int64_t n0 = begin; n0 < end; n0 += kStrip) {
      const int64_t columns = std::min(kStrip, end - n0);
      std::memset(c, 0, sizeof c);
      for (int64_t k0 = 0; k0 < p.k; k0 += kFloatDepth8) {
        const int64_t depth = std::min(kFloatDepth8, p.k - k0);
        decode_int8_floats(p.q + n0 * p.k + k0, p.k, columns, depth, panel, kLine);
        PanelPass pass;
        if (in_place) {
          pass.x = reinterpret_cast<const char*>(static_cast<const float*>(p.input) +
                                                 m0 * p.input_stride + k0);
          pass.x_stride = p.input_stride * 4;
        } else {
          for (int64_t r = 0; r < rows; ++r) {
            widen(p.input, p.dtype, (m0 + r) * p.input_stride + k0, depth,
                  widened + r * kFloatRow8);
          }
          pass.x = reinterpret_cast<const char*>(widened);
          pass.x_stride = kFloatRow8 * 4;
        }
        pass.panel = panel;
        pass.line_stride = kLine;
        pass.steps = depth;
        pass.c = c;
        run_panel<FloatTile>(pass, rows);
      }
      LinearEpilogue(p, n0, columns).write(p, c, m0, rows, n0, columns);
    }
  }
}

void linear_int8_range(const LinearInt8Params& p, int64_t begin, int64_t end) {
  switch (p.m) {
    case 1:
      return linear_int8_rows<1>(p, begin, end);
    case 2:
      return linear_int8_rows<2>(p, begin, end);
    case 3:
      return linear_int8_rows<3>(p, begin, end);
    case kFewRows:
      return linear_int8_rows<4>(p, begin, end);
    default:
      return linear_int8_panels(p, begin, end);
  }
}

}  // namespace
}  // namespace lowbit::kernels::cpu
