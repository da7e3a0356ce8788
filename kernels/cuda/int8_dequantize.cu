// LLM.int8() on the device: from integers back to floating point. Rows of int8, the epilogue of the
// int8 matmul, and the same with the product of the outlier columns.
#include <type_traits>

#include "cuda/common/launch.h"
#include "cuda/int8_codes.cuh"
#include "validate.h"

namespace lowbit::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 8;
constexpr int kPerCta = kThreads * kPerThread;  // columns of one row

/// The row of a CTA and the first of its columns.
struct Place {
  int64_t row, column;
};
__device__ __forceinline__ Place place(unsigned ctas_per_row) {
  return {blockIdx.x / ctas_per_row, int64_t{blockIdx.x % ctas_per_row} * kPerCta};
}

/// output[row, c] = f(c) over the CTA's columns: eight at a time when kVector (cols % 8 == 0,
/// aligned), else one.
template <bool kVector, typename T, typename F>
__device__ __forceinline__ void write_columns(T* row, int64_t first, int64_t cols, const F& f) {
  if constexpr (kVector) {
    const int64_t c = first + int64_t{threadIdx.x} * 8;
    if (c >= cols) return;
    Pack8<T> pack;
    f(c, pack.values);
    store8(row + c, pack);
  } else {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int64_t c = first + i * kThreads + threadIdx.x;
      if (c < cols) f(c, row + c);
    }
  }
}

template <typename T, bool kVector>
__global__ void __launch_bounds__(kThreads)
    dequantize_rowwise_kernel(DequantizeRowwiseParams p, unsigned ctas_per_row) {
  const Place at = place(ctas_per_row);
  const float stat = p.stats[at.row];
  const int8_t* q = p.q + at.row * p.cols;
  write_columns<kVector>(
      static_cast<T*>(p.output) + at.row * p.cols, at.column, p.cols, [&](int64_t c, T* out) {
        int8_t codes[kVector ? 8 : 1];
        if constexpr (kVector) {
          *reinterpret_cast<uint2*>(codes) = __ldcs(reinterpret_cast<const uint2*>(q + c));
        } else {
          codes[0] = q[c];
        }
#pragma unroll
        for (int i = 0; i < (kVector ? 8 : 1); ++i) {
          out[i] = from_float<T>(code_value(codes[i], stat));
        }
      });
}

template <typename B>
__device__ __forceinline__ float bias_at(const DequantizeMatmulParams& p, int64_t column) {
  return p.bias == nullptr ? 0.0f : to_float(static_cast<const B*>(p.bias)[column]);
}

template <typename T, typename B, bool kVector>
__global__ void __launch_bounds__(kThreads)
    dequantize_matmul_kernel(DequantizeMatmulParams p, unsigned ctas_per_row) {
  const Place at = place(ctas_per_row);
  const float row_stat = p.row_stats[at.row];
  const int32_t* a = p.a + at.row * p.cols;
  write_columns<kVector>(
      static_cast<T*>(p.output) + at.row * p.cols, at.column, p.cols, [&](int64_t c, T* out) {
        int32_t sums[kVector ? 8 : 1];
        if constexpr (kVector) {
          *reinterpret_cast<Pack8<int32_t>*>(sums) = load8(a + c);
        } else {
          sums[0] = a[c];
        }
#pragma unroll
        for (int i = 0; i < (kVector ? 8 : 1); ++i) {
          out[i] = from_float<T>(
              epilogue(sums[i], row_stat, __ldg(p.col_stats + c + i), bias_at<B>(p, c + i)));
        }
      });
}

constexpr int kTileColumns = 64;
constexpr int kListed = 32;  // outlier columns at a time

