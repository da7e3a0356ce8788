#define LOWBIT_ISA avx2
#include "cpu/decoder_impl.h"
