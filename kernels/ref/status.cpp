#include "lowbit/kernels/types.h"
