// What only a GPU can refuse: memory. A module that cannot be quantized is left as it was.
#include <c10/cuda/CUDACachingAllocator.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "lowbit/quantize.h"

namespace lowbit {
namespace {

class NnCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!torch::cuda::is_available()) GTEST_SKIP() << "no GPU";
  }
  void TearDown() override {
    if (torch::cuda::is_available()) allow(1.0);
  }

  /// Bytes that the allocator may hold, as a part of the GPU's memory.
  static void allow(double part) { c10::cuda::CUDACachingAllocator::setMemoryFraction(part, 0); }
  static double part(int64_t bytes) {
    size_t total = 0, free = 0;
    std::tie(free, total) = c10::cuda::CUDACachingAllocator::get()->getMemoryInfo(0);
    return static_cast<double>(bytes) / static_cast<double>(total);
  }
  static int64_t reserved() {
    return c10::cuda::CUDACachingAllocator::getDeviceStats(0)
        .reserved_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)]
        .current;
  }
};

/// The parameters' memory, values and kind.
struct Snapshot {
  explicit Snapshot(const torch::nn::Module& module) {
    for (const auto& p : module.named_parameters()) {
      names.push_back(p.key());
      tensors.push_back(p.value());
      data.push_back(p.value().const_data_ptr());
      values.push_back(p.value().detach().cpu());
    }
  }
  void expect_unchanged(const torch::nn::Module& module) const {
    const auto now = module.named_parameters();
    ASSERT_EQ(now.size(), names.size());
    for (size_t i = 0; i < names.size(); ++i) {
      EXPECT_EQ(now[i].key(), names[i]);
      EXPECT_TRUE(now[i].value().is_same(tensors[i])) << names[i];
      EXPECT_FALSE(is_quantized(now[i].value())) << names[i];
      EXPECT_EQ(now[i].value().const_data_ptr(), data[i]) << names[i];
      EXPECT_TRUE(at::equal(now[i].value().cpu(), values[i])) << names[i];
      EXPECT_TRUE(now[i].value().requires_grad()) << names[i];
    }
  }
  std::vector<std::string> names;
  std::vector<at::Tensor> tensors, values;
  std::vector<const void*> data;
};

TEST_F(NnCuda, OutOfMemoryDuringQuantizeLeavesTheModule) {
  constexpr int64_t kMiB = int64_t{1} << 20;
  torch::nn::Sequential net;
  // The first layer fits into what is left, the last one does not.
  for (const int64_t n : {64, 64, 8192}) {
    net->push_back(torch::nn::Linear(torch::nn::LinearOptions(8192, n).bias(false)));
  }
  net->to(at::kCUDA);
  c10::cuda::CUDACachingAllocator::emptyCache();
  const Snapshot before(*net);
  for (const auto& config :
       {QuantizationConfig::nf4().double_quant(true), QuantizationConfig::int8(6.0)}) {
    allow(part(reserved() + 24 * kMiB));
    EXPECT_THROW(quantize_(*net, config), c10::OutOfMemoryError);
    allow(1.0);
    before.expect_unchanged(*net);
    c10::cuda::CUDACachingAllocator::emptyCache();
  }
  // With the memory, the same module is quantized.
  EXPECT_EQ(quantize_(*net, QuantizationConfig::nf4()).layers.size(), 3u);
  for (const at::Tensor& p : net->parameters()) EXPECT_TRUE(is_quantized(p));
}

TEST_F(NnCuda, OutOfMemoryOnTheWayToTheGpuLeavesAQuantizedTensor) {
  constexpr int64_t kMiB = int64_t{1} << 20;
  const at::Tensor w = at::randn({8192, 8192});
  const at::Tensor qw = quantize(w, QuantizationConfig::nf4());  // 36 MiB
  const at::Tensor before = lowbit::dequantize(qw);
  c10::cuda::CUDACachingAllocator::emptyCache();
  allow(part(reserved() + 8 * kMiB));
  EXPECT_THROW(qw.to(at::kCUDA), c10::OutOfMemoryError);
  allow(1.0);
  EXPECT_TRUE(qw.is_cpu());
  EXPECT_TRUE(at::equal(lowbit::dequantize(qw), before));
  EXPECT_TRUE(at::allclose(lowbit::dequantize(qw.to(at::kCUDA)).cpu(), before));
}

}  // namespace
}  // namespace lowbit
