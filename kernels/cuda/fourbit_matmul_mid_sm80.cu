// The 4-bit matmul for 9 to some hundred tokens without wgmma (sm_80 and later): mma.sync with the
// weight decoded into the registers of the A operand.
//
//  * A block owns `rows` rows of W, all of K and up to `tokens` tokens: no sum crosses blocks. K
//    streams through in stages of 256 columns, codes and activations by cp.async.
//  * Warp (row group, slice) multiplies its 16 rows (or 32: `tiles`) by its share of the four
//    blocks of 64 columns of a stage. The slices' sums meet in shared memory, in order.
//  * The sum over k may be taken in any order. Lane (g, t) takes the t-th quarter of a granule: one
//    read of up to 8 bytes of a row's codes, of which every byte is one register of A, and the same
//    columns of a token, which are the registers of B as they lie: no ldmatrix, no permutation.
//  * A byte becomes the address of its pair in the table (a copy for every bank) by one dp4a.
//  * Codes are multiplied unscaled. The sums over a granule - columns that share a scale, 64
//    wherever blocks allow it - are scaled in float32 as they are added up.
//  * Scales come as float32 through registers, two stages at a time, nested ones decoded; cp.async
//    cannot copy a byte.
//  * Several weights over one input run in one launch: a block belongs to one of them.
//  * Experts (`kExperts`): the weights are one stack, each over its own run of tokens, whose ends
//    are read on the device. A block has rows of one expert, and goes through that expert's tokens.
//  * Half of the warps fetch the next stage before they multiply and half after: the loads of one
//    overlap with the products of the other.
#include "cuda/common/async_copy.cuh"
#include "cuda/common/launch.h"
#include "cuda/common/mma_sm80.cuh"
#include "cuda/fourbit_experts.cuh"
#include "cuda/fourbit_experts.h"
#include "cuda/fourbit_group.h"
#include "cuda/fourbit_mid_sm80.h"
#include "cuda/fourbit_pairs.cuh"

