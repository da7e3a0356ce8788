// Well-known model shapes, for benchmarks without files.
#pragma once

#include <string>
#include <vector>

#include "lowbit/io/hf_config.h"

namespace lowbit::cli {

std::vector<std::string> shape_names();
/// A bfloat16 Llama of that name. Throws std::out_of_range for an unknown one.
io::ModelConfig shape_config(const std::string& name);

}  // namespace lowbit::cli
