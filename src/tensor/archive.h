// A quantized weight in one piece of memory, so that torch::save, which writes storages, saves it.
//
// The piece is ["lowbit quantized"][u64: bytes before the safetensors][padding][safetensors: the
// entries of QuantState or int8]. Tensors are marked in the pickle, by the hook that torch has for
// backends' own data, and become quantized again as they are read: torch::load and torch::jit::load
// give quantized weights, whatever the module held before. A process without lowbit refuses such a
// parameter, since its storage is too short.
#pragma once

#include <c10/core/Storage.h>

#include "tensor/payload.h"

namespace lowbit::tensor {

/// A copy of the payload in new CPU memory.
c10::Storage write_archive(const Payload& payload);
/// The payload that lies in `storage`, which it shares. Throws c10::Error for an archive that does
/// not fit together.
PayloadPtr read_archive(const c10::Storage& storage);
/// Whether `storage` begins like an archive.
bool is_archive(const c10::Storage& storage) noexcept;

}  // namespace lowbit::tensor