namespace lowbit::kernels::cuda {
namespace {

struct Member {
  const uint8_t* packed;
  BlockScales scales;
  const void* bias;
  void* output;
  int n;
  int first_block;
  DType bias_dtype;
  bool vector_output;  // four outputs of a token may be stored at once
};

struct MidSm80Args {
  const void* input;
  int64_t input_stride;
  int m, k;
  int shift;  // log2 of the blocksize over 16
  int count;  // of members
  PairTable table;
  Member members[kMatmulGroupMost];
};

/// members[0] is the stack, its n the rows of one expert.
struct ExpertArgs : MidSm80Args {
  const int32_t* ends;
  int experts;
  int row_blocks;  // of an expert
};

/// The row of a tile, or the token of eight, that fragment index i stands for: whichever order puts
/// the lanes that read at a time into different banks.
[[maybe_unused]] __device__ __forceinline__ constexpr int spread(int i) {
  return (i & 3) * 2 + (i >> 2);
}
template <int kGranule>
__device__ __forceinline__ constexpr int token_of(int i) {
  return kGranule == 64 ? i : kGranule == 32 ? (i >> 1) + 4 * (i & 1) : spread(i);
}

/// Registers of the codes (or activations) of one lane in a granule, from shared memory.
template <int kBytes>
__device__ __forceinline__ void read_words(uint32_t* to, const uint8_t* from) {
  if constexpr (kBytes == 2) {
    to[0] = *reinterpret_cast<const uint16_t*>(from);
  } else if constexpr (kBytes == 4) {
    to[0] = *reinterpret_cast<const uint32_t*>(from);
  } else if constexpr (kBytes == 8) {
    const uint2 v = *reinterpret_cast<const uint2*>(from);
    to[0] = v.x, to[1] = v.y;
  } else {
    const uint4 v = *reinterpret_cast<const uint4*>(from);
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
  }
}

template <typename T, int kVariant, bool kExperts>
__global__ void __launch_bounds__(kMidSm80Variants[kVariant].warps * 32, 1) mid_sm80_kernel(
    const __grid_constant__ std::conditional_t<kExperts, ExpertArgs, MidSm80Args> a) {
#if __CUDA_ARCH__ >= 800
  constexpr MidSm80Variant v = kMidSm80Variants[kVariant];
  constexpr MidSm80Layout l = mid_sm80_layout(v);
  constexpr int kThreads = v.warps * 32, kTokens = v.tokens, kStages = v.stages;
  constexpr int kRows = mid_sm80_rows(v), kSlices = mid_sm80_slices(v), kTiles = v.tiles;
  constexpr int kBlocks = 4 / kSlices;  // of 64 columns, of a stage, for a warp
  constexpr int kGranule = v.granule, kParts = 64 / kGranule, kSteps = kGranule / 16;
  constexpr int kGroups = kTokens / 8;
  // Groups of tokens whose products take turns: a warp waits for each step of one chain.
  constexpr int kChains = kGroups < 4 || v.warps == 16 ? 2 : 4;
  static_assert(kRows % 32 == 0 && 4 % kSlices == 0 && kThreads % 256 == 0);
  extern __shared__ __align__(128) uint8_t shared[];
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, g = lane / 4, t = lane % 4;
  const int row_group = warp / kSlices, slice = warp % kSlices;

  allow_next_kernel();
  int index = 0;
  if constexpr (!kExperts) {
    while (index + 1 < a.count &&
           static_cast<int>(blockIdx.x) >= a.members[index + 1].first_block) {
      ++index;
    }
  }
  const Member& w = a.members[index];
  const int row_block = static_cast<int>(blockIdx.x) - w.first_block;
  int first_column = row_block * kRows;  // of the output
  int first_row = first_column;          // of the weight, or of the stack
  int first_token = blockIdx.y * kTokens, last_token = a.m;
  if constexpr (kExperts) {
    // The ends may come from the kernel before, and without them there is nothing to fetch.
    wait_for_previous_kernel();
    const int place = row_block / a.row_blocks, places = gridDim.x / a.row_blocks;
    first_column = (row_block - place * a.row_blocks) * kRows;
    zero_tokens_behind<T>(a.ends, a.experts, a.m, w.output, w.n, first_column,
                          min(kRows, w.n - first_column), blockIdx.y * places + place,
                          gridDim.y * places);
    const TokenGroup group = token_group(a.ends, a.experts, a.m, place, lane);
    first_row = group.expert * w.n + first_column;
    first_token += group.begin;
    last_token = group.end;
    if (first_token >= last_token) return;
  }
  const int rows = min(kRows, w.n - first_column);
  int tokens = min(kTokens, last_token - first_token);
  const int stages = (a.k + kMidSm80Columns - 1) / kMidSm80Columns;

  // What lies behind the last row or column of W is read from a place that exists: it meets
  // activations of zero, or is never stored.

  // ---- codes: 16 bytes of a row at chunk ^ (row & 7) of its 128
  constexpr int kCodeCopies = kRows * 8 / kThreads, kCodeRows = kThreads / 8;
  const int code_row = tid / 8, code_chunk = tid % 8;
  uint32_t code_from[kCodeCopies];
#pragma unroll
  for (int i = 0; i < kCodeCopies; ++i) {
    const int row = min(code_row + i * kCodeRows, rows - 1);
    code_from[i] = static_cast<uint32_t>(first_row + row) * (a.k / 2);
  }
  const uint32_t code_to =
      shared_address(shared) + l.codes + code_row * 128 + ((code_chunk ^ (code_row & 7)) << 4);
  const auto fetch_codes = [&](int stage, int slot) {
    const int column = stage * kMidSm80Columns + code_chunk * 32;
    const uint32_t to = code_to + slot * l.codes_stage;
    // Rows begin at multiples of 16 bytes, or of 8.
    if constexpr (kGranule >= 32) {
      const uint8_t* from = w.packed + (column < a.k ? column / 2 : 0);
#pragma unroll
      for (int i = 0; i < kCodeCopies; ++i) {
        copy_async(to + i * (kCodeRows * 128), from + code_from[i]);
      }
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = column + half * 16;
        const uint8_t* from = w.packed + (at < a.k ? at / 2 : 0);
#pragma unroll
        for (int i = 0; i < kCodeCopies; ++i) {
          copy_async_half(to + i * (kCodeRows * 128) + half * 8, from + code_from[i]);
        }
      }
    }
  };

