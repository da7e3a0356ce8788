// How decode attention is spread over a GPU; needs none.
#include <gtest/gtest.h>

#include "cuda/decoder_attention.h"

namespace lowbit::kernels {
namespace {

constexpr DeviceProperties kH100{90, 132, 232448, 50 << 20};

AttentionCudaPlan plan(int64_t batch, int64_t tokens, int64_t heads, int64_t kv_heads,
                       int64_t head_dim) {
  return cuda::plan_attention({.batch = batch,
                               .tokens = tokens,
                               .heads = heads,
                               .kv_heads = kv_heads,
                               .head_dim = head_dim},
                              kH100);
}

TEST(AttentionPlan, OneSequenceIsSplitOverTheDevice) {
  const AttentionCudaPlan p = plan(1, 1, 32, 8, 128);
  EXPECT_EQ(p.query_heads, 4);
  EXPECT_EQ(p.units, 8);
  EXPECT_EQ(p.splits, 33);  // 264 blocks on 132 multiprocessors
}

TEST(AttentionPlan, LargeBatchesAreNotSplit) {
  EXPECT_EQ(plan(64, 1, 32, 8, 128).splits, 1);
  EXPECT_EQ(plan(64, 1, 32, 8, 128).units, 512);
}

TEST(AttentionPlan, GroupsOfAnySize) {
  EXPECT_EQ(plan(1, 1, 8, 8, 64).query_heads, 1);
  EXPECT_EQ(plan(1, 1, 8, 8, 64).units, 8);
  EXPECT_EQ(plan(1, 1, 3, 1, 64).units, 1);
  EXPECT_EQ(plan(2, 3, 71, 1, 64).units, 2 * 3 * 18);
  EXPECT_EQ(plan(1, 1, 1, 1, 64).splits, cuda::kMostSplits);
}

TEST(AttentionPlan, TheWorkspaceHoldsCountersAndParts) {
  const AttentionCudaPlan p = plan(3, 1, 9, 3, 72);
  const cuda::AttentionLayout layout = cuda::attention_layout(p, 72);
  EXPECT_GE(layout.softmax, p.units * 4);
  EXPECT_GE(layout.sums, layout.softmax + p.units * p.splits * p.query_heads * 8);
  EXPECT_EQ(layout.bytes, layout.sums + p.units * p.splits * p.query_heads * 72 * 4);
  EXPECT_EQ(layout.bytes, p.workspace_bytes);
  EXPECT_EQ(layout.softmax % 16, 0);
  EXPECT_EQ(layout.sums % 16, 0);
}

TEST(AttentionPlan, EmptyProblems) {
  EXPECT_EQ(plan(0, 1, 8, 8, 64).units, 0);
  EXPECT_EQ(plan(1, 0, 8, 8, 64).workspace_bytes, 0);
}

}  // namespace
}  // namespace lowbit::kernels
