#include "fourbit_kernels.h"

namespace lowbit::kernels::cpu {

const MatmulKernels kMatmulAvx2 = {prepare, run, run_backward};

}  // namespace lowbit::kernels::cpu
