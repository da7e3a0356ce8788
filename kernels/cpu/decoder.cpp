// The decoder family on the CPU: checks the arguments and chooses the kernel for the active
// instruction set.
#include "lowbit/kernels/decoder.h"

#include "cpu/decoder_isa.h"
#include "decoder_check.h"
#include "lowbit/kernels/cpu.h"

namespace lowbit::kernels::cpu {
namespace {

template <typename Params>
using Entry = Status (*)(const Params&, int64_t, int64_t) noexcept;

template <typename Params>
Status run(Entry<Params> scalar, Entry<Params> avx2_entry, Entry<Params> avx512_entry,
           const Params& params, int64_t begin, int64_t end) noexcept {
  const Status status = check(params, begin, end, units(params));
  if (!status.ok()) return status;
  switch (active_isa()) {
    case Isa::kAVX512:
      return avx512_entry(params, begin, end);
    case Isa::kAVX2:
      return avx2_entry(params, begin, end);
    case Isa::kScalar:
      break;
  }
  return scalar(params, begin, end);
}

}  // namespace

#if defined(__x86_64__)
#define LOWBIT_ENTRIES(name) ref::name, avx2::name, avx512::name
#else
#define LOWBIT_ENTRIES(name) ref::name, ref::name, ref::name
#endif

Status rms_norm(const RmsNormParams& p, int64_t begin, int64_t end) noexcept {
  return run(LOWBIT_ENTRIES(rms_norm), p, begin, end);
}

Status rotary_append(const RotaryAppendParams& p, int64_t begin, int64_t end) noexcept {
  return run(LOWBIT_ENTRIES(rotary_append), p, begin, end);
}

Status attention(const AttentionParams& p, int64_t begin, int64_t end) noexcept {
  // The vector kernels take whole vectors of a head.
  if (p.head_dim % 16 != 0) return ref::attention(p, begin, end);
  return run(LOWBIT_ENTRIES(attention), p, begin, end);
}

Status silu_mul(const SiluMulParams& p, int64_t begin, int64_t end) noexcept {
  return run(LOWBIT_ENTRIES(silu_mul), p, begin, end);
}

Status linear_dense(const LinearDenseParams& p, int64_t begin, int64_t end) noexcept {
  return run(LOWBIT_ENTRIES(linear_dense), p, begin, end);
}

Status widen(const WidenParams& p, int64_t begin, int64_t end) noexcept {
  return run(LOWBIT_ENTRIES(widen), p, begin, end);
}

}  // namespace lowbit::kernels::cpu