  // ---- activations: 16 bytes of a token at chunk ^ (token & 7) of its 128 in a block of columns
  constexpr int kInputCopies = kTokens * 32 / kThreads, kInputTokens = kThreads / 32;
  const int input_token = tid / 32, input_chunk = tid % 32;
  const T* input_base = static_cast<const T*>(a.input) + first_token * a.input_stride;
  const auto input_stride = static_cast<uint32_t>(a.input_stride);
  const uint32_t input_to = shared_address(shared) + l.inputs + input_chunk / 8 * (kTokens * 128) +
                            input_token * 128 + ((input_chunk % 8 ^ (input_token & 7)) << 4);
  const auto fetch_input = [&](int stage, int slot) {
    const int column = stage * kMidSm80Columns + input_chunk * 8;
    const T* from = input_base + (column < a.k ? column : 0);
    const int present = column < a.k ? tokens : 0;
#pragma unroll(kInputCopies > 4 ? 2 : kInputCopies)
    for (int i = 0; i < kInputCopies; ++i) {
      // A token that is not there is not read: the same few bytes for all would be slow to come.
      const int token = input_token + i * kInputTokens;
      const uint32_t at = token < present ? static_cast<uint32_t>(token) * input_stride : 0;
      copy_async(input_to + slot * l.inputs_stage + i * (kInputTokens * 128), from + at,
                 token < present ? 16 : 0);
    }
  };

  // ---- scales
  constexpr int kScales = mid_sm80_scales(v), kMine = kRows * kScales / kThreads;
  static_assert(kThreads % kScales == 0);
  const bool nested = w.scales.absmax_8bit != nullptr;
  float* const map = reinterpret_cast<float*>(shared + l.map);
  const int scale_row = tid / kScales, scale_column = tid % kScales * kGranule;
  float high[kMine];
  uint32_t code[kMine];
  float offset = 0.0f;
  const auto load_scales = [&](int chunk) {
    const int column = chunk * (kScales * kGranule) + scale_column;
    const uint32_t sixteen = column < a.k ? column / 16 : 0;
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int row = first_row + min(scale_row + i * (kThreads / kScales), rows - 1);
      const uint32_t block = (static_cast<uint32_t>(row) * (a.k / 16) + sixteen) >> a.shift;
      if (nested) {
        code[i] = __ldg(w.scales.absmax_8bit + block);
        high[i] = __ldg(w.scales.absmax2 + block / static_cast<uint32_t>(kNestedBlocksize));
      } else {
        high[i] = __ldg(w.scales.absmax + block);
      }
    }
  };
  const auto publish_scales = [&](int slot) {
    auto* to = reinterpret_cast<float*>(shared + l.scales + slot * l.scale_slot) +
               scale_row * l.scale_pitch + tid % kScales;
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      float value = high[i];
      if (nested) value = __fadd_rn(__fmul_rn(map[code[i]], high[i]), offset);
      to[i * (kThreads / kScales) * l.scale_pitch] = value;
    }
  };

  const auto fetch_first_codes = [&] {
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) {
      if (s < stages) fetch_codes(s, s);
    }
    load_scales(0);
  };
  fetch_first_codes();
  if (nested) {
    if (tid < 256) map[tid] = __ldg(w.scales.absmax_code + tid);
    offset = __ldg(w.scales.absmax_offset);
  }
  fill_pair_table<v.warps>(shared, a.table, warp, lane);
  if constexpr (!kExperts) wait_for_previous_kernel();
  for (;;) {
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) {
      if (s < stages) fetch_input(s, s);
      commit_copies();
    }
    if (nested) __syncthreads();  // the map
    publish_scales(0);
    load_scales(1);

    // ---- what a lane reads
    const uint32_t bank = lane * 4;
    const int tile_row = spread(g), token = token_of<kGranule>(g);
    const uint8_t* const my_codes = shared + l.codes + (row_group * kTiles * 16 + tile_row) * 128;
    const uint8_t* const my_inputs = shared + l.inputs + token * 128;
    const float* const my_scales = reinterpret_cast<const float*>(shared + l.scales) +
                                   (row_group * kTiles * 16 + tile_row) * l.scale_pitch;
    float sums[kTiles][kGroups][4] = {};

    const bool fetches_first = warp < v.warps / 2;
    int slot = 0;
