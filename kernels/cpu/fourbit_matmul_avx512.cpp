// The same kernels as AVX2, compiled for 32 registers of 512 bits: tiles of 12 x 32, dot products
// of int16 pairs in one instruction.
#include "fourbit_kernels.h"

namespace lowbit::kernels::cpu {

const MatmulKernels kMatmulAvx512 = {prepare, run, run_backward};

}  // namespace lowbit::kernels::cpu
