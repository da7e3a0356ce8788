#include "ops/check.h"

#include <array>
#include <utility>

#include "lowbit/types.h"

namespace lowbit {

QuantType parse_quant_type(std::string_view name) {
  if (name == "nf4") return QuantType::kNF4;
  if (name == "fp4") return QuantType::kFP4;
  LOWBIT_CHECK(false, "lowbit", "quant_type", "\"nf4\" or \"fp4\"", c10::str('"', name, '"'));
}

namespace ops {
namespace {

constexpr std::array<std::pair<at::ScalarType, std::string_view>, 12> kDtypeNames = {{
    {at::kFloat, "float32"},
    {at::kHalf, "float16"},
    {at::kBFloat16, "bfloat16"},
    {at::kDouble, "float64"},
    {at::kByte, "uint8"},
    {at::kChar, "int8"},
    {at::kShort, "int16"},
    {at::kInt, "int32"},
    {at::kLong, "int64"},
    {at::kBool, "bool"},
    {at::kFloat8_e4m3fn, "float8_e4m3fn"},
    {at::kFloat8_e5m2, "float8_e5m2"},
}};

}  // namespace

void refuse(c10::SourceLocation where, std::string_view op, std::string_view argument,
            const std::string& expectation, const std::string& got, const std::string& hint) {
  std::string message =
      c10::str(op, ": `", argument, "` must be ", expectation, ", got ", got, ".");
  if (!hint.empty()) message += " " + hint;
  throw c10::Error(where, std::move(message));
}

std::string dtype_name(at::ScalarType dtype) {
  for (const auto& [type, name] : kDtypeNames) {
    if (type == dtype) return std::string(name);
  }
  return c10::toString(dtype);
}

at::ScalarType parse_dtype(std::string_view name, std::string_view op, std::string_view argument) {
  for (const auto& [type, known] : kDtypeNames) {
    if (known == name) return type;
  }
  LOWBIT_CHECK(false, op, argument, "the name of a dtype such as \"bfloat16\"",
               c10::str('"', name, '"'));
}

void check_float(const char* op, const char* argument, const at::Tensor& tensor) {
  check_float(op, argument, tensor.scalar_type());
}

void check_float(const char* op, const char* argument, at::ScalarType dtype) {
  LOWBIT_CHECK(is_kernel_dtype(dtype), op, argument, "float32, float16 or bfloat16",
               dtype_name(dtype));
}

void check_dtype(const char* op, const char* argument, const at::Tensor& tensor,
                 at::ScalarType dtype) {
  LOWBIT_CHECK(tensor.scalar_type() == dtype, op, argument, dtype_name(dtype),
               dtype_name(tensor.scalar_type()));
}

void check_numel(const char* op, const char* argument, const at::Tensor& tensor, int64_t numel) {
  LOWBIT_CHECK(tensor.sym_numel() == numel, op, argument, c10::str(numel, " elements long"),
               c10::str("shape ", tensor.sym_sizes()));
}

void check_device(const char* op, const char* argument, const at::Tensor& tensor,
                  at::Device device) {
  LOWBIT_CHECK(tensor.device() == device, op, argument, c10::str("on ", device), tensor.device());
}

void check_rank(const char* op, const char* argument, const at::Tensor& tensor, int64_t rank) {
  LOWBIT_CHECK(tensor.dim() == rank, op, argument, c10::str(rank, "-D"),
               c10::str("shape ", tensor.sizes()));
}

}  // namespace ops
}  // namespace lowbit
