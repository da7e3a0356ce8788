// The matmul over packed 4-bit weights on the CPU.
#include <algorithm>

#include "lowbit/kernels/fourbit.h"
#include "scales.h"
#include "validate.h"

namespace lowbit::kernels::cpu {
namespace {

constexpr int64_t kSlice = 64;  // columns of K per unit of the backward pass

}  // namespace

Matmul4bitPlan plan_matmul_4bit(const Matmul4bitParams& p) noexcept {
  Matmul4bitPlan plan;
  plan.kernel = "scalar";
  plan.units = p.n;
  plan.grain = 1;
  return plan;
}

Status matmul_4bit_prepare(const Matmul4bitPlan& plan, const Matmul4bitParams& p, int64_t begin,
                           int64_t end) noexcept {
  return check(p, begin, end, plan.prepare_units);
}

Status matmul_4bit(const Matmul4bitPlan&, const Matmul4bitParams& p, int64_t begin,
                   int64_t end) noexcept {
  return ref::matmul_4bit(p, begin, end);
}

Status matmul_4bit_backward_input(const Matmul4bitParams& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, ceil_div(p.k, kSlice));
  if (!status.ok()) return status;
  const float* table = code_table(p.quant_type, p.code);
  for (int64_t slice = begin; slice < end; ++slice) {
    const int64_t first = slice * kSlice;
    const int64_t width = std::min(kSlice, p.k - first);
    for (int64_t m = 0; m < p.m; ++m) {
      double sums[kSlice] = {};
      for (int64_t n = 0; n < p.n; ++n) {
        const double gradient = load_element(p.input, p.dtype, m * p.input_stride + n);
        for (int64_t j = 0; j < width; ++j) {
          const int64_t i = n * p.k + first + j;
          sums[j] += gradient * multiply_flushed(table[code_at(p.packed, i)],
                                                 block_scale(p.scales, i / p.blocksize));
        }
      }
      for (int64_t j = 0; j < width; ++j) {
        store_element(p.output, p.dtype, m * p.k + first + j, static_cast<float>(sums[j]));
      }
    }
  }
  return ok_status();
}

}  // namespace lowbit::kernels::cpu
