// LLM.int8() for few tokens: bound by the bytes of the weight, which stream through shared memory
// while the activations are quantized.
//
//  * Two launches: a block a token quantizes, and lets the second one begin at once (programmatic
//    dependent launch), which fills its ring with weights before it waits for the codes. Quantizing
//    in every block for itself was tried: 1 us a token.
//  * Blocks go from tile to tile of 16 rows of the weight; the warps of a block share the columns,
//    128 at a time, and add their sums in shared memory: integers, so in any order.
//  * A lane copies with cp.async what it will multiply itself: the ring needs no barriers.
//  * mma m16n8k32, the weight as A. Which columns form the depth of a product is free: a lane's 16
//    consecutive bytes of a row are its part of two products, of both operands.
//  * The weights of the first few outlier columns are read while a tile is multiplied; behind the
//    barrier of a tile nothing waits for memory.
#include "cuda/common/async_copy.cuh"
#include "cuda/common/launch.h"
#include "cuda/common/mma_s8_sm80.cuh"
#include "cuda/common/pack.cuh"
#include "cuda/int8_codes.cuh"
#include "cuda/int8_linear.h"

namespace lowbit::kernels::cuda {
namespace {

constexpr int kWarps = kMixedSmallWarps;
constexpr int kThreads = 32 * kWarps;
constexpr int kRows = kMixedSmallRows;
constexpr int kDepth = kMixedSmallDepth;
[[maybe_unused]] constexpr int kTurn = kRows * kDepth;  // bytes that a warp copies at a time

[[maybe_unused]] constexpr int kListed = kMixedSmallListed;

[[maybe_unused]] __device__ __forceinline__ void prefetch(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

/// A block a token: its codes, its statistic, and a bit for each of its outliers.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(const __grid_constant__ LinearMixedInt8Params p, MixedSmallWorkspace w,
                    float threshold) {
  constexpr int kHeld = 2;  // packs in registers from the first look to the second
  __shared__ float partial[kWarps];
  allow_next_kernel();
  const int64_t row = blockIdx.x;
  auto* workspace = static_cast<uint8_t*>(p.workspace);
  uint8_t* flags = workspace + w.flags + row * w.flags_row;
  const T* input = static_cast<const T*>(p.input) + row * p.input_stride;
  const int packs = static_cast<int>(p.k / 8);
  const float limit = threshold > 0.0f ? threshold : INFINITY;
  float largest = 0.0f;
  Pack8<T> held[kHeld];
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int pack = h * kThreads + threadIdx.x;
    if (pack < packs) held[h] = read8(input + pack * 8);
  }
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int pack = h * kThreads + threadIdx.x;
    if (pack < packs) {
      flags[pack] = static_cast<uint8_t>(take_magnitude(held[h], threshold, limit, largest));
    }
  }
  for (int pack = kHeld * kThreads + threadIdx.x; pack < packs; pack += kThreads) {
    Pack8<T> x = read8(input + pack * 8);
    flags[pack] = static_cast<uint8_t>(take_magnitude(x, threshold, limit, largest));
  }
  for (int pack = packs + threadIdx.x; pack < w.flags_row; pack += kThreads) flags[pack] = 0;
  largest = group_max<32>(largest);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = largest;
  __syncthreads();
  largest = group_max<kWarps>(partial[threadIdx.x % kWarps]);
  if (threadIdx.x == 0) reinterpret_cast<float*>(workspace + w.stats)[row] = largest;
  const float scale = device_rowwise_scale(largest);
  const auto write = [&](const Pack8<T>& x, int pack) {
    const uint2 codes = scale < INFINITY ? plain_codes(x, scale) : careful_codes(x, scale);
    *reinterpret_cast<uint2*>(workspace + row * p.k + pack * 8) = codes;
  };
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int pack = h * kThreads + threadIdx.x;
    if (pack < packs) write(held[h], pack);
  }
  for (int pack = kHeld * kThreads + threadIdx.x; pack < packs; pack += kThreads) {
    Pack8<T> x = read8(input + pack * 8);
    take_magnitude(x, threshold, limit, largest);
    write(x, pack);
  }
}

