// Optimizer kernels of each instruction set. They expect FlushMode and checked arguments.
#pragma once

#include <cstdint>

#include "cpu/blockwise_isa.h"
#include "lowbit/kernels/optimizer.h"

namespace lowbit::kernels::cpu {

/// A map of 8-bit states: how codes are found, and where its values change sign.
struct StateMap {
  const float* values;
  MapSearch search;
  int last_negative = 0;   ///< last code whose value has the sign bit (0 if none)
  int first_unsigned = 0;  ///< first code whose value has none (255 if none)
  int first_positive = 0;  ///< 255 if none

  explicit StateMap(const float* map) noexcept;
};

/// Of an OptimizerParams with 8-bit states; null otherwise. map2 is null without second states.
struct StateMaps {
  const StateMap* map1 = nullptr;
  const StateMap* map2 = nullptr;
};

namespace avx2 {
void optimizer_norms(const OptimizerParams& params, int64_t begin, int64_t end) noexcept;
void optimizer_step(const OptimizerParams& params, StateMaps maps, int64_t begin,
                    int64_t end) noexcept;
}  // namespace avx2

namespace avx512 {
void optimizer_norms(const OptimizerParams& params, int64_t begin, int64_t end) noexcept;
void optimizer_step(const OptimizerParams& params, StateMaps maps, int64_t begin,
                    int64_t end) noexcept;
}  // namespace avx512

}  // namespace lowbit::kernels::cpu
