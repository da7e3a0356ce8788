// Random problems for the tests of the CUDA matmul.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "cuda/fourbit_large.h"
#include "cuda/fourbit_mid.h"
#include "device_problem.h"

namespace lowbit::kernels::testing {

class CudaMatmul : public ::testing::Test {
 protected:
  template <typename T>
  T pick(std::initializer_list<T> values) {
    return *(values.begin() + rng_() % values.size());
  }
  int64_t upto(int64_t high) { return std::uniform_int_distribution<int64_t>(1, high)(rng_); }
  std::string trace(const FourbitSpec& spec, const Matmul4bitCudaPlan& plan) const {
    return spec.describe() + " kernel " + plan.kernel + " grid " + std::to_string(plan.grid_x) +
           " seed " + std::to_string(seed_);
  }

  FourbitSpec any_problem() {
    FourbitSpec s;
    s.m = pick<int64_t>({1, 1, 2, 3, 4, 5, 8, 9, 16, 17, upto(40), upto(160)});
    s.n = pick<int64_t>({1, 3, 8, 31, 33, upto(100), upto(300)});
    s.k = pick<int64_t>({1, 2, 7, 63, 64, 65, 128, 576, 640, 64 * upto(12), upto(3000)});
    s.blocksize = pick<int64_t>({32, 64, 64, 96, 128, 256, 512, 1024, 2048, 4096, 2 * upto(50)});
    s.dtype = pick({DType::kFloat32, DType::kFloat16, DType::kBFloat16});
    s.quant_type = pick({QuantType::kNF4, QuantType::kFP4});
    s.nested = pick({false, true});
    s.bias = pick({false, true});
    s.bias_dtype = pick({DType::kFloat32, DType::kFloat16, DType::kBFloat16});
    s.custom_table = pick({false, false, true});
    s.misalignment = pick<int64_t>({0, 0, 1, 3});
    s.extra_stride = pick<int64_t>({0, 8, 5});
    return s;
  }

  /// What the small-M kernels take: N of any length, K in 64-column steps and whole blocks.
  FourbitSpec aligned_problem(int64_t blocksize) {
    FourbitSpec s;
    s.blocksize = blocksize;
    const int64_t unit = std::max<int64_t>(64, blocksize);
    s.k = unit * pick<int64_t>({1, 2, upto(std::max<int64_t>(1, 9000 / unit)),
                                std::max<int64_t>(1, 4096 / unit)});
    s.n = pick<int64_t>({1, 15, 16, 17, upto(200), 16 * upto(12), upto(700)});
    s.dtype = pick({DType::kFloat16, DType::kBFloat16});
    s.quant_type = pick({QuantType::kNF4, QuantType::kFP4});
    s.nested = pick({false, true});
    s.bias = pick({false, true});
    s.bias_dtype = pick({DType::kFloat32, DType::kFloat16, DType::kBFloat16});
    s.extra_stride = pick<int64_t>({0, 8, 64});
    return s;
  }

  std::random_device::result_type seed_ = std::random_device{}();
  std::mt19937 rng_{seed_};
};

/// Roundings of a weight to the product's dtype, as DeviceProblem::check asks for them.
inline int roundings(const Matmul4bitCudaPlan& plan) {
  const int mid = plan.id - cuda::kMid;
  const bool scaled = mid >= 0 && mid < cuda::kMidVariantCount && cuda::kMidVariants[mid].scaled;
  return scaled || plan.id >= cuda::kLarge ? 2 : plan.id >= cuda::kSmall ? 1 : 0;
}

/// The device as its plans see it, and the same one taken for an sm_80, which runs the kernels
/// without wgmma.
class CudaMatmulPath : public CudaMatmul, public ::testing::WithParamInterface<const char*> {
 protected:
  static DeviceProperties device() {
    DeviceProperties device = device_properties();
    if (std::string(GetParam()) == "sm80") {
      device.compute_capability = std::min(device.compute_capability, 80);
    }
    return device;
  }
};

}  // namespace lowbit::kernels::testing
