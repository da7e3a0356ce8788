// LOWBIT_VERBOSE=dispatch: which kernel a matmul runs on, said once for each distinct problem.
#pragma once

#include <c10/core/Device.h>

#include <string_view>

#include "lowbit/kernels/fourbit.h"

namespace lowbit::ops {

/// Whether LOWBIT_VERBOSE asks for it; read once.
bool logs_plans();

/// The problem and its plan as a libtorch warning, the first time that they come: libtorch writes
/// warnings to stderr unless the program has set a handler (c10::WarningUtils). `members`: weights
/// over one input; one for a plain product. `library`: the weight is dequantized for cuBLAS.
void log_plan(std::string_view op, c10::Device device, const kernels::Matmul4bitParams* members,
              int32_t count, const kernels::Matmul4bitCudaPlan& plan, bool library);
void log_plan(std::string_view op, const kernels::Matmul4bitParams* members, int32_t count,
              const kernels::Matmul4bitPlan& plan);

}  // namespace lowbit::ops
