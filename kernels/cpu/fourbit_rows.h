// Few rows of the input: dot products along one ascending stream of packed bytes. Two streams a
// thread halve the rate at which memory delivers.
#pragma once

#include "fourbit_decode.h"
#include "fourbit_matmul.h"

namespace lowbit::kernels::cpu {
namespace {

constexpr int64_t kPrefetch = 2048;    // bytes ahead in the packed stream
constexpr int64_t kScaleBuffer = 128;  // chunks whose scales are expanded at a time

// ---- preparing the input

/// Positions of the elements of a chunk: vectors 0.. come from the low nibbles (odd elements),
/// then the high nibbles (even elements), each in the order in which the unpacks deliver bytes.
inline void prepare_exact_chunk(const float* x, float* out) {
  for (int half = 0; half < 2; ++half) {  // bytes 0-7 and 16-23, then 8-15 and 24-31
    for (int quarter = 0; quarter < 2; ++quarter) {
      const float* at = x + half * 16 + quarter * 8;
      const __m256 a = _mm256_loadu_ps(at), b = _mm256_loadu_ps(at + 32);
      const __m256 p = _mm256_permute2f128_ps(a, b, 0x20);
      const __m256 q = _mm256_permute2f128_ps(a, b, 0x31);
      float* odd = out + (half * 2 + quarter) * 8;
      _mm256_storeu_ps(odd, _mm256_shuffle_ps(p, q, 0xdd));
      _mm256_storeu_ps(odd + 32, _mm256_shuffle_ps(p, q, 0x88));
    }
  }
}

/// 64 elements as int16 of magnitude <= limit, in ascending order, and what one unit is worth: NaN
/// when an element is not finite, so that it reaches every output of its row.
inline float quantize_chunk(const float* x, float limit, __m256i (&out)[4]) {
  __m256 v[8];
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i largest = _mm256_setzero_si256();
  LOWBIT_UNROLL for (int i = 0; i < 8; ++i) {
    v[i] = _mm256_loadu_ps(x + i * 8);
    // As integers, so that NaN and infinity are the largest.
    largest = _mm256_max_epi32(largest, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
  }
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
  const float top = _mm_cvtss_f32(_mm_castsi128_ps(m));
  const bool finite = _mm_cvtsi128_si32(m) < 0x7f800000;
  // Below 1e-30 the reciprocal would overflow; such chunks lose precision, not meaning.
  const __m256 scale = _mm256_set1_ps(limit / std::max(top, 1e-30f));
  LOWBIT_UNROLL for (int i = 0; i < 4; ++i) {
    const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(v[2 * i], scale));
    const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(v[2 * i + 1], scale));
    out[i] = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
  }
  return finite ? std::max(top, 1e-30f) / limit : NAN;
}

inline void prepare_fast_chunk(const float* x, int16_t* out, float* scale) {
  __m256i e[4];
  *scale = quantize_chunk(x, kRowsLimit, e);
  auto* o = reinterpret_cast<__m256i*>(out);
  LOWBIT_UNROLL for (int i = 0; i < 2; ++i) {
    const __m256i odd =
        _mm256_packs_epi32(_mm256_srai_epi32(e[i], 16), _mm256_srai_epi32(e[i + 2], 16));
    const __m256i even = _mm256_packs_epi32(_mm256_srai_epi32(_mm256_slli_epi32(e[i], 16), 16),
                                            _mm256_srai_epi32(_mm256_slli_epi32(e[i + 2], 16), 16));
    _mm256_storeu_si256(o + i, _mm256_permute4x64_epi64(odd, 0xd8));
    _mm256_storeu_si256(o + i + 2, _mm256_permute4x64_epi64(even, 0xd8));
  }
}

// ---- scales of the weights, one vector a chunk

struct PlainScale {
  const float* s;
  LOWBIT_INLINE __m256 operator()(int64_t c) const { return _mm256_broadcast_ss(s + c); }
};
struct NestedScale {  // decoded on the way: no buffer, no gather
  const uint8_t* q;
  const float* map;
  __m256 absmax2, offset;
  LOWBIT_INLINE __m256 operator()(int64_t c) const {
    return _mm256_fmadd_ps(_mm256_broadcast_ss(map + q[c]), absmax2, offset);
  }
};
struct HalvesScale {  // blocks of 32: bytes 0-15 and 16-31 of a chunk
  const float* s;
  LOWBIT_INLINE __m256 operator()(int64_t c) const {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_broadcast_ss(s + 2 * c)),
                                _mm_broadcast_ss(s + 2 * c + 1), 1);
  }
};

// ---- arithmetic on one chunk of 32 bytes

struct FastRows {
  static constexpr int64_t kBytes = 2;  // of an element of x
  Int16Planes table;
  float unit;
  const float* x_scale;
  int64_t m;
  explicit FastRows(const Matmul4bitParams& p, const float* scales)
      : FastRows(IntegerTable(p.code, p.quant_type, true), scales, p.m) {}
  FastRows(const IntegerTable& t, const float* scales, int64_t rows)
      : table(t.entries), unit(t.unit), x_scale(scales), m(rows) {}

