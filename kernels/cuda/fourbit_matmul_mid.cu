// The 4-bit matmul for 9 to some hundred tokens (sm_90a): the weight is decoded into the registers
// of wgmma's A operand, the activations are its B operand in shared memory.
//
//  * A block owns 64 * row_groups rows of W and up to `tokens` tokens; K streams through in stages
//    of 256 columns. A cluster of 1 to 8 blocks shares K; each adds up some of the tokens in the
//    end, in the order of the blocks: deterministic, no workspace.
//  * A producer warpgroup feeds the others: one thread copies codes, one activations (two rings, so
//    that the weight starts before the previous kernel has ended), two warps bring the scales of
//    four stages at a time as float32, nested ones decoded. The consumers bring the first ones.
//  * Consumers: warpgroup (row group, slice) multiplies its 64 rows by its blocks of 64 columns of
//    a stage. The four lanes of a row read its 32 bytes at once; lane t needs byte t of every word
//    (columns 8j + 2t and + 1), which one dp4a turns into the address of its pair in the table.
//  * Up to 32 tokens, and 64 in r64, codes are multiplied unscaled; a block's sums are scaled in
//    float32 as they are added up, so the scale is never rounded. For more tokens that would take
//    more registers than there are: codes are scaled as in fourbit_matmul_large.cu. The next block
//    is decoded while wgmma runs.
//  * Rows behind N, columns behind K and tokens behind M arrive as zeros; what they give is never
//    stored, or is zero.
#include <type_traits>

#include "cuda/common/async_copy.cuh"
#include "cuda/common/launch.h"
#include "cuda/common/tensor_map.h"
#include "cuda/common/tma_sm90.cuh"
#include "cuda/common/wgmma_sm90.cuh"
#include "cuda/fourbit_matmul.h"
#include "cuda/fourbit_mid.h"
#include "cuda/fourbit_mid_scales.cuh"

namespace lowbit::kernels::cuda {
namespace {

template <typename T, int kVariant>
__global__ void __launch_bounds__(mid_threads(kMidVariants[kVariant]), 1)
    mid_kernel(const __grid_constant__ CUtensorMap codes_map,
               const __grid_constant__ CUtensorMap input_map, const __grid_constant__ MidArgs a) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  constexpr MidVariant v = kMidVariants[kVariant];
  constexpr MidLayout l = mid_layout(v);
  constexpr int kTokens = v.tokens, kRows = 64 * v.row_groups, kGroups = mid_groups(v);
  constexpr int kConsumerThreads = kGroups * 128;
  constexpr int kBlocks = 4 / v.slices;  // of 64 columns, of a stage, for a warpgroup
  constexpr bool kScaled = v.scaled;
  using Form = std::conditional_t<kScaled, SplitScales<T>, PlainScales>;
  constexpr int kInputBlocks = mid_input_blocks(v), kStageSlots = 4 / kInputBlocks;
  static_assert(l.bytes <= 232448 && l.inputs % 1024 == 0);
  static_assert(l.received + (kTokens + kMidMaxSplits) * kRows * 4 <= l.barriers);
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t base = shared_address(shared);
  const uint32_t scale_barriers = base + l.barriers, weight_barriers = scale_barriers + 32;
  const uint32_t input_barriers = weight_barriers + 16 * v.weight_stages;
  const int tid = threadIdx.x, lane = tid % 32;
  // The compiler must see that a warpgroup takes one branch.
  const int group = __shfl_sync(0xffffffffu, tid / 128, 0);
  const int splits = 1 << a.log_splits, rank = blockIdx.x & (splits - 1);
  const int first_row = static_cast<int>(blockIdx.x >> a.log_splits) * kRows;
  const int first_token = blockIdx.y * a.tile, tokens = min(a.tile, a.m - first_token);
  const int stages = a.stages + (rank < a.rest);
  const int first_stage = rank * a.stages + min(rank, a.rest);
  Form form;
  if constexpr (kScaled) form.inverse_factor = a.inverse_factor;
  allow_next_kernel();

  if (tid == kConsumerThreads) {
    // One thread, constant addresses: lanes with an address each would go one after the other, at
    // 80 cycles each. The rings of scales, weights and inputs lie behind each other.
#pragma unroll
    for (int s = 0; s < 2 + v.weight_stages + l.input_slots; ++s) {
      init_barrier(ring_full(scale_barriers, s), s < 2 ? 64 : 1);
      init_barrier(ring_empty(scale_barriers, s), s < 2                     ? kConsumerThreads
                                                  : s < 2 + v.weight_stages ? kGroups * 4
                                                                            : v.row_groups * 4);
    }
    publish_barriers();
  }
  __syncthreads();

