// LLM.int8() on the device: row-wise quantization with outliers marked as they are met, the list of
// outlier columns, column-wise quantization.
#include <type_traits>

#include "cuda/common/launch.h"
#include "cuda/int8_codes.cuh"
#include "validate.h"

namespace lowbit::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kCompactThreads = 1024;
constexpr int64_t kRowsPerSlice = 64;  // of the kernels that walk columns

/// Of values that are not negative: their bits order as integers do.
__device__ __forceinline__ float block_max(float x) {
  __shared__ float partial[kWarps];
#if __CUDA_ARCH__ >= 800
  x = __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(x)));
#else
  x = group_max<32>(x);
#endif
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
  __syncthreads();
  x = partial[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) x = fmaxf(x, partial[w]);
  return x;
}

/// A CTA a row. The first kHeld * 2048 elements stay in registers between the two passes, with
/// zeros for those that get the code 0 anyway; the rest is read again (from the L2 cache, as a
/// rule). A thread looks at single elements only when it met an outlier, an infinity or NaN.
template <typename T, bool kVector>
__global__ void __launch_bounds__(kThreads)
    quantize_rowwise_kernel(const T* __restrict__ input, int64_t stride, int64_t cols,
                            float threshold, int8_t* __restrict__ q, float* __restrict__ stats,
                            uint8_t* outlier_columns) {
  constexpr int kHeld = kVector ? 2 : 0;
  const T* row = input + int64_t{blockIdx.x} * stride;
  int8_t* out = q + int64_t{blockIdx.x} * cols;
  const int64_t packs = kVector ? cols / 8 : 0;
  const float limit = threshold > 0.0f ? threshold : INFINITY;
  Pack8<T> held[kHeld + 1];
  float largest = 0.0f;
  const auto flag = [&](int64_t column) {
    if (outlier_columns[column] == 0) outlier_columns[column] = 1;  // thousands of rows share one
  };
  const auto meet8 = [&](Pack8<T>& x, int64_t pack) {
    uint32_t outliers = take_magnitude(x, threshold, limit, largest);
    for (; outliers != 0; outliers &= outliers - 1) flag(pack * 8 + __ffs(outliers) - 1);
  };
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int64_t pack = h * kThreads + threadIdx.x;
    if (pack < packs) held[h] = load8(row + pack * 8);
  }
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int64_t pack = h * kThreads + threadIdx.x;
    if (pack < packs) meet8(held[h], pack);
  }
  for (int64_t pack = kHeld * kThreads + threadIdx.x; pack < packs; pack += kThreads) {
    Pack8<T> x = *reinterpret_cast<const Pack8<T>*>(row + pack * 8);
    meet8(x, pack);
  }
  for (int64_t c = packs * 8 + threadIdx.x; c < cols; c += kThreads) {
    const float x = to_float(row[c]);
    if (outlier(x, threshold)) {
      flag(c);
    } else {
      largest = fmaxf(largest, fabsf(x));
    }
  }
  largest = block_max(largest);
  if (threadIdx.x == 0) stats[blockIdx.x] = largest;

  const float scale = device_rowwise_scale(largest);
  const auto write8 = [&](const Pack8<T>& x, int64_t pack) {
    const uint2 words = scale < INFINITY ? plain_codes(x, scale) : careful_codes(x, scale);
    __stcs(reinterpret_cast<uint2*>(out + pack * 8), words);
  };
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int64_t pack = h * kThreads + threadIdx.x;
    if (pack < packs) write8(held[h], pack);
  }
  for (int64_t pack = kHeld * kThreads + threadIdx.x; pack < packs; pack += kThreads) {
    Pack8<T> x = *reinterpret_cast<const Pack8<T>*>(row + pack * 8);
    take_magnitude(x, threshold, limit, largest);
    write8(x, pack);
  }
  for (int64_t c = packs * 8 + threadIdx.x; c < cols; c += kThreads) {
    const float x = to_float(row[c]);
    out[c] = static_cast<int8_t>(outlier(x, threshold) ? 0 : round_int8(x * scale));
  }
}

/// A thread kFlags columns and a slice of the rows; one read of the flags where no outlier is.
template <int kFlags>
__global__ void __launch_bounds__(kThreads)
    zero_columns_kernel(const uint8_t* __restrict__ outlier_columns, int64_t rows, int64_t cols,
                        int64_t column_ctas, int8_t* __restrict__ q) {
  const int64_t first = (blockIdx.x % column_ctas * kThreads + threadIdx.x) * kFlags;
  if (first >= cols) return;
  if constexpr (kFlags == 16) {
    const uint4 all = *reinterpret_cast<const uint4*>(outlier_columns + first);
    if ((all.x | all.y | all.z | all.w) == 0) return;
  }
  const int64_t begin = blockIdx.x / column_ctas * kRowsPerSlice;
  const int64_t end = min(begin + kRowsPerSlice, rows);
  for (int64_t c = first; c < first + kFlags; ++c) {
    if (outlier_columns[c] == 0) continue;
    for (int64_t r = begin; r < end; ++r) q[r * cols + c] = 0;
  }
}

