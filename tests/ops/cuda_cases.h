// Every op as a case of the CUDA contracts.
#pragma once

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>

#include "lowbit/functional.h"
#include "ops/dispatch.h"
#include "support/golden.h"
#include "support/random.h"

namespace lowbit::test {

namespace dispatch = ops::dispatch;
using Tensors = std::vector<at::Tensor>;

/// How results on two devices compare.
enum class Agreement {
  kBits,   ///< every bit
  kCodes,  ///< the devices' reciprocals differ in the last bit, so some ties move by one code
  kSums,   ///< sums in another order, weights rounded to the dtype before the product
};

struct Case {
  std::string name;
  Tensors inputs;                       ///< on the CPU; [0] is what changes between calls
  std::function<at::Tensor()> another;  ///< a fresh inputs[0]
  std::function<Tensors(const Tensors&)> run;
  Agreement agreement = Agreement::kSums;
};

inline Tensors on(at::Device device, const Tensors& tensors) {
  Tensors moved;
  for (const at::Tensor& tensor : tensors) moved.push_back(tensor.to(device));
  return moved;
}

/// Where two tensors first differ.
std::string first_difference(const at::Tensor& a, const at::Tensor& b);
void expect_same(const Tensors& got, const Tensors& expected, const std::string& name);
void expect_close(const Tensors& got, const Tensors& expected, Agreement agreement,
                  const std::string& name);

class CudaOps : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "needs a CUDA GPU";
  }

  at::Tensor normal(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat) {
    return at::randn(sizes, generator_).to(dtype);
  }
  at::Tensor integers(int64_t low, int64_t high, at::IntArrayRef sizes, at::ScalarType dtype) {
    return at::randint(low, high, sizes, generator_).to(dtype);
  }

  /// Every op. Shapes with whole and with broken vectors.
  std::vector<Case> cases();

 private:
  void add_products(std::vector<Case>& all, at::ScalarType dtype, int64_t width,
                    const std::string& suffix);
  void add_integers(std::vector<Case>& all);
  void add_optimizers(std::vector<Case>& all, at::ScalarType dtype);

  at::Generator generator_ = at::detail::createCPUGenerator(seed());
};

}  // namespace lowbit::test
