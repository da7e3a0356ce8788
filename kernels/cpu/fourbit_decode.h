// Turning packed 4-bit codes into vectors: scales of blocks, tables as byte planes, strips of 32
// rows into panels.
#pragma once

#include <cmath>

#include "lowbit/kernels/fourbit.h"
#include "matmul_panel.h"

namespace lowbit::kernels::cpu {
namespace {

/// Which block an element of the flat weight belongs to.
class BlockIndex {
 public:
  explicit BlockIndex(int64_t blocksize)
      : blocksize_(blocksize),
        shift_((blocksize & (blocksize - 1)) == 0 ? __builtin_ctzll(blocksize) : -1) {}
  int64_t operator()(int64_t i) const { return shift_ >= 0 ? i >> shift_ : i / blocksize_; }

 private:
  int64_t blocksize_;
  int shift_;
};

LOWBIT_INLINE float scale_of_block(const BlockScales& s, int64_t block) {
  if (s.absmax_8bit == nullptr) return s.absmax[block];
  return s.absmax_code[s.absmax_8bit[block]] * s.absmax2[block / kNestedBlocksize] +
         *s.absmax_offset;
}

/// The 16 table entries as integers of about `bits` bits, for products in int16.
/// The integer scale is chosen where rounding hurts the table least: a multiple of 192 represents
/// FP4 exactly; for NF4 the minimum of the root mean square error below each power of two.
struct IntegerTable {
  int16_t entries[16];
  float unit;  // entry * unit = value; NaN when an entry is not finite

  IntegerTable(const float* code, QuantType type, bool wide) {
    float largest = 0.0f;
    bool finite = true;
    for (int i = 0; i < 16; ++i) {
      finite = finite && std::isfinite(code[i]);
      largest = std::max(largest, std::fabs(code[i]));
    }
    const float scale =
        type == QuantType::kFP4 ? (wide ? 8064.0f : 4032.0f) : (wide ? 7854.02f : 4075.07f);
    const float step = finite && largest > 0.0f ? scale / largest : 0.0f;
    for (int i = 0; i < 16; ++i) {
      entries[i] = static_cast<int16_t>(finite ? std::lrintf(code[i] * step) : 0);
    }
    unit = finite ? largest / scale : NAN;
  }
};
/// Largest magnitudes of activations as integers. Rows: 8 products a lane, 8 * 8064 * 32767 < 2^31.
/// Panels: 64 products a lane, 64 * 4075 * 8191 < 2^31.
constexpr float kRowsLimit = 32767.0f;
constexpr float kPanelLimit = 8191.0f;

/// Byte planes of a table: entry i of plane p is byte p of value i, repeated in both lanes.
template <int kPlanes>
struct PlaneTable {
  __m256i plane[kPlanes];
  template <typename T>
  explicit PlaneTable(const T* entries) {
    static_assert(sizeof(T) == kPlanes);
    uint8_t bytes[kPlanes][16];
    for (int i = 0; i < 16; ++i) {
      uint8_t of[sizeof(T)];
      std::memcpy(of, entries + i, sizeof(T));
      for (int p = 0; p < kPlanes; ++p) bytes[p][i] = of[p];
    }
    for (int p = 0; p < kPlanes; ++p) {
      plane[p] =
          _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes[p])));
    }
  }
};
using Int16Planes = PlaneTable<2>;
using FloatPlanes = PlaneTable<4>;

LOWBIT_INLINE __m256i low_nibbles(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
LOWBIT_INLINE __m256i high_nibbles(__m256i v) { return low_nibbles(_mm256_srli_epi16(v, 4)); }

/// Values of 32 codes, four vectors in unpacking order.
LOWBIT_INLINE void lookup_floats(const FloatPlanes& t, __m256i codes, __m256 (&out)[4]) {
  const __m256i b0 = _mm256_shuffle_epi8(t.plane[0], codes);
  const __m256i b1 = _mm256_shuffle_epi8(t.plane[1], codes);
  const __m256i b2 = _mm256_shuffle_epi8(t.plane[2], codes);
  const __m256i b3 = _mm256_shuffle_epi8(t.plane[3], codes);
  const __m256i low0 = _mm256_unpacklo_epi8(b0, b1), high0 = _mm256_unpacklo_epi8(b2, b3);
  const __m256i low1 = _mm256_unpackhi_epi8(b0, b1), high1 = _mm256_unpackhi_epi8(b2, b3);
  out[0] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(low0, high0));
  out[1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(low0, high0));
  out[2] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(low1, high1));
  out[3] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(low1, high1));
}

