// The 4-bit matmul for many tokens, and the gradient of its input (sm_90a): the weight is decoded
// and scaled into the registers of wgmma's A operand, the activations are its B operand.
//
//  * A block owns 128 features (columns of the output; N forward, K backward) and up to `tokens`
//    tokens, a warpgroup 64 of the features. Two blocks side by side, a pair, share the
//    activations: each loads half of a stage into both. Pairs go from tile to tile. Where the tiles
//    are fewer than the multiprocessors, 2 or 4 pairs (or blocks alone: of clusters of four, 30
//    find room on 132 multiprocessors, of two 66) each take a part of the depth (K forward, N
//    backward), and add up some of the tokens each, in the order of the parts: results repeat bit
//    for bit.
//  * A producer warpgroup feeds the other two: one thread copies the packed codes as they lie in
//    memory, 256 of depth at a time, one the activations (64 at a time, a ring of their own, so
//    that the weight starts before the previous kernel has ended), two warps bring the scales.
//  * Scale and table keep their precision in 16 bits: the table is rounded after a multiplication
//    by a factor that lets it round well, the scale is divided by the factor and split into the
//    sum of two elements, and a weight is fma(code, high, code * low): one rounding but for the
//    table's. bfloat16 NF4: relative error 1.15 of that of one rounding; two float32 multiplies and
//    a conversion instead cost 15 % of the kernel.
//  * A lane of the A operand needs two neighbours in depth. Forward they are the halves of a byte,
//    and a byte looks up its pair (fourbit_pairs.cuh); the four lanes of a row read its 32 bytes of
//    a block at once and take their bytes by one dp4a each. Backward they lie in two rows of W:
//    ldmatrix brings both bytes into a lane, and two byte permutations turn the 2 x 2 square. Which
//    feature is which row of A is free: backward it follows from ldmatrix.
//  * A block of 64 of depth is decoded while wgmma multiplies the one before.
//  * What lies behind N, K or M arrives as zeros, with zero scales. Tokens are dealt out evenly: a
//    tile may have fewer than the instance multiplies; what its other columns hold is not stored.
#include <type_traits>

#include "cuda/common/async_copy.cuh"
#include "cuda/common/launch.h"
#include "cuda/common/tensor_map.h"
#include "cuda/common/tile_order.cuh"
#include "cuda/common/tma_sm90.cuh"
#include "cuda/common/wgmma_sm90.cuh"
#include "cuda/fourbit_large.h"
#include "cuda/fourbit_large_scales.cuh"
#include "cuda/fourbit_matmul.h"

namespace lowbit::kernels::cuda {
namespace {

constexpr int kConsumers = 256;
enum NamedBarrier { kAllConsumers = 1, kScaleWarps = 2, kWarpgroup = 3 };

/// Adds up the sums of the parts of the depth: every block those of its share of the tokens, in the
/// order of the parts. `buffer` is the rings' memory, which nobody needs any more.
template <int kSplits, int kSums>
__device__ __forceinline__ void exchange(float (&sums)[kSums], uint32_t buffer, int pair, int rank,
                                         int split, int tid) {
  constexpr int kQuads = kSums / kSplits / 4;  // of a thread and a share
  arrive_cluster_relaxed();
  wait_cluster();
#pragma unroll
  for (int s = 0; s < kSplits; ++s) {
    if (s == split) continue;
    const uint32_t to =
        peer_address(buffer, s * pair + rank) + (split * kQuads * kConsumers + tid) * 16;
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const float* v = sums + (s * kQuads + i) * 4;
      store_to_peer(to + i * kConsumers * 16, make_float4(v[0], v[1], v[2], v[3]));
    }
  }
  arrive_cluster();
  wait_cluster();
#pragma unroll
  for (int own = 0; own < kSplits; ++own) {
    if (own != split) continue;
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      float* v = sums + (own * kQuads + i) * 4;
      float total[4] = {};
#pragma unroll
      for (int s = 0; s < kSplits; ++s) {
        uint4 w = {};
        if (s != own) w = shared_words(buffer + ((s * kQuads + i) * kConsumers + tid) * 16);
        const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int e = 0; e < 4; ++e) total[e] += s == own ? v[e] : __uint_as_float(words[e]);
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) v[e] = total[e];
    }
  }
}

