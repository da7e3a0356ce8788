// Decode attention: few query tokens over a long cache, bound by reading the cache once.
//
// A block serves up to four query heads of one kv head over one slice of the keys. In a warp kLanes
// lanes share a key: each holds eight of its dimensions, and of the queries and the weighted sums
// the same eight. Every such group of lanes runs a softmax of its own over its keys; the groups
// meet in shuffles and shared memory, the slices in the workspace, where the block that comes last
// combines them in the order of the slices: the result does not depend on which one that is.
#include <type_traits>

#include "cuda/common/async_copy.cuh"
#include "cuda/common/launch.h"
#include "cuda/common/pack.cuh"
#include "cuda/decoder_attention.h"
#include "decoder_check.h"

namespace lowbit::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kUnroll = 4;  // keys that a group of lanes reads at a time

/// Below every score, and finite: the difference of two is a number.
constexpr float kLowest = -1e30f;

struct Workspace {
  int* counters;
  float2* softmax;  // maximum, sum of weights
  float* sums;
};

/// The softmax over some keys: weights are exp2(score - maximum).
template <int kHeads>
struct Running {
  float maximum[kHeads], weight[kHeads], sums[kHeads][8];
};

template <int kHeads>
__device__ __forceinline__ void merge_lanes(Running<kHeads>& r, int offset) {
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    const float other = __shfl_xor_sync(0xffffffffu, r.maximum[h], offset);
    const float maximum = fmaxf(r.maximum[h], other);
    const float mine = exp2f(r.maximum[h] - maximum), theirs = exp2f(other - maximum);
    r.maximum[h] = maximum;
    const float weight = __shfl_xor_sync(0xffffffffu, r.weight[h], offset);
    r.weight[h] = r.weight[h] * mine + weight * theirs;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float sum = __shfl_xor_sync(0xffffffffu, r.sums[h][j], offset);
      r.sums[h][j] = r.sums[h][j] * mine + sum * theirs;
    }
  }
}

template <typename T, int kLanes, int kHeads>
__global__ void __launch_bounds__(kThreads)
    attention_kernel(const __grid_constant__ AttentionCudaParams p, Workspace workspace) {
  constexpr int kKeys = 32 / kLanes;               // of a warp at a time
  constexpr int kStep = kWarps * kKeys * kUnroll;  // keys of a block at a time
  constexpr int kMostDim = kLanes * 8;
  __shared__ float shared_sums[kWarps][kHeads][kMostDim];
  __shared__ float2 shared_softmax[kWarps][kHeads];
  __shared__ bool is_last;
  allow_next_kernel();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int dim = static_cast<int>(p.head_dim);
  const int d = lane % kLanes * 8;  // the first of this lane's dimensions
  const bool active = d < dim;
  const int group = static_cast<int>(p.heads / p.kv_heads), tiles = (group + kHeads - 1) / kHeads;
  // unit = ((sequence * tokens + token) * kv_heads + kv_head) * tiles + tile
  const int unit = blockIdx.x, tile = unit % tiles;
  const int64_t row = unit / tiles / p.kv_heads;
  const int64_t kv_head = unit / tiles - row * p.kv_heads;
  const int64_t sequence = row / p.tokens, token = row - sequence * p.tokens;
  const int64_t first_head = kv_head * group + tile * kHeads;
  const int heads = min(kHeads, group - tile * kHeads);  // the rest repeats the last one

  const KvSlot slot = *p.slot;
  const int64_t last = min(slot.past + token, slot.capacity - 1);
  const int64_t first = p.window > 0 ? max(int64_t{0}, last - p.window + 1) : int64_t{0};
  const int64_t chunks = (last - first) / kStep + 1;
  const int64_t chunks_each = (chunks + gridDim.y - 1) / gridDim.y;
  const int splits = static_cast<int>((chunks + chunks_each - 1) / chunks_each);
  const int split = blockIdx.y;
  const int64_t begin = first + split * chunks_each * kStep;
  const int64_t end = min(begin + chunks_each * kStep, last + 1);
  wait_for_previous_kernel();
  if (split >= splits) return;

  float query[kHeads][8];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    const int64_t head = first_head + min(h, heads - 1);
    to_floats(
        read8(static_cast<const T*>(p.query) + (row * p.heads + head) * dim + (active ? d : 0)),
        query[h]);
    const float scale = active ? p.scale * 1.44269504f : 0.0f;  // log2(e)
#pragma unroll
    for (int j = 0; j < 8; ++j) query[h][j] *= scale;
  }

  Running<kHeads> r;
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    r.maximum[h] = kLowest;
    r.weight[h] = 0.0f;
#pragma unroll
    for (int j = 0; j < 8; ++j) r.sums[h][j] = 0.0f;
  }
  const int64_t base = (sequence * p.kv_heads + kv_head) * slot.capacity * dim + (active ? d : 0);
  const T* keys = static_cast<const T*>(slot.key) + base;
  const T* values = static_cast<const T*>(slot.value) + base;
  for (int64_t step = begin; step < end; step += kStep) {
    Pack8<T> key[kUnroll], value[kUnroll];
    bool valid[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t position = step + (u * kWarps + warp) * kKeys + lane / kLanes;
      valid[u] = position < end;
      const int64_t at = min(position, end - 1) * dim;
      key[u] = read8(keys + at);
      value[u] = read8(values + at);
    }
    float score[kHeads][kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      float k[8];
      to_floats(key[u], k);
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        float dot = 0.0f;
#pragma unroll
        for (int j = 0; j < 8; ++j) dot = fmaf(query[h][j], k[j], dot);
        score[h][u] = dot;
      }
    }
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
          score[h][u] += __shfl_xor_sync(0xffffffffu, score[h][u], offset);
        }
      }
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      float maximum = r.maximum[h];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (valid[u]) maximum = fmaxf(maximum, score[h][u]);
      }
      const float rescale = exp2f(r.maximum[h] - maximum);
      r.maximum[h] = maximum;
      r.weight[h] *= rescale;
