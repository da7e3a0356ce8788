// What a device's memory gives to a kernel that only reads.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

/// Reads `bytes` (a multiple of 64 KiB) once; `sink` is written only if every bit of some word
/// column is set.
cudaError_t read_everything(const void* from, size_t bytes, uint32_t* sink, cudaStream_t stream);
