// The one way the torch layers refuse an argument:
//   op: `argument` must be EXPECTATION, got VALUE. HINT.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <string>
#include <string_view>

#include "lowbit/kernels/types.h"

/// LOWBIT_CHECK(condition, op, argument, expectation, got [, hint]): the last three may be anything
/// that streams, and are evaluated only when the condition fails.
#define LOWBIT_CHECK(condition, op, argument, expectation, got, ...)                             \
  do {                                                                                           \
    if (C10_UNLIKELY(!(condition))) {                                                            \
      ::lowbit::ops::refuse({__func__, __FILE__, static_cast<uint32_t>(__LINE__)}, op, argument, \
                            ::c10::str(expectation),                                             \
                            ::c10::str(got) __VA_OPT__(, ::c10::str(__VA_ARGS__)));              \
    }                                                                                            \
  } while (false)

namespace lowbit::ops {

/// Throws c10::Error.
[[noreturn]] void refuse(c10::SourceLocation where, std::string_view op, std::string_view argument,
                         const std::string& expectation, const std::string& got,
                         const std::string& hint = {});

/// "float32", "bfloat16", ...: the names that files and Python use.
std::string dtype_name(at::ScalarType dtype);
/// The inverse. Throws c10::Error naming `op` and `argument`.
at::ScalarType parse_dtype(std::string_view name, std::string_view op, std::string_view argument);

/// float32, float16 or bfloat16: what the kernels compute with.
constexpr bool is_kernel_dtype(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16;
}
constexpr kernels::DType kernel_dtype(at::ScalarType dtype) {
  return dtype == at::kFloat  ? kernels::DType::kFloat32
         : dtype == at::kHalf ? kernels::DType::kFloat16
                              : kernels::DType::kBFloat16;
}

void check_float(const char* op, const char* argument, const at::Tensor& tensor);
void check_float(const char* op, const char* argument, at::ScalarType dtype);
void check_dtype(const char* op, const char* argument, const at::Tensor& tensor,
                 at::ScalarType dtype);
void check_numel(const char* op, const char* argument, const at::Tensor& tensor, int64_t numel);
/// Same device as the op's main operand.
void check_device(const char* op, const char* argument, const at::Tensor& tensor,
                  at::Device device);
void check_rank(const char* op, const char* argument, const at::Tensor& tensor, int64_t rank);

/// Throws when a kernel refused a problem.
inline void check_status(const char* op, const kernels::Status& status) {
  TORCH_CHECK(status.ok(), op, ": the kernel refused the problem: ", status.reason);
}

}  // namespace lowbit::ops
