#include "optim/paging.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "ops/paged.h"

namespace lowbit::optim {

PagedBytes Optimizer::paged_bytes() const {
  PagedBytes bytes{.note = paged_note_};
  for (const auto& [key, state] : state_) {
    const auto& s = static_cast<const State&>(*state);
    if (!s.paged) continue;
    int64_t& sum = *s.paged == PagedMemory::kManaged ? bytes.managed : bytes.pinned;
    for (const at::Tensor* t : {&s.state1, &s.state2}) {
      if (t->defined()) sum += static_cast<int64_t>(t->nbytes());
    }
  }
  return bytes;
}

bool is_paged(const StepConfig& config, const at::Tensor& p) {
  // Smaller ones are not worth a trip over the bus.
  return ops::kHasCuda && config.is_paged && p.is_cuda() && p.numel() >= 100000;
}

PagedMemory Optimizer::choose_paged(const StepConfig& config, at::Device device, int64_t bytes,
                                    int64_t managed) {
  if (config.paged_memory == PagedMemory::kPinned) return PagedMemory::kPinned;
  if constexpr (ops::kHasCuda) {
    const int64_t room =
        config.paged_budget ? *config.paged_budget - managed : ops::cuda::free_bytes(device);
    if (!ops::cuda::can_page(device)) {
      paged_note_ = c10::str(device, " cannot page managed memory");
    } else if (bytes > room) {
      paged_note_ =
          c10::str("states of ", bytes, " bytes are more than ",
                   config.paged_budget ? "paged_budget leaves, " : "the device has free, ",
                   std::max<int64_t>(room, 0));
    } else {
      return PagedMemory::kManaged;
    }
    TORCH_WARN_ONCE(name_, ": ", paged_note_,
                    ": they are in pinned host memory, which every step reads and writes over the "
                    "bus. Optimizer::paged_bytes() says how many.");
  }
  return PagedMemory::kPinned;
}

at::Tensor paged_zeros(const char* op, at::IntArrayRef sizes, at::ScalarType dtype,
                       at::Device device, PagedMemory& memory) {
  if constexpr (ops::kHasCuda) {
    if (memory == PagedMemory::kManaged) {
      at::Tensor tensor = ops::cuda::managed_zeros(op, sizes, dtype, device);
      if (tensor.defined()) return tensor;
      memory = PagedMemory::kPinned;  // the driver refused
    }
    return ops::cuda::pinned_zeros(op, sizes, dtype, device);
  }
  return at::zeros(sizes, at::TensorOptions().device(device).dtype(dtype));
}

}  // namespace lowbit::optim
