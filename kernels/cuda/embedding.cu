// Gathers of quantized embedding rows, dequantized on the way. A warp takes a row. An id outside
// the table reads nothing and gives NaN: a check on the host would have to wait for the device.
#include <cmath>
#include <cstring>
#include <type_traits>

#include "codebook.h"
#include "cuda/common/cast.cuh"
#include "cuda/common/launch.h"
#include "cuda/common/scales.cuh"
#include "int8_scalar.h"
#include "validate.h"

namespace lowbit::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;

__device__ __forceinline__ bool inside(int64_t id, int64_t rows) { return id >= 0 && id < rows; }

template <typename T>
__device__ void fill_nan(T* output, int64_t dim) {
  for (int64_t k = threadIdx.x % 32; k < dim; k += 32) output[k] = from_float<T>(NAN);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    embedding_4bit_kernel(Embedding4bitParams p, const __grid_constant__ Table16 code) {
  __shared__ float table[16];
  if (threadIdx.x < 16) table[threadIdx.x] = code.values[threadIdx.x];
  __syncthreads();
  const int64_t i = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (i >= p.count) return;
  const int64_t id = p.ids[i];
  T* output = static_cast<T*>(p.output) + i * p.dim;
  if (!inside(id, p.rows)) return fill_nan(output, p.dim);
  const int64_t begin = id * p.dim;
  for (int64_t k = threadIdx.x % 32; k < p.dim; k += 32) {
    const int64_t flat = begin + k;
    const int byte = p.packed[flat / 2];
    output[k] = from_float<T>(table[flat % 2 == 0 ? byte >> 4 : byte & 15] *
                              block_scale(p.scales, flat / p.blocksize));
  }
}

__device__ __forceinline__ float dequantize_int8_element(int8_t q, float stat) {
  return __fmul_rn(__fmul_rn(static_cast<float>(q), stat), kInv127);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) embedding_int8_kernel(EmbeddingInt8Params p) {
  const int64_t i = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (i >= p.count) return;
  const int64_t id = p.ids[i];
  T* output = static_cast<T*>(p.output) + i * p.dim;
  if (!inside(id, p.rows)) return fill_nan(output, p.dim);
  const float stat = p.stats[id];
  for (int64_t k = threadIdx.x % 32; k < p.dim; k += 32) {
    output[k] = from_float<T>(dequantize_int8_element(p.q[id * p.dim + k], stat));
  }
}

}  // namespace

Status embedding_4bit(const Embedding4bitParams& p, Stream stream) noexcept {
  if (const Status status = check(p); !status.ok()) return status;
  if (p.dim == 0) return ok_status();
  Table16 table;
  std::memcpy(table.values, p.quant_type == QuantType::kNF4 ? codebook::kNf4 : codebook::kFp4,
              sizeof table.values);
  return visit_device_dtype(p.output_dtype, [&](auto* tag) {
    return launch(embedding_4bit_kernel<std::remove_pointer_t<decltype(tag)>>,
                  ceil_div(p.count, kWarps), kThreads, stream, p, table);
  });
}

Status embedding_int8(const EmbeddingInt8Params& p, Stream stream) noexcept {
  if (const Status status = check(p); !status.ok()) return status;
  if (p.dim == 0) return ok_status();
  return visit_device_dtype(p.output_dtype, [&](auto* tag) {
    return launch(embedding_int8_kernel<std::remove_pointer_t<decltype(tag)>>,
                  ceil_div(p.count, kWarps), kThreads, stream, p);
  });
}

}  // namespace lowbit::kernels::cuda
