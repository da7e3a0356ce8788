// The 4-bit matmul for few tokens (sm_80): the weight streams through once, decoded by a table.
//
// Unit of work ("item"): 16 rows x 256 columns of W, 2 KB of codes.
//  * A block owns a contiguous range of 16-row tiles and all of K: no sum crosses blocks.
//  * K is cut in slots of 256 columns. In a phase warp w takes slot w of the phase for every tile
//  of
//    the block, so that the warps together read long runs of each row, and a warp's activations
//    (the B operand) stay in registers from tile to tile. Slots that do not fill a phase are cut in
//    equal runs, one a warp.
//  * Every warp has a ring of stages of its own, filled by cp.async or (sm_90) by the copy engine,
//    which takes fewer instructions, with the 16-byte chunks of row r at chunk ^ (r & 7): no
//    barrier of blocks in the loop, no bank conflicts.
//  * A byte of codes (neighbouring columns of one row) is one register of the A fragment. The sum
//    over k may be taken in any order, so lane (g, t) reads 8 consecutive bytes of rows g and g + 8
//    of each 64-column block, and the matching activations are 16 consecutive elements of x.
//  * Decoding is one load from a table of 256 words (byte -> two elements), a copy for every bank.
//  * Codes are multiplied unscaled; the sum over a block is scaled in float32: the scale is never
//    rounded. Scales are decoded to float32 once, in shared memory; coarser blocks are repeated.
//  * One token: lane t of each quad owns a 64-column block. B is block-diagonal: column 2t carries
//    the token at the k positions of lane t and zeros elsewhere, so that the sums of lane t's block
//    arrive in lane t, which scales them: no shuffles, 16-byte reads of the codes.
//  * Partial sums lie in [warp][tile] and are added in the order of the warps: deterministic.
#include "cuda/common/async_copy.cuh"
#include "cuda/common/cast.cuh"
#include "cuda/common/launch.h"
#include "cuda/common/mma_sm80.cuh"
#include "cuda/common/tensor_map.h"
#include "cuda/common/tma_sm90.cuh"
#include "cuda/fourbit_group.h"
#include "cuda/fourbit_matmul.h"
#include "cuda/fourbit_pairs.cuh"

