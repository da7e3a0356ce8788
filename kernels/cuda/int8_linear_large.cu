// LLM.int8() for many tokens (sm_90a): wgmma on int8, with the whole epilogue (scales, bias,
// outlier columns) on the sums in registers: no int32 matrix is written.
//
//  * A block owns 128 features (rows of the weight) and up to `tokens` tokens, a warpgroup 64 of
//    the features: the weight is wgmma's A operand. A cluster of two blocks side by side shares
//    the activations: each loads half of a stage into both. Clusters go from tile to tile.
//  * A producer warpgroup feeds the other two: one thread copies weights and activations, two warps
//    bring what the epilogue multiplies by: row statistics, and the outlier columns a few at a
//    time, however many the device has listed.
//  * Starting the second consumer warpgroup two or four stages behind the first, so that the
//    epilogue of one hides behind the products of the other, was tried and gained nothing.
//  * An outlier column holds codes of the elements below the threshold. What is added for it is the
//    rest: (activation - what its code stands for) * weight. So no pass has to clear the codes.
//  * What lies behind N, K or M arrives as zeros.
#include "cuda/common/async_copy.cuh"
#include "cuda/common/launch.h"
#include "cuda/common/tensor_map.h"
#include "cuda/common/tile_order.cuh"
#include "cuda/common/tma_sm90.cuh"
#include "cuda/common/wgmma_s8_sm90.cuh"
#include "cuda/int8_codes.cuh"
#include "cuda/int8_linear.h"
#include "validate.h"