#pragma unroll
      for (int j = 0; j < 8; ++j) r.sums[h][j] *= rescale;
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        score[h][u] = valid[u] ? exp2f(score[h][u] - maximum) : 0.0f;
        r.weight[h] += score[h][u];
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      float v[8];
      to_floats(value[u], v);
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
#pragma unroll
        for (int j = 0; j < 8; ++j) r.sums[h][j] = fmaf(score[h][u], v[j], r.sums[h][j]);
      }
    }
  }

#pragma unroll
  for (int offset = kLanes; offset < 32; offset *= 2) merge_lanes(r, offset);
  if (lane < kLanes) {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
#pragma unroll
      for (int j = 0; j < 8; ++j) shared_sums[warp][h][d + j] = r.sums[h][j];
      if (lane == 0) shared_softmax[warp][h] = make_float2(r.maximum[h], r.weight[h]);
    }
  }
  __syncthreads();

  T* output = static_cast<T*>(p.output) + (row * p.heads + first_head) * dim;
  const int64_t slice = (int64_t{unit} * gridDim.y + split) * kHeads;
  for (int i = threadIdx.x; i < heads * dim; i += kThreads) {
    const int h = i / dim, e = i - h * dim;
    float maximum = kLowest, weight = 0.0f, sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) maximum = fmaxf(maximum, shared_softmax[w][h].x);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float scale = exp2f(shared_softmax[w][h].x - maximum);
      weight += shared_softmax[w][h].y * scale;
      sum += shared_sums[w][h][e] * scale;
    }
    if (splits == 1) {
      output[i] = from_float<T>(sum / weight);
    } else {
      workspace.sums[(slice + h) * dim + e] = sum;
      if (e == 0) workspace.softmax[slice + h] = make_float2(maximum, weight);
    }
  }
  if (splits == 1) return;

  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(workspace.counters + unit, 1) == splits - 1;
  __syncthreads();
  if (!is_last) return;
  if (threadIdx.x == 0) workspace.counters[unit] = 0;
  __threadfence();
  const int64_t slices = int64_t{unit} * gridDim.y * kHeads;
  for (int i = threadIdx.x; i < heads * dim; i += kThreads) {
    const int h = i / dim, e = i - h * dim;
    float maximum = kLowest, weight = 0.0f, sum = 0.0f;
    for (int s = 0; s < splits; ++s) {
      maximum = fmaxf(maximum, __ldcg(workspace.softmax + slices + s * kHeads + h).x);
    }
#pragma unroll 4
    for (int s = 0; s < splits; ++s) {
      const int64_t at = slices + s * kHeads + h;
      const float2 part = __ldcg(workspace.softmax + at);
      const float scale = exp2f(part.x - maximum);
      weight += part.y * scale;
      sum += __ldcg(workspace.sums + at * dim + e) * scale;
    }
    output[i] = from_float<T>(sum / weight);
  }
}

template <typename T, int kLanes>
Status launch_attention(const AttentionCudaPlan& plan, const AttentionCudaParams& p,
                        Stream stream) {
  const AttentionLayout layout = attention_layout(plan, p.head_dim);
  char* memory = static_cast<char*>(p.workspace);
  const Workspace workspace{reinterpret_cast<int*>(memory),
                            reinterpret_cast<float2*>(memory + layout.softmax),
                            reinterpret_cast<float*>(memory + layout.sums)};
  const LaunchShape shape{static_cast<int32_t>(plan.units), plan.splits, kThreads, 0,
                          p.programmatic_launch};
  if (plan.query_heads == 1) {
    return launch(attention_kernel<T, kLanes, 1>, shape, stream, p, workspace);
  }
  return launch(attention_kernel<T, kLanes, kMostQueryHeads>, shape, stream, p, workspace);
}

}  // namespace

Status attention(const AttentionCudaPlan& plan, const AttentionCudaParams& p,
                 Stream stream) noexcept {
  if (const Status status = check(p); !status.ok()) return status;
  if (p.batch == 0 || p.tokens == 0) return ok_status();
  if (!aligned(p.query, 16) || !aligned(p.workspace, 16)) {
    return unsupported("query and workspace must be 16-byte aligned");
  }
  const bool one = plan.query_heads == 1;
  const int64_t group = p.heads / p.kv_heads;
  if ((!one && plan.query_heads != kMostQueryHeads) || plan.splits < 1 ||
      plan.splits > kMostSplits ||
      plan.units != p.batch * p.tokens * p.kv_heads * ceil_div(group, plan.query_heads)) {
    return invalid_argument("the plan was made for another problem");
  }
  if (plan.units > std::numeric_limits<int32_t>::max()) {
    return unsupported("the problem needs more than 2^31 - 1 thread blocks");
  }
  return visit_device_dtype(p.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    if (p.head_dim <= 64) return launch_attention<T, 8>(plan, p, stream);
    if (p.head_dim <= 128) return launch_attention<T, 16>(plan, p, stream);
    return launch_attention<T, 32>(plan, p, stream);
  });
}

}  // namespace lowbit::kernels::cuda
