// A stack of 4-bit weights over tokens in groups: the door, and the kernel that takes every
// problem, forward and backward.
//
// The general kernel: CUDA cores, float32 weights (code * scale, one rounding) and sums. A block
// makes a tile of 32 columns of the output for 32 tokens of a group at a time; tiles of activations
// and decoded weights meet in shared memory.
#include "cuda/common/async_copy.cuh"
#include "cuda/common/cast.cuh"
#include "cuda/common/launch.h"
#include "cuda/fourbit_codes.cuh"
#include "cuda/fourbit_experts.cuh"
#include "cuda/fourbit_experts.h"
#include "cuda/fourbit_matmul.h"
#include "cuda/fourbit_mid_sm80.h"
#include "validate.h"

namespace lowbit::kernels::cuda {
namespace {

constexpr int kTile = kExpertsTile, kWarps = kExpertsThreads / 32, kMine = kTile / kWarps;

struct GeneralExpertArgs {
  PackedWeight weight;
  const void* input;
  int64_t input_stride;
  void* output;
  const int32_t* ends;
  int experts, m;
  int n, k;           // of an expert
  int column_blocks;  // of the output
  Table16 table;
};

/// Element i of the stack as dequantize_4bit gives it in float32.
__device__ __forceinline__ float weight_at(const PackedWeight& w, const float* table, int64_t i) {
  const int code = __ldg(w.packed + (i >> 1)) >> (i & 1 ? 0 : 4) & 15;
  return table[code] * block_scale(w.scales, w.shift >= 0 ? i >> w.shift : i / w.blocksize);
}

template <typename T, bool kBackward>
__global__ void __launch_bounds__(kExpertsThreads)
    general_experts_kernel(const __grid_constant__ GeneralExpertArgs a) {
  __shared__ float table[16];
  __shared__ float inputs[kTile][kTile + 1];   // [token][depth]
  __shared__ float weights[kTile][kTile + 1];  // [depth][column]
  allow_next_kernel();
  fill_table(table, a.table, nullptr);
  wait_for_previous_kernel();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int width = kBackward ? a.k : a.n, depth = kBackward ? a.n : a.k;
  const int place = blockIdx.x / a.column_blocks, places = gridDim.x / a.column_blocks;
  const int first_column = (blockIdx.x - place * a.column_blocks) * kTile;
  zero_tokens_behind<T>(a.ends, a.experts, a.m, a.output, width, first_column,
                        min(kTile, width - first_column), blockIdx.y * places + place,
                        gridDim.y * places);
  const TokenGroup group = token_group(a.ends, a.experts, a.m, place, lane);
  const T* input = static_cast<const T*>(a.input);
  const int64_t stack_row = int64_t{group.expert} * a.n;
  for (int first = group.begin + blockIdx.y * kTile; first < group.end;
       first += gridDim.y * kTile) {
    float sums[kMine] = {};
    for (int d = 0; d < depth; d += kTile) {
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        const int at = warp + i * kWarps;
        const bool present = first + at < group.end && d + lane < depth;
        inputs[at][lane] =
            present ? to_float(input[(first + at) * a.input_stride + d + lane]) : 0.0f;
        // Lanes lie along K, as the codes do.
        const int row = kBackward ? d + at : first_column + at;
        const int column = kBackward ? first_column + lane : d + lane;
        const float w = row < a.n && column < a.k
                            ? weight_at(a.weight, table, (stack_row + row) * a.k + column)
                            : 0.0f;
        weights[kBackward ? at : lane][kBackward ? lane : at] = w;
      }
      __syncthreads();
#pragma unroll 8
      for (int j = 0; j < kTile; ++j) {
        const float w = weights[j][lane];
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
          sums[i] = fmaf(inputs[warp + i * kWarps][j], w, sums[i]);
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int token = first + warp + i * kWarps;
      if (token < group.end && first_column + lane < width) {
        static_cast<T*>(a.output)[int64_t{token} * width + first_column + lane] =
            from_float<T>(sums[i]);
      }
    }
  }
}

template <bool kBackward>
Status launch_general(const GroupedMatmul4bitParams& p, int32_t grid_x, int32_t grid_y,
                      Stream stream) {
  const Matmul4bitParams& q = p.stack;
  const int64_t n = q.n / p.experts, width = kBackward ? q.k : n;
  constexpr int64_t kMost = int64_t{1} << 30;
  if (q.m >= kMost || n >= kMost || q.k >= kMost || q.blocksize >= kMost || p.experts >= kMost) {
    return unsupported("m, n, k, experts or blocksize of 2^30 and more");
  }
  if (grid_y < 1 || grid_x != expert_places(p) * ceil_div(width, kTile)) {
    return invalid_argument("the plan was made for another problem");
  }
  GeneralExpertArgs a = {};
  a.weight = packed_weight(q);
  a.input = q.input;
  a.input_stride = q.input_stride;
  a.output = q.output;
  a.ends = p.ends;
  a.experts = static_cast<int>(p.experts);
  a.m = static_cast<int>(q.m);
  a.n = static_cast<int>(n);
  a.k = static_cast<int>(q.k);
  a.column_blocks = static_cast<int>(ceil_div(width, kTile));
  a.table = table_of(q);
  const LaunchShape shape{grid_x, grid_y, kExpertsThreads, 0, q.programmatic_launch};
  return visit_device_dtype(q.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    return launch(general_experts_kernel<T, kBackward>, shape, stream, a);
  });
}

}  // namespace

Status grouped_matmul_4bit(const Matmul4bitCudaPlan& plan, const GroupedMatmul4bitParams& p,
                           Stream stream) noexcept {
  if (const Status status = check(p.stack); !status.ok()) return status;
  if (const Status status = check(p); !status.ok()) return status;
  if (p.stack.m == 0 || p.stack.n == 0) return ok_status();
  if (plan.id >= kMidSm80 && plan.id < kMid) return launch_experts(plan, p, stream);
  if (plan.id != kGeneral || plan.threads != kExpertsThreads) {
    return invalid_argument("the plan was made for another problem");
  }
  return launch_general<false>(p, plan.grid_x, plan.grid_y, stream);
}

Status grouped_matmul_4bit_backward_input(const GroupedMatmul4bitParams& p,
                                          Stream stream) noexcept {
  if (const Status status = check_backward(p.stack); !status.ok()) return status;
  if (const Status status = check(p); !status.ok()) return status;
  if (p.stack.m == 0 || p.stack.k == 0) return ok_status();
  const int64_t places = expert_places(p), blocks = places * ceil_div(p.stack.k, kTile);
  if (blocks >= (int64_t{1} << 31)) return unsupported("2^31 thread blocks and more");
  const int64_t tiles = ceil_div(2 * ceil_div(p.stack.m, places), kTile);
  return launch_general<true>(p, static_cast<int32_t>(blocks),
                              static_cast<int32_t>(tiles < 65535 ? tiles : 65535), stream);
}

}  // namespace lowbit::kernels::cuda
