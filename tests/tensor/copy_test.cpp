// Moving, casting, copying, saving: the payload stays.
#include <torch/nn/modules/linear.h>
#include <torch/serialize.h>

#include <sstream>

#include "lowbit/functional.h"
#include "support/error.h"
#include "support/golden.h"
#include "support/random.h"
#include "tensor/schemes.h"

namespace lowbit::test {
namespace {

class CopyTest : public RandomTest {};

/// Codes and statistics, to the bit.
void expect_same_payload(const at::Tensor& a, const at::Tensor& b, const std::string& what) {
  ASSERT_TRUE(is_quantized(a)) << what;
  ASSERT_EQ(a.sizes(), b.sizes()) << what;
  ASSERT_EQ(quant_scheme(a), quant_scheme(b)) << what;
  const auto left = quantized_entries("w", a), right = quantized_entries("w", b);
  ASSERT_EQ(left.size(), right.size()) << what;
  for (const auto& [name, tensor] : left) {
    ASSERT_EQ(right.count(name), 1u) << what << ", " << name;
    EXPECT_TRUE(same_bytes(tensor, right.at(name))) << what << ", " << name;
  }
  EXPECT_EQ(int8_threshold(a), int8_threshold(b)) << what;
  EXPECT_EQ(compute_dtype(a), compute_dtype(b)) << what;
}

TEST_F(CopyTest, CastsChangeTheDtypeAndNotTheCodes) {
  for (const auto& [name, config] : all_schemes()) {
    const at::Tensor q = quantize(normal({32, 64}), config);
    const at::Tensor half = q.to(at::kHalf);
    EXPECT_EQ(half.scalar_type(), at::kHalf) << name;
    EXPECT_EQ(lowbit::dequantize(half).scalar_type(), at::kHalf) << name;
    expect_same_payload(half, q, name);
    expect_same_payload(q.to(at::kBFloat16).to(at::kFloat), q, name);
    if (is_4bit(config.scheme())) {
      EXPECT_EQ(quant_state(half).dtype, at::kFloat) << name;
    }
    const at::Tensor integers = q.to(at::kInt);
    EXPECT_FALSE(is_quantized(integers)) << name;
  }
}

TEST_F(CopyTest, CloneHasItsOwnMemoryAndDetachShares) {
  for (const auto& [name, config] : all_schemes()) {
    const at::Tensor q = quantize(normal({32, 64}), config);
    const at::Tensor copy = q.clone(), alias = q.detach();
    expect_same_payload(copy, q, name);
    EXPECT_NE(packed_weight(copy).const_data_ptr(), packed_weight(q).const_data_ptr()) << name;
    EXPECT_EQ(packed_weight(alias).const_data_ptr(), packed_weight(q).const_data_ptr()) << name;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(packed_weight(q).const_data_ptr()) % 64, 0u) << name;
  }
}

TEST_F(CopyTest, CopyTakesQuantizedIntoQuantizedAndIntoDense) {
  const at::Tensor a = quantize(normal({32, 64}), QuantizationConfig::nf4());
  at::Tensor b = quantize(normal({32, 64}), QuantizationConfig::int8());
  b.copy_(a);
  expect_same_payload(b, a, "copy_");
  at::Tensor dense = test::full({32, 64}, NAN);
  dense.copy_(a);
  EXPECT_TRUE(at::equal(dense, lowbit::dequantize(a)));
  EXPECT_EQ(message_of([&] { b.copy_(dense); }),
            "aten::copy_: `src` must be a quantized weight, as self is, got a dense tensor. "
            "lowbit::quantize it first.");
}

TEST_F(CopyTest, TransposeTwiceIsTheWeight) {
  const at::Tensor q = quantize(normal({32, 64}), QuantizationConfig::nf4());
  EXPECT_EQ(q.t().sizes(), (std::vector<int64_t>{64, 32}));
  EXPECT_TRUE(at::equal(lowbit::dequantize(q.t()), lowbit::dequantize(q).t()));
  expect_same_payload(q.t().t(), q, "t().t()");
}

TEST_F(CopyTest, SaveAndLoadOfATensorOfAModule) {
  for (const auto& [name, config] : all_schemes()) {
    QuantizationConfig how = config;
    how.compute_dtype(at::kBFloat16);
    torch::nn::Linear saved(64, 32), loaded(64, 32), dense(64, 32);
    quantize_(*saved, how);
    quantize_(*loaded, QuantizationConfig::fp4());
    std::stringstream file;
    torch::save(saved, file);
    torch::load(loaded, file);
    expect_same_payload(loaded->weight, saved->weight, name);
    EXPECT_TRUE(at::equal(loaded->bias, saved->bias)) << name;

    // Into a module that was not quantized.
    file.clear();
    file.seekg(0);
    torch::load(dense, file);
    expect_same_payload(dense->weight, saved->weight, name);
    EXPECT_FALSE(dense->weight.requires_grad()) << name;
  }
}

TEST_F(CopyTest, SaveAndLoadOfATensor) {
  const at::Tensor q = quantize(normal({32, 64}, at::kBFloat16), QuantizationConfig::nf4());
  std::stringstream file;
  torch::save(q, file);
  at::Tensor loaded;
  torch::load(loaded, file);
  EXPECT_EQ(loaded.scalar_type(), at::kBFloat16);
  expect_same_payload(loaded, q, "tensor");
}

TEST_F(CopyTest, SavingBorrowedMemoryIsRefusedAndACloneIsSaved) {
  auto [packed, state] = quantize_4bit(normal({32, 64}), {.quant_type = QuantType::kNF4});
  const at::Tensor borrowed = quantized_from_4bit(packed, state);
  EXPECT_EQ(packed_weight(borrowed).const_data_ptr(), packed.const_data_ptr());
  std::stringstream file;
  EXPECT_NE(message_of([&] { torch::save(borrowed, file); }).find("clone() it first"),
            std::string::npos);
  std::stringstream second;
  torch::save(borrowed.clone(), second);
  EXPECT_GT(second.str().size(), 32u * 64u / 2);
}

TEST_F(CopyTest, LoadingFloatsIntoAQuantizedModuleIsRefused) {
  torch::nn::Linear dense(64, 32), quantized(64, 32);
  quantize_(*quantized, QuantizationConfig::nf4());
  const at::Tensor before = quantized->weight.clone();
  std::stringstream file;
  torch::save(dense, file);
  EXPECT_EQ(
      message_of([&] { torch::load(quantized, file); }),
      "aten::set_: `source` must be a quantized weight, as self is, got a dense float32 "
      "tensor of shape [32, 64]. Load float weights before quantizing, or dequantize_ first.");
  expect_same_payload(quantized->weight, before, "after the error");
}

TEST_F(CopyTest, ADamagedArchiveIsRefused) {
  torch::nn::Linear saved(64, 32), loaded(64, 32);
  quantize_(*saved, QuantizationConfig::nf4());
  quantize_(*loaded, QuantizationConfig::nf4());
  const at::Tensor before = loaded->weight.clone();
  auto* bytes = static_cast<char*>(saved->weight.storage().mutable_data());
  const size_t size = saved->weight.storage().nbytes();
  const std::string_view view(bytes, size);
  bytes[view.find("absmax")] = '?';
  std::stringstream file;
  torch::save(saved, file);
  EXPECT_NE(message_of([&] { torch::load(loaded, file); }), "(nothing was thrown)");
  expect_same_payload(loaded->weight, before, "after the error");
}

}  // namespace
}  // namespace lowbit::test