namespace lowbit::kernels::cuda {
namespace {

/// One of the weights of a launch, and the blocks that make its outputs.
struct SmallMember {
  CUtensorMap codes;  // where the copy engine reads them
  const uint8_t* packed;
  BlockScales scales;
  const void* bias;
  void* output;
  int n;
  int first_block;
  int tiles_base, tiles_rest;  // tiles of a block: base, plus one for the first `rest`
  DType bias_dtype;
};

template <int kMembers>
struct SmallArgs {
  const void* input;
  int64_t input_stride;
  int m, k;
  int shift;  // log2 of the columns of a scale, over those of a scale in shared memory
  int count;  // of members
  bool programmatic;
  SmallLayout layout;
  PairTable table;
  SmallMember members[kMembers];
};

/// The pair of byte kByte of w; one instruction makes its address, bank + 128 * byte.
template <int kByte>
__device__ __forceinline__ uint32_t pair_of(const uint8_t* shared, uint32_t w, uint32_t bank) {
  return *reinterpret_cast<const uint32_t*>(shared + __dp4a(w, 0x80u << (8 * kByte), bank));
}

template <typename T, int kMembers, int kTokens, int kWarps, int kStages, int kBlocks, bool kFine,
          bool kEngine = false>
__global__ void __launch_bounds__(kWarps * 32, kBlocks)
    small_kernel(const __grid_constant__ SmallArgs<kMembers> a) {
#if __CUDA_ARCH__ >= 800 && __CUDA_ARCH__ < 900
  if constexpr (kEngine) __trap();  // as below
#endif
#if __CUDA_ARCH__ >= 800
  constexpr bool kOne = kTokens == 1;
  constexpr int kGroups = (kTokens + 7) / 8;  // of eight tokens
  constexpr int kThreads = kWarps * 32;
  extern __shared__ __align__(1024) uint8_t shared[];
  const SmallLayout& l = a.layout;
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, g = lane / 4, t = lane % 4;
  const uint32_t bank = lane * 4;

  const int first_token = blockIdx.y * kTokens;
  const int tokens = min(kTokens, a.m - first_token);
  const int slots = (a.k + kSmallColumns - 1) / kSmallColumns;
  int index = 0;  // of this block's weight; known to the compiler where there is one
  if constexpr (kMembers > 1) {
    while (index + 1 < a.count &&
           static_cast<int>(blockIdx.x) >= a.members[index + 1].first_block) {
      ++index;
    }
  }
  const SmallMember& weight = a.members[index];
  const int block = static_cast<int>(blockIdx.x) - weight.first_block;
  const int tile0 = block * weight.tiles_base + min(block, weight.tiles_rest);
  const int count = weight.tiles_base + (block < weight.tiles_rest);  // of this block's tiles
  const int full = slots / kWarps, left = (slots - full * kWarps) * count;
  const int left_begin = warp * left / kWarps, left_end = (warp + 1) * left / kWarps;
  const int full_items = full * count, items = full_items + left_end - left_begin;
  const int left_slot = full * kWarps + left_begin / count, left_tile = left_begin % count;
  const int first_slot = full > 0 ? warp : left_slot, first_tile = full > 0 ? 0 : left_tile;

  uint8_t* ring = shared + kPairTable + warp * kStages * kSmallStage;
  float* map = reinterpret_cast<float*>(shared + l.map);
  float* absmax2 = reinterpret_cast<float*>(shared + l.absmax2);
  float* scales = reinterpret_cast<float*>(shared + l.scales);
  uint8_t* raw = shared + l.sums;
  const uint32_t barriers = shared_address(shared) + l.barriers + warp * kStages * 8;

  allow_next_kernel();

  // ---- activations
  const T* input = static_cast<const T*>(a.input);
  const int last_block = a.k / 64;
  uint32_t x[kGroups][32];
  const auto load_activations = [&](int slot) {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const int token = kOne ? 0 : group * 8 + g;
      const bool wanted = kOne ? g == 2 * t : token < tokens;
      const T* row = input + (first_token + token) * a.input_stride + slot * kSmallColumns;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int b = kOne ? t : j / 2;  // 64-column block
        const int column = kOne    ? t * 64 + j * 8
                           : kFine ? b * 64 + (j & 1) * 32 + t * 8
                                   : b * 64 + t * 16 + (j & 1) * 8;
        uint4 v = make_uint4(0, 0, 0, 0);
        // Not through the read-only path: the kernel before this one may have written x.
        if (wanted && slot * 4 + b < last_block) {
          v = __ldcg(reinterpret_cast<const uint4*>(row + column));
        }
        x[group][4 * j] = v.x, x[group][4 * j + 1] = v.y;
        x[group][4 * j + 2] = v.z, x[group][4 * j + 3] = v.w;
      }
    }
  };
  if (!a.programmatic) load_activations(first_slot);