#pragma unroll 1
    for (int stage = 0; stage < stages; ++stage) {
      wait_copies<kStages - 2>();
      __syncthreads();
      const int ahead = stage + kStages - 1, free_slot = slot == 0 ? kStages - 1 : slot - 1;
      const int chunk = stage / kMidSm80ScaleStages, in_chunk = stage % kMidSm80ScaleStages;
      const auto fetch = [&] {
        if (ahead < stages) {
          fetch_codes(ahead, free_slot);
          fetch_input(ahead, free_slot);
        }
        commit_copies();
        if (in_chunk == kMidSm80ScaleStages - 1) {  // the next barrier shows them
          publish_scales((chunk + 1) & 1);
          load_scales(chunk + 2);
        }
      };
      // Half of a scheduler's warps fetch while the other half multiply.
      if (fetches_first) fetch();
      const uint8_t* codes = my_codes + slot * l.codes_stage;
      const uint8_t* inputs = my_inputs + slot * l.inputs_stage;
      const float* scales = my_scales + (chunk & 1) * (l.scale_slot / 4) + in_chunk * (kScales / 2);
      if (++slot == kStages) slot = 0;

#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        const int block = slice * kBlocks + b;
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          // Lane t's quarter of the granule: kGranule / 8 bytes of codes, kGranule / 2 of a token.
          constexpr int kCodeBytes = kGranule / 8, kInputBytes = kGranule / 2;
          const int code_at = block * 32 + part * (kGranule / 2) + t * kCodeBytes;
          const int code_place = ((code_at >> 4 ^ tile_row) << 4) + (code_at & 15);
          uint32_t fragment[kTiles][kSteps][4];
          float scale[kTiles][2];
#pragma unroll
          for (int i = 0; i < kTiles; ++i) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {  // rows `tile_row` and + 8
              uint32_t words[(kCodeBytes + 3) / 4];
              read_words<kCodeBytes>(words, codes + (i * 16 + h * 8) * 128 + code_place);
#pragma unroll
              for (int byte = 0; byte < kCodeBytes; ++byte) {
                fragment[i][byte / 2][byte % 2 * 2 + h] = *reinterpret_cast<const uint32_t*>(
                    shared + __dp4a(words[byte / 4], 0x80u << (8 * (byte % 4)), bank));
              }
              scale[i][h] = scales[(i * 16 + h * 8) * l.scale_pitch + block * kParts + part];
            }
          }
