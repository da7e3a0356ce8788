// The 4-bit matmul for the instruction set of the including file: preparation and the choice of a
// path's kernel.
#pragma once

#include "fourbit_panels.h"
#include "fourbit_rows.h"

namespace lowbit::kernels::cpu {
namespace {

inline void prepare_row(MatmulPath path, const Matmul4bitParams& p, int64_t m) {
  auto* workspace = static_cast<char*>(p.workspace);
  const MatmulWorkspace layout = matmul_workspace(path, p.m, p.k, p.dtype);
  auto* scales = reinterpret_cast<float*>(workspace + layout.scales_at);
  const int64_t chunks = p.k / kChunk;
  if (path == MatmulPath::kPanelExact || path == MatmulPath::kPanelAny ||
      path == MatmulPath::kRowsAny) {
    widen(p.input, p.dtype, m * p.input_stride, p.k,
          reinterpret_cast<float*>(workspace) + m * panel_row(path, p.k));
    return;
  }
  alignas(32) float widened[kChunk] = {};
  for (int64_t c = 0; c < chunks; ++c) {
    const int64_t at = m * p.input_stride + c * kChunk;
    const float* x = static_cast<const float*>(p.input) + at;
    if (p.dtype != DType::kFloat32) {
      widen(p.input, p.dtype, at, kChunk, widened);
      x = widened;
    }
    if (path == MatmulPath::kRowsFast) {
      prepare_fast_chunk(x, reinterpret_cast<int16_t*>(workspace) + (c * p.m + m) * kChunk,
                         scales + c * p.m + m);
    } else if (path == MatmulPath::kRowsExact) {
      prepare_exact_chunk(x, reinterpret_cast<float*>(workspace) + (c * p.m + m) * kChunk);
    } else {
      __m256i e[4];
      scales[m * chunks + c] = quantize_chunk(x, kPanelLimit, e);
      auto* out =
          reinterpret_cast<__m256i*>(workspace + (m * panel_row(path, p.k) + c * kChunk) * 2);
      LOWBIT_UNROLL for (int i = 0; i < 4; ++i) _mm256_storeu_si256(out + i, e[i]);
    }
  }
}

void prepare(MatmulPath path, const Matmul4bitParams& p, int64_t begin, int64_t end) {
  for (int64_t m = begin; m < end; ++m) prepare_row(path, p, m);
}

void run(MatmulPath path, const Matmul4bitParams& p, int64_t slices, int64_t begin, int64_t end) {
  const char* workspace = static_cast<const char*>(p.workspace);
  const MatmulWorkspace layout = matmul_workspace(path, p.m, p.k, p.dtype);
  const auto* scales = reinterpret_cast<const float*>(workspace + layout.scales_at);
  PanelInput in{workspace, panel_row(path, p.k) * (path == MatmulPath::kPanelFast ? 2 : 4), scales};
  if (layout.bytes == 0) in = {static_cast<const char*>(p.input), p.input_stride * 4, nullptr};
  const int64_t first = begin * kRowsPerUnit, last = std::min(p.n, end * kRowsPerUnit);
  switch (path) {
    case MatmulPath::kScalar:
      return;
    case MatmulPath::kRowsFast:
      return run_rows_of<FastRows>(p, first, last, scales);
    case MatmulPath::kRowsExact:
      return run_rows_of<ExactRows>(p, first, last, nullptr);
    case MatmulPath::kRowsAny:
      return run_rows_any(p, first, last, reinterpret_cast<const float*>(in.x), in.stride / 4);
    case MatmulPath::kPanelFast:
      return run_panels<FastPanel>(p, slices, begin, end, in);
    case MatmulPath::kPanelExact:
      return run_panels<ExactPanel>(p, slices, begin, end, in);
    case MatmulPath::kPanelAny:
      return run_panels<AnyPanel>(p, slices, begin, end, in);
  }
}

}  // namespace
}  // namespace lowbit::kernels::cpu
