// Checks of the LLM.int8() ops (any device).
#pragma once

#include "ops/check.h"

namespace lowbit::ops {

inline void check_quantize_int8(const char* op, const at::Tensor& A, double threshold) {
  check_float(op, "A", A);
  LOWBIT_CHECK(A.dim() >= 1, op, "A", "[..., K]", "a 0-dim tensor");
  LOWBIT_CHECK(threshold >= 0.0, op, "threshold", "0 (no outliers) or positive", threshold);
}

inline void check_matmul_int8(const char* op, const at::Tensor& A, const at::Tensor& B) {
  check_dtype(op, "A", A, at::kChar);
  check_dtype(op, "B", B, at::kChar);
  check_device(op, "B", B, A.device());
  check_rank(op, "B", B, 2);
  LOWBIT_CHECK(A.dim() >= 1, op, "A", "[..., K]", "a 0-dim tensor");
  LOWBIT_CHECK(A.sym_size(-1) == B.sym_size(1), op, "A",
               c10::str("[..., ", B.sym_size(1), "] (B is ", B.sym_sizes(), ")"),
               c10::str("shape ", A.sym_sizes()));
}

/// Statistics of an epilogue over [..., columns].
inline void check_epilogue(const char* op, const char* row_name, const char* col_name,
                           const at::Tensor& row_stats, const at::Tensor& col_stats,
                           c10::SymInt rows, c10::SymInt columns, at::Device device,
                           at::ScalarType dtype) {
  for (const auto& [name, stats, length] :
       {std::tuple(row_name, &row_stats, rows), std::tuple(col_name, &col_stats, columns)}) {
    check_dtype(op, name, *stats, at::kFloat);
    check_device(op, name, *stats, device);
    LOWBIT_CHECK(stats->sym_numel() == length, op, name, c10::str(length, " elements long"),
                 c10::str("shape ", stats->sym_sizes()));
  }
  check_float(op, "dtype", dtype);
}

}  // namespace lowbit::ops
