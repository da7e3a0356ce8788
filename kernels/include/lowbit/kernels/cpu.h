// Which CPU kernels run. The choice is process-wide and made by the caller: kernels read no
// environment.
#pragma once

#include <cstdint>

namespace lowbit::kernels::cpu {

/// Instruction sets with their own kernels. kScalar runs kernels/ref.
/// kAVX512 means F, BW, DQ, VL, VNNI, VBMI and BF16 together.
enum class Isa : int8_t { kScalar = 0, kAVX2 = 1, kAVX512 = 2 };

/// The best set this processor and operating system support.
Isa detect_isa() noexcept;
/// The set in use: detect_isa() unless set_isa() chose a lower one.
Isa active_isa() noexcept;
/// Uses `isa`, or the best supported set below it. Returns the one now in use.
Isa set_isa(Isa isa) noexcept;
/// "scalar", "avx2", "avx512".
const char* isa_name(Isa isa) noexcept;

}  // namespace lowbit::kernels::cpu
