// The int8 matmul and the weight-only int8 linear on the CPU: checks and the choice of kernels.
#include "int8_matmul.h"

#include "lowbit/kernels/cpu.h"
#include "validate.h"

namespace lowbit::kernels::cpu {
namespace {

const Int8MatmulKernels* active_kernels() {
#if defined(__x86_64__)
  if (active_isa() == Isa::kAVX512) return &kInt8MatmulAvx512;
  if (active_isa() == Isa::kAVX2) return &kInt8MatmulAvx2;
#endif
  return nullptr;
}

}  // namespace

Status matmul_int8(const MatmulInt8Params& p, int64_t begin, int64_t end) noexcept {
  const Int8MatmulKernels* kernels = active_kernels();
  if (kernels == nullptr) return ref::matmul_int8(p, begin, end);
  const Status status = check(p, begin, end, p.n);
  if (status.ok() && p.m > 0) kernels->matmul(p, begin, end);
  return status;
}

Status linear_int8(const LinearInt8Params& p, int64_t begin, int64_t end) noexcept {
  const Int8MatmulKernels* kernels = active_kernels();
  if (kernels == nullptr) return ref::linear_int8(p, begin, end);
  const Status status = check(p, begin, end, p.n);
  if (status.ok() && p.m > 0) kernels->linear(p, begin, end);
  return status;
}

}  // namespace lowbit::kernels::cpu
