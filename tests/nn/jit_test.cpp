// Scripted and traced modules, as Python saves them.
#include <torch/csrc/jit/serialization/import.h>
#include <torch/jit.h>
#include <torch/script.h>

#include <sstream>

#include "lowbit/quantize.h"
#include "support/golden_dir.h"
#include "support/random.h"
#include "support/tolerance.h"

namespace lowbit::test {
namespace {

class JitTest : public ::testing::TestWithParam<const char*> {
 protected:
  static torch::jit::Module load() {
    return torch::jit::load(golden_dir() + "/jit/" + GetParam() + ".pt");
  }
};

TEST_P(JitTest, QuantizesRunsMovesAndSaves) {
  torch::jit::Module module = load();
  const at::Tensor ids = module.attr("example_input").toTensor();
  const at::Tensor expected = module.attr("example_output").toTensor();
  const torch::NoGradGuard no_grad;
  EXPECT_LT(relative_error(module.forward({ids}).toTensor(), expected), 1e-5);

  reset_fallback_count();
  const auto report =
      quantize_(module, QuantizationConfig::int8_weight_only().quantize_embeddings(true));
  ASSERT_EQ(report.layers.size(), 3u);
  for (int round = 0; round < 3; ++round) {  // the interpreter specializes after the first
    EXPECT_LT(relative_error(module.forward({ids}).toTensor(), expected), 0.02);
  }
  EXPECT_EQ(fallback_count(), 0) << last_fallback();

  module.to(at::kBFloat16);
  EXPECT_TRUE(is_quantized(module.attr("up").toModule().attr("weight").toTensor()));
  EXPECT_EQ(module.forward({ids}).toTensor().scalar_type(), at::kBFloat16);
  module.to(at::kFloat);

  const at::Tensor before = module.forward({ids}).toTensor();
  std::stringstream file;
  module.save(file);
  torch::jit::Module loaded = torch::jit::load(file);
  EXPECT_TRUE(quantize_(loaded, QuantizationConfig::nf4()).layers.empty()) << "quantized already";
  EXPECT_LT(relative_error(loaded.forward({ids}).toTensor(), before), 1e-6);

  EXPECT_EQ(dequantize_(module), 3);
  EXPECT_LT(relative_error(module.forward({ids}).toTensor(), before), 1e-5);
}

INSTANTIATE_TEST_SUITE_P(Kinds, JitTest, ::testing::Values("scripted", "traced"),
                         [](const auto& item) { return std::string(item.param); });

}  // namespace
}  // namespace lowbit::test
