// The int8 matmul and the weight-only int8 linear on the CPU.
#include "lowbit/kernels/int8.h"

namespace lowbit::kernels::cpu {

Status matmul_int8(const MatmulInt8Params& p, int64_t begin, int64_t end) noexcept {
  return ref::matmul_int8(p, begin, end);
}

Status linear_int8(const LinearInt8Params& p, int64_t begin, int64_t end) noexcept {
  return ref::linear_int8(p, begin, end);
}

}  // namespace lowbit::kernels::cpu
