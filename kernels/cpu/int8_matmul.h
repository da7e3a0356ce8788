// What the int8 matmul's dispatch and its kernels agree on.
#pragma once

#include "lowbit/kernels/int8.h"

namespace lowbit::kernels::cpu {

/// One instruction set's kernels over output columns [begin, end) of a problem that is not empty.
struct Int8MatmulKernels {
  void (*matmul)(const MatmulInt8Params& params, int64_t begin, int64_t end);
  void (*linear)(const LinearInt8Params& params, int64_t begin, int64_t end);
};
extern const Int8MatmulKernels kInt8MatmulAvx2;
extern const Int8MatmulKernels kInt8MatmulAvx512;

}  // namespace lowbit::kernels::cpu
