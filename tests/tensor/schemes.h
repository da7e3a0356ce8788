// Every way to keep a weight.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "lowbit/quantize.h"

namespace lowbit::test {

struct NamedConfig {
  std::string name;
  QuantizationConfig config;
};

inline std::vector<NamedConfig> all_schemes() {
  using Config = QuantizationConfig;
  return {{"nf4", Config::nf4()},
          {"nf4 double quant", Config::nf4().double_quant(true)},
          {"fp4 blocksize 128", Config::fp4().blocksize(128)},
          {"nf4 bfloat16 storage", Config::nf4().quant_storage(at::kBFloat16)},
          {"int8", Config::int8(0.0)},
          {"int8 threshold", Config::int8(6.0)},
          {"int8 weight only", Config::int8_weight_only()}};
}

/// LLM.int8() rounds activations to 8 bits, too: a percent.
inline double product_tolerance(const QuantizationConfig& config, at::ScalarType dtype) {
  if (config.scheme() == QuantScheme::kInt8) return 2e-2;
  return dtype == at::kFloat ? 2e-6 : dtype == at::kHalf ? 1e-3 : 5e-3;
}

}  // namespace lowbit::test