/// 32 rows of packed weights. Rows past the last one repeat it: their sums are never written.
struct StripRows {
  const uint8_t* bytes[kStrip];
  StripRows(const uint8_t* first, int64_t row_bytes, int64_t count) {
    for (int64_t r = 0; r < kStrip; ++r) bytes[r] = first + std::min(r, count - 1) * row_bytes;
  }
};

/// scales[chunk][row] of chunks of `chunk` elements, each inside one block.
inline void strip_scales(const Matmul4bitParams& p, int64_t first_row, int64_t count, int64_t k0,
                         int64_t chunks, int64_t chunk, float* scales) {
  const BlockIndex block(p.blocksize);
  for (int64_t r = 0; r < kStrip; ++r) {
    const int64_t i = (first_row + std::min(r, count - 1)) * p.k + k0;
    for (int64_t c = 0; c < chunks; ++c) {
      scales[c * kStrip + r] = scale_of_block(p.scales, block(i + c * chunk));
    }
  }
}

/// Codes of 32 rows x 32 * groups elements as int16 pairs, not scaled.
inline void decode_pairs(const StripRows& rows, int64_t offset, int64_t groups,
                         const Int16Planes& t, char* panel, int64_t line_stride) {
  for (int64_t g = 0; g < groups; ++g) {
    __m256i columns[16];
    load_columns(rows.bytes, offset + g * 16, columns);
    char* line = panel + g * 16 * 64;
    LOWBIT_UNROLL for (int i = 0; i < 16; ++i) {
      const __m256i even = high_nibbles(columns[i]);
      const __m256i odd = low_nibbles(columns[i]);
      store_pairs(line + i * 64, line + line_stride + i * 64, _mm256_shuffle_epi8(t.plane[0], even),
                  _mm256_shuffle_epi8(t.plane[1], even), _mm256_shuffle_epi8(t.plane[0], odd),
                  _mm256_shuffle_epi8(t.plane[1], odd));
    }
  }
}

/// Weights of 32 rows x 32 * groups elements as floats. scales: [group >> shift][row].
inline void decode_floats(const StripRows& rows, int64_t offset, int64_t groups,
                          const FloatPlanes& t, const float* scales, int shift, char* panel,
                          int64_t line_stride) {
  for (int64_t g = 0; g < groups; ++g) {
    __m256i columns[16];
    load_columns(rows.bytes, offset + g * 16, columns);
    const float* s = scales + (g >> shift) * kStrip;
    const __m256 scale[4] = {_mm256_loadu_ps(s), _mm256_loadu_ps(s + 8), _mm256_loadu_ps(s + 16),
                             _mm256_loadu_ps(s + 24)};
    for (int i = 0; i < 32; ++i) {
      const __m256i codes = i % 2 == 0 ? high_nibbles(columns[i / 2]) : low_nibbles(columns[i / 2]);
      __m256 w[4];
      lookup_floats(t, codes, w);
      auto* line0 = reinterpret_cast<float*>(panel + (g * 32 + i) * 64);
      auto* line1 = reinterpret_cast<float*>(panel + line_stride + (g * 32 + i) * 64);
      _mm256_store_ps(line0, _mm256_mul_ps(w[0], scale[0]));
      _mm256_store_ps(line0 + 8, _mm256_mul_ps(w[1], scale[1]));
      _mm256_store_ps(line1, _mm256_mul_ps(w[2], scale[2]));
      _mm256_store_ps(line1 + 8, _mm256_mul_ps(w[3], scale[3]));
    }
  }
}

/// Values of both codes of every byte: any alignment, any blocksize.
struct PairTable {
  float pair[256][2];
  explicit PairTable(const float* code) {
    for (int i = 0; i < 256; ++i) {
      pair[i][0] = code[i >> 4];
      pair[i][1] = code[i & 15];
    }
  }
};

/// out[0, count) = weights [begin, begin + count) of the flat weight.
inline void decode_flat(const Matmul4bitParams& p, const PairTable& table, int64_t begin,
                        int64_t count, float* out) {
  const BlockIndex block(p.blocksize);
  for (int64_t done = 0; done < count;) {
    int64_t i = begin + done;
    const int64_t b = block(i);
    const int64_t n = std::min(count - done, (b + 1) * p.blocksize - i);
    const float scale = scale_of_block(p.scales, b);
    float* o = out + done;
    int64_t j = 0;
    if ((i & 1) != 0) o[j++] = table.pair[p.packed[i >> 1]][1] * scale;
    for (; j + 2 <= n; j += 2) {
      const float* v = table.pair[p.packed[(i + j) >> 1]];
      o[j] = v[0] * scale;
      o[j + 1] = v[1] * scale;
    }
    if (j < n) o[j] = table.pair[p.packed[(i + j) >> 1]][0] * scale;
    done += n;
  }
}

}  // namespace
}  // namespace lowbit::kernels::cpu