  if (group == kGroups) {  // ---- producers
    give_registers<kGroups == 4 ? 32 : 40>();
    const int warp = tid / 32 % 4;
    if (warp == 0) {
      if (lane == 0) {
        const uint64_t policy = evict_first_policy();
        int slot = 0;
        uint32_t parity = 1;
#pragma unroll 1
        for (int i = 0; i < stages; ++i) {
          if (i >= v.weight_stages) wait_barrier(ring_empty(weight_barriers, slot), parity);
          arrive_expecting(ring_full(weight_barriers, slot), l.weight_stage);
          copy_tensor_2d(base + l.weights + slot * l.weight_stage, &codes_map,
                         (first_stage + i) * (kMidColumns / 2), first_row,
                         ring_full(weight_barriers, slot), policy);
          if (++slot == v.weight_stages) slot = 0, parity ^= 1;
        }
      }
    } else if (warp == 1) {
      if (lane == 0) {
        wait_for_previous_kernel();
        int slot = 0;
        uint32_t parity = 1;
        const int slots = stages * kStageSlots;
#pragma unroll 1
        for (int i = 0; i < slots; ++i) {
          if (i >= l.input_slots) wait_barrier(ring_empty(input_barriers, slot), parity);
          arrive_expecting(ring_full(input_barriers, slot), kInputBlocks * a.tile * 128);
          copy_tensor_3d(base + l.inputs + slot * l.input_slot, &input_map, 0, first_token,
                         first_stage * 4 + i * kInputBlocks, ring_full(input_barriers, slot));
          if (++slot == l.input_slots) slot = 0, parity ^= 1;
        }
      }
    } else {
      MidScaleProducer<Form, v.row_groups>{a,
                                           shared,
                                           scale_barriers,
                                           l.scale_slot,
                                           l.scales,
                                           l.map,
                                           first_row,
                                           first_stage * 4,
                                           (stages + kMidScaleStages - 1) / kMidScaleStages,
                                           tid % 64,
                                           form}
          .run();
    }
    __syncwarp();
    if (splits > 1) {
      arrive_cluster_relaxed();
      wait_cluster();
      arrive_cluster();
      wait_cluster();
    }
    return;
  }

  // ---- consumers
  take_registers<kGroups == 4 ? 112 : 232>();
  {
    // The first scales come from here: two warps would be as late as 2000 cycles.
    constexpr int kQuads = kRows * 4, kEach = ceil_div(kQuads, kConsumerThreads);
    const float offset = a.scales.absmax_8bit != nullptr ? __ldg(a.scales.absmax_offset) : 0.0f;
    RawScales raw[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int quad = tid + i * kConsumerThreads;
      raw[i] = RawScales::load(a, first_row + quad / 4, first_stage * 4 + quad % 4 * 4);
    }
    fill_pair_table<kGroups * 4>(shared, a.table, tid / 32, lane);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int quad = tid + i * kConsumerThreads;
      if (quad >= kQuads) break;
      *reinterpret_cast<float4*>(shared + l.scales + scale_place(quad / 4, quad % 4)) =
          form(a.scales.absmax_8bit != nullptr ? raw[i].decode(a.scales.absmax_code, offset)
                                               : raw[i].high);
    }
  }
  const int row_group = group % v.row_groups, slice = group / v.row_groups;
  const int g = lane / 4, t = lane % 4, row = row_group * 64 + tid / 32 % 4 * 16 + g;
  const uint32_t table_at = keep(base + lane * 4), select = keep(0x80u << (8 * t));
  // Of block b of the slice: XOR b << 5.
  const uint32_t codes_at = keep(base + l.weights + row * 128 + ((g ^ (slice * kBlocks * 2)) << 4));
  const uint32_t scales_at = keep(base + l.scales + scale_place(row, 0) + slice * kBlocks * 4);
  const uint64_t operand = swizzled_operand(base + l.inputs);
  const bool leader = lane == 0;

