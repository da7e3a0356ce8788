// Optimizer steps for AVX2.
#include "cpu/vec_avx2.h"

#define LOWBIT_ISA avx2

#include "cpu/optimizer_simd.h"
