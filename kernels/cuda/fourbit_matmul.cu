// The 4-bit matmul: the door, and the kernel that takes every problem.
//
// The general kernel: CUDA cores, float32 weights (code * scale, one rounding) and sums. A block
// makes four columns of the output; its warps share K in chunks of eight weights a lane, the next
// chunk is read while one is multiplied.
#include <cstring>

#include "codebook.h"
#include "cuda/common/async_copy.cuh"
#include "cuda/common/cast.cuh"
#include "cuda/common/launch.h"
#include "cuda/fourbit_codes.cuh"
#include "cuda/fourbit_group.h"
#include "cuda/fourbit_large.h"
#include "cuda/fourbit_matmul.h"
#include "cuda/fourbit_mid.h"
#include "cuda/fourbit_mid_sm80.h"
#include "validate.h"

namespace lowbit::kernels::cuda {
namespace {

constexpr int kWarps = kGeneralThreads / 32;

struct GeneralArgs {
  PackedWeight weight;
  const void* input;
  int64_t input_stride;
  bool vectors;  // eight elements of the input may be read at once
  const void* bias;
  DType bias_dtype;
  void* output;
  int64_t m, n;
  int k;
  const float* code;
  Table16 table;
};

__device__ __forceinline__ float load_bias(const void* bias, DType dtype, int64_t i) {
  if (bias == nullptr) return 0.0f;
  if (dtype == DType::kFloat32) return static_cast<const float*>(bias)[i];
  if (dtype == DType::kFloat16) return to_float(static_cast<const __half*>(bias)[i]);
  return to_float(static_cast<const __nv_bfloat16*>(bias)[i]);
}

template <typename T, int kTokens>
__global__ void __launch_bounds__(kGeneralThreads)
    general_kernel(const __grid_constant__ GeneralArgs a) {
  constexpr int kRows = kGeneralRows;
  __shared__ float table[16];
  __shared__ float sums[kWarps][kRows * kTokens];
  allow_next_kernel();
  fill_table(table, a.table, a.code);
  wait_for_previous_kernel();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const PackedWeight& w = a.weight;
  const T* input = static_cast<const T*>(a.input);
  for (int64_t n0 = int64_t{blockIdx.x} * kRows; n0 < a.n; n0 += int64_t{gridDim.x} * kRows) {
    int64_t first[kRows], block[kRows];
    int into[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      first[r] = min(n0 + r, a.n - 1) * a.k;
      block[r] = first[r] / w.blocksize;
      into[r] = static_cast<int>(first[r] - block[r] * w.blocksize);
    }
    for (int64_t m0 = int64_t{blockIdx.y} * kTokens; m0 < a.m; m0 += int64_t{gridDim.y} * kTokens) {
      float acc[kRows][kTokens] = {};
      EightCodes ahead[kRows];
      int k = threadIdx.x * 8;
      if (k < a.k) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          ahead[r] = load_eight(w, first[r], block[r], into[r], k, min(8, a.k - k));
        }
      }
      for (; k < a.k; k += kGeneralThreads * 8) {
        const int count = min(8, a.k - k), next = k + kGeneralThreads * 8;
        float weights[kRows][8];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const EightCodes now = ahead[r];
          if (next < a.k) {
            ahead[r] = load_eight(w, first[r], block[r], into[r], next, min(8, a.k - next));
          }
          decode_eight(w, table, now, block[r], into[r], k, count, weights[r]);
        }
#pragma unroll
        for (int m = 0; m < kTokens; ++m) {
          const T* row = input + min(m0 + m, a.m - 1) * a.input_stride + k;
          float x[8];
          if (a.vectors && count == 8) {
            const auto* vectors = reinterpret_cast<const uint4*>(row);
            Pack8<T> pack;
            auto* words = reinterpret_cast<uint4*>(&pack);
#pragma unroll
            for (int i = 0; i < static_cast<int>(sizeof(T) / 2); ++i) words[i] = vectors[i];
#pragma unroll
            for (int j = 0; j < 8; ++j) x[j] = to_float(pack.values[j]);
          } else {
#pragma unroll
            for (int j = 0; j < 8; ++j) x[j] = j < count ? to_float(row[j]) : 0.0f;
          }
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
#pragma unroll
            for (int j = 0; j < 8; ++j) acc[r][m] = fmaf(weights[r][j], x[j], acc[r][m]);
          }
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int m = 0; m < kTokens; ++m) {
          float s = acc[r][m];
#pragma unroll
          for (int offset = 16; offset > 0; offset /= 2) {
            s += __shfl_xor_sync(0xffffffffu, s, offset);
          }
          if (lane == 0) sums[warp][r * kTokens + m] = s;
        }
      }
      __syncthreads();
      if (threadIdx.x < kRows * kTokens) {
        const int64_t n = n0 + threadIdx.x / kTokens, m = m0 + threadIdx.x % kTokens;
        if (n < a.n && m < a.m) {
          float s = 0.0f;
#pragma unroll
          for (int i = 0; i < kWarps; ++i) s += sums[i][threadIdx.x];
          static_cast<T*>(a.output)[m * a.n + n] =
              from_float<T>(s + load_bias(a.bias, a.bias_dtype, n));
        }
      }
      __syncthreads();
    }
  }
}

