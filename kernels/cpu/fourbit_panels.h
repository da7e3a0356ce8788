// Many rows of the input: strips of 32 weight rows are decoded into a panel on the stack and
// multiplied with the rows in register tiles. Also the backward pass, whose panels need no
// transposition.
#pragma once

#include "fourbit_decode.h"
#include "fourbit_matmul.h"

namespace lowbit::kernels::cpu {
namespace {

constexpr int64_t kPanelBytes = 48 * 1024;  // both lines: half of it and the input fit L1
constexpr int64_t kPairDepth = kPanelBytes / (kStrip * 2);
constexpr int64_t kFloatDepth = kPanelBytes / (kStrip * 4);

/// Where a panel path finds its input: in the workspace, or in place.
struct PanelInput {
  const char* x = nullptr;
  int64_t stride = 0;  // bytes
  const float* scales = nullptr;
};

struct FastPanel {
  using Tile = ScaledPairTile;
  static constexpr int64_t kDepth = kPairDepth;
  static constexpr int64_t kElement = 2;
  IntegerTable integers;
  Int16Planes table;
  float factor;
  int64_t chunk;
  explicit FastPanel(const Matmul4bitParams& p)
      : integers(p.code, p.quant_type, false),
        table(integers.entries),
        factor(integers.unit),
        chunk(p.blocksize % kChunk == 0 ? kChunk : kChunk / 2) {}

  void decode(const Matmul4bitParams& p, int64_t n0, int64_t count, int64_t k0, int64_t depth,
              char* panel, float* scales) const {
    const StripRows rows(p.packed + n0 * (p.k / 2), p.k / 2, count);
    decode_pairs(rows, k0 / 2, depth / 32, table, panel, kPanelBytes / 2);
    strip_scales(p, n0, count, k0, depth / chunk, chunk, scales);
  }
  void describe(PanelPass& pass, const Matmul4bitParams& p, const PanelInput& in, int64_t m0,
                int64_t k0, int64_t depth, const float* scales) const {
    pass.steps = depth / 2;
    pass.chunk_steps = chunk / 2;
    pass.w_scale = scales;
    pass.x_scale_stride = p.k / kChunk;
    pass.x_scale = in.scales + m0 * pass.x_scale_stride + k0 / kChunk;
    pass.x_scale_shift = chunk == kChunk ? 0 : 1;
  }
};

struct ExactPanel {
  using Tile = FloatTile;
  static constexpr int64_t kDepth = kFloatDepth;
  static constexpr int64_t kElement = 4;
  FloatPlanes table;
  float factor = 1.0f;
  int64_t chunk;
  explicit ExactPanel(const Matmul4bitParams& p)
      : table(p.code), chunk(p.blocksize % kChunk == 0 ? kChunk : kChunk / 2) {}

  void decode(const Matmul4bitParams& p, int64_t n0, int64_t count, int64_t k0, int64_t depth,
              char* panel, float* scales) const {
    const StripRows rows(p.packed + n0 * (p.k / 2), p.k / 2, count);
    strip_scales(p, n0, count, k0, depth / chunk, chunk, scales);
    decode_floats(rows, k0 / 2, depth / 32, table, scales, chunk == kChunk ? 1 : 0, panel,
                  kPanelBytes / 2);
  }
  void describe(PanelPass& pass, const Matmul4bitParams&, const PanelInput&, int64_t, int64_t,
                int64_t depth, const float*) const {
    pass.steps = depth;
  }
};

struct AnyPanel {
  using Tile = FloatTile;
  static constexpr int64_t kDepth = kFloatDepth;
  static constexpr int64_t kElement = 4;
  PairTable table;
  float factor = 1.0f;
  explicit AnyPanel(const Matmul4bitParams& p) : table(p.code) {}