namespace lowbit::kernels::cuda {
namespace {

constexpr int kFeatures = kMixedLargeFeatures;
constexpr int kCluster = kMixedLargeCluster;

struct LargeArgs {
  const void* input;
  const int8_t* input_q;
  const float* input_stats;
  const int8_t* q;
  const float* stats;
  const void* bias;
  void* output;
  const uint8_t* flags;
  int64_t input_stride;
  int m, n, k, stages;
  int feature_tiles, token_tiles;
  bool vector_output;  // eight outputs of a token may be stored at once
  DType bias_dtype;
};

#if __CUDA_ARCH_FEAT_SM90_ALL
constexpr int kPass = kMixedLargePass;
constexpr int kListed = kMixedLargeListed;
constexpr int kConsumers = 256;
enum NamedBarrier { kFirstWarpgroup = 1, kSecondWarpgroup = 2 };

template <typename T>
__device__ __forceinline__ uint32_t rounded(int low, int high) {
  const T values[2] = {from_float<T>(__int_as_float(low)), from_float<T>(__int_as_float(high))};
  return *reinterpret_cast<const uint32_t*>(values);
}

/// Four bytes of 0 or 1 as four bits.
__device__ __forceinline__ uint32_t bits_of(uint32_t bytes) { return bytes * 0x01020408u >> 24; }

/// A warp: the flagged columns from `position` on, at most kListed of them; how many. `position`
/// moves behind them, to k when no more are there.
__device__ __forceinline__ int find_columns(const LargeArgs& a, int& position, int* columns) {
  const int lane = threadIdx.x % 32;
  int found = 0;
  while (a.flags != nullptr && position < a.k && found < kListed) {
    const int window = position / 512 * 512, first = window + lane * 16;
    uint32_t bits = 0;
    if (first < a.k && position - first < 16) {
      const uint4 w = __ldg(reinterpret_cast<const uint4*>(a.flags + first));
      bits = bits_of(w.x) | bits_of(w.y) << 4 | bits_of(w.z) << 8 | bits_of(w.w) << 12;
      bits &= ~0u << max(position - first, 0);
    }
    int place = __popc(bits), last = 0;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int below = __shfl_up_sync(0xffffffffu, place, offset);
      if (lane >= offset) place += below;
    }
    const int total = __shfl_sync(0xffffffffu, place, 31);
    for (int rank = found + place - __popc(bits); bits != 0 && rank < kListed; ++rank) {
      last = first + __ffs(bits) - 1;
      columns[rank] = last;
      bits &= bits - 1;
    }
    position = found + total <= kListed ? min(window + 512, a.k)
                                        : __reduce_max_sync(0xffffffffu, last) + 1;
    found = min(found + total, kListed);
  }
  __syncwarp();
  return found;
}

/// 64 threads: what the epilogue of a tile multiplies by, for these outlier columns.
template <typename T, int kTokens>
__device__ __forceinline__ void bring_factors(const LargeArgs& a, float* inputs, float* weights,
                                              int id, int first_feature, int first_token,
                                              const int* columns, int listed) {
  const auto* input = static_cast<const T*>(a.input);
  for (int j = 0; j < listed; ++j) {
    const int column = columns[j];
#pragma unroll 2
    for (int i = id; i < kTokens; i += 64) {
      const int64_t token = min(first_token + i, a.m - 1);
      const float x = to_float(input[token * a.input_stride + column]);
      inputs[j * kTokens + i] =
          x - code_value(__ldg(a.input_q + token * a.k + column), __ldg(a.input_stats + token));
    }
#pragma unroll
    for (int i = id; i < kFeatures; i += 64) {
      const int64_t feature = min(first_feature + i, a.n - 1);
      weights[j * kFeatures + i] =
          code_value(__ldg(a.q + feature * a.k + column), __ldg(a.stats + feature));
    }
  }
}
#endif

template <typename T, int kVariant>
__global__ void __launch_bounds__(kMixedLargeThreads, 1)
    large_kernel(const __grid_constant__ CUtensorMap weight_map,
                 const __grid_constant__ CUtensorMap input_map,
                 const __grid_constant__ LargeArgs a) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  constexpr MixedLargeVariant v = kMixedLargeVariants[kVariant];
  constexpr MixedLargeLayout l = mixed_large_layout(v);
  constexpr int kTokens = v.tokens;
  static_assert(l.bytes <= 232448 && l.inputs % 1024 == 0 && l.outputs % 1024 == 0);
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t base = shared_address(shared);
  const uint32_t stage_barriers = base + l.barriers;
  const uint32_t factor_full = stage_barriers + 16 * v.stages, factor_empty = factor_full + 8;
  auto* row_stats = reinterpret_cast<float*>(shared + l.row_stats);
  auto* listed_input = reinterpret_cast<float*>(shared + l.listed_input);
  auto* listed_weight = reinterpret_cast<float*>(shared + l.listed_weight);
  auto* batch = reinterpret_cast<int2*>(shared + l.batch);  // columns listed, whether more follow
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32 % 4;
  // The compiler must see that a warpgroup takes one branch.
  const int group = __shfl_sync(0xffffffffu, tid / 128, 0);
  const int rank = blockIdx.x % kCluster;
  const int first_tile = blockIdx.x / kCluster, clusters = gridDim.x / kCluster;
  const int tiles = a.feature_tiles * a.token_tiles;

  if (tid == kConsumers) {
    for (int s = 0; s < v.stages; ++s) {
      init_barrier(ring_full(stage_barriers, s), 1);
      init_barrier(ring_empty(stage_barriers, s), kCluster * kConsumers / 32);
    }
    init_barrier(factor_full, 64);
    init_barrier(factor_empty, kConsumers);
    publish_barriers();
  }
  __syncwarp();
  arrive_cluster();
  wait_cluster();

