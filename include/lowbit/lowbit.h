// Everything.
#pragma once

#include "lowbit/cuda_info.h"
#include "lowbit/error.h"
#include "lowbit/functional.h"
#include "lowbit/llm/auto.h"
#include "lowbit/llm/inspect.h"
#include "lowbit/llm/perplexity.h"
#include "lowbit/nn/embedding.h"
#include "lowbit/nn/linear.h"
#include "lowbit/nn/state_dict.h"
#include "lowbit/quant_state.h"
#include "lowbit/quantize.h"
#include "lowbit/quantized_tensor.h"
#include "lowbit/types.h"
#include "lowbit/version.h"
