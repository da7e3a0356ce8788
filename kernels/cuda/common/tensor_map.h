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

/// The driver's functions need a context, which the runtime binds to a thread with the thread's
/// first call that works on the device: a worker of libtorch's autograd may not have made one.
inline bool bind_context() noexcept {
  int device = 0;
  return cudaGetDevice(&device) == cudaSuccess && cudaSetDevice(device) == cudaSuccess;
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
  const auto encode = [&] {
    return tensor_map_encoder()(&map, type, 2, const_cast<void*>(data), sizes, strides, box, steps,
                                CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, promotion,
                                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
  };
  if (tensor_map_encoder() == nullptr) return false;
  return encode() || (bind_context() && encode());
}

}  // namespace lowbit::kernels::cuda