template <typename T, int kVariant, bool kBackward>
__global__ void __launch_bounds__(kLargeThreads, 1)
    large_kernel(const __grid_constant__ CUtensorMap codes_map,
                 const __grid_constant__ CUtensorMap input_map,
                 const __grid_constant__ LargeArgs a) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  constexpr LargeVariant v = kLargeVariants[kVariant];
  constexpr LargeLayout l = large_layout(v);
  constexpr int kTokens = v.tokens;
  static_assert(l.bytes <= 232448 && l.codes % 1024 == 0 && l.inputs % 1024 == 0);
  static_assert(l.outputs - l.codes >= kTokens * kLargeFeatures * 4);  // exchanged sums
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t base = shared_address(shared);
  const uint32_t weight_barriers = base + l.barriers;
  const uint32_t input_barriers = weight_barriers + 16 * v.weight_stages;
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32 % 4;
  // The compiler must see that a warpgroup takes one branch.
  const int group = __shfl_sync(0xffffffffu, tid / 128, 0);
  const int pair = 1 << a.log_pair, rank = blockIdx.x & (pair - 1);
  const int split = blockIdx.x >> a.log_pair & ((1 << a.log_splits) - 1);
  const int first_tile = blockIdx.x >> (a.log_pair + a.log_splits);
  const int clusters = gridDim.x >> (a.log_pair + a.log_splits);
  const int stages = a.stages + (split < a.rest);
  const int first_stage = split * a.stages + min(split, a.rest);
  const int tiles = a.feature_tiles * a.token_tiles;
  // The last tile begins where it ends at M, if there are others: what it shares with the tile
  // before has the same bits, and is stored once.
  const int last_token = max(a.m - a.tile, 0);
  const auto first_token = [&](int tile) { return min(tile * a.tile, last_token); };
  allow_next_kernel();

  if (tid == kConsumers) {
    for (int s = 0; s < v.weight_stages; ++s) {
      init_barrier(ring_full(weight_barriers, s), 1 + 64);
      init_barrier(ring_empty(weight_barriers, s), kConsumers);
    }
    for (int s = 0; s < v.input_stages; ++s) {
      init_barrier(ring_full(input_barriers, s), 1);
      init_barrier(ring_empty(input_barriers, s), pair * kConsumers / 32);
    }
    publish_barriers();
  }
  __syncwarp();
  arrive_cluster();
  if (group < 2) fill_pair_table<kConsumers / 32>(shared, a.table, tid / 32, lane);
  wait_cluster();

  if (group == 2) {  // ---- producers
    give_registers<40>();
    if (warp == 0) {
      if (lane == 0) {
        RingSlot slot{0, 1};
#pragma unroll 1
        for (int i = first_tile; i < tiles; i += clusters) {
          const int feature =
              (tile_at(a.feature_tiles, a.token_tiles, i).feature * pair + rank) * kLargeFeatures;
#pragma unroll 1
          for (int stage = 0; stage < stages; ++stage) {
            const uint32_t barrier = ring_full(weight_barriers, slot.index);
            wait_barrier(ring_empty(weight_barriers, slot.index), slot.parity);
            arrive_expecting(barrier, l.codes_stage);
            copy_tensor_2d(base + l.codes + slot.index * l.codes_stage, &codes_map,
                           kBackward ? feature / 2 : (first_stage + stage) * (kLargeDepth / 2),
                           kBackward ? (first_stage + stage) * kLargeDepth : feature, barrier);
            slot.next(v.weight_stages);
          }
        }
      }
    } else if (warp == 1) {
      if (lane == 0) {
        wait_for_previous_kernel();
        RingSlot slot{0, 1};
        const int tokens = a.tile >> a.log_pair;  // that this block copies
        const uint32_t half = base + l.inputs + rank * tokens * 128;
#pragma unroll 1
        for (int i = first_tile; i < tiles; i += clusters) {
          int token = first_token(tile_at(a.feature_tiles, a.token_tiles, i).token) + rank * tokens;
          if (token >= a.m) token = 0;  // any will do, and a box of nothing but zeros is slow
#pragma unroll 1
          for (int block = 0; block < stages * 4; ++block) {
            const uint32_t barrier = ring_full(input_barriers, slot.index);
            wait_barrier(ring_empty(input_barriers, slot.index), slot.parity);
            arrive_expecting(barrier, a.tile * 128);
            copy_tensor_2d_to_all(half + slot.index * l.input_stage, &input_map,
                                  first_stage * kLargeDepth + block * 64, token, barrier,
                                  ((1 << pair) - 1) << (split * pair));
            slot.next(v.input_stages);
          }
        }
      }
    } else {
      auto* map = reinterpret_cast<float*>(shared + l.map);
      LargeScaleProducer<T, kBackward> producer{a, map, 0.0f, tid % 64};
      if (a.scales.absmax_8bit != nullptr) {
        for (int i = tid % 64; i < 256; i += 64) map[i] = __ldg(a.scales.absmax_code + i);
        producer.offset = __ldg(a.scales.absmax_offset);
        sync_group<kScaleWarps>(64);
      }
      RingSlot slot{0, 1};
#pragma unroll 1
      for (int i = first_tile; i < tiles; i += clusters) {
        const int feature =
            (tile_at(a.feature_tiles, a.token_tiles, i).feature * pair + rank) * kLargeFeatures;
#pragma unroll 1
        for (int stage = 0; stage < stages; ++stage) {
          wait_barrier(ring_empty(weight_barriers, slot.index), slot.parity);
          producer.fill(shared + l.scales + slot.index * l.scales_stage, feature,
                        first_stage + stage);
          arrive(ring_full(weight_barriers, slot.index));
          slot.next(v.weight_stages);
        }
      }
    }
  } else {  // ---- consumers
    take_registers<232>();
    sync_group<kAllConsumers>(kConsumers);
    const int g = lane / 4, t = lane % 4;
    const uint32_t table_at = keep(base + lane * 4);
    // Forward: byte t of a word. Backward: the features of two warps share a word of two rows.
    const uint32_t select = keep(0x80u << (8 * (kBackward ? warp % 2 : t)));
    const int row = group * 64 + warp * 16 + g;
    const uint32_t codes_at =
        keep(base + l.codes +
             (kBackward ? lane * 64 + (((group * 2 + warp / 2) ^ (lane / 2 % 4)) << 4)
                        : row * 128 + (g << 4)));
    const uint32_t scales_at =
        keep(base + l.scales + (kBackward ? group * 1024 + t * 16 : row * 16));
    const uint64_t operand = swizzled_operand(base + l.inputs);
    // Lanes 0 and 1 free a stage of the activations in both blocks.
    const uint32_t release_at =
        keep(peer_address(ring_empty(input_barriers, 0), split * pair + (lane < pair ? lane : 0)));
    const uint32_t outputs = base + l.outputs + group * kLargePass * 128;

    struct Block {
      uint32_t codes[kBackward ? 8 : 16];
      uint32_t scales[2];  // forward: of rows g and g + 8
    };
    const auto fetch = [&](Block& q, int slot, int b) {
      const uint32_t at = codes_at + slot * l.codes_stage;
      if constexpr (kBackward) {
        uint32_t(&first)[4] = *reinterpret_cast<uint32_t(*)[4]>(q.codes);
        uint32_t(&second)[4] = *reinterpret_cast<uint32_t(*)[4]>(q.codes + 4);
        load_transposed(first, at + b * 4096);
        load_transposed(second, at + b * 4096 + 2048);
      } else {
#pragma unroll
        for (int h = 0; h < 4; ++h) {  // 32 bytes of row g, 32 of row g + 8
          const uint4 w = shared_words((at ^ (b * 32 + h % 2 * 16)) + h / 2 * 1024);
          q.codes[4 * h] = w.x, q.codes[4 * h + 1] = w.y;
          q.codes[4 * h + 2] = w.z, q.codes[4 * h + 3] = w.w;
        }
        q.scales[0] = shared_word(scales_at + slot * l.scales_stage + b * 4);
        q.scales[1] = shared_word(scales_at + slot * l.scales_stage + b * 4 + 8 * 16);
      }
    };
    const auto decode = [&](uint32_t(&fragment)[16], const Block& q, int slot, int b) {
      if constexpr (kBackward) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {  // 16 of depth
          const uint4 s = shared_words(scales_at + slot * l.scales_stage + b * 256 + c * 64);
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const uint32_t word = q.codes[2 * c + h];
            const uint32_t first = shared_word(__dp4a(word, select, table_at));
            const uint32_t second = shared_word(__dp4a(word, select << 16, table_at));
            const uint32_t high = h == 0 ? s.x : s.z, low = h == 0 ? s.y : s.w;
            fragment[4 * c + 2 * h] = scaled(T{}, __byte_perm(first, second, 0x5410), high, low);
            fragment[4 * c + 2 * h + 1] =
                scaled(T{}, __byte_perm(first, second, 0x7632), high, low);
          }
        }
      } else {
        const uint32_t high[2] = {__byte_perm(q.scales[0], 0, 0x1010),
                                  __byte_perm(q.scales[1], 0, 0x1010)};
        const uint32_t low[2] = {__byte_perm(q.scales[0], 0, 0x3232),
                                 __byte_perm(q.scales[1], 0, 0x3232)};
#pragma unroll
        for (int j = 0; j < 16; ++j) {  // word j / 2 of row g (j even) or g + 8
          const uint32_t code = shared_word(__dp4a(q.codes[j % 2 * 8 + j / 2], select, table_at));
          fragment[j] = scaled(T{}, code, high[j % 2], low[j % 2]);
        }
      }
      pin(fragment);
    };

    float sums[kTokens / 2];
    uint32_t fragments[2][16];
    Block q;
    RingSlot weight, input;  // of the codes in q, of the next product
    wait_barrier(ring_full(weight_barriers, 0), 0);
    fetch(q, 0, 0);
    decode(fragments[0], q, 0, 0);
    wait_for_previous_kernel();
