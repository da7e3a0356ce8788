// What needs libtorch: one tensor there and back.
#include <ATen/ATen.h>
#include <lowbit/functional.h>

#include <cstdio>

int main() {
  const at::Tensor w = at::randn({32, 64});
  auto [packed, state] = lowbit::quantize_4bit(w, {.quant_type = lowbit::QuantType::kNF4});
  const at::Tensor back = lowbit::dequantize_4bit(packed, state);
  const double error = ((back - w).norm() / w.norm()).item<double>();
  std::printf("relative error of NF4: %.3f\n", error);
  return error > 0.0 && error < 0.15 ? 0 : 1;
}