/// Codes and outlier columns of all tokens, from the workspace into shared memory. All threads;
/// ends behind a barrier.
template <typename T>
__device__ __forceinline__ void bring_activations(const LinearMixedInt8Params& p,
                                                  const MixedSmallLayout& l,
                                                  const MixedSmallWorkspace& w, uint8_t* shared) {
  const auto* workspace = static_cast<const uint8_t*>(p.workspace);
  const int m = static_cast<int>(p.m), chunks = static_cast<int>(p.k / 16);
  auto* flags = reinterpret_cast<uint32_t*>(shared + l.flags);
  auto* listed = reinterpret_cast<uint16_t*>(shared + l.listed);
  const int words = static_cast<int>(w.flags_row / 4), lane = threadIdx.x % 32;
  for (int i = threadIdx.x; i < words; i += kThreads) {
    uint32_t any = 0;
#pragma unroll 8
    for (int row = 0; row < m; ++row) {
      any |= __ldcg(reinterpret_cast<const uint32_t*>(workspace + w.flags + row * w.flags_row) + i);
    }
    flags[i] = any;
  }
#pragma unroll 8
  for (int i = threadIdx.x; i < m * chunks; i += kThreads) {  // the codes of all rows lie together
    const int row = i / chunks;
    *reinterpret_cast<uint4*>(shared + l.activations + row * l.row + (i - row * chunks) * 16) =
        __ldcg(reinterpret_cast<const uint4*>(workspace) + i);
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    int total = 0;
    for (int begin = 0; begin < words; begin += 32) {
      uint32_t bits = begin + lane < words ? flags[begin + lane] : 0;
      if (__ballot_sync(0xffffffffu, bits != 0) == 0) continue;
      int place = __popc(bits);
#pragma unroll
      for (int offset = 1; offset < 32; offset *= 2) {
        const int below = __shfl_up_sync(0xffffffffu, place, offset);
        if (lane >= offset) place += below;
      }
      const int sum = __shfl_sync(0xffffffffu, place, 31);
      place += total - __popc(bits);
      for (; bits != 0; bits &= bits - 1) {
        listed[place++] = static_cast<uint16_t>((begin + lane) * 32 + __ffs(bits) - 1);
      }
      total += sum;
    }
    if (lane == 0) *reinterpret_cast<int*>(shared + l.count) = total;
  }
  __syncthreads();
  const int count = *reinterpret_cast<const int*>(shared + l.count);
  auto* inputs = reinterpret_cast<float*>(shared + l.inputs);
  for (int i = threadIdx.x; i < count * m; i += kThreads) {
    const int j = i / m, row = i % m, column = listed[j];
    shared[l.activations + row * l.row + column] = 0;  // the whole column is an outlier's
    if (j < kListed) {
      inputs[j * kMixedSmallMostTokens + row] =
          to_float(static_cast<const T*>(p.input)[row * p.input_stride + column]);
    }
  }
  __syncthreads();
}

