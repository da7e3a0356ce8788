// What it takes, besides the codes, to read a block-wise quantized tensor.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lowbit/types.h"

namespace lowbit {

/// Statistics of a block-wise quantized tensor. Copies share their tensors; clone() does not.
///
/// Plain:  value = code[q] * absmax[i / blocksize].
/// Nested ("double quantization", QLoRA section 3): absmax holds 8-bit codes, and the scale of
/// block j is
///         state2->code[absmax[j]] * state2->absmax[j / state2->blocksize] + offset.
struct QuantState {
  at::Tensor absmax = {};  ///< [ceil(numel / blocksize)], float32; uint8 when nested
  std::optional<std::vector<int64_t>> shape =
      {};                ///< of the original tensor; none for 8-bit states
  at::Tensor code = {};  ///< float32 [16] (4-bit, in code order) or [256] (8-bit)
  int64_t blocksize = 64;
  std::optional<QuantType> quant_type = {};       ///< none for 8-bit states
  at::ScalarType dtype = at::kFloat;              ///< of the original tensor
  at::Tensor offset = {};                         ///< float32, 0-dim; undefined unless nested
  std::shared_ptr<const QuantState> state2 = {};  ///< second level; null unless nested

  bool nested() const noexcept { return state2 != nullptr; }
  /// Elements of the original tensor. Throws when there is no shape.
  int64_t numel() const;

  /// The same state with its tensors on `device`. Tensors that are there already are shared.
  QuantState to(at::Device device, bool non_blocking = false) const;
  /// Tensors copied.
  QuantState clone() const;

  /// absmax and code within 1e-6 (1e-5 relative), everything else exactly, state2 likewise.
  bool operator==(const QuantState& other) const;

  /// The keys of the ecosystem's files, without the weight's name: absmax, quant_map,
  /// nested_absmax, nested_quant_map, and the rest (quant_type, blocksize, dtype, shape, nested_*)
  /// as plain values; or, with `packed`, as one uint8 tensor of JSON named
  /// "quant_state.bitsandbytes__nf4" (or fp4). 8-bit states have no packed form and give the plain
  /// one. shape is None when there is none.
  std::map<std::string, c10::IValue> as_dict(bool packed = false) const;
  /// as_dict(true) of a 4-bit state: every value is a tensor. Throws for 8-bit states.
  std::map<std::string, at::Tensor> as_tensors() const;

  /// Reads either form; keys may carry any dotted prefix. Dtypes, lengths and numbers are checked.
  /// Throws c10::Error that names the key, what was expected and what came.
  static QuantState from_dict(const std::map<std::string, c10::IValue>& dict,
                              at::Device device = at::kCPU);
  /// The packed form, as files hold it.
  static QuantState from_tensors(const std::map<std::string, at::Tensor>& dict,
                                 at::Device device = at::kCPU);
};

}  // namespace lowbit
