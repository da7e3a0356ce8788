// How decode attention is spread over a CUDA device. Needs no CUDA.
#include <algorithm>

#include "cuda/decoder_attention.h"

namespace lowbit::kernels::cuda {

AttentionCudaPlan plan_attention(const AttentionCudaParams& p,
                                 const DeviceProperties& device) noexcept {
  AttentionCudaPlan plan;
  if (p.batch <= 0 || p.tokens <= 0) return plan;
  const int64_t group = p.heads / p.kv_heads;
  plan.query_heads = group == 1 ? 1 : kMostQueryHeads;
  plan.units = p.batch * p.tokens * p.kv_heads * ceil_div(group, plan.query_heads);
  // Two blocks a multiprocessor hold enough reads in flight for the memory's latency.
  plan.splits = static_cast<int32_t>(
      std::clamp<int64_t>(2 * int64_t{device.multiprocessors} / plan.units, 1, kMostSplits));
  plan.workspace_bytes = attention_layout(plan, p.head_dim).bytes;
  return plan;
}

}  // namespace lowbit::kernels::cuda