template <typename T, int kVariant>
__global__ void __launch_bounds__(kThreads, 1)
    small_kernel(const __grid_constant__ LinearMixedInt8Params p,
                 const __grid_constant__ MixedSmallLayout l, MixedSmallWorkspace w) {
#if __CUDA_ARCH__ >= 800
  constexpr MixedSmallVariant v = kMixedSmallVariants[kVariant];
  constexpr int kBuffer = 8 * v.token_tiles * kMixedSmallSumStride;
  extern __shared__ __align__(128) uint8_t shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int m = static_cast<int>(p.m), steps = static_cast<int>(ceil_div(p.k, kDepth));
  const int tiles = static_cast<int>(ceil_div(p.n, kRows));

  // ---- the weight's way into the ring
  int coming_tile = warp < steps ? static_cast<int>(blockIdx.x) : tiles, coming_step = warp;
  const uint32_t ring = shared_address(shared) + warp * kTurn + lane * 16;
  const auto fetch = [&](int slot) {
    if (coming_tile < tiles) {
      const int64_t row = int64_t{coming_tile} * kRows + g, column = coming_step * kDepth + t * 16;
#pragma unroll
      for (int c = 0; c < 4; ++c) {  // columns 0..63 and 64..127 of rows g and g + 8
        const int64_t r = row + c / 2 * 8, k = column + c % 2 * 64;
        const bool valid = r < p.n && k < p.k;
        copy_async(ring + slot * (kWarps * kTurn) + c * 512, p.q + (valid ? r * p.k + k : 0),
                   valid ? 16 : 0);
      }
      if ((coming_step += kWarps) >= steps) coming_step = warp, coming_tile += gridDim.x;
    }
    commit_copies();
  };
  // What the epilogues of all tiles read goes to the L2 cache first: behind the weights that are
  // under way it would take longer than a tile.
  for (int64_t tile = blockIdx.x + int64_t{threadIdx.x} * gridDim.x; tile < tiles;
       tile += int64_t{kThreads} * gridDim.x) {
    prefetch(p.stats + tile * kRows);
    if (p.bias != nullptr) {
      prefetch(static_cast<const uint8_t*>(p.bias) + tile * kRows * itemsize(p.bias_dtype));
    }
  }
#pragma unroll
  for (int s = 0; s < v.stages; ++s) fetch(s);

  for (int64_t i = l.sums + threadIdx.x * 4; i < l.bytes; i += kThreads * 4) {
    *reinterpret_cast<int*>(shared + i) = 0;
  }
  wait_for_previous_kernel();
  bring_activations<T>(p, l, w, shared);
  const int count = *reinterpret_cast<const int*>(shared + l.count);
  const auto* listed = reinterpret_cast<const uint16_t*>(shared + l.listed);

  // A lane's token of every tile of eight; tokens behind the last one are made and not used.
  const uint8_t* tokens[v.token_tiles];
#pragma unroll
  for (int i = 0; i < v.token_tiles; ++i) {
    tokens[i] = shared + l.activations + min(i * 8 + g, m - 1) * l.row + t * 16;
  }
  const int token = threadIdx.x / kRows;  // that a thread writes, and the outlier that it reads
  const float row_stat = token < m
                             ? __ldcg(reinterpret_cast<const float*>(
                                          static_cast<const uint8_t*>(p.workspace) + w.stats) +
                                      token)
                             : 0.0f;
  const int early = min(count, kListed);
  const int64_t early_column = token < early ? listed[token] : 0;
  int slot = 0, parity = 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, parity ^= 1) {
    const int64_t feature = int64_t{tile} * kRows + threadIdx.x % kRows;
    const bool writes = token < m && feature < p.n;
    int* buffer = reinterpret_cast<int*>(shared + l.sums) + parity * kBuffer;
    float* weights = reinterpret_cast<float*>(shared + l.weights) + parity * kListed * kRows;
    const float stat = feature < p.n ? __ldg(p.stats + feature) : 0.0f;
    const int8_t code =
        token < early && feature < p.n ? __ldg(p.q + feature * p.k + early_column) : int8_t{0};
    const float bias = writes && p.bias != nullptr ? load_any(p.bias, p.bias_dtype, feature) : 0.0f;

    int sums[v.token_tiles][4] = {};
    for (int step = warp; step < steps; step += kWarps) {
      wait_copies<v.stages - 1>();
      const uint8_t* from = shared + (slot * kWarps + warp) * kTurn + lane * 16;
      uint4 w[4];
#pragma unroll
      for (int c = 0; c < 4; ++c) w[c] = *reinterpret_cast<const uint4*>(from + c * 512);
#pragma unroll
      for (int i = 0; i < v.token_tiles; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const uint4 x = *reinterpret_cast<const uint4*>(tokens[i] + step * kDepth + h * 64);
          mma_16x8x32(sums[i], w[h].x, w[2 + h].x, w[h].y, w[2 + h].y, x.x, x.y);
          mma_16x8x32(sums[i], w[h].z, w[2 + h].z, w[h].w, w[2 + h].w, x.z, x.w);
        }
      }
      fetch(slot);
      if (++slot == v.stages) slot = 0;
    }
    if (warp < steps) {
#pragma unroll
      for (int i = 0; i < v.token_tiles; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {  // rows g, g + 8 of tokens 2t, 2t + 1
          atomicAdd(buffer + (i * 8 + 2 * t + j % 2) * kMixedSmallSumStride + g + j / 2 * 8,
                    sums[i][j]);
        }
      }
    }
    if (token < early) weights[threadIdx.x] = code_value(code, stat);
    __syncthreads();  // the other buffers' readers were done before they came here
    if (writes) {
      int* sum = buffer + token * kMixedSmallSumStride + threadIdx.x % kRows;
      float y = epilogue(*sum, row_stat, stat, bias);
      *sum = 0;
      if (count > 0) {
        const auto* inputs = reinterpret_cast<const float*>(shared + l.inputs) + token;
        float extra = 0.0f;
        for (int j = 0; j < early; ++j) {
          extra = __fmaf_rn(inputs[j * kMixedSmallMostTokens],
                            weights[j * kRows + threadIdx.x % kRows], extra);
        }
        const T* input = static_cast<const T*>(p.input) + token * p.input_stride;
        const int8_t* q = p.q + feature * p.k;
#pragma unroll 4
        for (int j = early; j < count; ++j) {
          const int column = listed[j];
          extra = __fmaf_rn(to_float(input[column]), code_value(q[column], stat), extra);
        }
        y += extra;
      }
      static_cast<T*>(p.output)[token * p.n + feature] = from_float<T>(y);
    }
  }
