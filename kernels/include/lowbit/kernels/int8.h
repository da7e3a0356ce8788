// LLM.int8(): row-wise int8 quantization with outliers, exact int8 matmul with a fused epilogue,
// embedding gather.
#pragma once

#include <cstdint>

#include "lowbit/kernels/device.h"
#include "lowbit/kernels/types.h"

namespace lowbit::kernels {

/// Row-wise quantization of A[rows, cols]: q = rint(A * (1/s * 127)), ties to even, s = max |A|
/// over the row's non-outliers. NaN is ignored in s and gives q = 0; a row with an infinity that is
/// no outlier gives q = 0. An element is an outlier iff threshold > 0 and |A| >= threshold;
/// outliers get q = 0, and with rows > 1 their whole column does (see zero_outlier_columns). The
/// threshold is rounded to float16 once.
struct QuantizeRowwiseParams {
  const void* input = nullptr;  ///< [rows, cols], rows `input_stride` elements apart
  int64_t input_stride = 0;
  DType input_dtype = DType::kFloat16;
  int64_t rows = 0, cols = 0;
  float threshold = 0.0f;
  int8_t* q = nullptr;     ///< [rows, cols], contiguous
  float* stats = nullptr;  ///< [rows]
  uint8_t* outlier_columns =
      nullptr;  ///< [cols], zeroed by the caller; set to 1 where a column holds an outlier. May be
                ///< null when threshold <= 0. Threads may share it (relaxed stores of 1).
};

/// Column-wise quantization (the `col` half of int8_double_quant): stats[k] = max |A[:,k]| over
/// non-outliers, q = rint(round(A * 127) / stats), where round is to the type of the input.
struct QuantizeColwiseParams {
  const void* input = nullptr;
  int64_t input_stride = 0;
  DType input_dtype = DType::kFloat16;
  int64_t rows = 0, cols = 0;
  float threshold = 0.0f;
  int8_t* q = nullptr;     ///< [rows, cols], contiguous
  float* stats = nullptr;  ///< [cols]
};

/// output = q * stats[row] / 127 (float32 product order of the format: f32(f32(q * s) *
/// 0x3c010204), then rounded).
struct DequantizeRowwiseParams {
  const int8_t* q = nullptr;  ///< [rows, cols]
  const float* stats = nullptr;
  int64_t rows = 0, cols = 0;
  void* output = nullptr;
  DType output_dtype = DType::kFloat32;
};

/// C[M,N] = A[M,K] * B[N,K]^T, exact in int32, any K.
struct MatmulInt8Params {
  const int8_t* a = nullptr;  ///< [M, K], contiguous
  const int8_t* b = nullptr;  ///< [N, K], contiguous
  int64_t m = 0, n = 0, k = 0;
  int32_t* c = nullptr;  ///< [M, N] or null when fused (below)
  // Fused epilogue: output = C * row_stats[m] * col_stats[n] / 127^2 + bias[n], float32, one
  // rounding to output_dtype.
  const float* row_stats = nullptr;
  const float* col_stats = nullptr;
  const void* bias = nullptr;
  DType bias_dtype = DType::kFloat32;
  void* output = nullptr;  ///< [M, N] or null
  DType output_dtype = DType::kFloat32;
};

/// The epilogue alone, over an int32 matrix.
struct DequantizeMatmulParams {
  const int32_t* a = nullptr;  ///< [rows, cols]
  const float* row_stats = nullptr;
  const float* col_stats = nullptr;
  const void* bias = nullptr;
  DType bias_dtype = DType::kFloat32;
  int64_t rows = 0, cols = 0;
  void* output = nullptr;
  DType output_dtype = DType::kFloat16;
};

/// The columns whose flag is set, in ascending order, and how many they are: a list that the device
/// writes for itself.
struct CompactColumnsParams {
  const uint8_t* flags = nullptr;  ///< [cols]
  int64_t cols = 0;
  int32_t* columns = nullptr;  ///< [cols]; [0, count) is written
  int32_t* count = nullptr;    ///< one value
};

/// The epilogue of LLM.int8() with outliers: dequantize_matmul, plus the sum over the listed
/// columns k of input[r, k] * (q[c, k] * col_stats[c] / 127), float32, one rounding. cols of
/// `matmul` is N.
struct DequantizeMixedParams {
  DequantizeMatmulParams matmul;
  const void* input = nullptr;  ///< [rows, K]
  int64_t input_stride = 0;
  DType input_dtype = DType::kFloat16;
  const int8_t* q = nullptr;  ///< [N, K]: the weight's codes
  int64_t k = 0;
  const int32_t* columns = nullptr;  ///< of CompactColumnsParams
  const int32_t* count = nullptr;
};

/// output[i, :] = q[ids[i], :] * stats[ids[i]] / 127
struct EmbeddingInt8Params {
  const int64_t* ids = nullptr;  ///< as in Embedding4bitParams
  int64_t count = 0;
  int64_t rows = 0, dim = 0;
  const int8_t* q = nullptr;
  const float* stats = nullptr;
  void* output = nullptr;
  DType output_dtype = DType::kFloat32;
};

/// Weight-only int8 linear: output[M,N] = input[M,K] * (q[N,K] * stats[N] / 127)^T + bias;
/// activations are not quantized to 8 bits. Used for 8-bit heads.
struct LinearInt8Params {
  const void* input = nullptr;
  int64_t input_stride = 0;
  DType dtype = DType::kFloat32;
  int64_t m = 0, n = 0, k = 0;
  const int8_t* q = nullptr;
  const float* stats = nullptr;
  const void* bias = nullptr;
  DType bias_dtype = DType::kFloat32;
  void* output = nullptr;
};

/// LLM.int8() as one operation: output[M,N] = epilogue(quantized input * q^T) + the product of the
/// outlier columns (quantize_rowwise, matmul_int8, dequantize_mixed), one rounding.
struct LinearMixedInt8Params {
  const void* input = nullptr;  ///< [M, K], rows `input_stride` elements apart
  int64_t input_stride = 0;
  DType dtype = DType::kFloat16;  ///< of input and output
  int64_t m = 0, n = 0, k = 0;
  const int8_t* q = nullptr;     ///< [N, K], contiguous
  const float* stats = nullptr;  ///< [N]
  const void* bias = nullptr;
  DType bias_dtype = DType::kFloat32;
  float threshold = 0.0f;
  void* output = nullptr;  ///< [M, N], contiguous
  // LinearMixedRoute::kLarge: the input and the flags as quantize_rowwise leaves them (columns of
  // outliers need not be cleared), aligned to 16 bytes.
  const int8_t* input_q = nullptr;
  const float* input_stats = nullptr;
  const uint8_t* outlier_columns = nullptr;  ///< may be null without a threshold
  /// LinearMixedRoute::kSmall: LinearMixedPlan::workspace_bytes, aligned to 16 bytes.
  void* workspace = nullptr;
};

namespace ref {
/// Unit: row.
Status quantize_rowwise(const QuantizeRowwiseParams& params, int64_t begin, int64_t end) noexcept;
/// Unit: column.
Status quantize_colwise(const QuantizeColwiseParams& params, int64_t begin, int64_t end) noexcept;
/// Unit: row.
Status dequantize_rowwise(const DequantizeRowwiseParams& params, int64_t begin,
                          int64_t end) noexcept;
/// Unit: output column n.
Status matmul_int8(const MatmulInt8Params& params, int64_t begin, int64_t end) noexcept;
/// Unit: row.
Status dequantize_matmul(const DequantizeMatmulParams& params, int64_t begin, int64_t end) noexcept;
/// Unit: output column n.
Status linear_int8(const LinearInt8Params& params, int64_t begin, int64_t end) noexcept;
}  // namespace ref

namespace cpu {
Status quantize_rowwise(const QuantizeRowwiseParams& params, int64_t begin, int64_t end) noexcept;
/// Unit: row. Clears q in the columns that are set in outlier_columns (second phase, rows > 1).
Status zero_outlier_columns(const QuantizeRowwiseParams& params, int64_t begin,
                            int64_t end) noexcept;
Status quantize_colwise(const QuantizeColwiseParams& params, int64_t begin, int64_t end) noexcept;
Status dequantize_rowwise(const DequantizeRowwiseParams& params, int64_t begin,
                          int64_t end) noexcept;
Status matmul_int8(const MatmulInt8Params& params, int64_t begin, int64_t end) noexcept;
Status dequantize_matmul(const DequantizeMatmulParams& params, int64_t begin, int64_t end) noexcept;
/// Unit: id.
Status embedding_int8(const EmbeddingInt8Params& params, int64_t begin, int64_t end) noexcept;
Status linear_int8(const LinearInt8Params& params, int64_t begin, int64_t end) noexcept;
}  // namespace cpu

/// The CUDA entries, in builds with CUDA; see fourbit.h. Outliers are marked, listed and multiplied
/// on the device, so that the sequence is capturable whatever the data.
namespace cuda {
Status quantize_rowwise(const QuantizeRowwiseParams& params, Stream stream) noexcept;
Status zero_outlier_columns(const QuantizeRowwiseParams& params, Stream stream) noexcept;
Status compact_columns(const CompactColumnsParams& params, Stream stream) noexcept;
Status quantize_colwise(const QuantizeColwiseParams& params, Stream stream) noexcept;
Status dequantize_rowwise(const DequantizeRowwiseParams& params, Stream stream) noexcept;
Status dequantize_matmul(const DequantizeMatmulParams& params, Stream stream) noexcept;
Status dequantize_mixed(const DequantizeMixedParams& params, Stream stream) noexcept;
Status embedding_int8(const EmbeddingInt8Params& params, Stream stream) noexcept;

/// Who multiplies: the kernel here, or the caller's library (cuBLASLt) and dequantize_matmul.
enum class MatmulInt8Route : int8_t {
  kKernel,   ///< matmul_int8 below: reads the weight once for up to 16 rows
  kLibrary,  ///< tensor cores through the library: k and n multiples of 8, m > 16
  kPadded,   ///< the same after zeros are appended to k (to a multiple of 16) and n (of 8)
};
/// A pure function of the sizes.
MatmulInt8Route plan_matmul_int8(int64_t m, int64_t n, int64_t k) noexcept;
/// Any size; meant for few rows.
Status matmul_int8(const MatmulInt8Params& params, Stream stream) noexcept;

/// Which kernels run LLM.int8().
enum class LinearMixedRoute : int8_t {
  kParts,  ///< one after the other: quantize_rowwise, a matmul, dequantize_mixed
  kSmall,  ///< linear_mixed_int8 alone: it quantizes the input into its workspace
  kLarge,  ///< quantize_rowwise, linear_mixed_int8
};
struct LinearMixedPlan {
  LinearMixedRoute route = LinearMixedRoute::kParts;
  int32_t variant = 0, grid = 0, threads = 0;
  int64_t shared_bytes = 0, workspace_bytes = 0;
  bool programmatic = false;  ///< the second launch may begin before the first has ended
  const char* name = "parts";
};
/// A pure function of sizes, dtypes, alignments and the device.
LinearMixedPlan plan_linear_mixed_int8(const LinearMixedInt8Params& params,
                                       const DeviceProperties& device) noexcept;
/// Of a plan that is not kParts.
Status linear_mixed_int8(const LinearMixedPlan& plan, const LinearMixedInt8Params& params,
                         Stream stream) noexcept;

/// Rows up to which linear_int8 is faster than a dequantized weight and a library matmul.
inline constexpr int64_t kMostRowsOfLinearInt8 = 8;
/// Any size; meant for few rows.
Status linear_int8(const LinearInt8Params& params, Stream stream) noexcept;
}  // namespace cuda

}  // namespace lowbit::kernels
