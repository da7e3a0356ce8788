// Quantizing one tensor under a name, for messages that say which.
#pragma once

#include <string>

#include "lowbit/quantize.h"

namespace lowbit::nn {

/// lowbit::quantize; errors name `op` and `argument`.
at::Tensor quantize_named(const char* op, const std::string& argument, const at::Tensor& w,
                          const QuantizationConfig& config);
/// Throws what quantize_named would, non-finite elements aside.
void check_quantizable(const char* op, const std::string& argument, const at::Tensor& w,
                       const QuantizationConfig& config);
/// Bytes of codes and statistics of a weight of this shape.
int64_t planned_nbytes(at::IntArrayRef shape, const QuantizationConfig& config);
/// "nf4, blocksize 64, double quant"
std::string scheme_text(const QuantizationConfig& config);

}  // namespace lowbit::nn
