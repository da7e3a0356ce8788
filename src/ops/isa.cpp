// LOWBIT_CPU_ISA, read once when the library is loaded.
#include <c10/util/Exception.h>

#include <cstdlib>
#include <string_view>

#include "lowbit/functional.h"
#include "lowbit/kernels/cpu.h"

namespace lowbit {
namespace {

using kernels::cpu::Isa;

// A wrong word must not stop a program before main(): it is reported and the best set is used.
[[maybe_unused]] const bool chosen = [] {
  const char* word = std::getenv("LOWBIT_CPU_ISA");
  if (word == nullptr || *word == '\0') return false;
  for (const Isa isa : {Isa::kScalar, Isa::kAVX2, Isa::kAVX512}) {
    if (std::string_view(word) != kernels::cpu::isa_name(isa)) continue;
    kernels::cpu::set_isa(isa);
    return true;
  }
  TORCH_WARN("LOWBIT_CPU_ISA must be scalar, avx2 or avx512, got \"", word, "\". It is ignored.");
  return false;
}();

}  // namespace

const char* cpu_isa() { return kernels::cpu::isa_name(kernels::cpu::active_isa()); }

}  // namespace lowbit