/// An empty sum: the bias.
template <typename T>
__global__ void bias_kernel(const __grid_constant__ GeneralArgs a) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < a.m * a.n; i += step) {
    static_cast<T*>(a.output)[i] = from_float<T>(load_bias(a.bias, a.bias_dtype, i % a.n));
  }
}

Status launch_general(const Matmul4bitCudaPlan& plan, const Matmul4bitParams& p, Stream stream) {
  if (p.k >= (int64_t{1} << 30) || p.blocksize >= (int64_t{1} << 30)) {
    return unsupported("k or blocksize of 2^30 and more");
  }
  if (plan.id != kGeneral || plan.threads != kGeneralThreads || plan.grid_x < 1 ||
      plan.grid_y < 1) {
    return invalid_argument("the plan was made for another problem");
  }
  GeneralArgs a = {};
  a.weight = packed_weight(p);
  a.input = p.input;
  a.input_stride = p.input_stride;
  a.vectors = aligned(p.input, 16) && p.input_stride * itemsize(p.dtype) % 16 == 0;
  a.bias = p.bias;
  a.bias_dtype = p.bias_dtype;
  a.output = p.output;
  a.m = p.m;
  a.n = p.n;
  a.k = static_cast<int>(p.k);
  a.code = p.code;
  a.table = table_of(p);
  const LaunchShape shape{plan.grid_x, plan.grid_y, plan.threads, 0, p.programmatic_launch};
  return visit_device_dtype(p.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    if (p.k == 0) return launch(bias_kernel<T>, shape, stream, a);
    switch (general_tokens(p.m)) {
      case 1:
        return launch(general_kernel<T, 1>, shape, stream, a);
      case 4:
        return launch(general_kernel<T, 4>, shape, stream, a);
      default:
        return launch(general_kernel<T, 8>, shape, stream, a);
    }
  });
}

}  // namespace

Status matmul_4bit(const Matmul4bitCudaPlan& plan, const Matmul4bitParams& p,
                   Stream stream) noexcept {
  if (const Status status = check(p); !status.ok()) return status;
  if (p.m == 0 || p.n == 0) return ok_status();
  if (plan.id >= kLarge) return launch_large(plan, p, false, stream);
  if (plan.id >= kMid) return launch_mid(plan, p, stream);
  if (plan.id >= kMidSm80) return launch_mid_sm80(plan, &p, 1, stream);
  return plan.id >= kSmall ? launch_small(plan, &p, 1, stream) : launch_general(plan, p, stream);
}

Status matmul_4bit_group(const Matmul4bitCudaPlan& plan, const Matmul4bitParams* members,
                         int32_t count, Stream stream) noexcept {
  if (plan.members != count || !is_group(members, count)) {
    return invalid_argument("the plan was made for another problem");
  }
  for (int32_t i = 0; i < count; ++i) {
    if (const Status status = check(members[i]); !status.ok()) return status;
  }
  if (plan.id >= kMidSm80 && plan.id < kMid) return launch_mid_sm80(plan, members, count, stream);
  if (plan.id >= kSmall && plan.id < kMidSm80) return launch_small(plan, members, count, stream);
  return invalid_argument("the plan was made for another problem");
}

}  // namespace lowbit::kernels::cuda
