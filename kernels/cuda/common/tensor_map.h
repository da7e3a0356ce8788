// Tensor maps for Hopper's copy engine. The driver's function is found through the runtime, so that
// nothing links libcuda.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace lowbit::kernels::cuda {

using EncodeTensorMap = decltype(&cuTensorMapEncodeTiled);

inline EncodeTensorMap tensor_map_encoder() noexcept {
  static const EncodeTensorMap encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                         cudaEnableDefault, &result) != cudaSuccess) {
      cudaGetLastError();
      function = nullptr;
    }
    return reinterpret_cast<EncodeTensorMap>(function);
  }();
  return encode;
}

/// Whether the thread has a context, which the driver's functions need. The runtime binds one with
/// the thread's first call that works on the device, and with every cudaSetDevice: a worker of
/// libtorch's autograd may have made neither.
inline bool has_context() noexcept {
  thread_local const bool bound = [] {
    int device = 0;
    return cudaGetDevice(&device) == cudaSuccess && cudaSetDevice(device) == cudaSuccess;
  }();
  return bound;
}

/// A matrix of `rows` times `columns` elements, rows `stride` bytes apart, copied in boxes; what
/// lies outside arrives as zeros. False if the driver refuses it.
inline bool map_matrix(
    CUtensorMap& map, CUtensorMapDataType type, CUtensorMapSwizzle swizzle, const void* data,
    int64_t columns, int64_t rows, int64_t stride, int box_columns, int box_rows,
    CUtensorMapL2promotion promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_256B) noexcept {
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(stride)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(box_columns),
                             static_cast<cuuint32_t>(box_rows)},
                   steps[2] = {1, 1};
  return tensor_map_encoder() != nullptr && has_context() &&
         tensor_map_encoder()(&map, type, 2, const_cast<void*>(data), sizes, strides, box, steps,
                              CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, promotion,
                              CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace lowbit::kernels::cuda
