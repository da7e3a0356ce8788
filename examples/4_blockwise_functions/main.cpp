// The stateless functions: tensors in, tensors out.
#include <lowbit/lowbit.h>
#include <torch/torch.h>

#include <iostream>

int main() {
  torch::manual_seed(0);
  auto w = torch::randn({256, 512}), x = torch::randn({4, 512});

  // 4-bit weights, half a byte each, and a product that reads them as they are.
  auto [packed, state] =
      lowbit::quantize_4bit(w, {.blocksize = 64, .quant_type = lowbit::QuantType::kNF4});
  auto y = lowbit::matmul_4bit(x, packed, state);

  // 8-bit codes of any tensor: optimizer states, caches, gradients.
  auto [codes, statistics] = lowbit::quantize_blockwise(x, {.blocksize = 256});
  auto x2 = lowbit::dequantize_blockwise(codes, statistics);

  // LLM.int8(): rows of weights in 8 bits, activations in 8 bits except for outliers.
  auto [CB, SCB, none] = lowbit::int8_vectorwise_quant(w);
  auto y8 = lowbit::matmul_8bit(x, CB, SCB, std::nullopt, /*threshold=*/6.0);

  auto exact = torch::matmul(x, w.t());
  auto error = [](const torch::Tensor& a, const torch::Tensor& b) {
    return ((a - b).norm() / b.norm()).item<double>();
  };
  std::cout << "relative errors: nf4 " << error(y, exact) << ", block-wise 8-bit " << error(x2, x)
            << ", int8 " << error(y8, exact) << "\n";
  return error(y, exact) < 0.15 && error(x2, x) < 0.02 && error(y8, exact) < 0.03 ? 0 : 1;
}
