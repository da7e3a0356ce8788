// Code maps as tensors.
#include "lowbit/kernels/maps.h"

#include <ATen/ATen.h>

#include <array>
#include <cstring>
#include <mutex>
#include <vector>

#include "lowbit/functional.h"
#include "ops/check.h"
#include "ops/maps.h"

namespace lowbit {
namespace {

at::Tensor tensor_of(const float* values, int64_t count) {
  at::Tensor result = at::empty({count}, at::kFloat);
  std::memcpy(result.mutable_data_ptr(), values, static_cast<size_t>(count) * sizeof(float));
  return result;
}

template <class Make>
at::Tensor make_map(const char* op, const Make& make) {
  std::array<float, 256> values;
  const kernels::Status status = make(values.data());
  TORCH_CHECK(status.ok(), op, ": ", status.reason, ".");
  return tensor_of(values.data(), 256);
}

// Yoshida, "NF4 Isn't Information Theoretically Optimal (and that's Good)",
// https://arxiv.org/abs/2306.06965: the table for blocksize 64, in the order of its codes.
constexpr std::array<float, 16> kAf4 = {1.0f,        0.72424863f,  0.55496234f,  0.42563882f,
                                        0.31675666f, 0.21961274f,  0.12934483f,  0.04273164f,
                                        0.0f,        -0.04934812f, -0.14982478f, -0.25607552f,
                                        -0.3736951f, -0.51243739f, -0.69441008f, -1.0f};

}  // namespace

at::Tensor create_dynamic_map(bool is_signed, int64_t max_exponent_bits, int64_t total_bits) {
  return make_map("lowbit::create_dynamic_map", [&](float* map) {
    return kernels::make_dynamic_map(is_signed, static_cast<int>(max_exponent_bits),
                                     static_cast<int>(total_bits), map);
  });
}

at::Tensor create_linear_map(bool is_signed, int64_t total_bits, bool add_zero) {
  return make_map("lowbit::create_linear_map", [&](float* map) {
    return kernels::make_linear_map(is_signed, static_cast<int>(total_bits), add_zero, map);
  });
}

at::Tensor create_fp8_map(bool is_signed, int64_t exponent_bits, int64_t precision_bits,
                          int64_t total_bits) {
  return make_map("lowbit::create_fp8_map", [&](float* map) {
    return kernels::make_fp8_map(is_signed, static_cast<int>(exponent_bits),
                                 static_cast<int>(precision_bits), static_cast<int>(total_bits),
                                 map);
  });
}

at::Tensor create_normal_map(double offset, bool use_extra_value) {
  return make_map("lowbit::create_normal_map", [&](float* map) {
    return kernels::make_normal_map(static_cast<float>(offset), use_extra_value, map);
  });
}

at::Tensor get_4bit_type(std::string_view name, at::Device device, int64_t blocksize) {
  constexpr const char* kOp = "lowbit::get_4bit_type";
  if (name == "nf4" || name == "fp4") {
    const auto type = name == "nf4" ? kernels::QuantType::kNF4 : kernels::QuantType::kFP4;
    return tensor_of(kernels::codebook_4bit(type), 16).to(device);
  }
  if (name == "int4") {
    std::array<float, 16> values;
    for (int i = 0; i < 16; ++i) values[i] = static_cast<float>(i < 8 ? 7 - i : 8 - i) / 7.0f;
    return tensor_of(values.data(), 16).to(device);
  }
  LOWBIT_CHECK(name == "af4", kOp, "name", "\"nf4\", \"fp4\", \"int4\" or \"af4\"",
               c10::str('"', name, '"'));
  LOWBIT_CHECK(blocksize == 64, kOp, "blocksize", "64 for \"af4\"", blocksize);
  return tensor_of(kAf4.data(), 16).to(device);
}

namespace ops {
namespace {

/// The copies are made at first use and never destroyed: at exit, CUDA may be gone before them.
class Shared {
 public:
  template <class Make>
  explicit Shared(const Make& make) : on_cpu_(make()) {}

  at::Tensor on(at::Device device) {
    if (device.is_cpu()) return on_cpu_;
    const std::lock_guard lock(mutex_);
    for (const at::Tensor& copy : copies_) {
      if (copy.device() == device) return copy;
    }
    const c10::InferenceMode none(false);  // a state made in inference mode outlives it
    at::Tensor copy = on_cpu_.to(device);
    if (copy.device() == device) copies_.push_back(copy);  // "cuda" without an index names another
    return copy;
  }

 private:
  at::Tensor on_cpu_;
  std::mutex mutex_;
  std::vector<at::Tensor> copies_;
};

}  // namespace

at::Tensor shared_dynamic_map(at::Device device) {
  static auto* map = new Shared([] { return create_dynamic_map(); });
  return map->on(device);
}

at::Tensor shared_4bit_table(QuantType type, at::Device device) {
  static auto* nf4 = new Shared([] { return get_4bit_type("nf4"); });
  static auto* fp4 = new Shared([] { return get_4bit_type("fp4"); });
  return (type == QuantType::kNF4 ? nf4 : fp4)->on(device);
}

}  // namespace ops
}  // namespace lowbit
