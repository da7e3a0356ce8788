// A random 4-bit matmul problem on the device, with its exact answer.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "cuda/fourbit_matmul.h"
#include "device_buffer.h"
#include "kernels/fourbit_problem.h"

namespace lowbit::kernels::testing {

/// How often a test repeats itself. Under compute-sanitizer, a hundred times slower, tests would
/// not end: LOWBIT_TEST_ROUNDS bounds it there.
inline int rounds(int wanted) {
  const char* most = std::getenv("LOWBIT_TEST_ROUNDS");
  return most == nullptr ? wanted : std::clamp(std::atoi(most), 1, wanted);
}

using test::DeviceBuffer;

inline DeviceProperties device_properties() {
  const auto attribute = [](cudaDeviceAttr a) {
    int value = 0;
    EXPECT_CUDA_OK(cudaDeviceGetAttribute(&value, a, 0));
    return value;
  };
  DeviceProperties d;
  d.compute_capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor) +
                         attribute(cudaDevAttrComputeCapabilityMinor);
  d.multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  d.shared_bytes_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  d.l2_bytes = attribute(cudaDevAttrL2CacheSize);
  return d;
}

class DeviceProblem {
 public:
  using Bytes = std::vector<unsigned char>;

  DeviceProblem(const FourbitSpec& spec, std::mt19937& rng)
      : spec_(spec), host_(spec, rng), p_(host_.params()) {
    const int64_t blocks = ceil_div(spec.n * spec.k, spec.blocksize), item = itemsize(spec.dtype);
    upload(p_.packed, ceil_div(spec.n * spec.k, 2), spec.misalignment);
    if (spec.nested) {
      upload(p_.scales.absmax_8bit, blocks, spec.misalignment);
      upload(p_.scales.absmax_code, 1024, 0);
      upload(p_.scales.absmax2, ceil_div(blocks, kNestedBlocksize) * 4, 4 * spec.misalignment);
      upload(p_.scales.absmax_offset, 4, 0);
    } else {
      upload(p_.scales.absmax, blocks * 4, 4 * spec.misalignment);
    }
    upload(p_.input, ((spec.m - 1) * p_.input_stride + spec.k) * item, spec.misalignment * item);
    if (p_.bias != nullptr) upload(p_.bias, spec.n * itemsize(spec.bias_dtype), 0);
    if (p_.code != nullptr) upload(p_.code, 64, 0);
    output_ = std::make_unique<DeviceBuffer<unsigned char>>(spec.m * spec.n * item,
                                                            spec.misalignment * item);
    p_.output = output_->data();
  }

  const Matmul4bitParams& params() const { return p_; }
  /// Takes the input of a problem with the same m, k, dtype and extra_stride.
  void share_input(DeviceProblem& other) {
    p_.input = other.p_.input;
    inputs_ = other.host_.inputs();
  }
  FourbitProblem& host() { return host_; }
  void poison() { output_->fill(0xff); }  // NaN in every element type
  Bytes output() const { return output_->read(); }

  /// Columns first, first + step, ... against sums in float64. `roundings` to dtype that a weight
  /// goes through: of the kernel's table, of its product with the scale.
  ::testing::AssertionResult check(const Bytes& output, int roundings, int64_t first = 0,
                                   int64_t step = 1) {
    const Matmul4bitParams h = host_.params();
    const float* table = code_table(h.quant_type, h.code);
    if (inputs_.empty()) inputs_ = host_.inputs();
    std::vector<double> w(static_cast<size_t>(spec_.k));
    const double unit = rounding(spec_.dtype);
    double error2 = 0.0, norm2 = 0.0;
    int64_t checked = 0;
    for (int64_t n = first; n < spec_.n; n += step) {
      for (int64_t k = 0; k < spec_.k; ++k) {
        const int64_t i = n * spec_.k + k;
        w[k] = double{table[code_at(h.packed, i)]} * block_scale(h.scales, i / spec_.blocksize);
      }
      for (int64_t m = 0; m < spec_.m; ++m) {
        const double* x = &inputs_[m * spec_.k];
        double sum = 0.0, magnitude = 0.0;
        for (int64_t k = 0; k < spec_.k; ++k) {
          sum += x[k] * w[k];
          magnitude += std::fabs(x[k] * w[k]);
        }
        const double expected = sum + host_.bias(n);
        const double got = load_element(output.data(), spec_.dtype, m * spec_.n + n);
        const double bound =
            (2e-6 + roundings * unit) * magnitude + unit * (std::fabs(expected) + 1e-6) + 0x1p-25;
        if (!(std::fabs(got - expected) <= bound)) {
          return ::testing::AssertionFailure()
                 << "token " << m << " column " << n << ": got " << got << ", expected " << expected
                 << " +- " << bound;
        }
        error2 += (got - expected) * (got - expected);
        norm2 += expected * expected;
        ++checked;
      }
    }
    // Half a unit in the last place of the result, uniform, is 1.1e-3 (bfloat16) and 1.4e-4
    // (float16); a table and a weight in that type add as much again.
    const double tolerance = spec_.dtype == DType::kFloat32    ? 3e-6
                             : spec_.dtype == DType::kBFloat16 ? 3e-3
                                                               : 5e-4;
    // A tiny problem may have nothing but zeros for its sums.
    const double error = std::sqrt(error2 / (norm2 > 0.0 ? norm2 : 1.0));
    // Weights rounded to dtype: enough of them, of enough scales, for an average to mean something.
    const int64_t weights = checked / spec_.m * spec_.k;
    const bool enough = roundings < 2 ? checked >= 64
                                      : weights >= 4096 && weights >= 64 * spec_.blocksize &&
                                            checked * spec_.k >= 1 << 18;
    if (enough && !(error <= tolerance)) {
      return ::testing::AssertionFailure() << "relative error " << error << " above " << tolerance;
    }
    return ::testing::AssertionSuccess();
  }

 private:
  /// Moves what `pointer` points to, to the device; an odd `offset` misaligns it on purpose.
  template <typename P>
  void upload(const P*& pointer, int64_t bytes, size_t offset) {
    const auto* from = reinterpret_cast<const unsigned char*>(pointer);
    buffers_.push_back(
        std::make_unique<DeviceBuffer<unsigned char>>(Bytes(from, from + bytes), offset));
    pointer = reinterpret_cast<const P*>(buffers_.back()->data());
  }

  FourbitSpec spec_;
  FourbitProblem host_;
  Matmul4bitParams p_;
  std::vector<std::unique_ptr<DeviceBuffer<unsigned char>>> buffers_;
  std::unique_ptr<DeviceBuffer<unsigned char>> output_;
  std::vector<double> inputs_;
};

}  // namespace lowbit::kernels::testing
