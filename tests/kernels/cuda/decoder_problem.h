// What the tests of the decoder kernels share: elements, comparison, a cache on the device.
#pragma once

#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "device_buffer.h"
#include "lowbit/kernels/decoder.h"
#include "scalar.h"

namespace lowbit::test {

using namespace lowbit::kernels;
using Bytes = std::vector<unsigned char>;

inline constexpr DType kTypes[] = {DType::kBFloat16, DType::kFloat16, DType::kFloat32};

/// Half a unit in the last place, relative.
inline double rounding(DType dtype) {
  return dtype == DType::kFloat32 ? 0x1p-24 : dtype == DType::kBFloat16 ? 0x1p-8 : 0x1p-11;
}

inline Bytes as_type(const std::vector<float>& x, DType dtype) {
  Bytes bytes(x.size() * static_cast<size_t>(itemsize(dtype)));
  for (size_t i = 0; i < x.size(); ++i) {
    store_element(bytes.data(), dtype, static_cast<int64_t>(i), x[i]);
  }
  return bytes;
}

inline std::vector<float> as_floats(const Bytes& bytes, DType dtype) {
  std::vector<float> x(bytes.size() / static_cast<size_t>(itemsize(dtype)));
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = load_element(bytes.data(), dtype, static_cast<int64_t>(i));
  }
  return x;
}

/// |result - truth| <= relative * |truth| + absolute, everywhere; names the first element that is
/// not.
inline void expect_near(const std::vector<float>& result, const std::vector<float>& truth,
                        double relative, double absolute, const std::string& what) {
  ASSERT_EQ(result.size(), truth.size()) << what;
  for (size_t i = 0; i < truth.size(); ++i) {
    const double error = std::fabs(double{result[i]} - truth[i]);
    ASSERT_TRUE(error <= relative * std::fabs(truth[i]) + absolute)
        << what << ": element " << i << " of " << truth.size() << " is " << result[i]
        << ", expected " << truth[i];
  }
}

class CudaDecoder : public ::testing::Test {
 protected:
  void SetUp() override {
    LOWBIT_NEEDS_GPU();
    seed_ = std::random_device{}();
    random_.seed(seed_);
  }
  void TearDown() override {
    if (HasFailure()) std::printf("seed %u\n", seed_);
  }
  int64_t uniform(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random_);
  }
  /// Normal numbers, rounded to dtype.
  std::vector<float> normal(int64_t count, DType dtype, float scale = 1.0f) {
    std::normal_distribution<float> d(0.0f, scale);
    std::vector<float> x(static_cast<size_t>(count));
    for (float& v : x) v = d(random_);
    return as_floats(as_type(x, dtype), dtype);
  }
  std::mt19937 random_;
  unsigned seed_ = 0;
};

/// A cache of one layer, poisoned, and its slot on the device.
struct DeviceCache {
  DeviceCache(int64_t rows, int64_t dim, DType dtype, int64_t capacity, int64_t past)
      : key(static_cast<size_t>(rows * capacity * dim * itemsize(dtype))),
        value(static_cast<size_t>(rows * capacity * dim * itemsize(dtype))),
        slot(std::vector<KvSlot>{host(capacity, past)}) {
    // NaN in every dtype: what is not written must not be read.
    key.fill(0xff);
    value.fill(0xff);
  }
  KvSlot host(int64_t capacity, int64_t past) const {
    return {key.data(), value.data(), capacity, past};
  }
  DeviceBuffer<unsigned char> key, value;
  DeviceBuffer<KvSlot> slot;
};

}  // namespace lowbit::test
