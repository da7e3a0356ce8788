// Everything.
#pragma once

#include "lowbit/error.h"
#include "lowbit/functional.h"
#include "lowbit/quant_state.h"
#include "lowbit/quantize.h"
#include "lowbit/quantized_tensor.h"
#include "lowbit/types.h"
