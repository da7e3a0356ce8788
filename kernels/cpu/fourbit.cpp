// 4-bit quantize, dequantize and embedding on the CPU: chooses the kernel for the active
// instruction set.
#include "lowbit/kernels/fourbit.h"

#include "cpu/flush_mode.h"
#include "cpu/fourbit_isa.h"
#include "lowbit/kernels/cpu.h"
#include "scales.h"
#include "validate.h"

namespace lowbit::kernels::cpu {
namespace {

/// Elements [first, last) of the flat weight to output[0 ..).
void dequantize_elements(const Dequantize4bitParams& p, int64_t first, int64_t last,
                         void* output) noexcept {
  switch (active_isa()) {
#if defined(__x86_64__)
    case Isa::kAVX512:
      return avx512::dequantize_4bit(p, first, last, output);
    case Isa::kAVX2:
      return avx2::dequantize_4bit(p, first, last, output);
#endif
    default:
      break;
  }
  const float* table = code_table(p.quant_type, p.code);
  for (int64_t i = first; i < last; ++i) {
    const float scale = block_scale(p.scales, i / p.blocksize);
    store_element(output, p.output_dtype, i - first,
                  multiply_flushed(table[code_at(p.packed, i)], scale));
  }
}

}  // namespace

Status quantize_4bit(const Quantize4bitParams& p, int64_t begin, int64_t end) noexcept {
  const Isa isa = active_isa();
  if (isa == Isa::kScalar) return ref::quantize_4bit(p, begin, end);
  const Status status = check(p, begin, end, p.blocksize > 0 ? ceil_div(p.numel, p.blocksize) : 0);
  if (!status.ok()) return status;
#if defined(__x86_64__)
  const FlushMode flush_mode;
  if (isa == Isa::kAVX512) {
    avx512::quantize_4bit(p, begin, end);
  } else {
    avx2::quantize_4bit(p, begin, end);
  }
#endif
  return ok_status();
}

Status dequantize_4bit(const Dequantize4bitParams& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, p.blocksize > 0 ? ceil_div(p.numel, p.blocksize) : 0);
  if (!status.ok() || begin == end) return status;
  const int64_t first = begin * p.blocksize;
  const int64_t last = end * p.blocksize < p.numel ? end * p.blocksize : p.numel;
  const FlushMode flush_mode;
  dequantize_elements(p, first, last, element_address(p.output, p.output_dtype, first));
  return ok_status();
}

Status embedding_4bit(const Embedding4bitParams& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, p.count);
  if (!status.ok()) return status;
  Dequantize4bitParams table;
  table.packed = p.packed;
  table.scales = p.scales;
  table.numel = p.rows * p.dim;
  table.blocksize = p.blocksize;
  table.quant_type = p.quant_type;
  table.output_dtype = p.output_dtype;
  const FlushMode flush_mode;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = p.ids[i] * p.dim;
    dequantize_elements(table, first, first + p.dim,
                        element_address(p.output, p.output_dtype, i * p.dim));
  }
  return ok_status();
}

}  // namespace lowbit::kernels::cpu
