// Block-wise 8-bit quantization for AVX-512.
#include "cpu/vec_avx512.h"

#define LOWBIT_ISA avx512

#include "cpu/blockwise_simd.h"
