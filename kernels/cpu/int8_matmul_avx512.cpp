// The same kernels as AVX2, with tiles of 12 x 32 and dot products of int16 pairs in one
// instruction.
#include "int8_matmul_kernels.h"

namespace lowbit::kernels::cpu {

const Int8MatmulKernels kInt8MatmulAvx512 = {matmul_int8_range, linear_int8_range};

}  // namespace lowbit::kernels::cpu
