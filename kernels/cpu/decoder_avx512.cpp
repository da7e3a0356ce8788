#define LOWBIT_ISA avx512
#include "cpu/decoder_impl.h"
