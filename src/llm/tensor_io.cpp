#include "llm/tensor_io.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <array>
#include <cstring>
#include <utility>

#include "ops/check.h"

namespace lowbit::llm {
namespace {

constexpr std::array<std::pair<io::DType, at::ScalarType>, 15> kTypes = {{
    {io::DType::kBool, at::kBool},
    {io::DType::kU8, at::kByte},
    {io::DType::kI8, at::kChar},
    {io::DType::kI16, at::kShort},
    {io::DType::kU16, at::kUInt16},
    {io::DType::kI32, at::kInt},
    {io::DType::kU32, at::kUInt32},
    {io::DType::kI64, at::kLong},
    {io::DType::kU64, at::kUInt64},
    {io::DType::kF16, at::kHalf},
    {io::DType::kBF16, at::kBFloat16},
    {io::DType::kF32, at::kFloat},
    {io::DType::kF64, at::kDouble},
    {io::DType::kF8E4M3, at::kFloat8_e4m3fn},
    {io::DType::kF8E5M2, at::kFloat8_e5m2},
}};

}  // namespace

at::ScalarType scalar_type(io::DType dtype) {
  for (const auto& [file, torch] : kTypes) {
    if (file == dtype) return torch;
  }
  ops::refuse({__func__, __FILE__, __LINE__}, "from_pretrained", "dtype", "a known element type",
              io::dtype_name(dtype));
}

io::DType io_dtype(at::ScalarType dtype) {
  for (const auto& [file, torch] : kTypes) {
    if (torch == dtype) return file;
  }
  ops::refuse({__func__, __FILE__, __LINE__}, "save_pretrained", "dtype",
              "an element type that safetensors has", ops::dtype_name(dtype));
}

at::Tensor to_tensor(const io::TensorView& view) {
  const at::ScalarType dtype = scalar_type(view.dtype);
  const auto size = static_cast<uintptr_t>(io::itemsize(view.dtype));
  if (view.numel() == 0) return at::empty(view.shape, dtype);
  if (reinterpret_cast<uintptr_t>(view.data) % size != 0) {
    at::Tensor copy = at::empty(view.shape, dtype);
    std::memcpy(copy.mutable_data_ptr(), view.data, view.nbytes);
    return copy;
  }
  return at::from_blob(
      const_cast<std::byte*>(view.data), view.shape, [owner = view.owner](void*) {}, dtype);
}

io::TensorView to_view(const at::Tensor& tensor) {
  auto owner = std::make_shared<const at::Tensor>(tensor.detach().cpu().contiguous());
  return {.dtype = io_dtype(owner->scalar_type()),
          .shape = owner->sizes().vec(),
          .data = static_cast<const std::byte*>(owner->const_data_ptr()),
          .nbytes = owner->nbytes(),
          .owner = owner};
}

}  // namespace lowbit::llm
