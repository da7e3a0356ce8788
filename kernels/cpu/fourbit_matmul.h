// The paths of the 4-bit matmul on the CPU and what the plan, the preparation and the kernels must
// agree on.
#pragma once

#include "lowbit/kernels/fourbit.h"

namespace lowbit::kernels::cpu {

/// Aligned paths need K % 64 == 0 and blocksize % 32 == 0, so that every chunk of 32 or 64 elements
/// is a run of whole bytes in one block. The kAny paths take everything else.
enum class MatmulPath : int32_t {
  kScalar = 0,
  kRowsFast,    // few rows: dot products in int16, weights read once in one ascending stream
  kRowsExact,   // few rows: dot products in float32
  kRowsAny,     // few rows, any alignment, float32
  kPanelFast,   // many rows: strips of 32 weight rows decoded to int16
  kPanelExact,  // many rows: strips decoded to float32
  kPanelAny,    // many rows, any alignment, float32
};

inline constexpr int64_t kChunk = 64;          // elements that share a scale of the activations
inline constexpr int64_t kMaxRows = 4;         // of the kRows paths
inline constexpr int64_t kRowsPerUnit = 8;     // weight rows in a unit of the kRows paths
inline constexpr int64_t kStripRows = 32;      // weight rows in a strip of the kPanel paths
inline constexpr int64_t kBackwardSlice = 64;  // columns of K in a unit of the backward pass

/// Slices of the input's rows that each strip of weights is cut into: narrow weights alone would
/// not occupy 16 threads. A slice decodes its strip anew, which costs a few percent at 64 rows.
constexpr int64_t panel_slices(int64_t m, int64_t strips) {
  const int64_t wanted = ceil_div(48, strips);
  const int64_t most = m / 64 > 1 ? m / 64 : 1;
  return wanted < most ? wanted : most;
}
/// Rows of a slice, whole tiles of either instruction set; the last slice may be short or empty.
constexpr int64_t slice_rows(int64_t m, int64_t slices) {
  return ceil_div(ceil_div(m, slices), 12) * 12;
}

/// Elements between rows of the input in a panel path's workspace: a line more than K, since rows a
/// multiple of 4096 bytes apart share one set of the L1 cache, and a tile reads 12 of them in step.
constexpr int64_t panel_row(MatmulPath path, int64_t k) {
  return path == MatmulPath::kPanelFast ? k + 32 : k + 16;
}

/// Activations in the workspace: elements, then (fast paths) one float per row and chunk.
/// kRowsFast int16 and kRowsExact float: [chunk][m][64] in the order in which codes unpack, scales
/// [chunk][m]. kPanelFast int16: [m][panel_row], scales [m][chunk]. Others: float [m][panel_row],
/// absent where the input can be read in place.
struct MatmulWorkspace {
  int64_t scales_at = 0, bytes = 0;
};
constexpr MatmulWorkspace matmul_workspace(MatmulPath path, int64_t m, int64_t k, DType dtype) {
  MatmulWorkspace w;
  switch (path) {
    case MatmulPath::kScalar:
      break;
    case MatmulPath::kRowsFast:
    case MatmulPath::kPanelFast: {
      const int64_t row = path == MatmulPath::kPanelFast ? panel_row(path, k) : k;
      w.scales_at = ceil_div(m * row * 2, 64) * 64;
      w.bytes = w.scales_at + m * (k / kChunk) * 4;
      break;
    }
    case MatmulPath::kRowsExact:
      w.bytes = m * k * 4;
      break;
    case MatmulPath::kRowsAny:
      if (dtype != DType::kFloat32) w.bytes = m * panel_row(path, k) * 4;
      break;
    case MatmulPath::kPanelExact:
    case MatmulPath::kPanelAny:
      if (dtype != DType::kFloat32 || k % 1024 == 0) w.bytes = m * panel_row(path, k) * 4;
      break;
  }
  return w;
}

/// One instruction set's kernels. params.code is never null here. Not for kScalar.
struct MatmulKernels {
  /// Unit: row of the input.
  void (*prepare)(MatmulPath path, const Matmul4bitParams& params, int64_t begin, int64_t end);
  void (*run)(MatmulPath path, const Matmul4bitParams& params, int64_t slices, int64_t begin,
              int64_t end);
  void (*backward)(const Matmul4bitParams& params, int64_t begin, int64_t end);
};
extern const MatmulKernels kMatmulAvx2;
extern const MatmulKernels kMatmulAvx512;

}  // namespace lowbit::kernels::cpu
