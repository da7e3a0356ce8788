#include "lowbit/quant_state.h"

#include <ATen/ATen.h>

#include "ops/check.h"

namespace lowbit {
namespace {

bool close(const at::Tensor& a, const at::Tensor& b) {
  if (a.defined() != b.defined()) return false;
  if (!a.defined()) return true;
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() && a.device() == b.device() &&
         at::allclose(a.to(at::kFloat), b.to(at::kFloat), /*rtol=*/1e-5, /*atol=*/1e-6);
}

/// The state with every tensor mapped.
template <class Map>
QuantState mapped(const QuantState& state, const Map& map) {
  const auto apply = [&](const at::Tensor& t) { return t.defined() ? map(t) : t; };
  QuantState result = state;
  result.absmax = apply(state.absmax);
  result.code = apply(state.code);
  result.offset = apply(state.offset);
  if (state.nested()) {
    result.state2 = std::make_shared<const QuantState>(mapped(*state.state2, map));
  }
  return result;
}

}  // namespace

int64_t QuantState::numel() const {
  LOWBIT_CHECK(shape.has_value(), "lowbit::QuantState", "shape", "known", "none");
  int64_t result = 1;
  for (const int64_t size : *shape) result *= size;
  return result;
}

QuantState QuantState::to(at::Device device, bool non_blocking) const {
  return mapped(
      *this, [&](const at::Tensor& t) { return t.to(t.options().device(device), non_blocking); });
}

QuantState QuantState::clone() const {
  return mapped(*this, [](const at::Tensor& t) { return t.clone(); });
}

bool QuantState::operator==(const QuantState& other) const {
  if (shape != other.shape || blocksize != other.blocksize || quant_type != other.quant_type ||
      dtype != other.dtype || nested() != other.nested()) {
    return false;
  }
  const bool same_offset = offset.defined() == other.offset.defined() &&
                           (!offset.defined() || at::equal(offset, other.offset));
  return same_offset && close(absmax, other.absmax) && close(code, other.code) &&
         (!nested() || *state2 == *other.state2);
}

}  // namespace lowbit
