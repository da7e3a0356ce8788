// The decoder kernels on a GPU against the scalar reference, which computes on the same rounded
// inputs in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "decoder_problem.h"

namespace lowbit::test {
namespace {

TEST_F(CudaDecoder, RmsNormAddsAndNormalizes) {
  for (const DType dtype : kTypes) {
    for (const int64_t cols : {1, 7, 8, 64, 264, 576, 579, 4096, 5120, 8192, 16384, 16392}) {
      for (const bool add : {false, true}) {
        const int64_t rows = uniform(1, 4), item = itemsize(dtype);
        const size_t offset = static_cast<size_t>(uniform(0, 3) == 0 ? item : 0);
        const auto hidden = normal(rows * cols, dtype), delta = normal(rows * cols, dtype);
        const auto weight = normal(cols, dtype);
        const DeviceBuffer<unsigned char> h(as_type(hidden, dtype), offset);
        const DeviceBuffer<unsigned char> d(as_type(delta, dtype));
        const DeviceBuffer<unsigned char> w(as_type(weight, dtype));
        const DeviceBuffer<unsigned char> out(static_cast<size_t>(rows * cols * item));
        EXPECT_STATUS_OK(cuda::rms_norm({.hidden = h.data(),
                                         .delta = add ? d.data() : nullptr,
                                         .weight = w.data(),
                                         .output = out.data(),
                                         .dtype = dtype,
                                         .rows = rows,
                                         .cols = cols,
                                         .programmatic_launch = add},
                                        Stream{}));
        std::vector<float> sum = hidden;
        for (size_t i = 0; add && i < sum.size(); ++i) sum[i] += delta[i];
        sum = as_floats(as_type(sum, dtype), dtype);
        const std::string what =
            "cols " + std::to_string(cols) + " dtype " + std::to_string(static_cast<int>(dtype));
        expect_near(as_floats(h.read(), dtype), sum, 0, 0, "hidden, " + what);
        std::vector<float> expected(hidden.size());
        ASSERT_TRUE(ref::rms_norm({.hidden = sum.data(),
                                   .weight = weight.data(),
                                   .output = expected.data(),
                                   .rows = rows,
                                   .cols = cols},
                                  0, rows)
                        .ok());
        // Two roundings.
        expect_near(as_floats(out.read(), dtype), expected, 2.1 * rounding(dtype) + 2e-6, 1e-7,
                    "output, " + what);
      }
    }
  }
}

TEST_F(CudaDecoder, RotaryAppendFillsTheCache) {
  for (const DType dtype : kTypes) {
    for (const int64_t dim : {2, 6, 16, 64, 80, 128, 256}) {
      const int64_t batch = uniform(1, 3), tokens = uniform(1, 5), kv_heads = uniform(1, 3);
      const int64_t heads = kv_heads * uniform(1, 4), past = uniform(0, 1) * uniform(0, 9000);
      // Sometimes the last tokens do not fit.
      const int64_t capacity = past + std::max<int64_t>(1, tokens + uniform(-1, 2));
      const auto query = normal(batch * tokens * heads * dim, dtype);
      const auto key = normal(batch * tokens * kv_heads * dim, dtype);
      const auto value = normal(batch * tokens * kv_heads * dim, dtype);
      std::vector<float> inv_freq;
      for (int64_t i = 0; i < dim / 2; ++i) {
        inv_freq.push_back(
            std::pow(10000.0f, -2.0f * static_cast<float>(i) / static_cast<float>(dim)));
      }
      const DeviceBuffer<unsigned char> q(as_type(query, dtype)), k(as_type(key, dtype));
      const DeviceBuffer<unsigned char> v(as_type(value, dtype));
      const DeviceBuffer<float> frequencies(inv_freq);
      const DeviceCache cache(batch * kv_heads, dim, dtype, capacity, past);
      EXPECT_STATUS_OK(cuda::rotary_append({.query = q.data(),
                                            .key = k.data(),
                                            .value = v.data(),
                                            .inv_freq = frequencies.data(),
                                            .slot = cache.slot.data(),
                                            .dtype = dtype,
                                            .batch = batch,
                                            .tokens = tokens,
                                            .heads = heads,
                                            .kv_heads = kv_heads,
                                            .head_dim = dim,
                                            .programmatic_launch = true},
                                           Stream{}));
      std::vector<float> cos, sin;
      for (int64_t t = 0; t < tokens; ++t) {
        for (const float f : inv_freq) {
          const float angle = static_cast<float>(past + t) * f;
          cos.push_back(std::cos(angle));
          sin.push_back(std::sin(angle));
        }
      }
      // The reference's cache has room for every token; what does not fit is left out below.
      auto expected_q = query;
      const int64_t room = past + tokens;
      std::vector<float> expected_k(static_cast<size_t>(batch * kv_heads * room * dim), 0.0f);
      std::vector<float> expected_v = expected_k;
      for (int64_t b = 0; b < batch; ++b) {
        ASSERT_TRUE(
            ref::rotary_append({.query = expected_q.data() + b * tokens * heads * dim,
                                .key = key.data() + b * tokens * kv_heads * dim,
                                .value = value.data() + b * tokens * kv_heads * dim,
                                .cos = cos.data(),
                                .sin = sin.data(),
                                .key_cache = expected_k.data() + b * kv_heads * room * dim,
                                .value_cache = expected_v.data() + b * kv_heads * room * dim,
                                .tokens = tokens,
                                .heads = heads,
                                .kv_heads = kv_heads,
                                .head_dim = dim,
                                .capacity = room,
                                .past = past},
                               0, tokens)
                .ok());
      }
      const std::string what = "head_dim " + std::to_string(dim);
      const double u = rounding(dtype) * 1.01;
      expect_near(as_floats(q.read(), dtype), expected_q, u, 4e-6, "query, " + what);
      const auto got_k = as_floats(cache.key.read(), dtype);
      const auto got_v = as_floats(cache.value.read(), dtype);
      for (int64_t row = 0; row < batch * kv_heads; ++row) {
        for (int64_t i = 0; i < capacity; ++i) {
          for (int64_t d = 0; d < dim; ++d) {
            const auto at = static_cast<size_t>((row * capacity + i) * dim + d);
            if (i < past || i >= past + tokens) {
              ASSERT_TRUE(std::isnan(got_k[at]) && std::isnan(got_v[at]))
                  << what << ": position " << i << " was written";
              continue;
            }
            const auto from = static_cast<size_t>((row * room + i) * dim + d);
            ASSERT_TRUE(std::fabs(got_k[at] - expected_k[from]) <=
                        u * std::fabs(expected_k[from]) + 4e-6)
                << what << ": key at row " << row << ", position " << i << ", dimension " << d
                << ": " << got_k[at] << ", expected " << expected_k[from];
            ASSERT_EQ(got_v[at], expected_v[from]) << what << ": value at position " << i;
          }
        }
      }
    }
  }
}

TEST_F(CudaDecoder, SiluMulIsTheReferences) {
  for (const DType dtype : kTypes) {
    for (const int64_t count : {1, 7, 8, 9, 2047, 2048, 2049, 14336, 30000}) {
      const bool in_place = uniform(0, 1) == 1;
      const auto offset = static_cast<size_t>(uniform(0, 2) == 0 ? itemsize(dtype) : 0);
      const auto gate = normal(count, dtype, 4.0f), up = normal(count, dtype);
      const DeviceBuffer<unsigned char> g(as_type(gate, dtype), offset), u(as_type(up, dtype));
      const DeviceBuffer<unsigned char> out(gate.size() * static_cast<size_t>(itemsize(dtype)));
      const DeviceBuffer<unsigned char>& target = in_place ? g : out;
      EXPECT_STATUS_OK(cuda::silu_mul({.gate = g.data(),
                                       .up = u.data(),
                                       .output = target.data(),
                                       .dtype = dtype,
                                       .count = count,
                                       .programmatic_launch = in_place},
                                      Stream{}));
      std::vector<float> expected(gate.size());
      ASSERT_TRUE(
          ref::silu_mul(
              {.gate = gate.data(), .up = up.data(), .output = expected.data(), .count = count}, 0,
              count)
              .ok());
      expect_near(as_floats(target.read(), dtype), expected, rounding(dtype) + 1e-6, 4e-8,
                  "count " + std::to_string(count));
    }
  }
}

TEST_F(CudaDecoder, ArgmaxTakesTheFirstOfTheLargest) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = HUGE_VALF;
  for (const DType dtype : kTypes) {
    for (const int64_t cols : {1, 7, 8, 1000, 1024, 8193, 128256}) {
      const int64_t rows = 6;
      std::vector<float> x = normal(rows * cols, dtype);
      const auto fill = [&](int64_t row, float value) {
        std::fill_n(x.begin() + row * cols, cols, value);
      };
      fill(1, nan);
      fill(2, -infinity);
      fill(3, 0.5f);
      fill(4, nan);
      x[static_cast<size_t>(4 * cols + uniform(0, cols - 1))] = -3.0f;
      // Three equal largest ones.
      for (int i = 0; i < 3; ++i) x[static_cast<size_t>(5 * cols + uniform(0, cols - 1))] = 9.0f;
      const DeviceBuffer<unsigned char> values(as_type(x, dtype));
      const DeviceBuffer<int64_t> output(static_cast<size_t>(rows));
      EXPECT_STATUS_OK(cuda::argmax({.values = values.data(),
                                     .dtype = dtype,
                                     .rows = rows,
                                     .cols = cols,
                                     .output = output.data()},
                                    Stream{}));
      const auto result = output.read();
      for (int64_t r = 0; r < rows; ++r) {
        int64_t best = -1;
        for (int64_t i = 0; i < cols; ++i) {
          const float v = x[static_cast<size_t>(r * cols + i)];
          if (!std::isnan(v) && (best < 0 || v > x[static_cast<size_t>(r * cols + best)])) best = i;
        }
        EXPECT_EQ(result[static_cast<size_t>(r)], best) << "row " << r << " of " << cols;
      }
    }
  }
}

TEST(CudaDecoderArguments, RefusesBadOnes) {
  const auto invalid = [](const Status& s) { EXPECT_EQ(s.code, StatusCode::kInvalidArgument); };
  float x[8] = {};
  int64_t id = 0;
  const KvSlot slot;
  invalid(cuda::rms_norm({.rows = 1, .cols = 8}, Stream{}));
  invalid(cuda::rms_norm({.hidden = x, .weight = x, .output = x, .rows = -1, .cols = 8}, Stream{}));
  invalid(cuda::rotary_append({.query = x,
                               .key = x,
                               .value = x,
                               .inv_freq = x,
                               .slot = &slot,
                               .batch = 1,
                               .tokens = 1,
                               .heads = 1,
                               .kv_heads = 1,
                               .head_dim = 7},
                              Stream{}));
  AttentionCudaParams attention{.query = x,
                                .slot = &slot,
                                .batch = 1,
                                .tokens = 1,
                                .heads = 3,
                                .kv_heads = 2,
                                .head_dim = 8,
                                .output = x,
                                .workspace = x};
  invalid(cuda::attention({}, attention, Stream{}));
  attention.kv_heads = 3;
  invalid(cuda::attention({}, attention, Stream{}));  // no plan
  attention.head_dim = 264;
  EXPECT_EQ(cuda::attention({}, attention, Stream{}).code, StatusCode::kUnsupported);
  invalid(cuda::silu_mul({.gate = x, .count = 1}, Stream{}));
  invalid(cuda::argmax({.values = x, .rows = 1, .cols = -1, .output = &id}, Stream{}));
  EXPECT_STATUS_OK(cuda::rms_norm({}, Stream{}));
  EXPECT_STATUS_OK(cuda::argmax({}, Stream{}));
}

}  // namespace
}  // namespace lowbit::test
