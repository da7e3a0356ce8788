// Products with an int8 weight for few rows of activations: a warp takes two rows of the weight and
// reads them once, from memory, for up to kRows rows of the input, which stay in the cache. Bound
// by the weight's bytes; many rows belong to tensor cores (plan_matmul_int8).
#include <cstring>
#include <type_traits>

#include "cuda/common/launch.h"
#include "cuda/int8_codes.cuh"
#include "validate.h"

namespace lowbit::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kColumns = 2;  // rows of the weight, columns of the output, that a warp takes

__device__ __forceinline__ int warp_sum(int x) {
#if __CUDA_ARCH__ >= 800
  return __reduce_add_sync(0xffffffffu, x);
#else
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
#endif
}
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

/// What lane row * kColumns + column of the warp writes.
struct Output {
  int64_t row, column;
  bool valid;
};
template <int kRows>
__device__ __forceinline__ Output output_of_lane(int64_t first_row, int64_t first_column, int64_t m,
                                                 int64_t n) {
  const int lane = threadIdx.x % 32;
  const int64_t row = first_row + lane / kColumns, column = first_column + lane % kColumns;
  return {row, column, lane < kRows * kColumns && row < m && column < n};
}

/// kWidth bytes of each operand at a time: 16 or 4 when K is a multiple and all pointers are
/// aligned, else 1.
template <int kRows, int kWidth>
__global__ void __launch_bounds__(kThreads)
    matmul_kernel(MatmulInt8Params p, unsigned column_ctas) {
  constexpr int kWords = kWidth == 16 ? 4 : 1;
  const int lane = threadIdx.x % 32;
  const int64_t first_column =
      (int64_t{blockIdx.x % column_ctas} * kWarps + threadIdx.x / 32) * kColumns;
  const int64_t first_row = int64_t{blockIdx.x / column_ctas} * kRows;
  // Rows and columns outside repeat the last one: every lane of the warp takes the same turns.
  const int8_t* a[kRows];
  const int8_t* b[kColumns];
#pragma unroll
  for (int r = 0; r < kRows; ++r) a[r] = p.a + min(first_row + r, p.m - 1) * p.k;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) b[c] = p.b + min(first_column + c, p.n - 1) * p.k;
  int sums[kRows][kColumns] = {};
  const auto load = [](const int8_t* from, int(&words)[kWords]) {
    if constexpr (kWidth == 16) {
      const int4 x = *reinterpret_cast<const int4*>(from);
      words[0] = x.x, words[1] = x.y, words[2] = x.z, words[3] = x.w;
    } else if constexpr (kWidth == 4) {
      words[0] = *reinterpret_cast<const int*>(from);
    } else {
      words[0] = *from;
    }
  };
#pragma unroll 2
  for (int64_t k = lane * kWidth; k < p.k; k += 32 * kWidth) {
    int w[kColumns][kWords];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) load(b[c] + k, w[c]);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      int x[kWords];
      load(a[r] + k, x);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int i = 0; i < kWords; ++i) {
          sums[r][c] =
              kWidth == 1 ? sums[r][c] + x[i] * w[c][i] : __dp4a(x[i], w[c][i], sums[r][c]);
        }
      }
    }
  }
  int mine = 0;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int sum = warp_sum(sums[r][c]);
      if (lane == r * kColumns + c) mine = sum;
    }
  }
  const Output out = output_of_lane<kRows>(first_row, first_column, p.m, p.n);
  if (!out.valid) return;
  const int64_t i = out.row * p.n + out.column;
  if (p.c != nullptr) p.c[i] = mine;
  if (p.output == nullptr) return;
  const float bias = p.bias == nullptr ? 0.0f : load_any(p.bias, p.bias_dtype, out.column);
  store_any(p.output, p.output_dtype, i,
            epilogue(mine, p.row_stats[out.row], p.col_stats[out.column], bias));
}

/// Four int8 as floats: a byte with its sign bit turned, in the low mantissa bits of 2^23, is
/// 2^23 + 128 + value. Conversion instructions run at a quarter of the rate.
__device__ __forceinline__ void to_floats(uint32_t word, float (&out)[4]) {
  word ^= 0x80808080u;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[i] = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440 + i)) - 8388736.0f;
  }
}