  if (group == 2) {  // ---- producers
    give_registers<72>();
    if (warp == 0) {
      if (lane == 0) {
        RingSlot slot{0, 1};
#pragma unroll 1
        for (int i = first_tile; i < tiles; i += clusters) {
          const Tile tile = tile_at(a.feature_tiles, a.token_tiles, i);
          const int feature = (tile.feature * kCluster + rank) * kFeatures;
          int token = tile.token * kTokens + rank * (kTokens / kCluster);
          if (token >= a.m) token = 0;  // any will do, and a box of nothing but zeros is slow
#pragma unroll 1
          for (int stage = 0; stage < a.stages; ++stage) {
            const uint32_t barrier = ring_full(stage_barriers, slot.index);
            wait_barrier(ring_empty(stage_barriers, slot.index), slot.parity);
            arrive_expecting(barrier, l.weight_stage + l.input_stage);
            copy_tensor_2d(base + slot.index * l.weight_stage, &weight_map,
                           stage * kMixedLargeDepth, feature, barrier);
            copy_tensor_2d_to_all(
                base + l.inputs + slot.index * l.input_stage + rank * (l.input_stage / kCluster),
                &input_map, stage * kMixedLargeDepth, token, barrier, (1 << kCluster) - 1);
            slot.next(v.stages);
          }
        }
      }
    } else if (warp >= 2) {
      int* columns = reinterpret_cast<int*>(shared + l.columns) + (warp - 2) * kListed;
      // Most layers have no more outlier columns than one turn takes: they are found once.
      int listed = 0, position = 0;
      uint32_t parity = 1;
#pragma unroll 1
      for (int i = first_tile; i < tiles; i += clusters) {
        const Tile tile = tile_at(a.feature_tiles, a.token_tiles, i);
        const int first_token = tile.token * kTokens;
        const bool known = i != first_tile && position == -1;
        if (!known) position = 0;
        bool first = true, more;
#pragma unroll 1
        do {
          if (!known) listed = find_columns(a, position, columns);
          more = !known && a.flags != nullptr && position < a.k;
          wait_barrier(factor_empty, parity);
          parity ^= 1;
          if (first) {
            for (int t = tid % 64; t < kTokens; t += 64) {
              row_stats[t] = first_token + t < a.m ? __ldg(a.input_stats + first_token + t) : 0.0f;
            }
          }
          bring_factors<T, kTokens>(a, listed_input, listed_weight, tid % 64,
                                    (tile.feature * kCluster + rank) * kFeatures, first_token,
                                    columns, listed);
          if (tid % 64 == 0) *batch = make_int2(listed, more);
          arrive(factor_full);
          if (first && !more) position = -1;
          first = false;
        } while (more);
      }
    }
  } else {  // ---- consumers
    take_registers<216>();
    const int g = lane / 4, t = lane % 4;
    const uint64_t weights = swizzled_operand(base) + group * (64 * 128 >> 4);
    const uint64_t inputs = swizzled_operand(base + l.inputs);
    // Lanes 0 and 1 free a stage in both blocks.
    const uint32_t release_at =
        keep(peer_address(ring_empty(stage_barriers, 0), lane < kCluster ? lane : 0));
    const uint32_t outputs = base + l.outputs + group * kPass * 128;
    const int own = group * 64 + warp * 16 + g;  // the lane's first feature in the block's

    int sums[kTokens / 2];  // float32 from the epilogue on
    RingSlot slot;
    uint32_t factor_parity = 0;
#pragma unroll 1
    for (int i = first_tile; i < tiles; i += clusters) {
      const Tile tile = tile_at(a.feature_tiles, a.token_tiles, i);
      const int first_feature = (tile.feature * kCluster + rank) * kFeatures;
      uint32_t done = 0;  // barrier that frees the stage of the product before
#pragma unroll 1
      for (int stage = 0; stage < a.stages; ++stage) {
        wait_barrier(ring_full(stage_barriers, slot.index), slot.parity);
        const uint64_t w = weights + static_cast<uint32_t>(slot.index * (l.weight_stage >> 4));
        const uint64_t x = inputs + static_cast<uint32_t>(slot.index * (l.input_stage >> 4));
        fence_products();
#pragma unroll
        for (int s = 0; s < 4; ++s) wgmma(sums, w + 2 * s, x + 2 * s, stage + s != 0);
        commit_products();
        wait_products<1>();
        if (lane < kCluster && stage != 0) arrive_at_peer(done);
        done = release_at + slot.index * 16;
        slot.next(v.stages);
      }
      float stat[2], bias[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int feature = min(first_feature + own + 8 * h, a.n - 1);
        stat[h] = __ldg(a.stats + feature);
        bias[h] = a.bias == nullptr ? 0.0f : load_any(a.bias, a.bias_dtype, feature);
      }
      wait_products<0>();
      pin(sums);
      if (lane < kCluster) arrive_at_peer(done);

      // ---- scales, bias, outlier columns
      bool first_batch = true, more;
#pragma unroll 1
      do {
        wait_barrier(factor_full, factor_parity);
        factor_parity ^= 1;
        const int2 head = *batch;
        more = head.y != 0;
        if (first_batch) {
#pragma unroll
          for (int j = 0; j < kTokens / 8; ++j) {
            const float2 rows = *reinterpret_cast<const float2*>(row_stats + 8 * j + 2 * t);
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              int* d = sums + 4 * j + 2 * h;
              d[0] = __float_as_int(epilogue(d[0], rows.x, stat[h], bias[h]));
              d[1] = __float_as_int(epilogue(d[1], rows.y, stat[h], bias[h]));
            }
          }
        }
        first_batch = false;
#pragma unroll 1
        for (int c = 0; c < head.x; ++c) {
          const float first = listed_weight[c * kFeatures + own];
          const float second = listed_weight[c * kFeatures + own + 8];
#pragma unroll
          for (int j = 0; j < kTokens / 8; ++j) {
            const float2 in =
                *reinterpret_cast<const float2*>(listed_input + c * kTokens + 8 * j + 2 * t);
            int* d = sums + 4 * j;
            d[0] = __float_as_int(__fmaf_rn(in.x, first, __int_as_float(d[0])));
            d[1] = __float_as_int(__fmaf_rn(in.y, first, __int_as_float(d[1])));
            d[2] = __float_as_int(__fmaf_rn(in.x, second, __int_as_float(d[2])));
            d[3] = __float_as_int(__fmaf_rn(in.y, second, __int_as_float(d[3])));
          }
        }
        arrive(factor_empty);
      } while (more);

      // ---- outputs: turned around in shared memory to rows of 64 features of a token
#pragma unroll
      for (int pass = 0; pass < kTokens / kPass; ++pass) {
        group == 0 ? sync_group<kFirstWarpgroup>(128) : sync_group<kSecondWarpgroup>(128);
#pragma unroll
        for (int j = 0; j < kPass / 8; j += 2) {
          const int* d = &sums[(pass * (kPass / 8) + j) * 4];
          const int token = 8 * (j + lane / 16) + lane % 8, chunk = warp * 2 + lane / 8 % 2;
          store_transposed(outputs + token * 128 + ((chunk ^ (lane % 8)) << 4),
                           rounded<T>(d[0], d[1]), rounded<T>(d[2], d[3]), rounded<T>(d[4], d[5]),
                           rounded<T>(d[6], d[7]));
        }
        group == 0 ? sync_group<kFirstWarpgroup>(128) : sync_group<kSecondWarpgroup>(128);
#pragma unroll
        for (int j = 0; j < kPass / 16; ++j) {
          const int inside = j * 16 + tid % 128 / 8, chunk = tid % 8;
          const int token = tile.token * kTokens + pass * kPass + inside;
          const int feature = first_feature + group * 64 + chunk * 8;
          if (token >= a.m || feature >= a.n) continue;
          const uint4 w = shared_words(outputs + inside * 128 + ((chunk ^ (inside % 8)) << 4));
          T* to = static_cast<T*>(a.output) + int64_t{token} * a.n + feature;
          if (a.vector_output) {
            *reinterpret_cast<uint4*>(to) = w;
          } else {
            const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
            for (int e = 0; e < 8; ++e) {
              const auto bits = static_cast<uint16_t>(words[e / 2] >> (16 * (e % 2)));
              if (feature + e < a.n) to[e] = *reinterpret_cast<const T*>(&bits);
            }
          }
        }
      }
    }
  }
  // No block leaves while the other may still write to its shared memory.
  __syncwarp();
  arrive_cluster();
  wait_cluster();