#else
  __trap();  // made for an older architecture than the plan's: an error, not a wrong result
#endif
}

template <typename T>
Status run(const LinearMixedPlan& plan, const LinearMixedInt8Params& p, Stream stream) {
  const MixedSmallWorkspace workspace = mixed_small_workspace(p.m, p.k);
  const Status status = launch(quantize_kernel<T>, p.m, kThreads, stream, p, workspace,
                               rounded_threshold(p.threshold));
  if (!status.ok()) return status;
  const auto with = [&](auto kernel) {
    const LaunchShape shape{plan.grid, 1, plan.threads, plan.shared_bytes, plan.programmatic};
    return launch(kernel, shape, stream, p,
                  mixed_small_layout(kMixedSmallVariants[plan.variant], p.m, p.k), workspace);
  };
  switch (plan.variant) {
    case 0:
      return with(small_kernel<T, 0>);
    case 1:
      return with(small_kernel<T, 1>);
    case 2:
      return with(small_kernel<T, 2>);
    case 3:
      return with(small_kernel<T, 3>);
    default:
      return with(small_kernel<T, 4>);
  }
}

}  // namespace

Status launch_mixed_small(const LinearMixedPlan& plan, const LinearMixedInt8Params& p,
                          Stream stream) noexcept {
  if (plan.variant < 0 || plan.variant >= kMixedSmallVariantCount || plan.grid < 1 ||
      p.m > 8 * kMixedSmallVariants[plan.variant].token_tiles || p.k > kMixedSmallMostColumns ||
      p.k % 16 != 0 || plan.threads != kThreads ||
      plan.shared_bytes < mixed_small_layout(kMixedSmallVariants[plan.variant], p.m, p.k).bytes) {
    return invalid_argument("the plan was made for another problem");
  }
  if (p.workspace == nullptr || !aligned(p.workspace, 16) ||
      plan.workspace_bytes < mixed_small_workspace(p.m, p.k).bytes) {
    return invalid_argument("the workspace is missing, small or not aligned");
  }
  return visit_device_dtype(p.dtype, [&](auto* tag) {
    return run<std::remove_pointer_t<decltype(tag)>>(plan, p, stream);
  });
}

}  // namespace lowbit::kernels::cuda