#pragma unroll
          for (int first = 0; first < kGroups; first += kChains) {
            float p[kChains][kTiles][4] = {};
#pragma unroll
            for (int q = 0; q < (kSteps + 1) / 2; ++q) {
              constexpr int kPiece = kInputBytes < 16 ? kInputBytes : 16;
              const int input_at = part * (kGranule * 2) + t * kInputBytes + q * 16;
              const int input_place = ((input_at >> 4 ^ token) << 4) + (input_at & 15);
              uint32_t x[kChains][4];
#pragma unroll
              for (int j = 0; j < kChains; ++j) {
                read_words<kPiece>(
                    x[j], inputs + block * (kTokens * 128) + (first + j) * (8 * 128) + input_place);
              }
#pragma unroll
              for (int s = 0; s < kPiece / 8; ++s) {
#pragma unroll
                for (int j = 0; j < kChains; ++j) {
#pragma unroll
                  for (int i = 0; i < kTiles; ++i) {
                    const uint32_t(&f)[4] = fragment[i][2 * q + s];
                    mma_16x8x16<T>(p[j][i], f[0], f[1], f[2], f[3], x[j][2 * s], x[j][2 * s + 1]);
                  }
                }
              }
            }
#pragma unroll
            for (int j = 0; j < kChains; ++j) {
#pragma unroll
              for (int i = 0; i < kTiles; ++i) {
                float(&sum)[4] = sums[i][first + j];
                sum[0] = fmaf(scale[i][0], p[j][i][0], sum[0]);
                sum[1] = fmaf(scale[i][0], p[j][i][1], sum[1]);
                sum[2] = fmaf(scale[i][1], p[j][i][2], sum[2]);
                sum[3] = fmaf(scale[i][1], p[j][i][3], sum[3]);
              }
            }
          }
        }
      }
      if (!fetches_first) fetch();
    }

    // ---- sums of the slices, in the rings' memory
    __syncthreads();
    auto* const partial = reinterpret_cast<float*>(shared + l.codes);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      float* to =
          partial + slice * kTokens * l.sum_pitch + (row_group * kTiles + i) * 16 + tile_row;
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        const float(&sum)[4] = sums[i][group];
        float* one = to + (group * 8 + token_of<kGranule>(2 * t)) * l.sum_pitch;
        float* two = to + (group * 8 + token_of<kGranule>(2 * t + 1)) * l.sum_pitch;
        one[0] = sum[0], two[0] = sum[1], one[8] = sum[2], two[8] = sum[3];
      }
    }
    __syncthreads();
    constexpr int kQuads = kRows / 4;
    T* output = static_cast<T*>(w.output);
    for (int i = tid; i < tokens * kQuads; i += kThreads) {
      const int row_token = i / kQuads, quad = i % kQuads, column = first_column + quad * 4;
      if (column >= w.n) continue;
      float values[4] = {};
#pragma unroll
      for (int s = 0; s < kSlices; ++s) {
        const float4 part = *reinterpret_cast<const float4*>(
            partial + (s * kTokens + row_token) * l.sum_pitch + quad * 4);
        values[0] += part.x, values[1] += part.y, values[2] += part.z, values[3] += part.w;
      }
      alignas(8) T rounded[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float bias = column + j < w.n ? bias_at(w.bias, w.bias_dtype, column + j) : 0.0f;
        rounded[j] = from_float<T>(values[j] + bias);
      }
      T* to = output + (first_token + row_token) * int64_t{w.n} + column;
      if (w.vector_output) {
        *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(rounded);
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (column + j < w.n) to[j] = rounded[j];
        }
      }
    }
    if constexpr (kExperts) {
      first_token += gridDim.y * kTokens;
      if (first_token >= last_token) break;
      tokens = min(kTokens, last_token - first_token);
      input_base = static_cast<const T*>(a.input) + first_token * a.input_stride;
      __syncthreads();  // the sums are read, the rings' memory is free
      fetch_first_codes();
    } else {
      break;
    }
  }
#else
  __trap();  // made for an older architecture than the plan's: an error, not a wrong result
#endif
}

/// The kernel of variant `variant`, one of kVariants.
template <typename T, typename Args, int... kVariants>
Status run(int variant, std::integer_sequence<int, kVariants...>, const LaunchShape& shape,
           const Args& a, Stream stream) {
  constexpr bool kExperts = std::is_same_v<Args, ExpertArgs>;
  Status status = invalid_argument("the plan was made for another problem");
  const auto try_one = [&]<int kVariant>() {
    if constexpr (!kExperts || kMidSm80Variants[kVariant].experts) {
      if (variant == kVariant) {
        status = launch(mid_sm80_kernel<T, kVariant, kExperts>, shape, stream, a);
      }
    }
  };
  (try_one.template operator()<kVariants>(), ...);
  return status;
}

