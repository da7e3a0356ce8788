// Stacks of experts: a mode of the benchmark of the 4-bit matmul on CUDA.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lowbit::bench {

/// shapes: "E/TOPxNxK" (experts, experts of a token); empty: Mixtral 8x7B and Qwen3 30B-A3B.
/// tokens: before routing; empty: 1, 8, 32 and 128. arch and variants: as --arch, --variants. The
/// program's exit code.
int bench_experts(std::vector<std::string> shapes, std::vector<int64_t> tokens, int64_t blocksize,
                  int arch, bool variants);

}  // namespace lowbit::bench
