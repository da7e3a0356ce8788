// Block-wise 8-bit quantize and dequantize on the CPU: chooses the kernel for the active
// instruction set.
#include "lowbit/kernels/blockwise.h"

#include "cpu/blockwise_isa.h"
#include "cpu/flush_mode.h"
#include "lowbit/kernels/cpu.h"
#include "validate.h"

namespace lowbit::kernels::cpu {

Status quantize_blockwise(const QuantizeBlockwiseParams& p, int64_t begin, int64_t end) noexcept {
  const Isa isa = active_isa();
  if (isa == Isa::kScalar) return ref::quantize_blockwise(p, begin, end);
  const Status status = check(p, begin, end, p.blocksize > 0 ? ceil_div(p.numel, p.blocksize) : 0);
  if (!status.ok() || begin == end) return status;
#if defined(__x86_64__)
  const MapSearch search(p.code);
  const FlushMode flush_mode;
  if (isa == Isa::kAVX512) {
    avx512::quantize_blockwise(p, search, begin, end);
  } else {
    avx2::quantize_blockwise(p, search, begin, end);
  }
#endif
  return ok_status();
}

Status dequantize_blockwise(const DequantizeBlockwiseParams& p, int64_t begin,
                            int64_t end) noexcept {
  const Isa isa = active_isa();
  if (isa == Isa::kScalar) return ref::dequantize_blockwise(p, begin, end);
  const Status status = check(p, begin, end, p.blocksize > 0 ? ceil_div(p.numel, p.blocksize) : 0);
  if (!status.ok()) return status;
#if defined(__x86_64__)
  const FlushMode flush_mode;
  if (isa == Isa::kAVX512) {
    avx512::dequantize_blockwise(p, begin, end);
  } else {
    avx2::dequantize_blockwise(p, begin, end);
  }
#endif
  return ok_status();
}

}  // namespace lowbit::kernels::cpu
