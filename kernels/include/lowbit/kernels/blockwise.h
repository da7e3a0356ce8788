// Block-wise 8-bit quantization through a 256-entry map (dynamic, linear, fp8, normal or any other
// ascending map).
#pragma once

#include <cstdint>

#include "lowbit/kernels/types.h"

namespace lowbit::kernels {

/// codes[i] = index of the map entry nearest to input[i] * (1 / absmax), ties to the even index;
/// NaN has index 0, a block of zeros the index of 0. absmax: as in Quantize4bitParams. code: [256]
/// ascending, repeated values allowed. blocksize: any positive number.
struct QuantizeBlockwiseParams {
  const void* input = nullptr;  ///< [numel], contiguous
  DType input_dtype = DType::kFloat32;
  int64_t numel = 0;
  int64_t blocksize = 256;
  const float* code = nullptr;
  uint8_t* codes = nullptr;  ///< [numel]
  float* absmax = nullptr;   ///< [ceil(numel / blocksize)]
};

/// output[i] = round(code[codes[i]] * absmax[i / blocksize])
struct DequantizeBlockwiseParams {
  const uint8_t* codes = nullptr;
  const float* absmax = nullptr;
  const float* code = nullptr;
  int64_t numel = 0;
  int64_t blocksize = 256;
  void* output = nullptr;
  DType output_dtype = DType::kFloat32;
};

namespace ref {
/// Unit: block.
Status quantize_blockwise(const QuantizeBlockwiseParams& params, int64_t begin,
                          int64_t end) noexcept;
/// Unit: block.
Status dequantize_blockwise(const DequantizeBlockwiseParams& params, int64_t begin,
                            int64_t end) noexcept;
}  // namespace ref

namespace cpu {
/// Unit: block.
Status quantize_blockwise(const QuantizeBlockwiseParams& params, int64_t begin,
                          int64_t end) noexcept;
/// Unit: block.
Status dequantize_blockwise(const DequantizeBlockwiseParams& params, int64_t begin,
                            int64_t end) noexcept;
}  // namespace cpu

/// The CUDA entries, in builds with CUDA; see fourbit.h.
namespace cuda {
Status quantize_blockwise(const QuantizeBlockwiseParams& params, Stream stream) noexcept;
Status dequantize_blockwise(const DequantizeBlockwiseParams& params, Stream stream) noexcept;
}  // namespace cuda

}  // namespace lowbit::kernels
