// Everything.
#pragma once

#include "lowbit/error.h"
#include "lowbit/functional.h"
#include "lowbit/quant_state.h"
#include "lowbit/types.h"
