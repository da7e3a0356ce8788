#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <atomic>

#include "lowbit/kernels/cpu.h"

namespace lowbit::kernels::cpu {
namespace {

std::atomic<int8_t> chosen{-1};

#if defined(__x86_64__)
// Two features that not every compiler's __builtin_cpu_supports knows by name.
bool has_f16c() noexcept {  // CPUID leaf 1, ECX bit 29
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & (1u << 29)) != 0;
}
bool has_avx512bf16() noexcept {  // CPUID leaf 7.1, EAX bit 5
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & (1u << 5)) != 0;
}
#endif

}  // namespace

Isa detect_isa() noexcept {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
      has_avx512bf16()) {
    return Isa::kAVX512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c() &&
      __builtin_cpu_supports("bmi2")) {
    return Isa::kAVX2;
  }
#endif
  return Isa::kScalar;
}

Isa active_isa() noexcept {
  int8_t isa = chosen.load(std::memory_order_relaxed);
  if (isa < 0) {
    isa = static_cast<int8_t>(detect_isa());
    chosen.store(isa, std::memory_order_relaxed);
  }
  return static_cast<Isa>(isa);
}

Isa set_isa(Isa isa) noexcept {
  const Isa best = detect_isa();
  const Isa used = isa < best ? isa : best;
  chosen.store(static_cast<int8_t>(used), std::memory_order_relaxed);
  return used;
}

const char* isa_name(Isa isa) noexcept {
  switch (isa) {
    case Isa::kScalar:
      return "scalar";
    case Isa::kAVX2:
      return "avx2";
    case Isa::kAVX512:
      return "avx512";
  }
  return "unknown";
}

}  // namespace lowbit::kernels::cpu
