// Subnormals as zeros, for as long as the object lives.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace lowbit::kernels::cpu {

/// Sets flush-to-zero and denormals-are-zero, and rounding to nearest. Work done under it belongs
/// into functions of another file: compilers move arithmetic across the mode register within one.
class FlushMode {
 public:
#if defined(__x86_64__)
  FlushMode() noexcept : saved_(_mm_getcsr()) {
    constexpr unsigned kRounding = 0x6000, kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
    _mm_setcsr((saved_ & ~kRounding) | kFlushToZero | kDenormalsAreZero);
  }
  ~FlushMode() { _mm_setcsr(saved_); }
#else
  FlushMode() noexcept {}
#endif
  FlushMode(const FlushMode&) = delete;
  FlushMode& operator=(const FlushMode&) = delete;

 private:
#if defined(__x86_64__)
  unsigned saved_;
#endif
};

}  // namespace lowbit::kernels::cpu
