// Optimizer steps for AVX-512.
#include "cpu/vec_avx512.h"

#define LOWBIT_ISA avx512

#include "cpu/optimizer_simd.h"