  struct Block {
    uint32_t codes[16];  // 32 bytes of row `row`, 32 of row + 8
    float scale, next_scale;
  };
  const auto fetch = [&](Block& q, int stage, int slot, int b) {
    const uint32_t at = (codes_at + slot * l.weight_stage) ^ (b << 5);
#pragma unroll
    for (int h = 0; h < 4; ++h) {
      const uint4 w = shared_words((h & 1 ? at ^ 16 : at) + (h >> 1) * 1024);
      q.codes[4 * h] = w.x, q.codes[4 * h + 1] = w.y;
      q.codes[4 * h + 2] = w.z, q.codes[4 * h + 3] = w.w;
    }
    const uint32_t place =
        ((scales_at + (stage / kMidScaleStages & 1) * l.scale_slot) ^ (stage & 3) << 4) + b * 4;
    q.scale = __uint_as_float(shared_word(place));
    q.next_scale = __uint_as_float(shared_word(place + 8 * 64));
  };
  const auto decode = [&](uint32_t(&fragment)[16], const Block& q) {
#pragma unroll
    for (int j = 0; j < 16; ++j) {  // word j / 2 of row (j even) or row + 8
      fragment[j] = shared_word(__dp4a(q.codes[(j & 1) * 8 + j / 2], select, table_at));
      if constexpr (kScaled) {
        const uint32_t scale = __float_as_uint(j & 1 ? q.next_scale : q.scale);
        fragment[j] =
            scaled(T{}, fragment[j], __byte_perm(scale, 0, 0x1010), __byte_perm(scale, 0, 0x3232));
      }
    }
    pin(fragment);
  };

  float sums[kTokens / 2] = {};
  [[maybe_unused]] float products[kScaled ? 1 : kTokens / 2] = {};
  [[maybe_unused]] uint32_t done = 0;  // barrier that frees the activations of the product before
  uint32_t fragments[2][16];
  float scales[2][2];
  Block q;
  // The stage that q is read from, one or two blocks ahead of the product.
  int stage = 0, slot = 0;
  uint32_t parity = 0;
  const auto next_stage = [&] {
    __syncwarp();
    if (stage < stages) {
      if (leader) arrive(ring_empty(weight_barriers, slot));
      if (stage % kMidScaleStages == kMidScaleStages - 1) {
        // Every lane: racecheck follows no deputies where threads wrote what is read.
        arrive(ring_empty(scale_barriers, stage / kMidScaleStages & 1));
      }
    }
    ++stage;
    if (++slot == v.weight_stages) slot = 0, parity ^= 1;
    if (stage < stages) {
      wait_barrier(ring_full(weight_barriers, slot), parity);
      if (stage % kMidScaleStages == 0) {
        const int chunk = stage / kMidScaleStages;
        wait_barrier(ring_full(scale_barriers, chunk & 1), (chunk - 1) / 2 & 1);
      }
    }
  };

