// Golden data as tensors.
#pragma once

#include <ATen/ATen.h>

#include <map>
#include <string>

#include "lowbit/io/safetensors.h"
#include "support/device.h"
#include "support/golden_dir.h"

namespace lowbit::test {

inline at::ScalarType scalar_type(io::DType dtype) {
  switch (dtype) {
    case io::DType::kF32:
      return at::kFloat;
    case io::DType::kF16:
      return at::kHalf;
    case io::DType::kBF16:
      return at::kBFloat16;
    case io::DType::kU8:
      return at::kByte;
    case io::DType::kI8:
      return at::kChar;
    case io::DType::kI32:
      return at::kInt;
    case io::DType::kI64:
      return at::kLong;
    default:
      throw std::invalid_argument("golden data has no such dtype");
  }
}

/// A file of tests/golden.
class Golden {
 public:
  explicit Golden(const std::string& name)
      : file_(io::SafetensorsFile::open(golden_dir() + "/" + name)) {}

  bool contains(const std::string& name) const { return file_.contains(name); }

  /// A copy, on the device of the suite.
  at::Tensor operator[](const std::string& name) const {
    const io::TensorView view = file_.tensor(name);
    at::Tensor result = at::empty(view.shape, scalar_type(view.dtype));
    std::memcpy(result.mutable_data_ptr(), view.data, view.nbytes);
    return result.to(device());
  }

  /// The tensors whose name starts with `prefix`, without it.
  std::map<std::string, at::Tensor> with_prefix(const std::string& prefix) const {
    std::map<std::string, at::Tensor> result;
    for (const std::string& name : file_.names()) {
      if (name.rfind(prefix, 0) == 0) result[name.substr(prefix.size())] = (*this)[name];
    }
    return result;
  }

 private:
  io::SafetensorsFile file_;
};

/// Equal to the bit: dtype, shape and every byte (NaN equals NaN, 0 does not equal -0).
inline bool same_bytes(const at::Tensor& a, const at::Tensor& b) {
  if (a.scalar_type() != b.scalar_type() || a.sizes() != b.sizes()) return false;
  const at::Tensor x = a.cpu().contiguous(), y = b.cpu().contiguous();
  // Empty tensors have no address.
  return x.numel() == 0 || std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0;
}

}  // namespace lowbit::test
