// Gradient of the 4-bit matmul's input: grad_output[M,N] * W[N,K], any problem.
//
// A lane owns eight columns of W, the warps of a block take turns at the rows of a slice of N, and
// their sums meet in shared memory. The slices' sums meet in the workspace, in a fixed order.
#include "cuda/common/cast.cuh"
#include "cuda/common/launch.h"
#include "cuda/fourbit_codes.cuh"
#include "cuda/fourbit_large.h"
#include "cuda/fourbit_matmul.h"
#include "validate.h"

namespace lowbit::kernels::cuda {
namespace {

constexpr int kWarps = kBackwardThreads / 32;

struct BackwardArgs {
  PackedWeight weight;
  const void* gradient;
  int64_t gradient_stride;
  void* output;
  float* partial;  // [splits, m, k], or null: one slice
  int64_t m, n, k;
  int columns;  // blocks along K
  int splits;
  const float* code;
  Table16 table;
};

template <typename T, int kTokens>
__global__ void __launch_bounds__(kBackwardThreads)
    backward_kernel(const __grid_constant__ BackwardArgs a) {
  __shared__ float table[16];
  __shared__ float sums[kWarps][kBackwardColumns];
  fill_table(table, a.table, a.code);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int split = static_cast<int>(blockIdx.x / a.columns);
  const int64_t column0 = int64_t{blockIdx.x % a.columns} * kBackwardColumns;
  const int64_t column = column0 + lane * 8;
  const int count = static_cast<int>(min(int64_t{8}, a.k - column));
  const int64_t begin = a.n * split / a.splits, end = a.n * (split + 1) / a.splits;
  const T* gradient = static_cast<const T*>(a.gradient);
  for (int64_t m0 = int64_t{blockIdx.y} * kTokens; m0 < a.m; m0 += int64_t{gridDim.y} * kTokens) {
    float acc[kTokens][8] = {};
    if (count > 0) {
#pragma unroll 2
      for (int64_t n = begin + warp; n < end; n += kWarps) {
        const int64_t first = n * a.k + column;
        const int64_t block =
            a.weight.shift >= 0 ? first >> a.weight.shift : first / a.weight.blocksize;
        const int into = static_cast<int>(first - block * a.weight.blocksize);
        const EightCodes e = load_eight(a.weight, first, block, into, 0, count);
        float weights[8];
        decode_eight(a.weight, table, e, block, into, 0, count, weights);
#pragma unroll
        for (int m = 0; m < kTokens; ++m) {
          const float g = to_float(gradient[min(m0 + m, a.m - 1) * a.gradient_stride + n]);
#pragma unroll
          for (int j = 0; j < 8; ++j) acc[m][j] = fmaf(g, weights[j], acc[m][j]);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kTokens; ++m) {
#pragma unroll
      for (int j = 0; j < 8; ++j) sums[warp][lane * 8 + j] = acc[m][j];
      __syncthreads();
      for (int i = threadIdx.x; i < kBackwardColumns; i += kBackwardThreads) {
        float s = 0.0f;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) s += sums[w][i];
        if (m0 + m < a.m && column0 + i < a.k) {
          const int64_t at = (m0 + m) * a.k + column0 + i;
          if (a.partial != nullptr) {
            a.partial[split * a.m * a.k + at] = s;
          } else {
            static_cast<T*>(a.output)[at] = from_float<T>(s);
          }
        }
      }
      __syncthreads();
    }
  }
}

template <typename T>
__global__ void add_slices_kernel(const __grid_constant__ BackwardArgs a) {
  const int64_t size = a.m * a.k, step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < size; i += step) {
    float s = 0.0f;
    for (int split = 0; split < a.splits; ++split) s += a.partial[split * size + i];
    static_cast<T*>(a.output)[i] = from_float<T>(s);
  }
}

}  // namespace

Status matmul_4bit_backward_input(const Matmul4bitCudaPlan& plan, const Matmul4bitParams& p,
                                  Stream stream) noexcept {
  if (const Status status = check_backward(p); !status.ok()) return status;
  if (p.m == 0 || p.k == 0) return ok_status();
  if (plan.id >= kLarge) return launch_large(plan, p, true, stream);
  if (p.k >= (int64_t{1} << 30) || p.blocksize >= (int64_t{1} << 30)) {
    return unsupported("k or blocksize of 2^30 and more");
  }
  const int64_t columns = ceil_div(p.k, kBackwardColumns);
  if (plan.id != kGeneral || plan.threads != kBackwardThreads || plan.grid_x != columns ||
      plan.grid_y < 1 || plan.splits < 1 ||
      plan.workspace_bytes != (plan.splits > 1 ? plan.splits * p.m * p.k * 4 : 0)) {
    return invalid_argument("the plan was made for another problem");
  }
  if (plan.splits > 1 && p.workspace == nullptr) return invalid_argument("workspace is null");
  BackwardArgs a = {};
  a.weight = packed_weight(p);
  a.gradient = p.input;
  a.gradient_stride = p.input_stride;
  a.output = p.output;
  a.partial = plan.splits > 1 ? static_cast<float*>(p.workspace) : nullptr;
  a.m = p.m;
  a.n = p.n;
  a.k = p.k;
  a.columns = static_cast<int>(columns);
  a.splits = plan.splits;
  a.code = p.code;
  a.table = table_of(p);
  const LaunchShape shape{static_cast<int32_t>(columns * plan.splits), plan.grid_y, plan.threads};
  return visit_device_dtype(p.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    Status status;
    switch (general_tokens(p.m)) {
      case 1:
        status = launch(backward_kernel<T, 1>, shape, stream, a);
        break;
      case 4:
        status = launch(backward_kernel<T, 4>, shape, stream, a);
        break;
      default:
        status = launch(backward_kernel<T, 8>, shape, stream, a);
    }
    if (!status.ok() || plan.splits == 1) return status;
    const int64_t blocks = ceil_div(p.m * p.k, 256);
    return launch(add_slices_kernel<T>,
                  LaunchShape{static_cast<int32_t>(blocks < 65536 ? blocks : 65536), 1, 256},
                  stream, a);
  });
}

}  // namespace lowbit::kernels::cuda