  sync_group<kMidTable>(kConsumerThreads);
  wait_barrier(ring_full(weight_barriers, 0), 0);
  fetch(q, 0, 0, 0);
  decode(fragments[0], q);
  scales[0][0] = q.scale, scales[0][1] = q.next_scale;
  fetch(q, stage, slot, 1 % kBlocks);
  int input_stage = 0;
  uint32_t input_parity = 0;
#pragma unroll 1
  for (int i = 0; i < stages; ++i) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      constexpr int kLast = kBlocks - 1;
      const int now = b & 1, next = now ^ 1;
      const int input =
          input_stage * kStageSlots + slice * (kBlocks / kInputBlocks) + b / kInputBlocks;
      if (b % kInputBlocks == 0) wait_barrier(ring_full(input_barriers, input), input_parity);
      const uint64_t x = operand + static_cast<uint32_t>(input * (l.input_slot >> 4) +
                                                         b % kInputBlocks * (a.tile * 8));
      if constexpr (!kScaled) pin(products);
      fence_products();
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        const uint32_t* f = &fragments[now][4 * s];
        if constexpr (kScaled) {
          wgmma(T{}, sums, f[0], f[1], f[2], f[3], x + 2 * s, i + b + s != 0);
        } else {
          wgmma(T{}, products, f[0], f[1], f[2], f[3], x + 2 * s, s != 0);
        }
      }
      commit_products();
      if constexpr (kScaled) {
        wait_products<1>();
        if (b % kInputBlocks == 0) {
          if (leader && i + b != 0) arrive(done);
          done = ring_empty(input_barriers, input);
        }
      }
      decode(fragments[next], q);
      scales[next][0] = q.scale, scales[next][1] = q.next_scale;
      if ((b + 1) % kBlocks == kLast) next_stage();
      fetch(q, stage, slot, (b + 2) % kBlocks);
      if constexpr (!kScaled) {
        wait_products<0>();
        pin(products);
        if (b % kInputBlocks == kInputBlocks - 1) {
          if (leader) arrive(ring_empty(input_barriers, input));
        }
#pragma unroll
        for (int j = 0; j < kTokens / 2; ++j) {
          sums[j] = fmaf(scales[now][j >> 1 & 1], products[j], sums[j]);
        }
      }
      if (b == kLast && ++input_stage == v.input_stages) input_stage = 0, input_parity ^= 1;
    }
  }
  if constexpr (kScaled) {
    wait_products<0>();
    pin(sums);
  }

  // ---- sums of the slices, in the rings' memory
  if (splits > 1) arrive_cluster_relaxed();
  wait_for_previous_kernel();
  sync_group<kMidConsumers>(kConsumerThreads);
  auto* partial = reinterpret_cast<float*>(shared + l.weights);
  {
    float* to = partial + slice * kTokens * l.sum_pitch + row;
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j) {
      float* two = to + (8 * j + 2 * t) * l.sum_pitch;
      two[0] = sums[4 * j], two[l.sum_pitch] = sums[4 * j + 1];
      two[8] = sums[4 * j + 2], two[l.sum_pitch + 8] = sums[4 * j + 3];
    }
  }
  sync_group<kMidConsumers>(kConsumerThreads);
  constexpr int kQuads = kRows / 4;
  const auto own_sum = [&](int token, int quad) {
    const float* from = partial + token * l.sum_pitch + quad * 4;
    float4 s = *reinterpret_cast<const float4*>(from);
#pragma unroll
    for (int i = 1; i < v.slices; ++i) {
      const float4 w = *reinterpret_cast<const float4*>(from + i * kTokens * l.sum_pitch);
      s.x += w.x, s.y += w.y, s.z += w.z, s.w += w.w;
    }
    return s;
  };
  const auto share_begin = [&](int r) { return r * tokens >> a.log_splits; };
  const int share = kTokens >> a.log_splits;  // tokens of a block, at most
  auto* received = reinterpret_cast<float4*>(shared + l.received);
  if (splits > 1) {
    wait_cluster();  // the others are done with the rings, too
    for (int other = 0; other < splits; ++other) {
      if (other == rank) continue;
      const int begin = share_begin(other), count = share_begin(other + 1) - begin;
      const uint32_t to = peer_address(base + l.received + rank * share * kRows * 4, other);
      for (int i = tid; i < count * kQuads; i += kConsumerThreads) {
        store_to_peer(to + i * 16, own_sum(begin + i / kQuads, i % kQuads));
      }
    }
    arrive_cluster();
    wait_cluster();
  }
  const int begin = share_begin(rank), count = share_begin(rank + 1) - begin;
  T* output = static_cast<T*>(a.output);
  for (int i = tid; i < count * kQuads; i += kConsumerThreads) {
    const int token = begin + i / kQuads, column = first_row + i % kQuads * 4;
    float4 s = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int r = 0; r < splits; ++r) {
      const float4 w = r == rank ? own_sum(token, i % kQuads) : received[r * share * kQuads + i];
      s.x += w.x, s.y += w.y, s.z += w.z, s.w += w.w;
    }
    const float values[4] = {s.x, s.y, s.z, s.w};
    alignas(8) T rounded[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const bool inside = column + j < a.n;
      rounded[j] =
          from_float<T>(values[j] + (inside ? bias_at(a.bias, a.bias_dtype, column + j) : 0.0f));
    }
    T* to = output + (first_token + token) * int64_t{a.n} + column;
    if (a.vector_output && column < a.n) {
      *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(rounded);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (column + j < a.n) to[j] = rounded[j];
      }
    }
  }
#else
  __trap();  // made for an older architecture than the plan's: an error, not a wrong result
#endif
}