/// The parts of the arguments that do not tell members apart.
void set_common(MidSm80Args& a, const Matmul4bitParams& p) {
  a.input = p.input;
  a.input_stride = p.input_stride;
  a.m = static_cast<int>(p.m);
  a.k = static_cast<int>(p.k);
  while ((int64_t{16} << a.shift) < p.blocksize) ++a.shift;
  a.table = pair_table(p);
}

}  // namespace

Status launch_mid_sm80(const Matmul4bitCudaPlan& plan, const Matmul4bitParams* members,
                       int32_t count, Stream stream) noexcept {
  const int variant = plan.id - kMidSm80;
  const Status mismatch = invalid_argument("the plan was made for another problem");
  if (variant < 0 || variant >= kMidSm80VariantCount || !is_group(members, count)) return mismatch;
  const MidSm80Variant& v = kMidSm80Variants[variant];
  const Matmul4bitParams& p = members[0];
  MidSm80Args a = {};
  set_common(a, p);
  a.count = count;
  int64_t blocks = 0;
  for (int32_t i = 0; i < count; ++i) {
    const Matmul4bitParams& q = members[i];
    if (!mid_sm80_applies(q) || v.granule > mid_sm80_granule(q)) return mismatch;
    a.members[i] = {q.packed,
                    q.scales,
                    q.bias,
                    q.output,
                    static_cast<int>(q.n),
                    static_cast<int>(blocks),
                    q.bias_dtype,
                    q.n % 4 == 0 && aligned(q.output, 8)};
    blocks += ceil_div(q.n, mid_sm80_rows(v));
  }
  if (plan.grid_x != blocks || plan.grid_y != ceil_div(p.m, v.tokens) ||
      plan.threads != v.warps * 32 || plan.shared_bytes < mid_sm80_layout(v).bytes) {
    return mismatch;
  }
  const LaunchShape shape{plan.grid_x, plan.grid_y, plan.threads, plan.shared_bytes,
                          p.programmatic_launch};
  constexpr auto kAll = std::make_integer_sequence<int, kMidSm80VariantCount>{};
  return p.dtype == DType::kFloat16 ? run<__half>(variant, kAll, shape, a, stream)
                                    : run<__nv_bfloat16>(variant, kAll, shape, a, stream);
}

Status launch_experts(const Matmul4bitCudaPlan& plan, const GroupedMatmul4bitParams& p,
                      Stream stream) noexcept {
  const int variant = plan.id - kMidSm80;
  const Matmul4bitParams& q = p.stack;
  const Status mismatch = invalid_argument("the plan was made for another problem");
  if (variant < 0 || variant >= kMidSm80VariantCount || !mid_sm80_applies(q)) return mismatch;
  const MidSm80Variant& v = kMidSm80Variants[variant];
  const int64_t n = q.n / p.experts, row_blocks = ceil_div(n, mid_sm80_rows(v));
  if (!v.experts || v.granule > mid_sm80_granule(q) || plan.grid_y < 1 ||
      plan.grid_x != expert_places(p) * row_blocks || plan.threads != v.warps * 32 ||
      plan.shared_bytes < mid_sm80_layout(v).bytes) {
    return mismatch;
  }
  ExpertArgs a = {};
  set_common(a, q);
  a.count = 1;
  a.members[0].packed = q.packed;
  a.members[0].scales = q.scales;
  a.members[0].output = q.output;
  a.members[0].n = static_cast<int>(n);
  a.members[0].vector_output = n % 4 == 0 && aligned(q.output, 8);
  a.ends = p.ends;
  a.experts = static_cast<int>(p.experts);
  a.row_blocks = static_cast<int>(row_blocks);
  const LaunchShape shape{plan.grid_x, plan.grid_y, plan.threads, plan.shared_bytes,
                          q.programmatic_launch};
  constexpr auto kAll = std::make_integer_sequence<int, kMidSm80VariantCount>{};
  return q.dtype == DType::kFloat16 ? run<__half>(variant, kAll, shape, a, stream)
                                    : run<__nv_bfloat16>(variant, kAll, shape, a, stream);
}

}  // namespace lowbit::kernels::cuda