  // ---- small loads first: what is issued after the rings queues behind megabytes of codes
  const int row_scales = a.k >> (a.shift + (kFine ? 5 : 6));  // of a row of W
  const int kept = kFine ? a.k / 32 : a.k / 64;               // of a row in shared memory
  const int64_t first_scale = int64_t{tile0} * kSmallRows * row_scales;
  const int rows = min(count * kSmallRows, weight.n - tile0 * kSmallRows);  // that exist
  const bool nested = weight.scales.absmax_8bit != nullptr;
  float offset = 0.0f, map_value = 0.0f, absmax2_value = 0.0f;
  const int64_t first_group = first_scale / kNestedBlocksize;
  const int groups =
      static_cast<int>((first_scale + rows * row_scales - 1) / kNestedBlocksize - first_group) + 1;
  int misaligned = 0;
  if (nested) {
    if (tid < 256) map_value = __ldg(weight.scales.absmax_code + tid);
    if (tid < groups) absmax2_value = __ldg(weight.scales.absmax2 + first_group + tid);
    offset = __ldg(weight.scales.absmax_offset);
    const uint8_t* codes = weight.scales.absmax_8bit + first_scale;
    misaligned = static_cast<int>(reinterpret_cast<uintptr_t>(codes) & 15);
    const int bytes = misaligned + rows * row_scales;
    const uint32_t to = shared_address(raw);
    for (int i = tid * 16; i < bytes; i += kThreads * 16) {
      copy_async(to + i, codes - misaligned + i, min(16, bytes - i));
    }
  } else {
    const float* absmax = weight.scales.absmax + first_scale;
    const bool whole = a.shift == 0 && row_scales % 4 == 0 &&
                       reinterpret_cast<uintptr_t>(weight.scales.absmax) % 16 == 0;
    for (int r = warp; r < count * kSmallRows; r += kWarps) {
      const float* source = absmax + int64_t{r} * row_scales;
      const uint32_t to = shared_address(scales + r * l.pitch);
      if (whole) {
        for (int j = lane * 4; j < l.pitch; j += 128) {
          const bool valid = r < rows && j < kept;
          copy_async(to + j * 4, valid ? source + j : weight.scales.absmax, valid ? 16 : 0);
        }
      } else {
        for (int j = lane; j < l.pitch; j += 32) {
          const bool valid = r < rows && j < kept;
          copy_async_word(to + j * 4, valid ? source + (j >> a.shift) : weight.scales.absmax,
                          valid);
        }
      }
    }
  }
  commit_copies();

