// Block-wise 8-bit quantization for AVX2.
#include "cpu/vec_avx2.h"

#define LOWBIT_ISA avx2

#include "cpu/blockwise_simd.h"
