// Devices of the command line: by name, and what they are.
#pragma once

#include <c10/core/Device.h>

#include <string>

namespace lowbit::cli {

/// "auto" (the first GPU that lowbit can use, else the CPU), "cpu", "cuda" or "cuda:N". Throws
/// std::runtime_error that says what is missing.
at::Device parse_device(const std::string& text);

/// "NVIDIA H200, driver 580.159.04 (CUDA 13.0)"; "CPU, avx2, 2 threads".
std::string describe_device(at::Device device);

/// Bytes of the cache that a benchmark must not profit from; 0: unknown.
int64_t cache_bytes(at::Device device);

}  // namespace lowbit::cli