  void decode(const Matmul4bitParams& p, int64_t n0, int64_t count, int64_t k0, int64_t depth,
              char* panel, float*) const {
    for (int64_t r = 0; r < kStrip; ++r) {
      float row[kDepth];
      decode_flat(p, table, (n0 + std::min(r, count - 1)) * p.k + k0, depth, row);
      auto* column = reinterpret_cast<float*>(panel + r / 16 * (kPanelBytes / 2)) + r % 16;
      for (int64_t k = 0; k < depth; ++k) column[k * 16] = row[k];
    }
  }
  void describe(PanelPass& pass, const Matmul4bitParams&, const PanelInput&, int64_t, int64_t,
                int64_t depth, const float*) const {
    pass.steps = depth;
  }
};

template <typename Panel>
void run_panels(const Matmul4bitParams& p, int64_t slices, int64_t begin, int64_t end,
                const PanelInput& in) {
  alignas(64) char panel[kPanelBytes];
  alignas(64) float c[kSlabRows * kStrip];
  alignas(64) float scales[Panel::kDepth];
  const Panel kind(p);
  const int64_t height = slice_rows(p.m, slices);
  const int64_t pieces = std::max<int64_t>(1, ceil_div(p.k, Panel::kDepth));
  const int64_t piece = ceil_div(ceil_div(p.k, pieces), kChunk) * kChunk;
  int64_t decoded = -1;  // the strip whose single piece is in the panel
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t strip = unit / slices;
    const int64_t n0 = strip * kStrip, columns = std::min(kStrip, p.n - n0);
    float bias[kStrip] = {};
    if (p.bias != nullptr) widen(p.bias, p.bias_dtype, n0, columns, bias);
    const int64_t m_begin = unit % slices * height;
    const int64_t m_end = std::min(p.m, m_begin + height);
    for (int64_t m0 = m_begin; m0 < m_end; m0 += kSlabRows) {
      const int64_t rows = std::min(kSlabRows, m_end - m0);
      std::memset(c, 0, static_cast<size_t>(rows * kStrip) * 4);
      for (int64_t k0 = 0; k0 < p.k; k0 += piece) {
        const int64_t depth = std::min(piece, p.k - k0);
        if (decoded != strip) kind.decode(p, n0, columns, k0, depth, panel, scales);
        if (depth == p.k) decoded = strip;
        PanelPass pass;
        pass.x = in.x + m0 * in.stride + k0 * Panel::kElement;
        pass.x_stride = in.stride;
        pass.panel = panel;
        pass.line_stride = kPanelBytes / 2;
        pass.c = c;
        kind.describe(pass, p, in, m0, k0, depth, scales);
        run_panel<typename Panel::Tile>(pass, rows);
      }
      write_slab(c, rows, columns, bias, kind.factor, p.output, p.dtype, m0 * p.n + n0, p.n);
    }
  }
}

// ---- grad_input = grad_output * W: the sum runs over weight rows, so packed bytes already lie in
// the order of a panel's columns.

/// One weight row's 64 elements to 4 lines of 16 floats.
LOWBIT_INLINE void decode_slice(const uint8_t* w, const FloatPlanes& t, __m256 low_scale,
                                __m256 high_scale, float* out, int64_t line) {
  // Bytes in pairs: lane 0 takes pairs 0, 2, 4.., lane 1 pairs 1, 3, 5.., so that after the
  // unpacks each vector holds 8 ascending elements.
  const __m256i pairs = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,  //
                                         0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
  const __m256i v = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(load_bytes(w), pairs), 0xd8);
  const __m256i high = high_nibbles(v), low = low_nibbles(v);
  LOWBIT_UNROLL for (int half = 0; half < 2; ++half) {
    __m256 f[4];
    lookup_floats(t, half == 0 ? _mm256_unpacklo_epi8(high, low) : _mm256_unpackhi_epi8(high, low),
                  f);
    const __m256 s = half == 0 ? low_scale : high_scale;
    LOWBIT_UNROLL for (int i = 0; i < 4; ++i) {
      _mm256_store_ps(out + (half * 2 + i / 2) * line + i % 2 * 8, _mm256_mul_ps(f[i], s));
    }
  }
}

inline void run_backward(const Matmul4bitParams& p, int64_t begin, int64_t end) {
  constexpr int64_t kDepth = 128, kRows = 48;
  constexpr int64_t kLine = kDepth * 16;
  alignas(64) float panel[4 * kLine];
  alignas(64) float c[2][kRows * kStrip];
  alignas(64) float gradient[kRows * kDepth];
  alignas(64) float row[kBackwardSlice];
  const bool aligned = p.k % kBackwardSlice == 0 && p.blocksize % 32 == 0;
  const FloatPlanes planes(p.code);
  const PairTable pairs(p.code);
  const BlockIndex block_of(p.blocksize);
  const float zeros[kStrip] = {};
  for (int64_t slice = begin; slice < end; ++slice) {
    const int64_t k0 = slice * kBackwardSlice;
    const int64_t columns = std::min(kBackwardSlice, p.k - k0);
    for (int64_t m0 = 0; m0 < p.m; m0 += kRows) {
      const int64_t rows = std::min(kRows, p.m - m0);
      std::memset(c, 0, sizeof c);
      for (int64_t n0 = 0; n0 < p.n; n0 += kDepth) {
        const int64_t depth = std::min(kDepth, p.n - n0);
        for (int64_t d = 0; d < depth; ++d) {
          const int64_t i = (n0 + d) * p.k + k0;
          if (aligned) {
            const float s0 = scale_of_block(p.scales, block_of(i));
            const float s1 = scale_of_block(p.scales, block_of(i + 32));
            decode_slice(p.packed + i / 2, planes, _mm256_set1_ps(s0), _mm256_set1_ps(s1),
                         panel + d * 16, kLine);
          } else {
            std::memset(row, 0, sizeof row);
            decode_flat(p, pairs, i, columns, row);
            for (int l = 0; l < 4; ++l) std::memcpy(panel + l * kLine + d * 16, row + l * 16, 64);
          }
        }
        for (int64_t r = 0; r < rows; ++r) {
          widen(p.input, p.dtype, (m0 + r) * p.input_stride + n0, depth, gradient + r * kDepth);
        }
        for (int strip = 0; strip < 2; ++strip) {
          PanelPass pass;
          pass.x = reinterpret_cast<const char*>(gradient);
          pass.x_stride = kDepth * 4;
          pass.panel = reinterpret_cast<const char*>(panel + strip * 2 * kLine);
          pass.line_stride = kLine * 4;
          pass.steps = depth;
          pass.c = c[strip];
          run_panel<FloatTile>(pass, rows);
        }
      }
      for (int strip = 0; strip < 2; ++strip) {
        const int64_t left = std::min(kStrip, columns - strip * kStrip);
        if (left <= 0) break;
        write_slab(c[strip], rows, left, zeros, 1.0f, p.output, p.dtype,
                   m0 * p.k + k0 + strip * kStrip, p.k);
      }
    }
  }
}

}  // namespace
}  // namespace lowbit::kernels::cpu
