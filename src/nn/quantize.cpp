#include "nn/quantize.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <string_view>

#include "lowbit/functional.h"
#include "lowbit/kernels/fourbit.h"
#include "ops/check.h"
#include "tensor/impl.h"

namespace lowbit {
namespace nn {
namespace {

std::string shape_text(const at::Tensor& w) { return c10::str("shape ", w.sizes()); }

/// Elements that are rounded to float16 at a time: what a large embedding takes beside itself.
constexpr int64_t kRoundedAtOnce = int64_t{1} << 22;

/// Whether no element becomes infinite, or is NaN, as float16. Makes no copy.
bool fits_half(const at::Tensor& w) {
  constexpr double kFirstInfinite = 65520.0;  // half way between the largest float16 and 2^16
  const auto [least, most] = at::aminmax(w);
  return least.item<double>() > -kFirstInfinite && most.item<double>() < kFirstInfinite;
}

/// Codes and statistics of w's rows.
std::tuple<at::Tensor, at::Tensor> int8_rows(const at::Tensor& w) {
  // The ecosystem rounds weights to float16 first; files are to hold the same codes.
  if (w.scalar_type() == at::kHalf || !fits_half(w)) {
    const auto [codes, stats, outliers] = int8_vectorwise_quant(w);
    return {codes, stats};
  }
  const at::Tensor rows = w.reshape({-1, w.size(-1)});
  const int64_t count = rows.size(0), part = std::max<int64_t>(1, kRoundedAtOnce / rows.size(1));
  const at::Tensor codes = at::empty(w.sizes(), w.options().dtype(at::kChar));
  const at::Tensor stats = at::empty({count}, w.options().dtype(at::kFloat));
  for (int64_t begin = 0; begin < count; begin += part) {
    const int64_t size = std::min(part, count - begin);
    const auto [q, s, outliers] = int8_vectorwise_quant(rows.narrow(0, begin, size).to(at::kHalf));
    codes.view(rows.sizes()).narrow(0, begin, size).copy_(q);
    stats.narrow(0, begin, size).copy_(s);
  }
  return {codes, stats};
}

tensor::PayloadPtr int8_payload(const at::Tensor& w, const QuantizationConfig& config) {
  const auto [codes, stats] = int8_rows(w);
  return tensor::make_int8(codes, stats, config.threshold(),
                           config.scheme() == QuantScheme::kInt8WeightOnly, config.compute_dtype());
}

tensor::PayloadPtr fourbit_payload(const at::Tensor& w, const QuantizationConfig& config) {
  auto [packed, state] = quantize_4bit(
      w, {.blocksize = config.blocksize(),
          .compress_statistics = config.double_quant(),
          .quant_type = config.scheme() == QuantScheme::kNF4 ? QuantType::kNF4 : QuantType::kFP4,
          .quant_storage = config.quant_storage()});
  return tensor::make_4bit(packed, std::move(state), config.compute_dtype());
}

/// Whether `text` is `pattern`, in which * stands for any text.
bool matches_component(std::string_view text, std::string_view pattern) {
  if (pattern.empty()) return text.empty();
  if (pattern.front() != '*') {
    return !text.empty() && text.front() == pattern.front() &&
           matches_component(text.substr(1), pattern.substr(1));
  }
  for (size_t skipped = 0; skipped <= text.size(); ++skipped) {
    if (matches_component(text.substr(skipped), pattern.substr(1))) return true;
  }
  return false;
}

std::vector<std::string_view> components(std::string_view path) {
  std::vector<std::string_view> parts;
  while (true) {
    const size_t dot = path.find('.');
    parts.push_back(path.substr(0, dot));
    if (dot == std::string_view::npos) return parts;
    path.remove_prefix(dot + 1);
  }
}

}  // namespace

void check_quantizable(const char* op, const std::string& argument, const at::Tensor& w,
                       const QuantizationConfig& config) {
  LOWBIT_CHECK(w.defined(), op, argument, "a tensor", "an undefined one");
  LOWBIT_CHECK(!is_quantized(w), op, argument, "a dense tensor", describe(w),
               "It is quantized already; dequantize it first to quantize it another way.");
  LOWBIT_CHECK(ops::is_kernel_dtype(w.scalar_type()), op, argument, "float32, float16 or bfloat16",
               ops::dtype_name(w.scalar_type()));
  const bool fourbit = is_4bit(config.scheme());
  const int64_t least = fourbit ? 1 : 2;
  LOWBIT_CHECK(w.dim() >= least, op, argument, c10::str("at least ", least, "-D"), shape_text(w));
  LOWBIT_CHECK(w.numel() > 0, op, argument, "not empty", shape_text(w));
  LOWBIT_CHECK(!fourbit || is_valid_4bit_blocksize(config.blocksize()), op, "blocksize",
               "a power of two from 32 to 4096", config.blocksize());
  LOWBIT_CHECK(config.threshold() >= 0.0, op, "threshold", "0 or more", config.threshold());
  if (config.compute_dtype()) ops::check_float(op, "compute_dtype", *config.compute_dtype());
}

at::Tensor quantize_named(const char* op, const std::string& argument, const at::Tensor& w,
                          const QuantizationConfig& config) {
  check_quantizable(op, argument, w, config);
  const at::NoGradGuard no_grad;
  const at::Tensor source = w.detach();
  if (!config.allow_nonfinite()) {
    const int64_t count = count_nonfinite(source);
    LOWBIT_CHECK(
        count == 0, op, argument, "finite",
        c10::str(count, " NaN or infinite element", count == 1 ? "" : "s", " of ", source.numel()),
        "allow_nonfinite(true) quantizes it all the same, and loses their blocks.");
  }
  tensor::PayloadPtr payload =
      is_4bit(config.scheme()) ? fourbit_payload(source, config) : int8_payload(source, config);
  if (source.is_cpu()) payload = tensor::compact(*payload);
  return tensor::wrap(std::move(payload), source.scalar_type());
}

int64_t planned_nbytes(at::IntArrayRef shape, const QuantizationConfig& config) {
  using kernels::ceil_div;
  const int64_t numel = c10::multiply_integers(shape);
  if (!is_4bit(config.scheme())) {
    return numel + static_cast<int64_t>(sizeof(float)) * (numel / shape.back());
  }
  const auto itemsize = static_cast<int64_t>(c10::elementSize(config.quant_storage()));
  const int64_t packed = ceil_div(ceil_div(numel, int64_t{2}), itemsize) * itemsize;
  const int64_t blocks = ceil_div(numel, config.blocksize());
  const int64_t table = 16 * sizeof(float);
  if (!config.double_quant()) return packed + table + blocks * int64_t{sizeof(float)};
  const int64_t nested = ceil_div(blocks, kernels::kNestedBlocksize) + 256 + 1;
  return packed + table + blocks + nested * int64_t{sizeof(float)};
}

std::string scheme_text(const QuantizationConfig& config) {
  std::string text = to_string(config.scheme());
  if (is_4bit(config.scheme())) {
    text += c10::str(", blocksize ", config.blocksize());
    if (config.double_quant()) text += ", double quant";
  } else if (config.threshold() > 0.0) {
    text += c10::str(", threshold ", config.threshold());
  }
  return text;
}

}  // namespace nn

bool matches_path(const std::string& path, const std::string& pattern) {
  const auto parts = nn::components(path), wanted = nn::components(pattern);
  for (size_t begin = 0; begin + wanted.size() <= parts.size(); ++begin) {
    bool all = true;
    for (size_t i = 0; i < wanted.size() && all; ++i) {
      all = nn::matches_component(parts[begin + i], wanted[i]);
    }
    if (all) return true;
  }
  return false;
}

at::Tensor quantize(const at::Tensor& w, const QuantizationConfig& config) {
  return nn::quantize_named("lowbit::quantize", "w", w, config);
}

}  // namespace lowbit
