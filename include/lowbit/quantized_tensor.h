// A quantized weight as an ordinary at::Tensor: it has the shape, dtype and device of the weight it
// stands for, lives in Module::parameters(), moves with to(), and the ordinary operators (linear,
// mm, addmm, matmul, bmm, embedding, t, select) read its packed numbers through fused kernels. Any
// other operator works on a dequantized copy, and is counted. It never requires grad; gradients
// flow through it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "lowbit/quant_state.h"
#include "lowbit/types.h"

namespace lowbit {

/// How the numbers of a quantized weight are kept.
enum class QuantScheme : int8_t {
  kNF4,
  kFP4,
  kInt8,           ///< row-wise int8; activations are quantized too: LLM.int8()
  kInt8WeightOnly  ///< row-wise int8; activations stay in floating point
};
/// "nf4", "fp4", "int8" or "int8 (weight only)".
const char* to_string(QuantScheme scheme) noexcept;
constexpr bool is_4bit(QuantScheme scheme) noexcept {
  return scheme == QuantScheme::kNF4 || scheme == QuantScheme::kFP4;
}

/// Whether `tensor` is a quantized weight of this library (torch's own quantized tensors are not).
bool is_quantized(const at::Tensor& tensor) noexcept;

// The following throw c10::Error when `weight` is not quantized.

QuantScheme quant_scheme(const at::Tensor& weight);
/// The state of a 4-bit weight. Its dtype is the one at quantization, whatever was cast since.
/// Throws for an int8 weight, which has row_scales().
const QuantState& quant_state(const at::Tensor& weight);
/// The codes, not copied: 4-bit: packed bytes [bytes, 1] of the storage dtype; int8: weight's
/// shape.
at::Tensor packed_weight(const at::Tensor& weight);
/// float32 [rows]: largest magnitude of each row of an int8 weight. Throws for a 4-bit one.
at::Tensor row_scales(const at::Tensor& weight);
/// LLM.int8()'s outlier threshold (0: no outliers); 0 for the other schemes.
double int8_threshold(const at::Tensor& weight);
/// The dtype that products are computed in; none: the input's.
std::optional<at::ScalarType> compute_dtype(const at::Tensor& weight);
/// Bytes of codes and statistics.
int64_t quantized_nbytes(const at::Tensor& weight);
/// One line: "nf4 [4096, 4096], bfloat16, blocksize 64, double quant, 4.13 bits, cpu".
std::string describe(const at::Tensor& weight);

/// The dense weight, in its dtype() unless another is given.
at::Tensor dequantize(const at::Tensor& weight, std::optional<at::ScalarType> dtype = std::nullopt);

// ---- From packed numbers

/// A weight of state.shape (at least 1-D) and state.dtype from its bytes. Nothing is copied: the
/// tensors may point into a mapped file, whose owner they keep alive. Throws c10::Error for sizes
/// or dtypes that do not fit together.
at::Tensor quantized_from_4bit(const at::Tensor& packed, QuantState state,
                               std::optional<at::ScalarType> compute_dtype = std::nullopt);

struct Int8WeightOptions {
  at::ScalarType dtype = at::kHalf;  ///< of the weight it stands for
  double threshold = 0.0;            ///< LLM.int8(): outliers from here on; 0: none
  bool weight_only = false;
  std::optional<at::ScalarType> compute_dtype = std::nullopt;
};
/// CB: int8 [..., rows, K]; SCB: float32, as many as rows in all. Nothing is copied.
at::Tensor quantized_from_int8(const at::Tensor& CB, const at::Tensor& SCB,
                               const Int8WeightOptions& options = {});

// ---- As entries of a file

/// What files of the ecosystem hold for a quantized parameter called `name` ("layers.0.weight"):
/// 4-bit: name, name.absmax, name.quant_map, nested ones, name.quant_state.bitsandbytes__nf4;
/// int8: name, and beside it SCB and weight_format. Tensors share the weight's memory.
std::map<std::string, at::Tensor> quantized_entries(const std::string& name,
                                                    const at::Tensor& weight);
/// The inverse: a quantized weight from the entries of `name`, or none when they are not those of a
/// quantized weight. Throws c10::Error naming the entry for what does not fit together. `options`
/// say what the entries do not: for int8 all of it, for 4-bit compute_dtype.
std::optional<at::Tensor> quantized_from_entries(const std::string& name,
                                                 const std::map<std::string, at::Tensor>& entries,
                                                 const Int8WeightOptions& options = {});

// ---- The fallback

/// How often an operator without a quantized path got a dequantized copy of a weight (whole
/// process). A model that raises it in forward pays for it in time and memory.
int64_t fallback_count() noexcept;
/// The operator that raised it last ("aten::add.Tensor"); empty when none did.
std::string last_fallback();
void reset_fallback_count() noexcept;

}  // namespace lowbit