#pragma unroll 1
    for (int i = first_tile; i < tiles; i += clusters) {
      const Tile tile = tile_at(a.feature_tiles, a.token_tiles, i);
      const bool last_tile = i + clusters >= tiles;
      uint32_t done = 0;  // barrier that frees the activations of the product before
#pragma unroll 1
      for (int stage = 0; stage < stages; ++stage) {
#pragma unroll
        for (int b = 0; b < 4; ++b) {
          wait_barrier(ring_full(input_barriers, input.index), input.parity);
          const uint64_t x = operand + static_cast<uint32_t>(input.index * (l.input_stage >> 4));
          fence_products();
#pragma unroll
          for (int s = 0; s < 4; ++s) {
            const uint32_t* f = &fragments[b % 2][4 * s];
            wgmma(T{}, sums, f[0], f[1], f[2], f[3], x + 2 * s, stage + b + s != 0);
          }
          commit_products();
          const int held = weight.index;
          if (b == 3) {
            weight.next(v.weight_stages);
            // Behind the very last block comes one that is decoded and not used.
            if (!last_tile || stage + 1 < stages) {
              wait_barrier(ring_full(weight_barriers, weight.index), weight.parity);
            }
          }
          fetch(q, weight.index, (b + 1) % 4);
          wait_products<1>();
          if (lane < pair && stage + b != 0) arrive_at_peer(done);
          done = release_at + input.index * 16;
          input.next(v.input_stages);
          decode(fragments[(b + 1) % 2], q, weight.index, (b + 1) % 4);
          if (b == 2) {                                 // its last codes are decoded
            arrive(ring_empty(weight_barriers, held));  // every lane: racecheck follows no deputies
          }
        }
      }
      wait_products<0>();
      pin(sums);
      if (lane < pair) arrive_at_peer(done);
      if (a.log_splits == 1) exchange<2>(sums, base + l.codes, pair, rank, split, tid);
      if (a.log_splits == 2) exchange<4>(sums, base + l.codes, pair, rank, split, tid);

      // ---- outputs: turned around in shared memory to rows of 64 features of a token
      const int first_feature = (tile.feature * pair + rank) * kLargeFeatures + group * 64;
      float bias[2] = {};
      if constexpr (!kBackward) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int feature = first_feature + warp * 16 + g + 8 * h;
          if (feature < a.features) bias[h] = bias_at(a.bias, a.bias_dtype, feature);
        }
      }
      // ---- of the parts of the depth, each stores the tokens that it added up
      const int share = kTokens >> a.log_splits, begin = split * share;
      const auto store = [&](auto pass_size) {
        constexpr int kPass = pass_size();
#pragma unroll
        for (int first = 0; first < kTokens; first += kPass) {
          if (first < begin || first >= begin + share) continue;
          group == 0 ? sync_group<kWarpgroup>(128) : sync_group<kWarpgroup + 1>(128);
#pragma unroll
          for (int j = 0; j < kPass / 8; j += 2) {
            const float* d = &sums[(first / 8 + j) * 4];
            if constexpr (kBackward) {  // rows g and g + 8 are neighbouring features
              const int chunk = warp / 2 * 4 + g / 2;
#pragma unroll
              for (int h = 0; h < 2; ++h) {
#pragma unroll
                for (int odd = 0; odd < 2; ++odd) {
                  const int token = 8 * (j + h) + 2 * t + odd;
                  store_word(outputs + token * 128 + ((chunk ^ (token % 8)) << 4) + g % 2 * 8 +
                                 warp % 2 * 4,
                             rounded_pair<T>(d[4 * h + odd], d[4 * h + 2 + odd]));
                }
              }
            } else {
              const int token = 8 * (j + lane / 16) + lane % 8, chunk = warp * 2 + lane / 8 % 2;
              store_transposed(outputs + token * 128 + ((chunk ^ (lane % 8)) << 4),
                               rounded_pair<T>(d[0] + bias[0], d[1] + bias[0]),
                               rounded_pair<T>(d[2] + bias[1], d[3] + bias[1]),
                               rounded_pair<T>(d[4] + bias[0], d[5] + bias[0]),
                               rounded_pair<T>(d[6] + bias[1], d[7] + bias[1]));
            }
          }
          group == 0 ? sync_group<kWarpgroup>(128) : sync_group<kWarpgroup + 1>(128);
#pragma unroll
          for (int j = 0; j < kPass / 16; ++j) {
            const int inside = j * 16 + tid % 128 / 8, chunk = tid % 8;
            const int token = first_token(tile.token) + first + inside;
            const int feature = first_feature + chunk * 8;
            const int end = min(first_token(tile.token) + a.tile, a.m);
            if (token < tile.token * a.tile || token >= end || feature >= a.features) continue;
            const uint4 w = shared_words(outputs + inside * 128 + ((chunk ^ (inside % 8)) << 4));
            T* to = static_cast<T*>(a.output) + int64_t{token} * a.features + feature;
            if (a.vector_output) {
              *reinterpret_cast<uint4*>(to) = w;
            } else {
              const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
              for (int e = 0; e < 8; ++e) {
                const auto bits = static_cast<uint16_t>(words[e / 2] >> (16 * (e % 2)));
                if (feature + e < a.features) to[e] = *reinterpret_cast<const T*>(&bits);
              }
            }
          }
        }
      };
      constexpr int kPass = kTokens % kLargePass == 0 ? kLargePass : kLargePass / 2;
      share % kPass == 0 ? store(std::integral_constant<int, kPass>{})
                         : store(std::integral_constant<int, 16>{});
    }
  }
  __syncwarp();
  if (group == 2 && a.log_splits > 0) {  // the exchange of the consumers
    arrive_cluster_relaxed();
    wait_cluster();
    arrive_cluster();
    wait_cluster();
  }
  // No block leaves while the other may still write to its shared memory.
  arrive_cluster();
  wait_cluster();
