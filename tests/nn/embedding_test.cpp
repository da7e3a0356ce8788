// Quantized embeddings, and the stable ones.
#include "lowbit/nn/embedding.h"

#include <torch/serialize.h>

#include <sstream>

#include "support/error.h"
#include "support/golden.h"
#include "support/random.h"
#include "support/tolerance.h"

namespace lowbit::test {
namespace {

class EmbeddingTest : public RandomTest {
 protected:
  EmbeddingTest() { reset_fallback_count(); }
  ~EmbeddingTest() override { EXPECT_EQ(fallback_count(), 0) << last_fallback(); }

  template <class Layer>
  void looks_up_saves_and_clones(QuantScheme scheme) {
    for (const int64_t dim : {64, 40}) {  // blocks within rows, and across them
      torch::nn::Embedding table(50, dim);
      table->to(device(), at::kBFloat16);
      Layer layer = Layer::from(table);
      EXPECT_EQ(quant_scheme(layer->weight), scheme);
      const at::Tensor ids = integers(0, 50, {2, 3, 4}, at::kLong);
      const at::Tensor rows = layer->forward(ids);
      EXPECT_EQ(rows.scalar_type(), at::kBFloat16);
      EXPECT_TRUE(same_bytes(rows, at::embedding(lowbit::dequantize(layer->weight), ids)));
      EXPECT_TRUE(same_bytes(layer->forward(ids.to(at::kInt)), rows));

      Layer other(50, dim);
      other->to(device(), at::kBFloat16);
      other->load_state_dict(layer->state_dict());
      EXPECT_TRUE(same_bytes(other->forward(ids), rows));
      EXPECT_TRUE(is_quantized(layer->clone()->parameters()[0]));
      // torch::save writes the memory of CPU tensors; a kernel on a GPU cannot throw.
      if (on_cuda()) continue;
      Layer loaded(50, dim);
      std::stringstream file;
      torch::save(layer, file);
      torch::load(loaded, file);
      EXPECT_TRUE(same_bytes(packed_weight(loaded->weight), packed_weight(layer->weight)));
      EXPECT_NE(message_of([&] { layer->forward(at::full({1}, 50, at::kLong)); }).find("50"),
                std::string::npos);
    }
  }
};

TEST_F(EmbeddingTest, FourBit) {
  looks_up_saves_and_clones<nn::Embedding4bit>(QuantScheme::kFP4);
  looks_up_saves_and_clones<nn::EmbeddingFP4>(QuantScheme::kFP4);
  looks_up_saves_and_clones<nn::EmbeddingNF4>(QuantScheme::kNF4);
}

TEST_F(EmbeddingTest, EightBit) {
  looks_up_saves_and_clones<nn::Embedding8bit>(QuantScheme::kInt8WeightOnly);
}

TEST_F(EmbeddingTest, StableNormalizesAndTrains) {
  nn::StableEmbedding layer(torch::nn::EmbeddingOptions(20, 32).padding_idx(-1));
  EXPECT_EQ(layer->weight[19].abs().sum().item<float>(), 0.0f);
  const double bound = std::sqrt(6.0 / (20 + 32));
  EXPECT_LE(layer->weight.abs().max().item<double>(), bound);
  EXPECT_GT(layer->weight.abs().max().item<double>(), 0.5 * bound);
  const auto names = layer->named_parameters();
  EXPECT_TRUE(names.contains("norm.weight") && names.contains("norm.bias"));
  const at::Tensor y = layer->forward(integers(0, 19, {4, 5}, at::kLong));
  EXPECT_EQ(y.sizes(), (std::vector<int64_t>{4, 5, 32}));
  EXPECT_LT(y.mean(-1).abs().max().item<double>(), 1e-5);
  y.pow(2).sum().backward();
  EXPECT_TRUE(layer->weight.grad().defined());
  layer->to(at::kBFloat16);
  layer->norm->to(at::kFloat);
  EXPECT_EQ(layer->forward(integers(0, 19, {4}, at::kLong)).scalar_type(), at::kBFloat16);
}

TEST_F(EmbeddingTest, PlainIsXavierUniform) {
  nn::Embedding layer(torch::nn::EmbeddingOptions(30, 16).padding_idx(2));
  EXPECT_EQ(layer->weight[2].abs().sum().item<float>(), 0.0f);
  EXPECT_LE(layer->weight.abs().max().item<double>(), std::sqrt(6.0 / 46));
  EXPECT_TRUE(layer->weight.requires_grad());
}

TEST_F(EmbeddingTest, BadInput) {
  EXPECT_EQ(message_of([] { nn::Embedding8bit(0, 4); }),
            "lowbit::nn::Embedding8bit: `num_embeddings` must be positive, got 0.");
  nn::EmbeddingNF4 layer(10, 64);
  EXPECT_EQ(message_of([&] {
              layer->quantize(normal({9, 64}));
            }),
            "lowbit::nn::EmbeddingNF4: `weight` must be [10, 64], got shape [9, 64].");
  EXPECT_EQ(
      message_of([] { nn::StableEmbedding(torch::nn::EmbeddingOptions(4, 4).padding_idx(4)); }),
      "lowbit::nn::StableEmbedding: `padding_idx` must be within 4 rows, got 4.");
}

}  // namespace
}  // namespace lowbit::test
