// Stateless functions over packed tensors: quantize, dequantize, multiply. Names and defaults are
// the ecosystem's. All of them run through the operator library `lowbit`, so they trace, and (where
// said) differentiate.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string_view>
#include <tuple>

#include "lowbit/quant_state.h"
#include "lowbit/types.h"

namespace lowbit {

// ---- 4-bit
// -----------------------------------------------------------------------------------------------------

struct Quantize4bitOptions {
  int64_t blocksize = 64;  ///< 32, 64, ..., 4096
  bool compress_statistics =
      false;  ///< quantize the statistics too (blocksize 256, signed dynamic map)
  QuantType quant_type = QuantType::kFP4;
  at::ScalarType quant_storage =
      at::kByte;  ///< dtype that the bytes are viewed as: uint8 or a float dtype
};

/// A: float32, float16 or bfloat16, any shape and layout. Returns packed [(numel + 1) / 2 /
/// itemsize, 1] (rounded up) of `quant_storage` and its state. Two codes a byte, the first in the
/// high nibble. Not differentiable. Non-finite values quantize as the format's reference does; see
/// count_nonfinite().
std::tuple<at::Tensor, QuantState> quantize_4bit(const at::Tensor& A,
                                                 const Quantize4bitOptions& options = {});

struct QuantizeTypedOptions {
  int64_t blocksize = 64;
  bool compress_statistics = false;
  at::ScalarType quant_storage = at::kByte;
};
std::tuple<at::Tensor, QuantState> quantize_nf4(const at::Tensor& A,
                                                const QuantizeTypedOptions& options = {});
std::tuple<at::Tensor, QuantState> quantize_fp4(const at::Tensor& A,
                                                const QuantizeTypedOptions& options = {});

/// Returns a tensor of state.shape and state.dtype. `packed` may be stored as any dtype, [bytes, 1]
/// or [1, bytes].
at::Tensor dequantize_4bit(const at::Tensor& packed, const QuantState& state);

/// x [..., K] times the transposed weight [N, K], plus bias [N]: [..., N] of x's dtype (float32,
/// float16, bfloat16). Accumulates in float32 and rounds once. Differentiable in x and bias. A
/// weight whose state.shape is [K, N] with N != K is multiplied untransposed.
at::Tensor matmul_4bit(const at::Tensor& x, const at::Tensor& packed, const QuantState& state,
                       const std::optional<at::Tensor>& bias = std::nullopt);

/// Experts of a mixture, after torch's grouped_mm(mat_a, mat_b, offs=): x [M, K], its rows sorted
/// by expert; packed and state: a stack of weights, state.shape = [E, N, K], each used transposed;
/// offs int32 [E]: the end of each expert's rows, so that expert e multiplies x[offs[e-1]:offs[e]].
/// Returns [M, N] of x's dtype, zeros in the rows behind the last end. Differentiable in x. On the
/// CPU descending ends and ends above M are errors; CUDA never reads offs back (graphs can be
/// captured and offs change between replays), and such ends give unspecified values there.
///
///   auto [packed, state] = quantize_nf4(w);              // w: [E, N, K]
///   auto order = expert_of_row.argsort();                // rows by expert
///   auto offs = at::bincount(expert_of_row, {}, E).cumsum(0).to(at::kInt);
///   auto y = grouped_mm_4bit(x.index({order}), packed, state, offs);
at::Tensor grouped_mm_4bit(const at::Tensor& x, const at::Tensor& packed, const QuantState& state,
                           const at::Tensor& offs);

/// The scales of all blocks, float32: state.absmax, or nested statistics expanded.
at::Tensor dequantize_absmax(const QuantState& state);

// ---- 8-bit, block-wise
// -----------------------------------------------------------------------------------------

struct QuantizeBlockwiseOptions {
  at::Tensor code = {};      ///< float32 [256], ascending; undefined: create_dynamic_map()
  int64_t blocksize = 4096;  ///< any positive number
  bool nested = false;       ///< quantize the statistics too, with the same blocksize
};

/// A: float32, float16 or bfloat16. Returns codes (uint8, A's shape) and their state (no shape, no
/// quant_type). Dettmers et al., "8-bit Optimizers via Block-wise Quantization",
/// https://arxiv.org/abs/2110.02861.
std::tuple<at::Tensor, QuantState> quantize_blockwise(const at::Tensor& A,
                                                      const QuantizeBlockwiseOptions& options = {});
/// codes: uint8. Returns a tensor of codes' shape and state.dtype.
at::Tensor dequantize_blockwise(const at::Tensor& codes, const QuantState& state);

// ---- LLM.int8(), https://arxiv.org/abs/2208.07339
// --------------------------------------------------------------

/// Row-wise: (q int8 of A's shape, row absmax float32 [rows], outlier columns int64 or none).
/// threshold > 0: elements of at least that magnitude are outliers; their columns are zero in q and
/// listed.
std::tuple<at::Tensor, at::Tensor, std::optional<at::Tensor>> int8_vectorwise_quant(
    const at::Tensor& A, double threshold = 0.0);
/// q * stats / 127, float32. q: [..., K], stats: [rows].
at::Tensor int8_vectorwise_dequant(const at::Tensor& A, const at::Tensor& stats);
/// (q by rows, q by columns, row stats, column stats, outlier columns or none).
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, std::optional<at::Tensor>>
int8_double_quant(const at::Tensor& A, double threshold = 0.0);
/// A int8 [..., K], B int8 [N, K]: exact int32 [..., N], any K.
at::Tensor int8_linear_matmul(const at::Tensor& A, const at::Tensor& B);
/// int32 [..., N] * row_stats * col_stats / 127^2 + bias, in float32, rounded once to `dtype`.
at::Tensor int8_mm_dequant(const at::Tensor& A, const at::Tensor& row_stats,
                           const at::Tensor& col_stats,
                           const std::optional<at::Tensor>& bias = std::nullopt,
                           at::ScalarType dtype = at::kHalf);
/// x [..., K] float32, float16 or bfloat16; CB int8 [N, K]; SCB float32 [N] (row absmax).
/// Differentiable in x and bias.
at::Tensor matmul_8bit(const at::Tensor& x, const at::Tensor& CB, const at::Tensor& SCB,
                       const std::optional<at::Tensor>& bias = std::nullopt,
                       double threshold = 0.0);

// ---- Code maps: float32, on the CPU
// ----------------------------------------------------------------------------

/// 8-bit dynamic tree map, ascending, 256 entries: https://arxiv.org/abs/1511.04561. The same bits
/// on every machine.
at::Tensor create_dynamic_map(bool is_signed = true, int64_t max_exponent_bits = 7,
                              int64_t total_bits = 8);
at::Tensor create_linear_map(bool is_signed = true, int64_t total_bits = 8, bool add_zero = true);
/// Quantiles of the normal distribution; the non-zero values of the default are NF4.
at::Tensor create_normal_map(double offset = 0.9677083, bool use_extra_value = true);
at::Tensor create_fp8_map(bool is_signed = true, int64_t exponent_bits = 5,
                          int64_t precision_bits = 2, int64_t total_bits = 8);
/// The 16 values of "nf4", "fp4", "int4" or "af4" (blocksize 64 only), in code order.
at::Tensor get_4bit_type(std::string_view name, at::Device device = at::kCPU,
                         int64_t blocksize = 64);

// ---- Checks
// ----------------------------------------------------------------------------------------------------

/// How many elements are NaN or infinite. Quantizing a non-finite weight loses it silently, so
/// callers that own a model ask first. float32, float16, bfloat16.
int64_t count_nonfinite(const at::Tensor& tensor);

/// Names the instruction set of the CPU kernels in use: "scalar", "avx2" or "avx512". The
/// environment variable LOWBIT_CPU_ISA, read when the library is loaded, chooses a lower one.
const char* cpu_isa();

}  // namespace lowbit
