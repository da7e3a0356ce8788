// Overrides applied to the values of a group.
#pragma once

#include "lowbit/optim/optimizer.h"

namespace lowbit::optim {

void apply(const ParameterOverride& override, StepValues& values, StepConfig& config);

}  // namespace lowbit::optim
