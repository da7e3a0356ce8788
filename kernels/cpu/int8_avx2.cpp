// LLM.int8() statistics, quantize and dequantize for AVX2.
#include "cpu/vec_avx2.h"

#define LOWBIT_ISA avx2

#include "cpu/int8_simd.h"
