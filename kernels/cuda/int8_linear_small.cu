// LLM.int8() for few tokens, in one launch: bound by the bytes of the weight, which streams through
// shared memory from the first instruction on, while the block quantizes the activations.
//
//  * Every block quantizes all tokens for itself: their rows come from the L2 cache, and the time
//    hides behind the weight that is under way. Nothing passes between blocks: no scratch memory,
//    no second launch, and each block knows the outlier columns.
//  * Blocks go from tile to tile of 16 rows of the weight; the warps of a block share the columns,
//    128 at a time, and add their sums in shared memory: integers, so in any order.
//  * A lane copies with cp.async what it will multiply itself: the ring needs no barriers.
//  * mma m16n8k32, the weight as A. Which columns form the depth of a product is free: a lane's 16
//    consecutive bytes of a row are its part of two products, of both operands.
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
constexpr int kTurn = kRows * kDepth;  // bytes that a warp copies at a time

/// Codes, row statistics and outlier columns of all tokens, in shared memory. A row is the work of
/// `parts` warps.
template <typename T>
struct Activations {
  const LinearMixedInt8Params& p;
  const MixedSmallLayout& l;
  uint8_t* shared;
  float threshold, limit;
  int parts;

  __device__ __forceinline__ int* stats() const { return reinterpret_cast<int*>(shared + l.stats); }
  __device__ __forceinline__ uint32_t* flags() const {
    return reinterpret_cast<uint32_t*>(shared + l.flags);
  }
  __device__ __forceinline__ Pack8<T> read(int row, int pack) const {
    return read8(static_cast<const T*>(p.input) + row * p.input_stride + pack * 8);
  }

