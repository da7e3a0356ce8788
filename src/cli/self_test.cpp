#include "cli/self_test.h"

#include <ATen/ATen.h>

#include <limits>

#include "cli/shapes.h"
#include "lowbit/functional.h"
#include "lowbit/llm/auto.h"
#include "lowbit/quantize.h"

namespace lowbit::cli {
namespace {

double relative_error(const at::Tensor& got, const at::Tensor& expected) {
  const auto e = expected.to(at::kCPU, at::kDouble);
  return ((got.to(at::kCPU, at::kDouble) - e).norm() / e.norm()).item<double>();
}

/// Differing elements; infinite for another shape.
double differing(const at::Tensor& got, const at::Tensor& expected) {
  if (got.numel() != expected.numel()) return std::numeric_limits<double>::infinity();
  return got.cpu().flatten().ne(expected.flatten()).sum().item<double>();
}

/// Twice the table: every element is exactly a code, absmax is 2.
double code_error(const char* type, at::Device device) {
  const auto values = get_4bit_type(type) * 2;
  const auto [packed, state] =
      quantize_4bit(values.to(device), {.quant_type = parse_quant_type(type)});
  return differing(dequantize_4bit(packed, state), values);
}

/// Weights quantized on the device against the CPU's. Ties of rounding may fall either way.
double weight_error(const QuantizationConfig& config, at::Device device) {
  const auto w = at::randn({192, 320});
  return relative_error(lowbit::dequantize(quantize(w.to(device), config)),
                        lowbit::dequantize(quantize(w, config)));
}

/// A layer on the device against float64 arithmetic on the CPU's dequantized weights.
double linear_error(const QuantizationConfig& config, at::ScalarType dtype, int64_t tokens,
                    at::Device device) {
  const auto w = at::randn({192, 320}).to(dtype), x = at::randn({tokens, 320}).to(dtype),
             b = at::randn({192}).to(dtype);
  const auto qw = quantize(w, config);
  return relative_error(
      at::linear(x.to(device), qw.to(device), b.to(device)),
      at::linear(x.to(at::kDouble), lowbit::dequantize(qw).to(at::kDouble), b.to(at::kDouble)));
}

double blockwise_error(at::Device device) {
  const auto map = create_dynamic_map();
  return differing(std::get<0>(quantize_blockwise(map.to(device), {.blocksize = 256})),
                   at::arange(256));
}

double integer_error(at::Device device) {
  const auto a = at::randint(-127, 128, {7, 301}, at::kChar),
             b = at::randint(-127, 128, {33, 301}, at::kChar);
  return differing(int8_linear_matmul(a.to(device), b.to(device)),
                   at::matmul(a.to(at::kLong), b.to(at::kLong).t()));
}

/// Two layers of a small Llama: the logits after a prompt and two single tokens, through the cache
/// and the fused kernels, against one forward of all tokens on the CPU.
double decoder_error(at::Device device) {
  auto config = shape_config("smollm2-135m");
  config.num_hidden_layers = 2;
  config.vocab_size = 320;
  config.max_position_embeddings = 64;
  const auto reference = llm::AutoModelForCausalLM::from_config(config, {.device_map = "cpu"});
  auto model = reference;
  if (!device.is_cpu()) {
    model = llm::AutoModelForCausalLM::from_config(config, {.device_map = device.str()});
    const auto from = reference.module()->parameters();
    auto to = model.module()->parameters();
    for (size_t i = 0; i < to.size(); ++i) to[i].copy_(from[i]);
  }
  const std::vector<int64_t> ids = {7, 300, 12, 5, 250, 99, 1, 64, 200};
  auto cache = model.new_cache(1, 16);
  (void)model.next_logits({ids.begin(), ids.end() - 2}, cache);
  (void)model.next_logits({ids[ids.size() - 2]}, cache);
  const auto last = model.next_logits({ids.back()}, cache);
  return relative_error(last, reference.logits(ids)[static_cast<int64_t>(ids.size()) - 1]);
}

}  // namespace

std::vector<SelfTest> self_tests(at::Device device) {
  const auto nf4 = QuantizationConfig::nf4().double_quant(true), fp4 = QuantizationConfig::fp4(),
             int8 = QuantizationConfig::int8(6.0), only = QuantizationConfig::int8_weight_only();
  const auto linear = [device](const QuantizationConfig& config, at::ScalarType dtype,
                               int64_t tokens) {
    return [=] { return linear_error(config, dtype, tokens, device); };
  };
  std::vector<SelfTest> tests = {
      {"fourbit", "NF4 codes", [=] { return code_error("nf4", device); }, 0},
      {"fourbit", "FP4 codes", [=] { return code_error("fp4", device); }, 0},
      {"blockwise", "dynamic map codes", [=] { return blockwise_error(device); }, 0},
      {"int8", "int32 matmul", [=] { return integer_error(device); }, 0},
      {"int8", "LLM.int8() matmul", linear(int8, at::kFloat, 5), 2e-2},
      {"int8", "weight-only matmul", linear(only, at::kFloat, 5), 1e-3},
      {"matmul", "NF4 matmul", linear(nf4, at::kFloat, 5), 1e-4},
      {"matmul", "FP4 matmul", linear(fp4, at::kFloat, 5), 1e-4},
      {"matmul", "NF4 matmul, bfloat16, 1 token", linear(nf4, at::kBFloat16, 1), 1e-2},
      {"matmul", "NF4 matmul, bfloat16, 40 tokens", linear(nf4, at::kBFloat16, 40), 1e-2},
      {"decoder", "logits of a small Llama", [=] { return decoder_error(device); }, 3e-2},
  };
  if (!device.is_cpu()) {
    tests.push_back(
        {"fourbit", "NF4 weights as on the CPU", [=] { return weight_error(nf4, device); }, 1e-2});
    tests.push_back(
        {"int8", "int8 weights as on the CPU", [=] { return weight_error(int8, device); }, 1e-3});
  }
  return tests;
}

}  // namespace lowbit::cli
