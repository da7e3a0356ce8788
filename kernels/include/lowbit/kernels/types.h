// The words of the door: status, element types, block statistics. Plain C++; sees neither torch nor
// CUDA.
#pragma once

#include <cstdint>

namespace lowbit::kernels {

/// What became of a call. Kernels never throw, print or abort.
enum class StatusCode : int32_t {
  kOk = 0,  ///< Done, or enqueued on the stream.
  kInvalidArgument =
      1,             ///< A size, pointer or enum outside the documented range; nothing was written.
  kUnsupported = 2,  ///< A valid problem that no kernel here solves; nothing was written.
  kCudaError = 3,    ///< The CUDA runtime refused a launch; `cuda_error` is its code.
};

struct [[nodiscard]] Status {
  StatusCode code = StatusCode::kOk;
  int32_t cuda_error = 0;
  const char* reason = "";  ///< Static text, never null.
  bool ok() const noexcept { return code == StatusCode::kOk; }
};

inline Status ok_status() noexcept { return {}; }
inline Status invalid_argument(const char* reason) noexcept {
  return {StatusCode::kInvalidArgument, 0, reason};
}
inline Status unsupported(const char* reason) noexcept {
  return {StatusCode::kUnsupported, 0, reason};
}

/// Element types that cross the door.
enum class DType : int8_t { kFloat32, kFloat16, kBFloat16 };

/// Bytes of one element.
constexpr int64_t itemsize(DType t) noexcept { return t == DType::kFloat32 ? 4 : 2; }

/// A CUDA stream (cudaStream_t) as an opaque handle; null is the default stream.
struct Stream {
  void* handle = nullptr;
};

/// ceil(a / b) for a >= 0, b > 0, without overflow of a + b.
constexpr int64_t ceil_div(int64_t a, int64_t b) noexcept { return a / b + (a % b != 0); }

/// Scales of the blocks of a 4-bit weight: plain float32, or nested ("double quantization", an
/// 8-bit code per block): absmax[i] = code[absmax_8bit[i]] * absmax2[i / 256] + offset, the product
/// rounded before the sum.
struct BlockScales {
  const float* absmax = nullptr;         ///< [nblocks]; null when nested.
  const uint8_t* absmax_8bit = nullptr;  ///< [nblocks]; null when plain.
  const float* absmax_code = nullptr;    ///< [256]
  const float* absmax2 = nullptr;        ///< [ceil(nblocks / 256)]
  const float* absmax_offset =
      nullptr;  ///< One value, in the memory of the device that runs the kernel.
  bool nested() const noexcept { return absmax_8bit != nullptr; }
};

/// Blocksize of the second level of nested statistics.
inline constexpr int64_t kNestedBlocksize = 256;

}  // namespace lowbit::kernels