/// Activations as [k / 64][m][64], boxes of `blocks` times `tokens` times 64.
bool map_input(CUtensorMap& map, const Matmul4bitParams& p, int tokens, int blocks) noexcept {
  const cuuint64_t sizes[3] = {64, static_cast<cuuint64_t>(p.m), static_cast<cuuint64_t>(p.k / 64)};
  // The stride of a single row means nothing, but must be a valid one.
  const int64_t stride = p.m > 1 ? p.input_stride : p.k;
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(stride * 2), 128};
  const cuuint32_t box[3] = {64, static_cast<cuuint32_t>(tokens), static_cast<cuuint32_t>(blocks)},
                   steps[3] = {1, 1, 1};
  return tensor_map_encoder()(&map,
                              p.dtype == DType::kFloat16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                         : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                              3, const_cast<void*>(p.input), sizes, strides, box, steps,
                              CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                              CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                              CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

template <typename T>
Status run(int variant, const LaunchShape& shape, const CUtensorMap& codes,
           const CUtensorMap& input, const MidArgs& a, Stream stream) {
  switch (variant) {
    case 0:
      return launch(mid_kernel<T, 0>, shape, stream, codes, input, a);
    case 1:
      return launch(mid_kernel<T, 1>, shape, stream, codes, input, a);
    case 2:
      return launch(mid_kernel<T, 2>, shape, stream, codes, input, a);
    case 3:
      return launch(mid_kernel<T, 3>, shape, stream, codes, input, a);
    case 4:
      return launch(mid_kernel<T, 4>, shape, stream, codes, input, a);
    case 5:
      return launch(mid_kernel<T, 5>, shape, stream, codes, input, a);
    case 6:
      return launch(mid_kernel<T, 6>, shape, stream, codes, input, a);
    case 7:
      return launch(mid_kernel<T, 7>, shape, stream, codes, input, a);
  }
  return invalid_argument("the plan was made for another problem");
}

}  // namespace

Status launch_mid(const Matmul4bitCudaPlan& plan, const Matmul4bitParams& p,
                  Stream stream) noexcept {
  const int variant = plan.id - kMid;
  if (variant < 0 || variant >= kMidVariantCount || plan.grid_x < 1 || !mid_applies(p)) {
    return invalid_argument("the plan was made for another problem");
  }
  const MidVariant& v = kMidVariants[variant];
  MidArgs a = {};
  while (a.log_splits < 3 && 1 << a.log_splits < plan.splits) ++a.log_splits;
  const int rows = 64 * v.row_groups;
  const int64_t stages = ceil_div(p.k, kMidColumns);
  if (plan.splits != 1 << a.log_splits || stages < plan.splits ||
      plan.grid_x != ceil_div(p.n, rows) * plan.splits || plan.grid_y != ceil_div(p.m, v.tokens) ||
      plan.threads != mid_threads(v) || plan.shared_bytes < mid_layout(v).bytes) {
    return invalid_argument("the plan was made for another problem");
  }
  a.scales = p.scales;
  a.bias = p.bias;
  a.output = p.output;
  a.m = static_cast<int>(p.m);
  a.n = static_cast<int>(p.n);
  a.k = static_cast<int>(p.k);
  a.tile = static_cast<int>(ceil_div(ceil_div(p.m, int64_t{plan.grid_y}), 8) * 8);
  while (int64_t{64} << a.shift < p.blocksize) ++a.shift;
  a.stages = static_cast<int>(stages) / plan.splits;
  a.rest = static_cast<int>(stages) % plan.splits;
  a.vector_output = p.n % 4 == 0 && aligned(p.output, 8);
  const int64_t row_scales = p.k / p.blocksize;
  a.read = MidArgs::kBytes;
  if (a.shift == 0 && row_scales % 4 == 0) {
    if (!p.scales.nested()) {
      if (aligned(p.scales.absmax, 16)) a.read = MidArgs::kWords;
    } else if (row_scales % 16 == 0 && aligned(p.scales.absmax_8bit, 16)) {
      a.read = MidArgs::kVectors;
    } else if (aligned(p.scales.absmax_8bit, 4)) {
      a.read = MidArgs::kWords;
    }
  }
  a.bias_dtype = p.bias_dtype;
  const float factor = v.scaled ? table_factor(p) : 1.0f;
  a.inverse_factor = 1.0f / factor;
  a.table = pair_table(p, factor);
  CUtensorMap codes, input;
  if (tensor_map_encoder() == nullptr ||
      !map_matrix(codes, CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_SWIZZLE_128B, p.packed,
                  p.k / 2, p.n, p.k / 2, kMidColumns / 2, rows,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_128B) ||
      !map_input(input, p, a.tile, mid_input_blocks(v))) {
    return unsupported("the CUDA driver refuses the tensor maps of this problem");
  }
  LaunchShape shape{plan.grid_x, plan.grid_y, plan.threads, plan.shared_bytes,
                    p.programmatic_launch};
  shape.cluster = plan.splits;
  return p.dtype == DType::kFloat16 ? run<__half>(variant, shape, codes, input, a, stream)
                                    : run<__nv_bfloat16>(variant, shape, codes, input, a, stream);
}

}  // namespace lowbit::kernels::cuda