  // ---- the ring
  int fetch_slot = first_slot, fetch_tile = first_tile, fetched = 0;
  const uint32_t row_bytes = a.k / 2, tile_bytes = row_bytes * kSmallRows;
  const int fetch_row = lane / 8, chunk = lane % 8;  // rows fetch_row + 0, 4, 8, 12
  const uint32_t place0 = fetch_row * 128 + ((chunk ^ fetch_row) << 4);
  const uint32_t place1 = (fetch_row + 4) * 128 + ((chunk ^ (fetch_row + 4)) << 4);
  const uint32_t ring_address = shared_address(ring);
  const int whole_tiles = weight.n / kSmallRows - tile0;  // the tile behind them is cut off by N
  const int whole_slots = a.k / kSmallColumns;
  uint32_t from = 0;
  const auto place_fetch = [&] {
    from = static_cast<uint32_t>((tile0 + fetch_tile) * kSmallRows + fetch_row) * row_bytes +
           fetch_slot * (kSmallColumns / 2) + chunk * 16;
  };
  place_fetch();
  const auto fetch = [&](int stage) {
    if (fetched < items) {
      const uint32_t to = ring_address + stage * kSmallStage;
      const uint8_t* source = weight.packed + from;
      if constexpr (kEngine) {
#if __CUDA_ARCH__ >= 900
        if (lane == 0) {
          arrive_expecting(barriers + stage * 8, kSmallStage);
          copy_tensor_2d(to, &weight.codes, fetch_slot * (kSmallColumns / 2),
                         (tile0 + fetch_tile) * kSmallRows, barriers + stage * 8,
                         evict_first_policy());
        }
#endif
      } else if (fetch_tile < whole_tiles && fetch_slot < whole_slots) {
        copy_async(to + place0, source);
        copy_async(to + place1, source + 4 * row_bytes);
        copy_async(to + place0 + 1024, source + 8 * row_bytes);
        copy_async(to + place1 + 1024, source + 12 * row_bytes);
      } else {
        const bool inside = fetch_slot * (kSmallColumns / 2) + chunk * 16 < a.k / 2;
        const int row = (tile0 + fetch_tile) * kSmallRows + fetch_row;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const bool valid = inside && row + 4 * i < weight.n;
          copy_async(to + (i % 2 == 0 ? place0 : place1) + (i / 2) * 1024,
                     valid ? source + 4 * i * row_bytes : weight.packed, valid ? 16 : 0);
        }
      }
      ++fetched;
      ++fetch_tile;
      from += tile_bytes;
      if (fetch_tile == count || fetched == full_items) {  // rare: the next stripe of columns
        if (fetched == full_items) {
          fetch_slot = left_slot, fetch_tile = left_tile;
        } else {
          fetch_tile = 0;
          fetch_slot += fetched < full_items ? kWarps : 1;
        }
        place_fetch();
      }
    }
    if constexpr (!kEngine) commit_copies();
  };
  if constexpr (kEngine) {
#if __CUDA_ARCH__ >= 900
    if (lane == 0) {
#pragma unroll
      for (int s = 0; s < kStages; ++s) init_barrier(barriers + s * 8, 1);
      publish_barriers();
    }
    __syncwarp();
#endif
  }
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) fetch(s);

  fill_pair_table<kWarps>(shared, a.table, warp, lane);
  if (nested) {
    if (tid < 256) map[tid] = map_value;
    if (tid < groups) absmax2[tid] = absmax2_value;
    for (int i = tid + kThreads; i < groups; i += kThreads) {
      absmax2[i] = __ldg(weight.scales.absmax2 + first_group + i);
    }
  }
  wait_copies<kEngine ? 0 : kStages - 1>();
  if (nested) {
    __syncthreads();  // the raw scales and their map are here
    const int in_group = static_cast<int>(first_scale % kNestedBlocksize);
    for (int r = warp; r < count * kSmallRows; r += kWarps) {
      for (int j = lane; j < l.pitch; j += 32) {
        float value = 0.0f;
        if (r < rows && j < kept) {
          const int i = r * row_scales + (j >> a.shift);
          const float high = absmax2[static_cast<unsigned>(in_group + i) / kNestedBlocksize];
          value = __fadd_rn(__fmul_rn(map[raw[misaligned + i]], high), offset);
        }
        scales[r * l.pitch + j] = value;
      }
    }
  }
  if (a.programmatic) {
    wait_for_previous_kernel();
    load_activations(first_slot);
  }
  __syncthreads();

  // ---- items
  int slot = first_slot, tile = first_tile, stage = 0;
  [[maybe_unused]] uint32_t parity = 0;
  bool reload = false;
  // The row of a tile that fragment row g stands for. 8-byte reads need the rows of a half-warp to
  // differ in the upper two bits of the swizzle; any order will do for the product.
  const int row = kOne || kFine ? g : (g & 3) * 2 + (g >> 2);
  const uint32_t swizzle = (row & 7) << 4;
  uint32_t at[kOne ? 2 : kFine ? 8 : 4];
  if constexpr (kOne) {
    at[0] = row * 128 + ((2 * t << 4) ^ swizzle);
    at[1] = row * 128 + ((2 * t + 1) << 4 ^ swizzle);
  } else if constexpr (kFine) {
#pragma unroll
    for (int c = 0; c < 8; ++c) at[c] = row * 128 + ((c << 4) ^ swizzle) + t * 4;
  } else {
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      at[b] = row * 128 + (((b * 2 + t / 2) << 4) ^ swizzle) + (t & 1) * 8;
    }
  }
  const int sum_step = kSmallRows * l.sum_pitch, scale_step = kSmallRows * l.pitch;
  float* warp_sums = reinterpret_cast<float*>(shared + l.sums) + warp * count * sum_step;
  float* const sum_base = warp_sums + row * l.sum_pitch + (kOne ? t : 2 * t);
  const float* const scale_base = scales + row * l.pitch + (kOne ? t : 0);
  float* sum = sum_base + tile * sum_step;
  const float* scale = scale_base + tile * scale_step + slot * (kFine ? 8 : 4);

  for (int item = 0; item < items; ++item) {
    if (reload) {
      reload = false;
      load_activations(slot);
    }
    if constexpr (kEngine) {
#if __CUDA_ARCH__ >= 900
      wait_barrier(barriers + stage * 8, parity);
#endif
    } else {
      wait_copies<kStages - 2>();
    }
    __syncwarp();
    fetch(stage == 0 ? kStages - 1 : stage - 1);
    const uint8_t* codes = ring + stage * kSmallStage;
    if (++stage == kStages) stage = 0, parity ^= 1;

    if constexpr (kOne) {
      const float scale_g = scale[0], scale_h = scale[8 * l.pitch];
      float p[4][4] = {};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint4 vg = *reinterpret_cast<const uint4*>(codes + at[half]);
        const uint4 vh = *reinterpret_cast<const uint4*>(codes + 1024 + at[half]);
        const uint32_t wg[4] = {vg.x, vg.y, vg.z, vg.w}, wh[4] = {vh.x, vh.y, vh.z, vh.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint32_t* b = &x[0][half * 16 + j * 4];
          mma_16x8x16<T>(p[(j & 1) * 2], pair_of<0>(shared, wg[j], bank),
                         pair_of<0>(shared, wh[j], bank), pair_of<1>(shared, wg[j], bank),
                         pair_of<1>(shared, wh[j], bank), b[0], b[1]);
          mma_16x8x16<T>(p[(j & 1) * 2 + 1], pair_of<2>(shared, wg[j], bank),
                         pair_of<2>(shared, wh[j], bank), pair_of<3>(shared, wg[j], bank),
                         pair_of<3>(shared, wh[j], bank), b[2], b[3]);
        }
      }
      float sg = scale_g * ((p[0][0] + p[1][0]) + (p[2][0] + p[3][0]));
      float sh = scale_h * ((p[0][2] + p[1][2]) + (p[2][2] + p[3][2]));
      float* sum_h = sum + 8 * 4;
      if (item >= count) sg += *sum, sh += *sum_h;
      *sum = sg, *sum_h = sh;
    } else {
      float acc[kGroups][4] = {};
      constexpr int kParts = kFine ? 8 : 4;  // with a scale each
#pragma unroll
      for (int four = 0; four < kParts; four += 4) {
        const float4 ug = *reinterpret_cast<const float4*>(scale + four);
        const float4 uh = *reinterpret_cast<const float4*>(scale + 8 * l.pitch + four);
        const float scale_g[4] = {ug.x, ug.y, ug.z, ug.w}, scale_h[4] = {uh.x, uh.y, uh.z, uh.w};
#pragma unroll
        for (int part = four; part < four + 4; ++part) {
          uint32_t wg[2], wh[2];
          constexpr int kWords = kFine ? 1 : 2;
          if constexpr (kFine) {
            wg[0] = *reinterpret_cast<const uint32_t*>(codes + at[part]);
            wh[0] = *reinterpret_cast<const uint32_t*>(codes + 1024 + at[part]);
          } else {
            const uint2 vg = *reinterpret_cast<const uint2*>(codes + at[part]);
            const uint2 vh = *reinterpret_cast<const uint2*>(codes + 1024 + at[part]);
            wg[0] = vg.x, wg[1] = vg.y, wh[0] = vh.x, wh[1] = vh.y;
          }
          float p[kGroups][4] = {};
#pragma unroll
          for (int j = 0; j < kWords; ++j) {
            const uint32_t a0 = pair_of<0>(shared, wg[j], bank),
                           a1 = pair_of<0>(shared, wh[j], bank),
                           a2 = pair_of<1>(shared, wg[j], bank),
                           a3 = pair_of<1>(shared, wh[j], bank),
                           e0 = pair_of<2>(shared, wg[j], bank),
                           e1 = pair_of<2>(shared, wh[j], bank),
                           e2 = pair_of<3>(shared, wg[j], bank),
                           e3 = pair_of<3>(shared, wh[j], bank);
#pragma unroll
            for (int group = 0; group < kGroups; ++group) {
              const uint32_t* b = &x[group][(part * kWords + j) * 4];
              mma_16x8x16<T>(p[group], a0, a1, a2, a3, b[0], b[1]);
              mma_16x8x16<T>(p[group], e0, e1, e2, e3, b[2], b[3]);
            }
          }
#pragma unroll
          for (int group = 0; group < kGroups; ++group) {
            acc[group][0] = fmaf(scale_g[part - four], p[group][0], acc[group][0]);
            acc[group][1] = fmaf(scale_g[part - four], p[group][1], acc[group][1]);
            acc[group][2] = fmaf(scale_h[part - four], p[group][2], acc[group][2]);
            acc[group][3] = fmaf(scale_h[part - four], p[group][3], acc[group][3]);
          }
        }
      }
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        if (group * 8 + 2 * t < l.sum_pitch) {
          auto* sum_g = reinterpret_cast<float2*>(sum + group * 8);
          auto* sum_h = reinterpret_cast<float2*>(sum + group * 8 + 8 * l.sum_pitch);
          float2 vg = make_float2(acc[group][0], acc[group][1]);
          float2 vh = make_float2(acc[group][2], acc[group][3]);
          if (item >= count) {
            const float2 og = *sum_g, oh = *sum_h;
            vg.x += og.x, vg.y += og.y, vh.x += oh.x, vh.y += oh.y;
          }
          *sum_g = vg, *sum_h = vh;
        }
      }
    }
    sum += sum_step, scale += scale_step;
    ++tile;
    if (tile == count || item + 1 == full_items) {  // rare: the next stripe of columns
      if (item + 1 == full_items) {
        slot = left_slot, tile = left_tile;
      } else {
        tile = 0;
        slot += item + 1 < full_items ? kWarps : 1;
      }
      reload = true;
      sum = sum_base + tile * sum_step;
      scale = scale_base + tile * scale_step + slot * (kFine ? 8 : 4);
    }
  }
  for (int item = items; item < count; ++item) {  // tiles that this warp never met
    float* zero = warp_sums + tile * sum_step;
    for (int i = lane; i < sum_step; i += 32) zero[i] = 0.0f;
    if (++tile == count) tile = 0;
  }
  __syncthreads();

  // ---- sums of the warps, bias, one rounding
  const float* sums = reinterpret_cast<const float*>(shared + l.sums);
  const int warp_step = count * sum_step;
  T* output = static_cast<T*>(weight.output);
  for (int i = tid; i < rows * tokens; i += kThreads) {
    // Consecutive threads take consecutive rows: their outputs of one token lie side by side.
    const int token = i / rows, r = i - token * rows;
    float s = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if constexpr (kOne) {
        const float4 v = *reinterpret_cast<const float4*>(sums + w * warp_step + r * 4);
        s += (v.x + v.y) + (v.z + v.w);
      } else {
        s += sums[w * warp_step + r * l.sum_pitch + token];
      }
    }
    const int64_t column = int64_t{tile0} * kSmallRows + r;
    output[(first_token + token) * int64_t{weight.n} + column] =
        from_float<T>(s + bias_at(weight.bias, weight.bias_dtype, static_cast<int>(column)));
  }
