// A typed, shaped view of bytes that somebody keeps alive: what readers hand out and writers take.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace lowbit::io {

/// Element types of safetensors files.
enum class DType : int8_t {
  kBool,
  kU8,
  kI8,
  kI16,
  kU16,
  kI32,
  kU32,
  kI64,
  kU64,
  kF16,
  kBF16,
  kF32,
  kF64,
  kF8E4M3,
  kF8E5M2
};

/// Bytes of one element.
int64_t itemsize(DType dtype) noexcept;
/// The name in a safetensors header ("F32", "BF16", ...).
const char* dtype_name(DType dtype) noexcept;

/// Row-major, contiguous, little-endian, not to be written to. `owner` keeps `data` alive (a
/// MappedFile, a buffer, a torch storage).
struct TensorView {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;
  size_t nbytes = 0;
  std::shared_ptr<const void> owner;

  /// Product of the shape (a reader has checked that it fits).
  int64_t numel() const noexcept {
    int64_t n = 1;
    for (int64_t s : shape) n *= s;
    return n;
  }
  /// False for a tensor that a careless writer left at an odd address: copy it before its elements
  /// are read in place.
  bool is_aligned() const noexcept {
    return reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(itemsize(dtype)) == 0;
  }
};

}  // namespace lowbit::io
