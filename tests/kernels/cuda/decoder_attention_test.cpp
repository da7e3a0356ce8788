// Decode attention on a GPU against the scalar reference, and a decoder's kernels in a CUDA graph.
#include <gtest/gtest.h>

#include <functional>

#include "decoder_problem.h"

namespace lowbit::test {
namespace {

using CudaAttention = CudaDecoder;

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
    EXPECT_CUDA_OK(
        cudaMemcpy(cache.key.data() + to, key_bytes.data() + from, size, cudaMemcpyHostToDevice));
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

TEST_F(CudaAttention, AttentionIsTheReferences) {
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
                         .multiprocessors = static_cast<int>(
                             std::vector{1, 4, 30, 132}[static_cast<size_t>(uniform(0, 3))])},
                        dtype, [&](int64_t n) { return normal(n, dtype); });
      }
    }
  }
}

TEST_F(CudaAttention, LargeScoresDoNotOverflow) {
  for (const DType dtype : kTypes) {
    // Scores of several thousands: one or two keys have all the weight, and float32 rounds the
    // scores to 3e-4.
    check_attention(
        {1, 1, 2, 4, 64, 200, 0, 132}, dtype, [&](int64_t n) { return normal(n, dtype, 12.0f); },
        2e-2);
  }
}

TEST_F(CudaAttention, LongCacheUsesEverySplit) {
  check_attention({1, 1, 1, 4, 128, 5000, 0, 132}, DType::kBFloat16,
                  [&](int64_t n) { return normal(n, DType::kBFloat16); });
}

/// Rotary and attention of one token, as a decoder runs them.
TEST_F(CudaAttention, OneGraphServesEveryPositionAndCache) {
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
      EXPECT_CUDA_OK(
          cudaMemcpy(part->data(), filled.data(), filled.size(), cudaMemcpyHostToDevice));
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

}  // namespace
}  // namespace lowbit::test
