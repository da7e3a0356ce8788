// LLM.int8() statistics, quantize and dequantize for AVX-512.
#include "cpu/vec_avx512.h"

#define LOWBIT_ISA avx512

#include "cpu/int8_simd.h"
