// Argument checks that ref, cpu and cuda entries share.
#pragma once

#include "lowbit/kernels/blockwise.h"
#include "lowbit/kernels/fourbit.h"
#include "lowbit/kernels/int8.h"
#include "lowbit/kernels/optimizer.h"

namespace lowbit::kernels {

inline Status check_range(int64_t begin, int64_t end, int64_t units) noexcept {
  return 0 <= begin && begin <= end && end <= units ? ok_status()
                                                    : invalid_argument("range outside the units");
}

inline Status check_scales(const BlockScales& s) noexcept {
  if (s.nested()) {
    return s.absmax_code != nullptr && s.absmax2 != nullptr && s.absmax_offset != nullptr
               ? ok_status()
               : invalid_argument("nested scales need absmax_code, absmax2 and absmax_offset");
  }
  return s.absmax != nullptr ? ok_status() : invalid_argument("absmax is null");
}

inline Status check(const Quantize4bitParams& p) noexcept {
  if (p.numel < 0) return invalid_argument("numel < 0");
  if (p.blocksize < 2 || p.blocksize % 2 != 0) {
    return invalid_argument("blocksize must be even and positive");
  }
  if (p.numel > 0 && (p.input == nullptr || p.packed == nullptr || p.absmax == nullptr)) {
    return invalid_argument("null pointer");
  }
  return ok_status();
}

inline Status check(const Dequantize4bitParams& p) noexcept {
  if (p.numel < 0) return invalid_argument("numel < 0");
  if (p.blocksize < 2 || p.blocksize % 2 != 0) {
    return invalid_argument("blocksize must be even and positive");
  }
  if (p.numel == 0) return ok_status();
  if (p.packed == nullptr || p.output == nullptr) return invalid_argument("null pointer");
  return check_scales(p.scales);
}

/// output and bias follow the shapes of the forward matmul; for the backward one see its own entry.
inline Status check(const Matmul4bitParams& p) noexcept {
  if (p.m < 0 || p.n < 0 || p.k < 0) return invalid_argument("m, n or k < 0");
  if (p.blocksize < 2 || p.blocksize % 2 != 0) {
    return invalid_argument("blocksize must be even and positive");
  }
  if (p.m == 0 || p.n == 0) return ok_status();
  if (p.output == nullptr) return invalid_argument("null pointer");
  if (p.k == 0) return ok_status();
  if (p.input == nullptr || p.packed == nullptr) return invalid_argument("null pointer");
  return check_scales(p.scales);
}

/// The backward matmul: input is [m, n], output [m, k].
inline Status check_backward(const Matmul4bitParams& p) noexcept {
  if (p.m < 0 || p.n < 0 || p.k < 0) return invalid_argument("m, n or k < 0");
  if (p.blocksize < 2 || p.blocksize % 2 != 0) {
    return invalid_argument("blocksize must be even and positive");
  }
  if (p.m == 0 || p.k == 0) return ok_status();
  if (p.output == nullptr) return invalid_argument("null pointer");
  if (p.n == 0) return ok_status();
  if (p.input == nullptr || p.packed == nullptr) return invalid_argument("null pointer");
  return check_scales(p.scales);
}

inline Status check(const GroupedMatmul4bitParams& p) noexcept {
  if (p.experts < 1 || p.stack.n % p.experts != 0) {
    return invalid_argument("the stack's rows are no multiple of its experts");
  }
  if (p.stack.bias != nullptr || p.stack.code != nullptr) {
    return invalid_argument("a stack has no bias and no code");
  }
  if (p.stack.m > 0 && p.ends == nullptr) return invalid_argument("null pointer");
  return ok_status();
}

inline Status check(const Embedding4bitParams& p) noexcept {
  if (p.count < 0 || p.rows < 0 || p.dim < 0) return invalid_argument("count, rows or dim < 0");
  if (p.blocksize < 2 || p.blocksize % 2 != 0) {
    return invalid_argument("blocksize must be even and positive");
  }
  if (p.count == 0 || p.dim == 0) return ok_status();
  if (p.ids == nullptr || p.packed == nullptr || p.output == nullptr) {
    return invalid_argument("null pointer");
  }
  return check_scales(p.scales);
}

inline Status check(const QuantizeBlockwiseParams& p) noexcept {
  if (p.numel < 0) return invalid_argument("numel < 0");
  if (p.blocksize < 1) return invalid_argument("blocksize must be positive");
  if (p.numel > 0 &&
      (p.input == nullptr || p.code == nullptr || p.codes == nullptr || p.absmax == nullptr)) {
    return invalid_argument("null pointer");
  }
  return ok_status();
}

inline Status check(const DequantizeBlockwiseParams& p) noexcept {
  if (p.numel < 0) return invalid_argument("numel < 0");
  if (p.blocksize < 1) return invalid_argument("blocksize must be positive");
  if (p.numel > 0 &&
      (p.codes == nullptr || p.absmax == nullptr || p.code == nullptr || p.output == nullptr)) {
    return invalid_argument("null pointer");
  }
  return ok_status();
}

inline Status check(const QuantizeRowwiseParams& p) noexcept {
  if (p.rows < 0 || p.cols < 0) return invalid_argument("rows or cols < 0");
  if (!(p.threshold >= 0.0f)) return invalid_argument("threshold must not be negative");
  if (p.rows > 0 && p.stats == nullptr) return invalid_argument("null pointer");
  if (p.rows > 0 && p.cols > 0 &&
      (p.input == nullptr || p.q == nullptr ||
       (p.threshold > 0.0f && p.outlier_columns == nullptr))) {
    return invalid_argument("null pointer");
  }
  return ok_status();
}

inline Status check(const QuantizeColwiseParams& p) noexcept {
  if (p.rows < 0 || p.cols < 0) return invalid_argument("rows or cols < 0");
  if (!(p.threshold >= 0.0f)) return invalid_argument("threshold must not be negative");
  if (p.cols > 0 && p.stats == nullptr) return invalid_argument("null pointer");
  if (p.rows > 0 && p.cols > 0 && (p.input == nullptr || p.q == nullptr)) {
    return invalid_argument("null pointer");
  }
  return ok_status();
}

inline Status check(const DequantizeRowwiseParams& p) noexcept {
  if (p.rows < 0 || p.cols < 0) return invalid_argument("rows or cols < 0");
  if (p.rows > 0 && p.cols > 0 && (p.q == nullptr || p.stats == nullptr || p.output == nullptr)) {
    return invalid_argument("null pointer");
  }
  return ok_status();
}

inline Status check(const MatmulInt8Params& p) noexcept {
  if (p.m < 0 || p.n < 0 || p.k < 0) return invalid_argument("m, n or k < 0");
  if (p.m == 0 || p.n == 0) return ok_status();
  if (p.c == nullptr && p.output == nullptr) return invalid_argument("neither c nor output");
  if (p.output != nullptr && (p.row_stats == nullptr || p.col_stats == nullptr)) {
    return invalid_argument("output needs row_stats and col_stats");
  }
  if (p.k > 0 && (p.a == nullptr || p.b == nullptr)) return invalid_argument("null pointer");
  return ok_status();
}

inline Status check(const DequantizeMatmulParams& p) noexcept {
  if (p.rows < 0 || p.cols < 0) return invalid_argument("rows or cols < 0");
  if (p.rows > 0 && p.cols > 0 &&
      (p.a == nullptr || p.row_stats == nullptr || p.col_stats == nullptr || p.output == nullptr)) {
    return invalid_argument("null pointer");
  }
  return ok_status();
}

inline Status check(const CompactColumnsParams& p) noexcept {
  if (p.cols < 0) return invalid_argument("cols < 0");
  if (p.cols > INT32_MAX) return unsupported("more than 2^31 - 1 columns");
  if (p.count == nullptr || (p.cols > 0 && (p.flags == nullptr || p.columns == nullptr))) {
    return invalid_argument("null pointer");
  }
  return ok_status();
}

inline Status check(const DequantizeMixedParams& p) noexcept {
  if (const Status status = check(p.matmul); !status.ok()) return status;
  if (p.k < 0) return invalid_argument("k < 0");
  if (p.matmul.rows > 0 && p.matmul.cols > 0 &&
      (p.columns == nullptr || p.count == nullptr ||
       (p.k > 0 && (p.input == nullptr || p.q == nullptr)))) {
    return invalid_argument("null pointer");
  }
  return ok_status();
}

inline Status check(const EmbeddingInt8Params& p) noexcept {
  if (p.count < 0 || p.rows < 0 || p.dim < 0) return invalid_argument("count, rows or dim < 0");
  if (p.count > 0 && p.dim > 0 &&
      (p.ids == nullptr || p.q == nullptr || p.stats == nullptr || p.output == nullptr)) {
    return invalid_argument("null pointer");
  }
  return ok_status();
}

inline Status check(const LinearMixedInt8Params& p) noexcept {
  if (p.m < 0 || p.n < 0 || p.k < 0) return invalid_argument("m, n or k < 0");
  if (p.threshold < 0.0f) return invalid_argument("threshold < 0");
  if (p.m == 0 || p.n == 0) return ok_status();
  if (p.output == nullptr || p.stats == nullptr) return invalid_argument("null pointer");
  if (p.k > 0 && (p.input == nullptr || p.q == nullptr)) return invalid_argument("null pointer");
  return ok_status();
}

inline Status check(const LinearInt8Params& p) noexcept {
  if (p.m < 0 || p.n < 0 || p.k < 0) return invalid_argument("m, n or k < 0");
  if (p.m == 0 || p.n == 0) return ok_status();
  if (p.output == nullptr || p.stats == nullptr) return invalid_argument("null pointer");
  if (p.k > 0 && (p.input == nullptr || p.q == nullptr)) return invalid_argument("null pointer");
  return ok_status();
}

inline Status check(const OptimizerParams& p) noexcept {
  if (p.ntensors < 0 || p.nhypers < 0) return invalid_argument("ntensors or nhypers < 0");
  if (p.ntensors == 0) return ok_status();
  if (p.tensors == nullptr || p.hypers == nullptr) return invalid_argument("null pointer");
  const bool second = has_second_state(p.kind);
  if (p.blockwise && (p.map1 == nullptr || (second && p.map2 == nullptr))) {
    return invalid_argument("8-bit states need their maps");
  }
  bool limited = false;
  for (int64_t i = 0; i < p.ntensors; ++i) {
    const OptimizerTensor& t = p.tensors[i];
    if (t.numel < 0) return invalid_argument("numel < 0");
    if (t.hyper < 0 || t.hyper >= p.nhypers) return invalid_argument("hyper outside the hypers");
    const OptimizerHyper& h = p.hypers[t.hyper];
    if (h.step < 1 && h.step_value == nullptr) return invalid_argument("step < 1");
    if (h.max_unorm > 0 && !has_update_limit(p.kind)) {
      return unsupported("this update rule has no update limit");
    }
    limited = limited || h.max_unorm > 0;
    if (t.numel == 0) continue;
    if (t.p == nullptr || t.g == nullptr || t.state1 == nullptr ||
        (second && t.state2 == nullptr)) {
      return invalid_argument("null pointer");
    }
    if (p.blockwise && (t.absmax1 == nullptr || (second && t.absmax2 == nullptr))) {
      return invalid_argument("8-bit states need absmax");
    }
  }
  return limited && p.workspace == nullptr ? invalid_argument("an update limit needs the workspace")
                                           : ok_status();
}

/// check(params), then the range.
template <typename Params>
Status check(const Params& params, int64_t begin, int64_t end, int64_t units) noexcept {
  const Status status = check(params);
  return status.ok() ? check_range(begin, end, units) : status;
}

}  // namespace lowbit::kernels