  template <int kM>
  LOWBIT_INLINE void chunk(const uint8_t* w, const char* x, int64_t c, __m256 scale,
                           __m256 (&sums)[kM]) const {
    const __m256i v = load_bytes(w);
    __m256i d[4];
    LOWBIT_UNROLL for (int i = 0; i < 2; ++i) {
      const __m256i codes = i == 0 ? low_nibbles(v) : high_nibbles(v);
      const __m256i low = _mm256_shuffle_epi8(table.plane[0], codes);
      const __m256i high = _mm256_shuffle_epi8(table.plane[1], codes);
      d[2 * i] = _mm256_unpacklo_epi8(low, high);
      d[2 * i + 1] = _mm256_unpackhi_epi8(low, high);
    }
    LOWBIT_UNROLL for (int r = 0; r < kM; ++r) {
      const char* at = x + r * kChunk * kBytes;
      __m256i p = _mm256_madd_epi16(d[0], load_bytes(at));
      p = dot_pairs8(p, d[1], load_bytes(at + 32));
      p = dot_pairs8(p, d[2], load_bytes(at + 64));
      p = dot_pairs8(p, d[3], load_bytes(at + 96));
      const __m256 s = _mm256_mul_ps(scale, _mm256_broadcast_ss(x_scale + c * kM + r));
      sums[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(p), s, sums[r]);
    }
  }
};

struct ExactRows {
  static constexpr int64_t kBytes = 4;
  FloatPlanes table;
  float unit = 1.0f;
  explicit ExactRows(const Matmul4bitParams& p, const float*) : table(p.code) {}

  template <int kM>
  LOWBIT_INLINE void chunk(const uint8_t* w, const char* x, int64_t, __m256 scale,
                           __m256 (&sums)[kM]) const {
    const __m256i v = load_bytes(w);
    __m256 p[kM];
    LOWBIT_UNROLL for (int i = 0; i < 2; ++i) {
      __m256 d[4];
      lookup_floats(table, i == 0 ? low_nibbles(v) : high_nibbles(v), d);
      LOWBIT_UNROLL for (int r = 0; r < kM; ++r) {
        const float* at = reinterpret_cast<const float*>(x + r * kChunk * kBytes) + i * 32;
        p[r] = i == 0 ? _mm256_mul_ps(d[0], _mm256_loadu_ps(at))
                      : _mm256_fmadd_ps(d[0], _mm256_loadu_ps(at), p[r]);
        p[r] = _mm256_fmadd_ps(d[1], _mm256_loadu_ps(at + 8), p[r]);
        p[r] = _mm256_fmadd_ps(d[2], _mm256_loadu_ps(at + 16), p[r]);
        p[r] = _mm256_fmadd_ps(d[3], _mm256_loadu_ps(at + 24), p[r]);
      }
    }
    LOWBIT_UNROLL for (int r = 0; r < kM; ++r) sums[r] = _mm256_fmadd_ps(p[r], scale, sums[r]);
  }
};

template <int kM, typename Arithmetic, typename Scale>
LOWBIT_INLINE void accumulate_chunks(const Arithmetic& a, const uint8_t* w, const char* x,
                                     int64_t first, int64_t chunks, const Scale& scale,
                                     __m256 (&sums)[kM == 1 ? 2 : 1][kM]) {
  constexpr int64_t kStep = kM * kChunk * Arithmetic::kBytes;
  x += first * kStep;
  w += first * 32;
  int64_t c = 0;
  for (; c + 2 <= chunks; c += 2, x += 2 * kStep, w += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(w) + kPrefetch, _MM_HINT_T0);
    a.template chunk<kM>(w, x, first + c, scale(c), sums[0]);
    a.template chunk<kM>(w + 32, x + kStep, first + c + 1, scale(c + 1), sums[kM == 1 ? 1 : 0]);
  }
  if (c < chunks) a.template chunk<kM>(w, x, first + c, scale(c), sums[0]);
}

