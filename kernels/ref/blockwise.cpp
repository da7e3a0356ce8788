// The scalar truth of block-wise 8-bit quantization.
#include "lowbit/kernels/blockwise.h"

#include <algorithm>

#include "ref/absmax.h"
#include "ref/nearest_code.h"
#include "scalar.h"
#include "validate.h"

namespace lowbit::kernels::ref {
namespace {

template <typename T>
void quantize_block(const QuantizeBlockwiseParams& p, int64_t block) {
  const T* input = static_cast<const T*>(p.input);
  const int64_t first = block * p.blocksize;
  const int64_t count = std::min(p.blocksize, p.numel - first);
  const float absmax = block_absmax(input + first, count, count == p.blocksize);
  const float scale = reciprocal(absmax);
  p.absmax[block] = absmax;
  for (int64_t i = first; i < first + count; ++i) {
    p.codes[i] =
        static_cast<uint8_t>(nearest_code(p.code, multiply_flushed(to_float(input[i]), scale)));
  }
}

}  // namespace

Status quantize_blockwise(const QuantizeBlockwiseParams& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, p.blocksize > 0 ? ceil_div(p.numel, p.blocksize) : 0);
  if (!status.ok()) return status;
  visit_dtype(p.input_dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    for (int64_t block = begin; block < end; ++block) quantize_block<T>(p, block);
  });
  return ok_status();
}

Status dequantize_blockwise(const DequantizeBlockwiseParams& p, int64_t begin,
                            int64_t end) noexcept {
  const Status status = check(p, begin, end, p.blocksize > 0 ? ceil_div(p.numel, p.blocksize) : 0);
  if (!status.ok()) return status;
  visit_dtype(p.output_dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    T* output = static_cast<T*>(p.output);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t last = std::min((block + 1) * p.blocksize, p.numel);
      for (int64_t i = block * p.blocksize; i < last; ++i) {
        output[i] = from_float<T>(multiply_flushed(p.code[p.codes[i]], p.absmax[block]));
      }
    }
  });
  return ok_status();
}

}  // namespace lowbit::kernels::ref