#else
  __trap();  // made for an older architecture than the plan's: an error, not a wrong result
#endif
}

template <typename T>
Status run(int variant, const LaunchShape& shape, const CUtensorMap& weights,
           const CUtensorMap& input, const LargeArgs& a, Stream stream) {
  switch (variant) {
    case 0:
      return launch(large_kernel<T, 0>, shape, stream, weights, input, a);
    case 1:
      return launch(large_kernel<T, 1>, shape, stream, weights, input, a);
    default:
      return launch(large_kernel<T, 2>, shape, stream, weights, input, a);
  }
}

}  // namespace

Status launch_mixed_large(const LinearMixedPlan& plan, const LinearMixedInt8Params& p,
                          Stream stream) noexcept {
  if (plan.variant < 0 || plan.variant >= kMixedLargeVariantCount || p.dtype == DType::kFloat32 ||
      p.k == 0 || p.k % 16 != 0) {
    return invalid_argument("the plan was made for another problem");
  }
  if (p.input_q == nullptr || p.input_stats == nullptr || !aligned(p.input_q, 16) ||
      (p.threshold > 0.0f && (p.outlier_columns == nullptr || !aligned(p.outlier_columns, 16)))) {
    return invalid_argument("the quantized input is missing or not aligned");
  }
  const MixedLargeVariant& v = kMixedLargeVariants[plan.variant];
  LargeArgs a = {};
  a.feature_tiles = static_cast<int>(ceil_div(p.n, int64_t{kFeatures} * kCluster));
  a.token_tiles = static_cast<int>(ceil_div(p.m, int64_t{v.tokens}));
  if (plan.grid < kCluster || plan.grid % kCluster != 0 ||
      plan.grid > int64_t{kCluster} * a.feature_tiles * a.token_tiles ||
      plan.threads != kMixedLargeThreads || plan.shared_bytes < mixed_large_layout(v).bytes) {
    return invalid_argument("the plan was made for another problem");
  }
  a.input = p.input;
  a.input_stride = p.input_stride;
  a.input_q = p.input_q;
  a.input_stats = p.input_stats;
  a.q = p.q;
  a.stats = p.stats;
  a.bias = p.bias;
  a.bias_dtype = p.bias_dtype;
  a.output = p.output;
  if (p.threshold > 0.0f) a.flags = p.outlier_columns;
  a.k = static_cast<int>(p.k);
  a.m = static_cast<int>(p.m);
  a.n = static_cast<int>(p.n);
  a.stages = static_cast<int>(ceil_div(p.k, int64_t{kMixedLargeDepth}));
  a.vector_output = p.n % 8 == 0 && aligned(p.output, 16);
  CUtensorMap weights, input;
  if (!map_matrix(weights, CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_SWIZZLE_128B, p.q, p.k, p.n,
                  p.k, kMixedLargeDepth, kFeatures) ||
      !map_matrix(input, CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_SWIZZLE_128B, p.input_q, p.k,
                  p.m, p.k, kMixedLargeDepth, v.tokens / kCluster)) {
    return unsupported("the CUDA driver refuses the tensor maps of this problem");
  }
  LaunchShape shape{plan.grid, 1, plan.threads, plan.shared_bytes};
  shape.cluster = kCluster;
  return p.dtype == DType::kFloat16
             ? run<__half>(plan.variant, shape, weights, input, a, stream)
             : run<__nv_bfloat16>(plan.variant, shape, weights, input, a, stream);
}

Status linear_mixed_int8(const LinearMixedPlan& plan, const LinearMixedInt8Params& p,
                         Stream stream) noexcept {
  if (const Status status = check(p); !status.ok()) return status;
  if (p.m == 0 || p.n == 0) return ok_status();
  switch (plan.route) {
    case LinearMixedRoute::kSmall:
      return launch_mixed_small(plan, p, stream);
    case LinearMixedRoute::kLarge:
      return launch_mixed_large(plan, p, stream);
    case LinearMixedRoute::kParts:
      break;
  }
  return invalid_argument("a plan of parts has no kernel of its own");
}

}  // namespace lowbit::kernels::cuda