/// A CTA: kTileRows x 64 outputs; a thread has one column of them and every fourth row. Without
/// outliers (count = 0) it is the plain epilogue.
template <typename T, typename B, int kTileRows>
__global__ void __launch_bounds__(kThreads)
    dequantize_mixed_kernel(DequantizeMixedParams p, unsigned column_tiles) {
  constexpr int kGroups = kThreads / kTileColumns, kOwn = kTileRows / kGroups;
  __shared__ float input[kListed][kTileRows];
  __shared__ float weight[kListed][kTileColumns + 1];
  const DequantizeMatmulParams& mm = p.matmul;
  const int64_t first_column = int64_t{blockIdx.x % column_tiles} * kTileColumns;
  const int64_t first_row = int64_t{blockIdx.x / column_tiles} * kTileRows;
  const int lane = threadIdx.x % kTileColumns, group = threadIdx.x / kTileColumns;
  const int64_t column = first_column + lane;
  float sums[kOwn] = {};
  const int count = *p.count;
  for (int begin = 0; begin < count; begin += kListed) {
    const int listed = min(kListed, count - begin);
    __syncthreads();  // the last turn's readers are done
    for (int i = threadIdx.x; i < listed * kTileRows; i += kThreads) {
      const int64_t row = first_row + i % kTileRows;
      const int64_t k = p.columns[begin + i / kTileRows];
      input[i / kTileRows][i % kTileRows] =
          row < mm.rows ? to_float(static_cast<const T*>(p.input)[row * p.input_stride + k]) : 0.0f;
    }
    for (int i = threadIdx.x; i < listed * kTileColumns; i += kThreads) {
      const int64_t n = first_column + i / listed;  // neighbours read one row of the weight
      const int64_t k = p.columns[begin + i % listed];
      weight[i % listed][i / listed] =
          n < mm.cols ? code_value(p.q[n * p.k + k], mm.col_stats[n]) : 0.0f;
    }
    __syncthreads();
    for (int j = 0; j < listed; ++j) {
      const float w = weight[j][lane];
#pragma unroll
      for (int r = 0; r < kOwn; ++r) {
        sums[r] = __fmaf_rn(input[j][group + r * kGroups], w, sums[r]);
      }
    }
  }
  if (column >= mm.cols) return;
  const float col_stat = mm.col_stats[column], bias = bias_at<B>(mm, column);
#pragma unroll
  for (int r = 0; r < kOwn; ++r) {
    const int64_t row = first_row + group + r * kGroups;
    if (row >= mm.rows) return;
    const int64_t i = row * mm.cols + column;
    const float y = epilogue(mm.a[i], mm.row_stats[row], col_stat, bias);
    static_cast<T*>(mm.output)[i] = from_float<T>(count == 0 ? y : y + sums[r]);
  }
}

/// f(null T*, null B*) for the types of output and bias.
template <typename F>
Status visit_output_and_bias(const DequantizeMatmulParams& p, const F& f) noexcept {
  return visit_device_dtype(p.output_dtype, [&](auto* output) {
    return visit_device_dtype(p.bias_dtype, [&](auto* bias) { return f(output, bias); });
  });
}

}  // namespace

Status dequantize_rowwise(const DequantizeRowwiseParams& p, Stream stream) noexcept {
  if (const Status status = check(p); !status.ok()) return status;
  const int64_t per_row = ceil_div(p.cols, kPerCta);
  const bool vector = p.cols % 8 == 0 && aligned(p.q, 8) && aligned(p.output, 16);
  return visit_device_dtype(p.output_dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    return launch(vector ? dequantize_rowwise_kernel<T, true> : dequantize_rowwise_kernel<T, false>,
                  p.rows * per_row, kThreads, stream, p, static_cast<unsigned>(per_row));
  });
}

Status dequantize_matmul(const DequantizeMatmulParams& p, Stream stream) noexcept {
  if (const Status status = check(p); !status.ok()) return status;
  const int64_t per_row = ceil_div(p.cols, kPerCta);
  const bool vector = p.cols % 8 == 0 && aligned(p.a, 16) && aligned(p.output, 16);
  return visit_output_and_bias(p, [&](auto* output, auto* bias) {
    using T = std::remove_pointer_t<decltype(output)>;
    using B = std::remove_pointer_t<decltype(bias)>;
    return launch(
        vector ? dequantize_matmul_kernel<T, B, true> : dequantize_matmul_kernel<T, B, false>,
        p.rows * per_row, kThreads, stream, p, static_cast<unsigned>(per_row));
  });
}

Status dequantize_mixed(const DequantizeMixedParams& p, Stream stream) noexcept {
  if (const Status status = check(p); !status.ok()) return status;
  if (p.input_dtype != p.matmul.output_dtype) return unsupported("input and output types differ");
  const int64_t column_tiles = ceil_div(p.matmul.cols, kTileColumns);
  return visit_output_and_bias(p.matmul, [&](auto* output, auto* bias) {
    using T = std::remove_pointer_t<decltype(output)>;
    using B = std::remove_pointer_t<decltype(bias)>;
    const auto run = [&](auto kernel, int64_t tile_rows) {
      return launch(kernel, column_tiles * ceil_div(p.matmul.rows, tile_rows), kThreads, stream, p,
                    static_cast<unsigned>(column_tiles));
    };
    return p.matmul.rows <= 16 ? run(dequantize_mixed_kernel<T, B, 4>, 4)
                               : run(dequantize_mixed_kernel<T, B, 32>, 32);
  });
}

}  // namespace lowbit::kernels::cuda