/// The integers are multiplied with the activations as they are; the scale of a row comes last.
template <typename T, int kRows, bool kVector>
__global__ void __launch_bounds__(kThreads)
    linear_kernel(LinearInt8Params p, unsigned column_ctas) {
  constexpr int kWidth = kVector ? 8 : 1;
  const int lane = threadIdx.x % 32;
  const int64_t first_column =
      (int64_t{blockIdx.x % column_ctas} * kWarps + threadIdx.x / 32) * kColumns;
  const int64_t first_row = int64_t{blockIdx.x / column_ctas} * kRows;
  const T* x[kRows];
  const int8_t* q[kColumns];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    x[r] = static_cast<const T*>(p.input) + min(first_row + r, p.m - 1) * p.input_stride;
  }
#pragma unroll
  for (int c = 0; c < kColumns; ++c) q[c] = p.q + min(first_column + c, p.n - 1) * p.k;
  float sums[kRows][kColumns] = {};
#pragma unroll 2
  for (int64_t k = lane * kWidth; k < p.k; k += 32 * kWidth) {
    float w[kColumns][kWidth];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      if constexpr (kVector) {
        const uint2 words = __ldcs(reinterpret_cast<const uint2*>(q[c] + k));
        to_floats(words.x, reinterpret_cast<float(&)[4]>(w[c][0]));
        to_floats(words.y, reinterpret_cast<float(&)[4]>(w[c][4]));
      } else {
        w[c][0] = static_cast<float>(q[c][k]);
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      Pack8<T> values;
      if constexpr (kVector) {
        values = *reinterpret_cast<const Pack8<T>*>(x[r] + k);
      } else {
        values.values[0] = x[r][k];
      }
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          sums[r][c] = __fmaf_rn(to_float(values.values[i]), w[c][i], sums[r][c]);
        }
      }
    }
  }
  float mine = 0.0f;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const float sum = warp_sum(sums[r][c]);
      if (lane == r * kColumns + c) mine = sum;
    }
  }
  const Output out = output_of_lane<kRows>(first_row, first_column, p.m, p.n);
  if (!out.valid) return;
  const float bias = p.bias == nullptr ? 0.0f : load_any(p.bias, p.bias_dtype, out.column);
  static_cast<T*>(p.output)[out.row * p.n + out.column] =
      from_float<T>(__fmaf_rn(__fmul_rn(mine, p.stats[out.column]), kInv127, bias));
}

/// f(integral_constant<rows>) for the smallest of 1, 2, 4, ... kMost that covers m, or kMost.
template <int kMost, typename F>
Status visit_rows(int64_t m, const F& f) noexcept {
  if constexpr (kMost > 1) {
    if (m <= kMost / 2) return visit_rows<kMost / 2>(m, f);
  }
  return f(std::integral_constant<int, kMost>{});
}

}  // namespace

Status matmul_int8(const MatmulInt8Params& p, Stream stream) noexcept {
  if (const Status status = check(p); !status.ok()) return status;
  if (p.m == 0 || p.n == 0) return ok_status();
  const int64_t column_ctas = ceil_div(p.n, kWarps * kColumns);
  return visit_rows<16>(p.m, [&](auto rows) {
    constexpr int kRows = decltype(rows)::value;
    const auto run = [&](auto kernel) {
      return launch(kernel, column_ctas * ceil_div(p.m, kRows), kThreads, stream, p,
                    static_cast<unsigned>(column_ctas));
    };
    if (p.k % 16 == 0 && aligned(p.a, 16) && aligned(p.b, 16)) return run(matmul_kernel<kRows, 16>);
    if (p.k % 4 == 0 && aligned(p.a, 4) && aligned(p.b, 4)) return run(matmul_kernel<kRows, 4>);
    return run(matmul_kernel<kRows, 1>);
  });
}

Status linear_int8(const LinearInt8Params& p, Stream stream) noexcept {
  if (const Status status = check(p); !status.ok()) return status;
  if (p.m == 0 || p.n == 0) return ok_status();
  const int64_t column_ctas = ceil_div(p.n, kWarps * kColumns);
  return visit_device_dtype(p.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    return visit_rows<8>(p.m, [&](auto rows) {
      constexpr int kRows = decltype(rows)::value;
      const bool vector = p.k % 8 == 0 && aligned(p.q, 8) && aligned(p.input, 16) &&
                          p.input_stride * static_cast<int64_t>(sizeof(T)) % 16 == 0;
      return launch(vector ? linear_kernel<T, kRows, true> : linear_kernel<T, kRows, false>,
                    column_ctas * ceil_div(p.m, kRows), kThreads, stream, p,
                    static_cast<unsigned>(column_ctas));
    });
  });
}

}  // namespace lowbit::kernels::cuda
