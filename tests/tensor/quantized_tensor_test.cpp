// Making quantized tensors, what they say of themselves, and their entries in files.
#include "lowbit/quantized_tensor.h"

#include <ATen/ATen.h>

#include "lowbit/functional.h"
#include "support/error.h"
#include "support/golden.h"
#include "support/random.h"
#include "support/tolerance.h"
#include "tensor/schemes.h"

namespace lowbit::test {
namespace {

class QuantizedTensorTest : public RandomTest {};

TEST_F(QuantizedTensorTest, StandsForTheWeight) {
  // Relative errors of 2000 draws of normal weights, mean and standard deviation: NF4 0.092
  // (0.001), FP4 of blocksize 128 0.129 (0.002), int8 0.01. The limits are eight deviations away.
  const auto limit = [](QuantScheme scheme) {
    return scheme == QuantScheme::kFP4 ? 0.145 : is_4bit(scheme) ? 0.1 : 0.012;
  };
  for (const auto& [name, config] : all_schemes()) {
    for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
      const at::Tensor w = normal({48, 96}, dtype);
      const at::Tensor copy = w.clone();
      const at::Tensor q = quantize(w, config);
      EXPECT_TRUE(is_quantized(q)) << name;
      EXPECT_FALSE(is_quantized(w)) << name;
      EXPECT_TRUE(same_bytes(w, copy)) << name;
      EXPECT_EQ(q.sizes(), w.sizes()) << name;
      EXPECT_EQ(q.scalar_type(), dtype) << name;
      EXPECT_EQ(q.numel(), w.numel()) << name;
      EXPECT_EQ(quant_scheme(q), config.scheme()) << name;
      EXPECT_LT(relative_error(lowbit::dequantize(q), w), limit(config.scheme())) << name;
      EXPECT_EQ(lowbit::dequantize(q).scalar_type(), dtype) << name;
      EXPECT_EQ(lowbit::dequantize(q, at::kDouble).scalar_type(), at::kDouble) << name;
    }
  }
}

TEST_F(QuantizedTensorTest, AnyShape) {
  for (const auto& shape :
       std::vector<std::vector<int64_t>>{{1}, {65}, {3, 5}, {2, 3, 7}, {1, 1}}) {
    const at::Tensor q = quantize(normal(shape), QuantizationConfig::nf4().double_quant(true));
    EXPECT_EQ(lowbit::dequantize(q).sizes(), shape);
  }
  const at::Tensor w = normal({64, 32}).t();  // not contiguous
  EXPECT_TRUE(at::equal(lowbit::dequantize(quantize(w, QuantizationConfig::nf4())),
                        lowbit::dequantize(quantize(w.contiguous(), QuantizationConfig::nf4()))));
}

TEST_F(QuantizedTensorTest, StateIsTheFunctionsState) {
  const at::Tensor w = normal({32, 64});
  const auto [packed, state] =
      quantize_4bit(w, {.compress_statistics = true, .quant_type = QuantType::kNF4});
  const at::Tensor q = quantize(w, QuantizationConfig::nf4().double_quant(true));
  EXPECT_TRUE(same_bytes(packed_weight(q), packed));
  EXPECT_TRUE(quant_state(q) == state);
  const auto [codes, stats, outliers] = int8_vectorwise_quant(w.to(at::kHalf));
  const at::Tensor q8 = quantize(w, QuantizationConfig::int8());
  EXPECT_TRUE(same_bytes(packed_weight(q8), codes));
  EXPECT_TRUE(same_bytes(row_scales(q8), stats));
  EXPECT_EQ(int8_threshold(q8), 6.0);
}

TEST_F(QuantizedTensorTest, WeightsBeyondFloat16AreNotLostInInt8) {
  const at::Tensor w = normal({4, 64}, at::kFloat, 1e6);
  const at::Tensor q = quantize(w, QuantizationConfig::int8_weight_only());
  EXPECT_LT(relative_error(lowbit::dequantize(q), w), 0.012);
}

TEST_F(QuantizedTensorTest, DescribesItself) {
  const at::Tensor w = test::ones({64, 128}, at::kBFloat16);
  EXPECT_EQ(describe(quantize(w, QuantizationConfig::nf4())),
            "nf4 [64, 128], bfloat16, blocksize 64, 4.56 bits, " + test::device().str());
  EXPECT_EQ(describe(quantize(w, QuantizationConfig::int8())),
            "int8 [64, 128], bfloat16, threshold 6, 8.25 bits, " + test::device().str());
}

TEST_F(QuantizedTensorTest, EntriesRoundTripToTheByte) {
  for (const auto& [name, config] : all_schemes()) {
    const at::Tensor q = quantize(normal({32, 64}, at::kBFloat16), config);
    auto entries = quantized_entries("a.weight", q);
    EXPECT_EQ(entries.count(is_4bit(config.scheme()) ? "a.weight.absmax" : "a.SCB"), 1u) << name;
    entries["a.weight_other.absmax"] = test::zeros({1});  // another parameter's
    const auto back =
        quantized_from_entries("a.weight", entries,
                               {.dtype = at::kBFloat16,
                                .threshold = config.threshold(),
                                .weight_only = config.scheme() == QuantScheme::kInt8WeightOnly});
    ASSERT_TRUE(back.has_value()) << name;
    EXPECT_EQ(quant_scheme(*back), quant_scheme(q)) << name;
    EXPECT_TRUE(same_bytes(lowbit::dequantize(*back), lowbit::dequantize(q))) << name;
    EXPECT_EQ(packed_weight(*back).const_data_ptr(), packed_weight(q).const_data_ptr()) << name;
  }
  EXPECT_FALSE(quantized_from_entries("w", {{"w", test::zeros({2, 2})}}).has_value());
  EXPECT_FALSE(quantized_from_entries("w", {}).has_value());
}

TEST_F(QuantizedTensorTest, GoldenEntriesAreTakenAsTheyAre) {
  const Golden golden("modules.safetensors");
  for (const char* name : {"l4.nf4.1.bf16.sd.", "l4.fp4.0.fp16.sd.", "l8.6.0.sd."}) {
    const auto entries = golden.with_prefix(name);
    const auto q = quantized_from_entries("weight", entries);
    ASSERT_TRUE(q.has_value()) << name;
    const auto written = quantized_entries("weight", *q);
    EXPECT_EQ(written.size() + 1, entries.size()) << name;  // and the bias
    for (const auto& [key, tensor] : written) {
      ASSERT_EQ(entries.count(key), 1u) << name << key;
      EXPECT_TRUE(same_bytes(tensor, entries.at(key))) << name << key;
    }
  }
}

TEST_F(QuantizedTensorTest, BadInput) {
  const auto nf4 = QuantizationConfig::nf4();
  const at::Tensor w = normal({4, 64}), q = quantize(w, nf4);
  const auto quantizing = [](const at::Tensor& t, const QuantizationConfig& config) {
    return message_of([&] { quantize(t, config); });
  };
  EXPECT_EQ(quantizing({}, nf4), "lowbit::quantize: `w` must be a tensor, got an undefined one.");
  EXPECT_EQ(quantizing(w.to(at::kDouble), nf4),
            "lowbit::quantize: `w` must be float32, float16 or bfloat16, got float64.");
  EXPECT_EQ(quantizing(normal({0, 4}), nf4),
            "lowbit::quantize: `w` must be not empty, got shape [0, 4].");
  EXPECT_EQ(quantizing(normal({64}), QuantizationConfig::int8()),
            "lowbit::quantize: `w` must be at least 2-D, got shape [64].");
  EXPECT_EQ(quantizing(w, QuantizationConfig::nf4().blocksize(48)),
            "lowbit::quantize: `blocksize` must be a power of two from 32 to 4096, got 48.");
  EXPECT_EQ(quantizing(w, QuantizationConfig::int8(-1.0)),
            "lowbit::quantize: `threshold` must be 0 or more, got -1.");
  EXPECT_EQ(quantizing(w, QuantizationConfig::nf4().compute_dtype(at::kInt)),
            "lowbit::quantize: `compute_dtype` must be float32, float16 or bfloat16, got int32.");
  EXPECT_NE(quantizing(q, nf4).find("It is quantized already"), std::string::npos);
  const at::Tensor broken = w.clone();
  broken[1][2] = NAN;
  broken[3][4] = -INFINITY;
  EXPECT_EQ(quantizing(broken, nf4),
            "lowbit::quantize: `w` must be finite, got 2 NaN or infinite elements of 256. "
            "allow_nonfinite(true) quantizes it all the same, and loses their blocks.");
  EXPECT_TRUE(is_quantized(quantize(broken, QuantizationConfig::nf4().allow_nonfinite(true))));

  EXPECT_EQ(
      message_of([&] { quant_state(w); }),
      "lowbit::quant_state: `weight` must be a quantized tensor, got a dense float32 tensor of "
      "shape [4, 64]. lowbit::quantize makes one.");
  EXPECT_EQ(message_of([&] { row_scales(q); }),
            "lowbit::row_scales: `weight` must be an int8 weight, got nf4. quant_state() has the "
            "statistics of 4-bit weights.");
  QuantState state = quant_state(q);
  state.shape = std::vector<int64_t>{4, 65};
  EXPECT_NE(
      message_of([&] { quantized_from_4bit(packed_weight(q), state); }).find("`packed` must be"),
      std::string::npos);
  EXPECT_NE(message_of([&] {
              quantized_from_int8(test::zeros({2, 4}, at::kChar), test::zeros({3}));
            }).find("`SCB` must be 2 elements long"),
            std::string::npos);
  auto entries = quantized_entries("weight", quantize(w, QuantizationConfig::int8()));
  entries["weight_format"] = test::ones({}, at::kByte);
  EXPECT_EQ(message_of([&] { quantized_from_entries("weight", entries); }),
            "lowbit::quantized_from_entries: `weight_format` must be 0 (row-major), got 1.");
  EXPECT_NE(message_of([&] {
              at::linear(normal({2, 63}), q);
            }).find("`input` must be [..., 64]"),
            std::string::npos);
}

}  // namespace
}  // namespace lowbit::test
