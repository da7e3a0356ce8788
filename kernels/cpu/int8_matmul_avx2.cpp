#include "int8_matmul_kernels.h"

namespace lowbit::kernels::cpu {

const Int8MatmulKernels kInt8MatmulAvx2 = {matmul_int8_range, linear_int8_range};

}  // namespace lowbit::kernels::cpu