#else
  __trap();  // made for an older architecture than the plan's: an error, not a wrong result
#endif
}

template <typename T, bool kBackward>
Status run(int variant, const LaunchShape& shape, const CUtensorMap& codes,
           const CUtensorMap& input, const LargeArgs& a, Stream stream) {
  switch (variant) {
    case 0:
      return launch(large_kernel<T, 0, kBackward>, shape, stream, codes, input, a);
    case 1:
      return launch(large_kernel<T, 1, kBackward>, shape, stream, codes, input, a);
    case 2:
      return launch(large_kernel<T, 2, kBackward>, shape, stream, codes, input, a);
    case 3:
      return launch(large_kernel<T, 3, kBackward>, shape, stream, codes, input, a);
    case 4:
      return launch(large_kernel<T, 4, kBackward>, shape, stream, codes, input, a);
    case 5:
      return launch(large_kernel<T, 5, kBackward>, shape, stream, codes, input, a);
  }
  return invalid_argument("the plan was made for another problem");
}

}  // namespace

Status launch_large(const Matmul4bitCudaPlan& plan, const Matmul4bitParams& p, bool backward,
                    Stream stream) noexcept {
  const int variant = plan.id - kLarge;
  if (variant < 0 || variant >= kLargeVariantCount || !large_applies(p)) {
    return invalid_argument("the plan was made for another problem");
  }
  const LargeVariant& v = kLargeVariants[variant];
  const int64_t features = backward ? p.k : p.n, depth = backward ? p.n : p.k;
  LargeArgs a = {};
  const int pair = plan.together;
  if (pair != 1 && pair != 2) return invalid_argument("the plan was made for another problem");
  a.log_pair = pair / 2;
  a.feature_tiles = static_cast<int>(ceil_div(features, kLargeFeatures * pair));
  a.token_tiles = static_cast<int>(ceil_div(p.m, v.tokens));
  // No wider than it must be: tokens that are not there are slow to copy.
  a.tile = static_cast<int>(round_up(ceil_div(p.m, int64_t{a.token_tiles}), 8 * pair));
  while (a.log_splits < 2 && 1 << a.log_splits < plan.splits) ++a.log_splits;
  const int64_t blocks = int64_t{pair} * plan.splits * a.feature_tiles * a.token_tiles;
  const int64_t stages = ceil_div(depth, kLargeDepth);
  if (plan.splits != 1 << a.log_splits || v.tokens / plan.splits % 16 != 0 ||
      stages < plan.splits || plan.grid_x < pair || plan.grid_x % pair != 0 ||
      (plan.splits == 1 ? plan.grid_x > blocks : plan.grid_x != blocks) || plan.grid_y != 1 ||
      plan.threads != kLargeThreads || plan.shared_bytes < large_layout(v).bytes) {
    return invalid_argument("the plan was made for another problem");
  }
  a.scales = p.scales;
  a.bias = p.bias;
  a.bias_dtype = p.bias_dtype;
  a.output = p.output;
  a.m = static_cast<int>(p.m);
  a.n = static_cast<int>(p.n);
  a.features = static_cast<int>(features);
  a.row_chunks = static_cast<int>(p.k / 64);
  while (int64_t{64} << a.shift < p.blocksize) ++a.shift;
  a.stages = static_cast<int>(stages) / plan.splits;
  a.rest = static_cast<int>(stages) % plan.splits;
  a.vector_output = features % 8 == 0 && aligned(p.output, 16);
  const int together = backward ? 2 : 4;
  a.vector_scales =
      a.shift == 0 && a.row_chunks % together == 0 &&
      (p.scales.nested() ? aligned(p.scales.absmax_8bit, together) : aligned(p.scales.absmax, 8));
  a.inverse_factor = 1.0f / table_factor(p);
  a.table = pair_table(p, table_factor(p));
  CUtensorMap codes, input;
  const bool half = p.dtype == DType::kFloat16;
  if (!map_matrix(codes, CU_TENSOR_MAP_DATA_TYPE_UINT8,
                  backward ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B, p.packed,
                  p.k / 2, p.n, p.k / 2, backward ? kLargeFeatures / 2 : kLargeDepth / 2,
                  backward ? kLargeDepth : kLargeFeatures) ||
      // The stride of a single row means nothing, but must be a valid one.
      !map_matrix(input, half ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                  CU_TENSOR_MAP_SWIZZLE_128B, p.input, depth, p.m,
                  2 * (p.m > 1 ? p.input_stride : round_up(depth, 8)), 64, a.tile / pair)) {
    return unsupported("the CUDA driver refuses the tensor maps of this problem");
  }
  LaunchShape shape{plan.grid_x, 1, plan.threads, plan.shared_bytes, p.programmatic_launch};
  shape.cluster = pair * plan.splits;
  if (backward) {
    return half ? run<__half, true>(variant, shape, codes, input, a, stream)
                : run<__nv_bfloat16, true>(variant, shape, codes, input, a, stream);
  }
  return half ? run<__half, false>(variant, shape, codes, input, a, stream)
              : run<__nv_bfloat16, false>(variant, shape, codes, input, a, stream);
}

}  // namespace lowbit::kernels::cuda