/// One CTA lists the set flags: every thread counts its own stretch, a scan over the threads gives
/// it its place.
__global__ void __launch_bounds__(kCompactThreads)
    compact_columns_kernel(const uint8_t* __restrict__ flags, int cols,
                           int32_t* __restrict__ columns, int32_t* __restrict__ count) {
  __shared__ int totals[kCompactThreads / 32];
  const int stretch = (cols + kCompactThreads - 1) / kCompactThreads;
  const int begin = min(static_cast<int>(threadIdx.x) * stretch, cols);
  const int end = min(begin + stretch, cols);
  int mine = 0;
  for (int c = begin; c < end; ++c) mine += flags[c] != 0;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int sum = mine;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int below = __shfl_up_sync(0xffffffffu, sum, offset);
    if (lane >= offset) sum += below;
  }
  if (lane == 31) totals[warp] = sum;
  __syncthreads();
  int place = sum - mine;
  for (int w = 0; w < warp; ++w) place += totals[w];
  if (threadIdx.x == kCompactThreads - 1) *count = place + mine;
  for (int c = begin; c < end; ++c) {
    if (flags[c] != 0) columns[place++] = c;
  }
}

/// A thread a column and a slice of the rows. Magnitudes are not negative, so their bits order as
/// integers do. stats holds zeros before.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    column_stats_kernel(QuantizeColwiseParams p, float threshold, unsigned column_ctas) {
  const int64_t column = int64_t{blockIdx.x % column_ctas} * kThreads + threadIdx.x;
  if (column >= p.cols) return;
  const int64_t begin = blockIdx.x / column_ctas * kRowsPerSlice;
  const int64_t end = min(begin + kRowsPerSlice, p.rows);
  const T* input = static_cast<const T*>(p.input);
  float largest = 0.0f;
  for (int64_t r = begin; r < end; ++r) {
    const float x = to_float(input[r * p.input_stride + column]);
    if (!outlier(x, threshold)) largest = fmaxf(largest, fabsf(x));
  }
  atomicMax(reinterpret_cast<int*>(p.stats + column), __float_as_int(largest));
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    quantize_colwise_kernel(QuantizeColwiseParams p, float threshold, unsigned column_ctas) {
  const int64_t column = int64_t{blockIdx.x % column_ctas} * kThreads + threadIdx.x;
  if (column >= p.cols) return;
  const int64_t begin = blockIdx.x / column_ctas * kRowsPerSlice;
  const int64_t end = min(begin + kRowsPerSlice, p.rows);
  const T* input = static_cast<const T*>(p.input);
  const float stat = p.stats[column];
  for (int64_t r = begin; r < end; ++r) {
    const float x = to_float(input[r * p.input_stride + column]);
    const float product = to_float(from_float<T>(x * 127.0f));
    p.q[r * p.cols + column] =
        static_cast<int8_t>(outlier(x, threshold) ? 0 : round_int8(__fdiv_rn(product, stat)));
  }
}

}  // namespace

Status quantize_rowwise(const QuantizeRowwiseParams& p, Stream stream) noexcept {
  if (const Status status = check(p); !status.ok()) return status;
  const float threshold = rounded_threshold(p.threshold);
  return visit_device_dtype(p.input_dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const auto* input = static_cast<const T*>(p.input);
    const bool vector = aligned(input, 16) && aligned(p.q, 8) && p.cols % 8 == 0 &&
                        p.input_stride * static_cast<int64_t>(sizeof(T)) % 16 == 0;
    return launch(vector ? quantize_rowwise_kernel<T, true> : quantize_rowwise_kernel<T, false>,
                  p.rows, kThreads, stream, input, p.input_stride, p.cols, threshold, p.q, p.stats,
                  p.outlier_columns);
  });
}

Status zero_outlier_columns(const QuantizeRowwiseParams& p, Stream stream) noexcept {
  if (const Status status = check(p); !status.ok()) return status;
  if (p.outlier_columns == nullptr || p.rows == 0 || p.cols == 0) return ok_status();
  const bool vector = aligned(p.outlier_columns, 16) && p.cols % 16 == 0;
  const int64_t column_ctas = ceil_div(p.cols, kThreads * (vector ? 16 : 1));
  return launch(vector ? zero_columns_kernel<16> : zero_columns_kernel<1>,
                column_ctas * ceil_div(p.rows, kRowsPerSlice), kThreads, stream,
                static_cast<const uint8_t*>(p.outlier_columns), p.rows, p.cols, column_ctas, p.q);
}

Status compact_columns(const CompactColumnsParams& p, Stream stream) noexcept {
  if (const Status status = check(p); !status.ok()) return status;
  return launch(compact_columns_kernel, 1, kCompactThreads, stream, p.flags,
                static_cast<int>(p.cols), p.columns, p.count);
}

Status quantize_colwise(const QuantizeColwiseParams& p, Stream stream) noexcept {
  if (const Status status = check(p); !status.ok()) return status;
  if (p.cols == 0) return ok_status();
  if (const Status status = zero_bytes(p.stats, p.cols * 4, stream); !status.ok()) return status;
  if (p.rows == 0) return ok_status();
  const float threshold = rounded_threshold(p.threshold);
  const int64_t column_ctas = ceil_div(p.cols, kThreads);
  const int64_t grid = column_ctas * ceil_div(p.rows, kRowsPerSlice);
  return visit_device_dtype(p.input_dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const Status status = launch(column_stats_kernel<T>, grid, kThreads, stream, p, threshold,
                                 static_cast<unsigned>(column_ctas));
    return status.ok() ? launch(quantize_colwise_kernel<T>, grid, kThreads, stream, p, threshold,
                                static_cast<unsigned>(column_ctas))
                       : status;
  });
}

}  // namespace lowbit::kernels::cuda
