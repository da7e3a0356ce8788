// Who multiplies int8 matrices on the device.
#include "lowbit/kernels/int8.h"

namespace lowbit::kernels::cuda {

MatmulInt8Route plan_matmul_int8(int64_t m, int64_t n, int64_t k) noexcept {
  // The library's tensor-core kernels want more than 16 rows and sizes in multiples of 8.
  constexpr int64_t kFewRows = 16;
  // Beyond so many rows, copying both matrices costs less than reading the weight again and again.
  constexpr int64_t kWorthPadding = 64;
  if (m <= kFewRows || n == 0 || k == 0) return MatmulInt8Route::kKernel;
  if (n % 8 == 0 && k % 8 == 0) return MatmulInt8Route::kLibrary;
  return m <= kWorthPadding ? MatmulInt8Route::kKernel : MatmulInt8Route::kPadded;
}

}  // namespace lowbit::kernels::cuda