/// Chunk sums of one weight row, whatever the blocksize and the kind of scales.
template <int kM, typename Arithmetic>
LOWBIT_INLINE void accumulate_row(const Matmul4bitParams& p, const Arithmetic& a, const char* x,
                                  int64_t n, const BlockIndex& block_of,
                                  __m256 (&sums)[kM == 1 ? 2 : 1][kM]) {
  const int64_t chunks = p.k / kChunk;
  const uint8_t* w = p.packed + n * (p.k / 2);
  if (p.blocksize == kChunk) {
    const int64_t block = n * chunks;
    if (!p.scales.nested()) {
      accumulate_chunks<kM>(a, w, x, 0, chunks, PlainScale{p.scales.absmax + block}, sums);
      return;
    }
    for (int64_t c = 0; c < chunks;) {
      const int64_t group = (block + c) / kNestedBlocksize;
      const int64_t count = std::min(chunks - c, (group + 1) * kNestedBlocksize - (block + c));
      const NestedScale scale{p.scales.absmax_8bit + block + c, p.scales.absmax_code,
                              _mm256_broadcast_ss(p.scales.absmax2 + group),
                              _mm256_broadcast_ss(p.scales.absmax_offset)};
      accumulate_chunks<kM>(a, w, x, c, count, scale, sums);
      c += count;
    }
    return;
  }
  const bool halves = p.blocksize % kChunk != 0;
  const int64_t piece = halves ? kChunk / 2 : kChunk;
  for (int64_t c = 0; c < chunks;) {
    const int64_t count = std::min(chunks - c, kScaleBuffer);
    float buffer[2 * kScaleBuffer];
    for (int64_t i = 0; i < (halves ? 2 * count : count); ++i) {
      buffer[i] = scale_of_block(p.scales, block_of(n * p.k + c * kChunk + i * piece));
    }
    if (halves) {
      accumulate_chunks<kM>(a, w, x, c, count, HalvesScale{buffer}, sums);
    } else {
      accumulate_chunks<kM>(a, w, x, c, count, PlainScale{buffer}, sums);
    }
    c += count;
  }
}

template <int kM, typename Arithmetic>
void run_rows(const Matmul4bitParams& p, int64_t begin, int64_t end, const float* scales) {
  const Arithmetic a(p, scales);
  const char* x = static_cast<const char*>(p.workspace);
  const BlockIndex block_of(p.blocksize);
  for (int64_t n = begin; n < end; n += kRowsPerUnit) {
    const int64_t count = std::min(kRowsPerUnit, p.n - n);
    alignas(32) float bias[kRowsPerUnit] = {};
    if (p.bias != nullptr) widen(p.bias, p.bias_dtype, n, count, bias);
    __m256 row_sums[kM][kRowsPerUnit];
    for (int64_t i = 0; i < kRowsPerUnit; ++i) {
      __m256 sums[kM == 1 ? 2 : 1][kM];  // two chains for a single row
      LOWBIT_UNROLL for (int r = 0; r < kM; ++r) sums[0][r] = _mm256_setzero_ps();
      if constexpr (kM == 1) sums[1][0] = _mm256_setzero_ps();
      if (i < count) accumulate_row<kM>(p, a, x, n + i, block_of, sums);
      if constexpr (kM == 1) sums[0][0] = _mm256_add_ps(sums[0][0], sums[1][0]);
      LOWBIT_UNROLL for (int r = 0; r < kM; ++r) row_sums[r][i] = sums[0][r];
    }
    for (int r = 0; r < kM; ++r) {
      alignas(32) float y[kRowsPerUnit];
      _mm256_store_ps(
          y, _mm256_fmadd_ps(sum_each(row_sums[r]), _mm256_set1_ps(a.unit), _mm256_load_ps(bias)));
      narrow(p.output, p.dtype, r * p.n + n, count, y);
    }
  }
}

/// begin, end: weight rows; begin % kRowsPerUnit == 0.
template <typename Arithmetic>
void run_rows_of(const Matmul4bitParams& p, int64_t begin, int64_t end, const float* scales) {
  switch (p.m) {
    case 1:
      return run_rows<1, Arithmetic>(p, begin, end, scales);
    case 2:
      return run_rows<2, Arithmetic>(p, begin, end, scales);
    case 3:
      return run_rows<3, Arithmetic>(p, begin, end, scales);
    default:
      return run_rows<4, Arithmetic>(p, begin, end, scales);
  }
}

/// Any K, blocksize and alignment: pieces of a row are expanded to float32 and multiplied.
inline void run_rows_any(const Matmul4bitParams& p, int64_t begin, int64_t end, const float* x,
                         int64_t x_stride) {
  constexpr int64_t kPiece = 512;
  const PairTable table(p.code);
  for (int64_t n = begin; n < end; ++n) {
    __m256 sums[kMaxRows];
    float tails[kMaxRows] = {};
    for (auto& s : sums) s = _mm256_setzero_ps();
    for (int64_t k0 = 0; k0 < p.k; k0 += kPiece) {
      alignas(32) float w[kPiece];
      const int64_t count = std::min(kPiece, p.k - k0);
      decode_flat(p, table, n * p.k + k0, count, w);
      for (int64_t m = 0; m < p.m; ++m) {
        const float* row = x + m * x_stride + k0;
        int64_t k = 0;
        for (; k + 8 <= count; k += 8) {
          sums[m] = _mm256_fmadd_ps(_mm256_load_ps(w + k), _mm256_loadu_ps(row + k), sums[m]);
        }
        for (; k < count; ++k) tails[m] += w[k] * row[k];
      }
    }
    float bias[1] = {};
    if (p.bias != nullptr) widen(p.bias, p.bias_dtype, n, 1, bias);
    for (int64_t m = 0; m < p.m; ++m) {
      const float y[8] = {sum(sums[m]) + tails[m] + bias[0]};
      narrow(p.output, p.dtype, m * p.n + n, 1, y);
    }
  }
}

}  // namespace
}  // namespace lowbit::kernels::cpu
