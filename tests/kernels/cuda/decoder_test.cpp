// The decoder kernels on a GPU against the scalar reference, which computes on the same rounded
// inputs in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "device_buffer.h"
#include "lowbit/kernels/decoder.h"
#include "scalar.h"

namespace lowbit::test {
namespace {

using namespace lowbit::kernels;
using Bytes = std::vector<unsigned char>;

constexpr DType kTypes[] = {DType::kBFloat16, DType::kFloat16, DType::kFloat32};

/// Half a unit in the last place, relative.
double rounding(DType dtype) {
  return dtype == DType::kFloat32    ? 0x1p-24
         : dtype == DType::kBFloat16 ? 0x1p-8
                                     : 0x1p-11;
}

Bytes as_type(const std::vector<float>& x, DType dtype) {
  Bytes bytes(x.size() * static_cast<size_t>(itemsize(dtype)));
  for (size_t i = 0; i < x.size(); ++i) {
    store_element(bytes.data(), dtype, static_cast<int64_t>(i), x[i]);
  }
  return bytes;
}

std::vector<float> as_floats(const Bytes& bytes, DType dtype) {
  std::vector<float> x(bytes.size() / static_cast<size_t>(itemsize(dtype)));
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = load_element(bytes.data(), dtype, static_cast<int64_t>(i));
  }
  return x;
}

/// |result - truth| <= relative * |truth| + absolute, everywhere; names the first element that is
/// not.
void expect_near(const std::vector<float>& result, const std::vector<float>& truth, double relative,
                 double absolute, const std::string& what) {
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
        inv_freq.push_back(std::pow(10000.0f, -2.0f * static_cast<float>(i) / static_cast<float>(dim)));
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
        ASSERT_TRUE(ref::rotary_append(
                        {.query = expected_q.data() + b * tokens * heads * dim,
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

struct AttentionSizes {
  int64_t batch, tokens, kv_heads, group, dim, past, window;
  int multiprocessors;
  std::string text() const {
    return "batch " + std::to_string(batch) + " tokens " + std::to_string(tokens) + " kv_heads " +
           std::to_string(kv_heads) + " group " + std::to_string(group) + " head_dim " +
           std::to_string(dim) + " past " + std::to_string(past) + " window " +
           std::to_string(window) + " multiprocessors " + std::to_string(multiprocessors);
  }
};

/// Attention over a random cache, twice on one workspace.
void check_attention(const AttentionSizes& s, DType dtype,
                     const std::function<std::vector<float>(int64_t)>& normal,
                     double absolute = 5e-6) {
  const int64_t heads = s.kv_heads * s.group, length = s.past + s.tokens, capacity = length + 3;
  const auto query = normal(s.batch * s.tokens * heads * s.dim);
  const auto keys = normal(s.batch * s.kv_heads * length * s.dim);
  const auto values = normal(s.batch * s.kv_heads * length * s.dim);
  const DeviceBuffer<unsigned char> q(as_type(query, dtype));
  const DeviceCache cache(s.batch * s.kv_heads, s.dim, dtype, capacity, s.past);
  const Bytes key_bytes = as_type(keys, dtype), value_bytes = as_type(values, dtype);
  const auto row = static_cast<size_t>(s.dim * itemsize(dtype));
  for (int64_t i = 0; i < s.batch * s.kv_heads; ++i) {
    const size_t size = static_cast<size_t>(length) * row, from = static_cast<size_t>(i) * size;
    const size_t to = static_cast<size_t>(i * capacity) * row;
    EXPECT_CUDA_OK(cudaMemcpy(cache.key.data() + to, key_bytes.data() + from, size,
                              cudaMemcpyHostToDevice));
    EXPECT_CUDA_OK(cudaMemcpy(cache.value.data() + to, value_bytes.data() + from, size,
                              cudaMemcpyHostToDevice));
  }
  const DeviceBuffer<unsigned char> out(query.size() * static_cast<size_t>(itemsize(dtype)));
  const float scale = 1.0f / std::sqrt(static_cast<float>(s.dim));
  AttentionCudaParams p{.query = q.data(),
                        .slot = cache.slot.data(),
                        .dtype = dtype,
                        .batch = s.batch,
                        .tokens = s.tokens,
                        .heads = heads,
                        .kv_heads = s.kv_heads,
                        .head_dim = s.dim,
                        .window = s.window,
                        .scale = scale,
                        .output = out.data()};
  const AttentionCudaPlan plan = cuda::plan_attention(p, {90, s.multiprocessors, 232448, 0});
  const DeviceBuffer<unsigned char> workspace(static_cast<size_t>(plan.workspace_bytes));
  workspace.fill(0);
  p.workspace = workspace.data();
  EXPECT_STATUS_OK(cuda::attention(plan, p, Stream{}));
  const Bytes first = out.read();
  out.fill(0xff);
  p.programmatic_launch = true;
  EXPECT_STATUS_OK(cuda::attention(plan, p, Stream{}));
  EXPECT_EQ(out.read(), first) << s.text() << ": the second call differs";
  (void)workspace.read();  // canaries

  std::vector<float> expected(query.size()), scratch(1);
  for (int64_t b = 0; b < s.batch; ++b) {
    const int64_t cache_at = b * s.kv_heads * length * s.dim;
    const int64_t at = b * s.tokens * heads * s.dim;
    AttentionParams truth{.query = query.data() + at,
                          .key_cache = keys.data() + cache_at,
                          .value_cache = values.data() + cache_at,
                          .tokens = s.tokens,
                          .heads = heads,
                          .kv_heads = s.kv_heads,
                          .head_dim = s.dim,
                          .capacity = length,
                          .past = s.past,
                          .window = s.window,
                          .scale = scale,
                          .output = expected.data() + at,
                          .workspace = scratch.data()};
    ASSERT_TRUE(ref::attention(truth, 0, attention_units(truth)).ok());
  }
  expect_near(as_floats(first, dtype), expected, rounding(dtype) * 1.01, absolute, s.text());
}

TEST_F(CudaDecoder, AttentionIsTheReferences) {
  const int64_t dims[] = {8, 16, 64, 80, 96, 128, 192, 256};
  const int64_t pasts[] = {0, 1, 14, 15, 16, 31, 32, 63, 64, 65, 127, 300, 700};
  for (const DType dtype : kTypes) {
    for (const int64_t dim : dims) {
      for (const int64_t past : pasts) {
        if (::testing::Test::HasFatalFailure()) return;
        check_attention({.batch = uniform(1, 3),
                         .tokens = uniform(0, 2) == 0 ? uniform(2, 5) : 1,
                         .kv_heads = uniform(1, 3),
                         .group = uniform(1, 9),
                         .dim = dim,
                         .past = past,
                         .window = uniform(0, 2) == 0 ? uniform(1, past + 3) : 0,
                         .multiprocessors = static_cast<int>(std::vector{1, 4, 30, 132}[
                             static_cast<size_t>(uniform(0, 3))])},
                        dtype, [&](int64_t n) { return normal(n, dtype); });
      }
    }
  }
}

TEST_F(CudaDecoder, LargeScoresDoNotOverflow) {
  for (const DType dtype : kTypes) {
    // Scores of several thousands: one or two keys have all the weight, and float32 rounds the
    // scores to 3e-4.
    check_attention({1, 1, 2, 4, 64, 200, 0, 132}, dtype,
                    [&](int64_t n) { return normal(n, dtype, 12.0f); }, 2e-2);
  }
}

TEST_F(CudaDecoder, LongCacheUsesEverySplit) {
  check_attention({1, 1, 1, 4, 128, 5000, 0, 132}, DType::kBFloat16,
                  [&](int64_t n) { return normal(n, DType::kBFloat16); });
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

/// Rotary and attention of one token, as a decoder runs them.
TEST_F(CudaDecoder, OneGraphServesEveryPositionAndCache) {
  constexpr DType kType = DType::kBFloat16;
  constexpr int64_t kHeads = 8, kKvHeads = 2, kDim = 64, kCapacity = 300;
  cudaStream_t stream = nullptr;
  EXPECT_CUDA_OK(cudaStreamCreate(&stream));
  const auto query = as_type(normal(kHeads * kDim, kType), kType);
  const DeviceBuffer<unsigned char> q(query), k(as_type(normal(kKvHeads * kDim, kType), kType));
  const DeviceBuffer<unsigned char> v(as_type(normal(kKvHeads * kDim, kType), kType));
  const DeviceBuffer<unsigned char> out(query.size());
  std::vector<float> inv_freq;
  for (int64_t i = 0; i < kDim / 2; ++i) inv_freq.push_back(1.0f / static_cast<float>(1 + i));
  const DeviceBuffer<float> frequencies(inv_freq);
  const DeviceBuffer<KvSlot> slot(1);
  const RotaryAppendCudaParams rotary{.query = q.data(),
                                      .key = k.data(),
                                      .value = v.data(),
                                      .inv_freq = frequencies.data(),
                                      .slot = slot.data(),
                                      .dtype = kType,
                                      .batch = 1,
                                      .tokens = 1,
                                      .heads = kHeads,
                                      .kv_heads = kKvHeads,
                                      .head_dim = kDim,
                                      .programmatic_launch = true};
  AttentionCudaParams attention{.query = q.data(),
                                .slot = slot.data(),
                                .dtype = kType,
                                .batch = 1,
                                .tokens = 1,
                                .heads = kHeads,
                                .kv_heads = kKvHeads,
                                .head_dim = kDim,
                                .scale = 0.125f,
                                .output = out.data(),
                                .programmatic_launch = true};
  const AttentionCudaPlan plan = cuda::plan_attention(attention, {90, 132, 232448, 0});
  const DeviceBuffer<unsigned char> workspace(static_cast<size_t>(plan.workspace_bytes));
  workspace.fill(0);
  attention.workspace = workspace.data();
  const auto enqueue = [&] {
    EXPECT_STATUS_OK(cuda::rotary_append(rotary, Stream{stream}));
    EXPECT_STATUS_OK(cuda::attention(plan, attention, Stream{stream}));
  };
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  EXPECT_CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  enqueue();
  EXPECT_CUDA_OK(cudaStreamEndCapture(stream, &graph));
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);

  const DeviceCache a(kKvHeads, kDim, kType, kCapacity, 0), b(kKvHeads, kDim, kType, kCapacity, 0);
  for (const DeviceCache* cache : {&a, &b}) {
    const Bytes filled = as_type(normal(kKvHeads * kCapacity * kDim, kType), kType);
    for (const auto* part : {&cache->key, &cache->value}) {
      EXPECT_CUDA_OK(cudaMemcpy(part->data(), filled.data(), filled.size(), cudaMemcpyHostToDevice));
    }
    for (const int64_t past : {0, 1, 40, 170, 299}) {
      const KvSlot host = cache->host(kCapacity, past);
      EXPECT_CUDA_OK(cudaMemcpy(slot.data(), &host, sizeof host, cudaMemcpyHostToDevice));
      Bytes results[2];
      for (const bool replay : {false, true}) {
        EXPECT_CUDA_OK(cudaMemcpy(q.data(), query.data(), query.size(), cudaMemcpyHostToDevice));
        out.fill(0xff);
        EXPECT_CUDA_OK(cudaDeviceSynchronize());
        if (replay) {
          EXPECT_CUDA_OK(cudaGraphLaunch(executable, stream));
        } else {
          enqueue();
        }
        results[replay] = out.read();
      }
      EXPECT_EQ(results[0], results[1]) << "past " << past;
      for (const float x : as_floats(results[1], kType)) ASSERT_FALSE(std::isnan(x));
    }
  }
  EXPECT_CUDA_OK(cudaGraphExecDestroy(executable));
  EXPECT_CUDA_OK(cudaGraphDestroy(graph));
  EXPECT_CUDA_OK(cudaStreamDestroy(stream));
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
