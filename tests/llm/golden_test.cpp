// Checkpoints written by the reference stack, and the logits that it computed from them.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "lowbit/io/safetensors.h"
#include "lowbit/llm/auto.h"
#include "lowbit/quantized_tensor.h"
#include "support/golden_dir.h"
#include "tiny.h"

namespace lowbit::llm {
namespace {

const std::string kGolden = lowbit::test::golden_dir();

class Golden : public ::testing::TestWithParam<const char*> {
 protected:
  std::string directory() const { return kGolden + "/hf/" + GetParam(); }
  static at::Tensor recorded(const std::string& name) {
    const auto file = io::SafetensorsFile::open(kGolden + "/hf_logits.safetensors");
    return to_tensor(file.tensor(name)).clone();
  }
};

TEST_P(Golden, LogitsAreTheRecordedOnes) {
  reset_fallback_count();
  const CausalLM model = AutoModelForCausalLM::from_pretrained(directory());
  EXPECT_EQ(model.dtype(), at::kBFloat16);
  const at::Tensor ids = recorded("ids");
  const at::Tensor expected = recorded(std::string(GetParam()) + ".logits");
  const at::Tensor fused = model.forward(ids);
  ASSERT_EQ(fused.sizes(), expected.sizes());
  EXPECT_EQ(fused.scalar_type(), at::kBFloat16);
  EXPECT_LE(testing::relative_error(fused, expected), 2e-2);
  const at::Tensor by_ops = model.module()->forward(ids);
  EXPECT_EQ(by_ops.scalar_type(), at::kBFloat16);
  EXPECT_LE(testing::relative_error(by_ops, expected), 2e-2);
  EXPECT_EQ(fallback_count(), 0) << last_fallback();
}

/// The same weights dequantized, in float32 throughout.
CausalLM dequantized_reference(const std::string& directory) {
  CausalLM model = AutoModelForCausalLM::from_pretrained(directory, {.dtype = at::kFloat});
  model.dequantize_(at::kFloat);
  return model;
}

TEST_P(Golden, Float32ComputeAgreesWithDequantizedWeights) {
  const CausalLM reference = dequantized_reference(directory());
  const at::Tensor ids = recorded("ids");
  const at::Tensor expected = reference.module()->forward(ids);
  for (const at::Tensor& p : reference.module()->parameters()) ASSERT_FALSE(is_quantized(p));
  // The same arithmetic in another order.
  EXPECT_LE(testing::relative_error(reference.forward(ids), expected), 1e-5);

  const CausalLM model = AutoModelForCausalLM::from_pretrained(directory(), {.dtype = at::kFloat});
  // LLM.int8() quantizes activations as well: that is its error, not one of arithmetic.
  const double limit = std::string(GetParam()) == "int8" ? 2e-2 : 1e-4;
  EXPECT_LE(testing::relative_error(model.forward(ids), expected), limit);
  EXPECT_LE(testing::relative_error(model.module()->forward(ids), expected), limit);
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, Golden,
                         ::testing::Values("nf4_dq", "nf4_bf16storage", "fp4", "int8"),
                         [](const auto& info) { return std::string(info.param); });

TEST(GoldenBase, LoadsAndIsNearItsQuantizedForms) {
  const CausalLM base = AutoModelForCausalLM::from_pretrained(kGolden + "/hf/base");
  const auto file = io::SafetensorsFile::open(kGolden + "/hf_logits.safetensors");
  const at::Tensor ids = to_tensor(file.tensor("ids"));
  const at::Tensor logits = base.forward(ids);
  EXPECT_LE(testing::relative_error(base.module()->forward(ids), logits), 2e-2);
  EXPECT_LE(testing::relative_error(to_tensor(file.tensor("int8.logits")), logits), 5e-2);
  EXPECT_LE(testing::relative_error(to_tensor(file.tensor("nf4_dq.logits")), logits), 0.5);
}

TEST(GoldenBase, QuantizingAtLoadGivesTheReferencesBytes) {
  const std::map<std::string, BitsAndBytesConfig> cases = {
      {"nf4_dq",
       {.load_in_4bit = true,
        .bnb_4bit_quant_type = "nf4",
        .bnb_4bit_use_double_quant = true,
        .bnb_4bit_compute_dtype = at::kBFloat16}},
      {"nf4_bf16storage",
       {.load_in_4bit = true,
        .bnb_4bit_quant_type = "nf4",
        .bnb_4bit_use_double_quant = true,
        .bnb_4bit_compute_dtype = at::kBFloat16,
        .bnb_4bit_quant_storage = at::kBFloat16}},
      {"fp4", {.load_in_4bit = true, .bnb_4bit_quant_type = "fp4"}},
      {"int8", {.load_in_8bit = true}}};
  for (const auto& [name, config] : cases) {
    const CausalLM model = AutoModelForCausalLM::from_pretrained(kGolden + "/hf/base",
                                                                 {.quantization_config = config});
    const auto expected = io::Checkpoint::open(kGolden + "/hf/" + name);
    std::set<std::string> written;
    for (const auto& entry : model.module()->named_parameters()) {
      std::map<std::string, at::Tensor> entries = {{entry.key(), entry.value()}};
      if (is_quantized(entry.value())) entries = quantized_entries(entry.key(), entry.value());
      for (const auto& [key, tensor] : entries) {
        ASSERT_TRUE(expected.contains(key)) << name << ": " << key;
        const at::Tensor theirs = to_tensor(expected.tensor(key));
        // fp4 biases were widened by the reference's forward before it saved them.
        if (key.ends_with(".bias")) {
          EXPECT_TRUE(at::equal(tensor.to(at::kFloat), theirs.to(at::kFloat)))
              << name << ": " << key;
        } else if (key.ends_with(".nested_absmax")) {
          // Differences from a mean, whose last bit depends on the order of summation.
          EXPECT_LE(testing::relative_error(tensor, theirs), 1e-6) << name << ": " << key;
        } else if (key.find("quant_state.bitsandbytes") == std::string::npos) {
          EXPECT_EQ(tensor.sizes(), theirs.sizes());
          EXPECT_EQ(tensor.scalar_type(), theirs.scalar_type());
          // As bytes: packed codes that are stored as bfloat16 may look like NaN.
          const at::Tensor x = tensor.contiguous().view({-1}).view(at::kByte);
          const at::Tensor y = theirs.contiguous().view({-1}).view(at::kByte);
          // FP4 and int8 codes of 16-bit weights lie on ties that the reciprocal of the reference's
          // device decides: up to 6 of 4096 in this data. NF4 has none.
          const bool ties = (name == "fp4" || name == "int8") && key.ends_with(".weight");
          EXPECT_LE((x != y).sum().item<int64_t>(), ties ? 8 : 0) << name << ": " << key;
        }
        written.insert(key);
      }
    }
    for (const std::string& key : expected.names()) {
      EXPECT_TRUE(written.count(key)) << name << ": " << key;
    }
  }
}

}  // namespace
}  // namespace lowbit::llm