#else
  __trap();  // made for an older architecture than the plan's: an error, not a wrong result
#endif
}

/// Instances: kSmallVariants' order. Blocks of 32 are not grouped.
template <typename T, int kMembers>
Status run(int variant, const LaunchShape& shape, const SmallArgs<kMembers>& a, Stream stream) {
  switch (variant) {
    case 0:
      return launch(small_kernel<T, kMembers, 1, 16, 3, 1, false>, shape, stream, a);
    case 1:
      return launch(small_kernel<T, kMembers, 1, 16, 2, 1, false>, shape, stream, a);
    case 2:
      return launch(small_kernel<T, kMembers, 1, 8, 3, 2, false>, shape, stream, a);
    case 3:
      return launch(small_kernel<T, kMembers, 8, 16, 3, 1, false>, shape, stream, a);
    case 4:
      return launch(small_kernel<T, kMembers, 8, 16, 2, 1, false>, shape, stream, a);
    case 5:
      return launch(small_kernel<T, kMembers, 8, 8, 3, 2, false>, shape, stream, a);
    case 9:
      return launch(small_kernel<T, kMembers, 8, 16, 2, 1, false, true>, shape, stream, a);
    case 10:
      return launch(small_kernel<T, kMembers, 8, 8, 3, 2, false, true>, shape, stream, a);
  }
  if constexpr (kMembers == 1) {
    switch (variant) {
      case 6:
        return launch(small_kernel<T, 1, 16, 8, 3, 1, false>, shape, stream, a);
      case 7:
        return launch(small_kernel<T, 1, 8, 8, 3, 1, true>, shape, stream, a);
      case 8:
        return launch(small_kernel<T, 1, 16, 8, 3, 1, true>, shape, stream, a);
    }
  }
  return invalid_argument("the plan was made for another problem");
}