  __device__ __forceinline__ void meet(const Pack8<T>& x, int pack, float& largest) const {
    const float magnitude = magnitude8(x);
    if (magnitude < limit) {
      largest = fmaxf(largest, magnitude);
      return;
    }
    uint32_t bits = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float v = to_float(x.values[j]);
      if (outlier(v, threshold)) {
        bits |= 1u << j;
      } else {
        largest = fmaxf(largest, fabsf(v));
      }
    }
    if (bits != 0) atomicOr(flags() + pack / 4, bits << (8 * (pack % 4)));
  }

  __device__ __forceinline__ void write(const Pack8<T>& x, int row, int pack, float scale) const {
    const bool plain = scale < INFINITY && magnitude8(x) < limit;
    uint2 codes = plain ? plain_codes(x, scale) : careful_codes(x, scale, threshold);
    const uint32_t cleared = shared[l.flags + pack];
    if (cleared != 0) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        if ((cleared >> j & 1) != 0) (j < 4 ? codes.x : codes.y) &= ~(0xffu << (8 * (j % 4)));
      }
    }
    *reinterpret_cast<uint2*>(shared + l.activations + row * l.row + pack * 8) = codes;
  }

  __device__ __forceinline__ void list_columns() const {
    auto* listed = reinterpret_cast<uint16_t*>(shared + l.listed);
    const int words = static_cast<int>(ceil_div(p.k, 32)), lane = threadIdx.x % 32;
    int total = 0;
    for (int begin = 0; begin < words; begin += 32) {
      uint32_t bits = begin + lane < words ? flags()[begin + lane] : 0;
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

  /// All threads; ends behind a barrier. Statistics and flags are zero before.
  __device__ __forceinline__ void quantize() const {
    // What stays in registers from the first look to the second; the rest is read again.
    constexpr int kHeld = sizeof(T) == 4 ? 4 : 8;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int m = static_cast<int>(p.m), packs = static_cast<int>(p.k / 8);
    const int own = warp / parts, stride = kWarps / parts;
    const int first = warp % parts * 32 + lane, step = parts * 32;
    Pack8<T> held[kHeld];
    if (own < m) {
#pragma unroll
      for (int h = 0; h < kHeld; ++h) {
        if (first + h * step < packs) held[h] = read(own, first + h * step);
      }
    }
    for (int row = own; row < m; row += stride) {
      float largest = 0.0f;
      int pack = first;
      if (row == own) {
#pragma unroll
        for (int h = 0; h < kHeld; ++h) {
          if (first + h * step < packs) meet(held[h], first + h * step, largest);
        }
        pack += kHeld * step;
      }
#pragma unroll 4
      for (; pack < packs; pack += step) meet(read(row, pack), pack, largest);
      largest = group_max<32>(largest);
      if (lane == 0) atomicMax(stats() + row, __float_as_int(largest));  // not negative
    }
    __syncthreads();
    if (warp == kWarps - 1) list_columns();
    for (int row = own; row < m; row += stride) {
      const float scale = device_rowwise_scale(__int_as_float(stats()[row]));
      int pack = first;
      if (row == own) {
#pragma unroll
        for (int h = 0; h < kHeld; ++h) {
          if (first + h * step < packs) write(held[h], row, first + h * step, scale);
        }
        pack += kHeld * step;
      }
#pragma unroll 4
      for (; pack < packs; pack += step) write(read(row, pack), row, pack, scale);
    }
    __syncthreads();
  }
};

template <typename T, int kVariant>
__global__ void __launch_bounds__(kThreads, 1)
    small_kernel(const __grid_constant__ LinearMixedInt8Params p,
                 const __grid_constant__ MixedSmallLayout l, float threshold, int parts) {
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
#pragma unroll
  for (int s = 0; s < v.stages; ++s) fetch(s);

  for (int64_t i = l.flags + threadIdx.x * 4; i < l.bytes; i += kThreads * 4) {
    *reinterpret_cast<int*>(shared + i) = 0;
  }
  __syncthreads();
  const float limit = threshold > 0.0f ? threshold : INFINITY;
  Activations<T>{p, l, shared, threshold, limit, parts}.quantize();
  const int count = *reinterpret_cast<const int*>(shared + l.count);
  const auto* listed = reinterpret_cast<const uint16_t*>(shared + l.listed);

  // A lane's token of every tile of eight; tokens behind the last one are made and not used.
  const uint8_t* tokens[v.token_tiles];
#pragma unroll
  for (int i = 0; i < v.token_tiles; ++i) {
    tokens[i] = shared + l.activations + min(i * 8 + g, m - 1) * l.row + t * 16;
  }
  auto* buffer = reinterpret_cast<int*>(shared + l.sums);
  int slot = 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    // What a thread writes of the tile.
    const int token = threadIdx.x / kRows;
    const int64_t feature = int64_t{tile} * kRows + threadIdx.x % kRows;
    const bool writes = token < m && feature < p.n;
    const float stat = writes ? __ldg(p.stats + feature) : 0.0f;

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
    __syncthreads();  // the other buffer's readers were done before they came here
    if (writes) {
      int* sum = buffer + token * kMixedSmallSumStride + threadIdx.x % kRows;
      const float bias = p.bias == nullptr ? 0.0f : load_any(p.bias, p.bias_dtype, feature);
      float y = epilogue(*sum, reinterpret_cast<const float*>(shared + l.stats)[token], stat, bias);
      *sum = 0;
      if (count > 0) {
        const T* input = static_cast<const T*>(p.input) + token * p.input_stride;
        const int8_t* q = p.q + feature * p.k;
        float extra = 0.0f;
#pragma unroll 4
        for (int j = 0; j < count; ++j) {
          const int column = listed[j];
          extra = __fmaf_rn(to_float(input[column]), code_value(q[column], stat), extra);
        }
        y += extra;
      }
      static_cast<T*>(p.output)[token * p.n + feature] = from_float<T>(y);
    }
    buffer = reinterpret_cast<int*>(shared + l.sums) +
             (buffer == reinterpret_cast<int*>(shared + l.sums) ? kBuffer : 0);
  }
#endif
}

template <typename T>
Status run(const LinearMixedPlan& plan, const LinearMixedInt8Params& p, Stream stream) {
  const auto with = [&](auto kernel) {
    int rows = 1;  // at once: the next power of two
    while (rows < p.m && rows < kWarps) rows *= 2;
    const LaunchShape shape{plan.grid, 1, plan.threads, plan.shared_bytes};
    return launch(kernel, shape, stream, p,
                  mixed_small_layout(kMixedSmallVariants[plan.variant], p.m, p.k),
                  rounded_threshold(p.threshold), kWarps / rows);
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
  return visit_device_dtype(p.dtype, [&](auto* tag) {
    return run<std::remove_pointer_t<decltype(tag)>>(plan, p, stream);
  });
}

}  // namespace lowbit::kernels::cuda
