// How far from the truth a result may be: the one table, each row with its reason.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace lowbit::test {

/// Relative error in L2: |result - truth| / |truth|.
struct Tolerance {
  double float32, bfloat16, float16;
  double of(at::ScalarType dtype) const {
    return dtype == at::kBFloat16 ? bfloat16 : dtype == at::kHalf ? float16 : float32;
  }
};

/// A matmul over packed weights against float64 arithmetic on the dequantized weights. float32:
/// sums in another order, 1e-7 * sqrt(K). 16 bits: half a unit in the last place, uniform, is
/// 2^-9/sqrt(3) = 1.1e-3 (bfloat16) and 1.4e-4 (float16), and the fast kernels add up to 2e-4.
inline constexpr Tolerance kMatmul{5e-6, 2.5e-3, 5e-4};

/// The same against recorded outputs of the reference on CUDA, which rounds weights and products to
/// 16 bits: its own error (measured: 2.5e-3 and 3e-4) comes on top.
inline constexpr Tolerance kMatmulGolden{2e-6, 5e-3, 1e-3};

/// The gradient of the input over packed weights. 16 bits: the kernels round a weight before they
/// multiply it, as the reference's backward pass does, which few outputs do not average out. Also
/// products of few outputs.
inline constexpr Tolerance kGradient{5e-6, 5e-3, 1e-3};

/// Against weights that were rounded to the 16-bit dtype before a library matmul (the reference's
/// backward pass).
inline constexpr Tolerance kRoundedWeights{2e-6, 5e-3, 1e-3};

/// LLM.int8() against the reference: the integers are equal, and the reference rounds to float16
/// (1.4e-4) on its way to any dtype, twice where there is a bias or outliers. bfloat16: it rounds
/// the product of the outliers and the sum, too (measured: up to 3.1e-3).
inline constexpr Tolerance kInt8Golden{5e-4, 4e-3, 6e-4};

/// The int8 epilogue in float32 against float64.
inline constexpr Tolerance kInt8Epilogue{3e-7, 2.5e-3, 3e-4};

/// Two devices: either may round the weights to the dtype before a library matmul, in which the
/// order of sums differs, and LLM.int8()'s codes differ where a reciprocal moves a rounding tie.
inline constexpr Tolerance kTwoDevices{1e-4, 5e-3, 1e-3};

/// The loss after 1000 steps with 8-bit optimizer states over that with float32 states, less 1:
/// what their codes may cost. (Measured over eight seeds: at most 0.010 on a quadratic, Lion, and
/// 0.005 on a small network; Adam's is 0.007 to 0.017 lower there.)
inline constexpr double kEightBitLoss = 0.02;

inline double relative_error(const at::Tensor& result, const at::Tensor& truth) {
  const at::Tensor a = result.to(at::kDouble), b = truth.to(at::kDouble);
  const double norm = b.norm().item<double>();
  return (a - b).norm().item<double>() / (norm > 0 ? norm : 1.0);
}

/// Same shape, no NaN, error within the row for result's dtype.
inline ::testing::AssertionResult is_near(const at::Tensor& result, const at::Tensor& truth,
                                          const Tolerance& row) {
  if (result.sizes() != truth.sizes()) {
    return ::testing::AssertionFailure()
           << "shape " << result.sizes() << ", expected " << truth.sizes();
  }
  const double error = relative_error(result, truth);
  if (!(error <= row.of(result.scalar_type()))) {
    return ::testing::AssertionFailure()
           << "relative error " << error << " above " << row.of(result.scalar_type());
  }
  return ::testing::AssertionSuccess();
}

}  // namespace lowbit::test
