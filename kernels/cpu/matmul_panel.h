// The register tiles of the panel matmuls: a strip of 32 weight rows (columns of the output) is
// decoded once into a panel and multiplied with many rows of the input.
//
// Panel: two lines of 16 columns; line l holds, for each step, 64 bytes: 16 floats (one k a step)
// or 16 pairs of int16 (two k a step). Lines are `line_stride` bytes apart, steps 64 bytes. A tile
// of AVX2 covers one line, a tile of AVX-512 both.
#pragma once

#include "matmul_simd.h"

namespace lowbit::kernels::cpu {
namespace {

constexpr int64_t kStrip = 32;      // columns of a panel
constexpr int64_t kSlabRows = 192;  // rows of the input whose sums are kept on the stack

/// One pass of a panel over a slab. c: [rows][kStrip] sums, added to.
struct PanelPass {
  const char* x = nullptr;  // element of row 0 at the panel's first step
  int64_t x_stride = 0;     // bytes between rows
  const char* panel = nullptr;
  int64_t line_stride = 0;
  int64_t steps = 0;
  void* c = nullptr;
  // int16 products only: sums of `chunk_steps` steps are scaled by w_scale[chunk][column] *
  // x_scale[row][chunk >> x_scale_shift].
  int64_t chunk_steps = 0;
  const float* w_scale = nullptr;
  const float* x_scale = nullptr;
  int64_t x_scale_stride = 0;
  int x_scale_shift = 0;
};

LOWBIT_INLINE const char* column_vector(const PanelPass& p, int64_t line, int j) {
  return Simd::kLanes == 8 ? p.panel + line * p.line_stride + j * 32 : p.panel + j * p.line_stride;
}

/// float32 products. Floating-point sums over k in ascending order.
struct FloatTile {
  template <int kR>
  static LOWBIT_NOINLINE void run(const PanelPass& p, int64_t row, int64_t line) {
    const char* w0 = column_vector(p, line, 0);
    const char* w1 = column_vector(p, line, 1);
    const char* x = p.x + row * p.x_stride;
    float* c = static_cast<float*>(p.c) + row * kStrip + line * Simd::kTileColumns;
    Simd::Float sums[kR][2];
    LOWBIT_UNROLL for (int r = 0; r < kR; ++r) {
      sums[r][0] = Simd::load(c + r * kStrip);
      sums[r][1] = Simd::load(c + r * kStrip + Simd::kLanes);
    }
    for (int64_t k = 0; k < p.steps; ++k) {
      const Simd::Float a = Simd::load(reinterpret_cast<const float*>(w0 + k * 64));
      const Simd::Float b = Simd::load(reinterpret_cast<const float*>(w1 + k * 64));
      LOWBIT_UNROLL for (int r = 0; r < kR; ++r) {
        Simd::add_floats(x + r * p.x_stride + k * 4, a, b, sums[r][0], sums[r][1]);
      }
    }
    LOWBIT_UNROLL for (int r = 0; r < kR; ++r) {
      Simd::store(c + r * kStrip, sums[r][0]);
      Simd::store(c + r * kStrip + Simd::kLanes, sums[r][1]);
    }
  }
};

template <int kR>
LOWBIT_INLINE void accumulate_pairs(const PanelPass& p, const char* x, const char* w0,
                                    const char* w1, int64_t begin, int64_t end,
                                    Simd::Int (&sums)[kR][2]) {
  for (int64_t k = begin; k < end; ++k) {
    const Simd::Int a = Simd::load(static_cast<const void*>(w0 + k * 64));
    const Simd::Int b = Simd::load(static_cast<const void*>(w1 + k * 64));
    LOWBIT_UNROLL for (int r = 0; r < kR; ++r) {
      Simd::add_pairs(x + r * p.x_stride + k * 4, a, b, sums[r][0], sums[r][1]);
    }
  }
}

/// int16 products summed in int32 over a chunk, chunks summed in float32 with their scales.
struct ScaledPairTile {
  template <int kR>
  static LOWBIT_NOINLINE void run(const PanelPass& p, int64_t row, int64_t line) {
    const char* w0 = column_vector(p, line, 0);
    const char* w1 = column_vector(p, line, 1);
    const char* x = p.x + row * p.x_stride;
    float* c = static_cast<float*>(p.c) + row * kStrip + line * Simd::kTileColumns;
    const float* w_scale = p.w_scale + line * Simd::kTileColumns;
    const float* x_scale = p.x_scale + row * p.x_scale_stride;
    int64_t chunk = 0;
    for (int64_t k = 0; k < p.steps; k += p.chunk_steps, ++chunk, w_scale += kStrip) {
      Simd::Int sums[kR][2];
      LOWBIT_UNROLL for (int r = 0; r < kR; ++r) sums[r][0] = sums[r][1] = Simd::zero();
      accumulate_pairs<kR>(p, x, w0, w1, k, k + p.chunk_steps, sums);
      const Simd::Float s0 = Simd::load(w_scale);
      const Simd::Float s1 = Simd::load(w_scale + Simd::kLanes);
      LOWBIT_UNROLL for (int r = 0; r < kR; ++r) {
        const Simd::Float s =
            Simd::broadcast(x_scale[r * p.x_scale_stride + (chunk >> p.x_scale_shift)]);
        float* y = c + r * kStrip;
        Simd::store(y, Simd::fma(Simd::to_float(sums[r][0]), Simd::multiply(s, s0), Simd::load(y)));
        y += Simd::kLanes;
        Simd::store(y, Simd::fma(Simd::to_float(sums[r][1]), Simd::multiply(s, s1), Simd::load(y)));
      }
    }
  }
};

/// int16 products summed in int32 throughout.
struct IntegerPairTile {
  template <int kR>
  static LOWBIT_NOINLINE void run(const PanelPass& p, int64_t row, int64_t line) {
    const char* x = p.x + row * p.x_stride;
    int32_t* c = static_cast<int32_t*>(p.c) + row * kStrip + line * Simd::kTileColumns;
    Simd::Int sums[kR][2];
    LOWBIT_UNROLL for (int r = 0; r < kR; ++r) {
      sums[r][0] = Simd::load(static_cast<const void*>(c + r * kStrip));
      sums[r][1] = Simd::load(static_cast<const void*>(c + r * kStrip + Simd::kLanes));
    }
    accumulate_pairs<kR>(p, x, column_vector(p, line, 0), column_vector(p, line, 1), 0, p.steps,
                         sums);
    LOWBIT_UNROLL for (int r = 0; r < kR; ++r) {
      Simd::store(c + r * kStrip, sums[r][0]);
      Simd::store(c + r * kStrip + Simd::kLanes, sums[r][1]);
    }
  }
};

/// All rows of a slab against the panel.
template <typename Tile>
inline void run_panel(const PanelPass& p, int64_t rows) {
  constexpr int kR = Simd::kRows;
  for (int64_t line = 0; line < kStrip / Simd::kTileColumns; ++line) {
    int64_t m = 0;
    // The last tiles share what is left evenly: a tile of few rows starves the multipliers.
    for (; rows - m >= 2 * kR || rows - m == kR; m += kR) Tile::template run<kR>(p, m, line);
    while (m < rows) {
      int64_t r = rows - m;
      if (r > kR) r = (r + 1) / 2;
      if (r > 6 && r != 9 && r != 12) r = (r + 1) / 2;
      if constexpr (kR == 12) {
        if (r == 12) Tile::template run<12>(p, m, line);
        if (r == 9) Tile::template run<9>(p, m, line);
      }
      if (r == 6) Tile::template run<6>(p, m, line);
      if (r == 5) Tile::template run<5>(p, m, line);
      if (r == 4) Tile::template run<4>(p, m, line);
      if (r == 3) Tile::template run<3>(p, m, line);
      if (r == 2) Tile::template run<2>(p, m, line);
      if (r == 1) Tile::template run<1>(p, m, line);
      m += r;
    }
  }
}

/// Registers of bytes of 32 rows: lane 0 holds rows {0-3, 8-11, 16-19, 24-27}, lane 1 the rows 4
/// above, so that the unpacks below come out in ascending columns.
constexpr int kLaneRow[16] = {0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27};

/// columns[j] = byte j of all 32 rows, in the order of kLaneRow; 16 bytes of each row are read.
LOWBIT_INLINE void load_columns(const uint8_t* const* rows, int64_t offset,
                                __m256i (&columns)[16]) {
  __m256i other[16];
  LOWBIT_UNROLL for (int i = 0; i < 16; ++i) {
    const auto* low = reinterpret_cast<const __m128i*>(rows[kLaneRow[i]] + offset);
    const auto* high = reinterpret_cast<const __m128i*>(rows[kLaneRow[i] + 4] + offset);
    columns[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(low)),
                                         _mm_loadu_si128(high), 1);
  }
  // Four perfect shuffles of 16 registers of 16 bytes transpose them.
  LOWBIT_UNROLL for (int stage = 0; stage < 2; ++stage) {
    LOWBIT_UNROLL for (int i = 0; i < 8; ++i) {
      other[2 * i] = _mm256_unpacklo_epi8(columns[i], columns[i + 8]);
      other[2 * i + 1] = _mm256_unpackhi_epi8(columns[i], columns[i + 8]);
    }
    LOWBIT_UNROLL for (int i = 0; i < 8; ++i) {
      columns[2 * i] = _mm256_unpacklo_epi8(other[i], other[i + 8]);
      columns[2 * i + 1] = _mm256_unpackhi_epi8(other[i], other[i + 8]);
    }
  }
}

/// Writes one step of int16 pairs: low and high bytes of the even and of the odd k.
LOWBIT_INLINE void store_pairs(char* line0, char* line1, __m256i even_low, __m256i even_high,
                               __m256i odd_low, __m256i odd_high) {
  const __m256i e0 = _mm256_unpacklo_epi8(even_low, even_high);
  const __m256i o0 = _mm256_unpacklo_epi8(odd_low, odd_high);
  const __m256i e1 = _mm256_unpackhi_epi8(even_low, even_high);
  const __m256i o1 = _mm256_unpackhi_epi8(odd_low, odd_high);
  _mm256_store_si256(reinterpret_cast<__m256i*>(line0), _mm256_unpacklo_epi16(e0, o0));
  _mm256_store_si256(reinterpret_cast<__m256i*>(line0) + 1, _mm256_unpackhi_epi16(e0, o0));
  _mm256_store_si256(reinterpret_cast<__m256i*>(line1), _mm256_unpacklo_epi16(e1, o1));
  _mm256_store_si256(reinterpret_cast<__m256i*>(line1) + 1, _mm256_unpackhi_epi16(e1, o1));
}

/// Adds bias [kStrip], scales by factor first, rounds and writes `columns` of each row.
inline void write_slab(const float* c, int64_t rows, int64_t columns, const float* bias,
                       float factor, void* output, DType type, int64_t first, int64_t stride) {
  const __m256 f = _mm256_set1_ps(factor);
  for (int64_t r = 0; r < rows; ++r) {
    alignas(32) float y[kStrip];
    LOWBIT_UNROLL for (int j = 0; j < kStrip; j += 8) {
      _mm256_store_ps(y + j, _mm256_fmadd_ps(_mm256_loadu_ps(c + r * kStrip + j), f,
                                             _mm256_loadu_ps(bias + j)));
    }
    narrow(output, type, first + r * stride, columns, y);
  }
}

}  // namespace
}  // namespace lowbit::kernels::cpu