template <int kMembers>
Status launch_members(const Matmul4bitCudaPlan& plan, const Matmul4bitParams* members,
                      int32_t count, Stream stream) noexcept {
  const Status mismatch = invalid_argument("the plan was made for another problem");
  const int variant = plan.id - kSmall;
  const SmallVariant& v = kSmallVariants[variant];
  const Matmul4bitParams& p = members[0];
  SmallArgs<kMembers> a = {};
  const int64_t tiles = small_group_tiles(members, count, plan.grid_x);
  int64_t blocks = 0;
  for (int32_t i = 0; i < count; ++i) {
    const Matmul4bitParams& q = members[i];
    if (!small_applies(q)) return mismatch;
    const int64_t grid = count == 1 ? plan.grid_x : small_member_blocks(q, tiles);
    const SmallLayout layout = small_layout(v, q.m, q.n, q.k, q.blocksize, q.scales.nested(), grid);
    if (layout.bytes > a.layout.bytes) a.layout = layout;
    a.members[i] = {{},
                    q.packed,
                    q.scales,
                    q.bias,
                    q.output,
                    static_cast<int>(q.n),
                    static_cast<int>(blocks),
                    layout.tiles_base,
                    layout.tiles_rest,
                    q.bias_dtype};
    if (v.engine &&
        !map_matrix(a.members[i].codes, CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_SWIZZLE_128B,
                    q.packed, q.k / 2, q.n, q.k / 2, kSmallColumns / 2, kSmallRows,
                    CU_TENSOR_MAP_L2_PROMOTION_L2_128B)) {
      return unsupported("the CUDA driver refuses the tensor maps of this problem");
    }
    blocks += grid;
  }
  if (blocks != plan.grid_x || a.layout.bytes > plan.shared_bytes ||
      plan.grid_y != ceil_div(p.m, v.tokens) || v.fine != (p.blocksize == 32) ||
      plan.threads != v.warps * 32) {
    return mismatch;
  }
  a.input = p.input;
  a.input_stride = p.input_stride;
  a.m = static_cast<int>(p.m);
  a.k = static_cast<int>(p.k);
  while ((int64_t{v.fine ? 32 : 64} << a.shift) < p.blocksize) ++a.shift;
  a.count = count;
  a.programmatic = p.programmatic_launch;
  a.table = pair_table(p);
  const LaunchShape shape{plan.grid_x, plan.grid_y, plan.threads, plan.shared_bytes,
                          p.programmatic_launch};
  return p.dtype == DType::kFloat16 ? run<__half>(variant, shape, a, stream)
                                    : run<__nv_bfloat16>(variant, shape, a, stream);
}

}  // namespace

Status launch_small(const Matmul4bitCudaPlan& plan, const Matmul4bitParams* members, int32_t count,
                    Stream stream) noexcept {
  const int variant = plan.id - kSmall;
  if (variant < 0 || variant >= kSmallVariantCount || plan.grid_x < 1 ||
      !is_group(members, count)) {
    return invalid_argument("the plan was made for another problem");
  }
  return count == 1 ? launch_members<1>(plan, members, 1, stream)
                    : launch_members<kMatmulGroupMost>(plan, members, count, stream);
}

}  // namespace lowbit::kernels::cuda
