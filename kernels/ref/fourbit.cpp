// The scalar truth of 4-bit quantization. Clarity before speed.
#include "lowbit/kernels/fourbit.h"

#include <algorithm>

#include "codebook.h"
#include "ref/absmax.h"
#include "scalar.h"
#include "scales.h"
#include "validate.h"

namespace lowbit::kernels::ref {
namespace {

int encode_nf4(float y) {
  int code = 0;
  for (float threshold : codebook::kNf4Thresholds) code += y > threshold;
  return code;
}

int encode_fp4(float y) {
  int step = 0;
  for (float threshold : codebook::kFp4Thresholds) step += std::fabs(y) > threshold;
  return codebook::kFp4Ascending[step] | (y < 0.0f ? 8 : 0);
}

template <typename T>
void quantize_block(const Quantize4bitParams& p, int64_t block) {
  const T* input = static_cast<const T*>(p.input);
  const int64_t first = block * p.blocksize;
  const int64_t count = std::min(p.blocksize, p.numel - first);
  const float absmax = block_absmax(input + first, count, count == p.blocksize);
  const float scale = reciprocal(absmax);
  const auto encode = [&](int64_t i) {
    // The missing partner of an odd tail counts as 0.
    const float y = i < count ? multiply_flushed(to_float(input[first + i]), scale) : 0.0f * scale;
    return p.quant_type == QuantType::kNF4 ? encode_nf4(y) : encode_fp4(y);
  };
  p.absmax[block] = absmax;
  for (int64_t i = 0; i < count; i += 2) {
    p.packed[(first + i) / 2] = static_cast<uint8_t>(encode(i) << 4 | encode(i + 1));
  }
}

}  // namespace

Status quantize_4bit(const Quantize4bitParams& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, p.blocksize > 0 ? ceil_div(p.numel, p.blocksize) : 0);
  if (!status.ok()) return status;
  visit_dtype(p.input_dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    for (int64_t block = begin; block < end; ++block) quantize_block<T>(p, block);
  });
  return ok_status();
}

Status dequantize_4bit(const Dequantize4bitParams& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, p.blocksize > 0 ? ceil_div(p.numel, p.blocksize) : 0);
  if (!status.ok()) return status;
  const float* table = code_table(p.quant_type, p.code);
  visit_dtype(p.output_dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    T* output = static_cast<T*>(p.output);
    for (int64_t block = begin; block < end; ++block) {
      const float scale = block_scale(p.scales, block);
      const int64_t last = std::min((block + 1) * p.blocksize, p.numel);
      for (int64_t i = block * p.blocksize; i < last; ++i) {
        output[i] = from_float<T>(multiply_flushed(table[code_at(p.packed, i)], scale));
      }
    }
  });
  return ok_status();
}

Status matmul_4bit(const Matmul4bitParams& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, p.n);
  if (!status.ok()) return status;
  const float* table = code_table(p.quant_type, p.code);
  for (int64_t n = begin; n < end; ++n) {
    const double bias = p.bias == nullptr ? 0.0 : load_element(p.bias, p.bias_dtype, n);
    constexpr int64_t kRows = 8;  // one decoding of the weights serves this many rows of the input
    for (int64_t m0 = 0; m0 < p.m; m0 += kRows) {
      const int64_t rows = std::min(kRows, p.m - m0);
      double sums[kRows] = {};
      for (int64_t k = 0; k < p.k; ++k) {
        const int64_t i = n * p.k + k;
        const double weight =
            multiply_flushed(table[code_at(p.packed, i)], block_scale(p.scales, i / p.blocksize));
        for (int64_t r = 0; r < rows; ++r) {
          sums[r] += weight * load_element(p.input, p.dtype, (m0 + r) * p.input_stride + k);
        }
      }
      for (int64_t r = 0; r < rows; ++r) {
        store_element(p.output, p.dtype, (m0 + r) * p.n + n, static_cast<float>(sums[r] + bias));
      }
    }
  }
  return ok_status();
}

}  // namespace lowbit::kernels::ref
