// Any torch::nn model, quantized in place: the same class, the same forward, a quarter of the
// bytes.
#include <lowbit/lowbit.h>
#include <torch/torch.h>

#include <iostream>

int main() {
  torch::manual_seed(0);
  torch::nn::Sequential net(torch::nn::Linear(1024, 4096), torch::nn::SiLU(),
                            torch::nn::Linear(4096, 1024));
  net->to(torch::kBFloat16);
  auto x = torch::randn({8, 1024}, torch::kBFloat16).requires_grad_();
  auto before = net->forward(x).detach();

  auto report = lowbit::quantize_(*net, lowbit::QuantizationConfig::nf4().double_quant(true));
  std::cout << report;       // layer, shape, scheme, bytes before and after, error
  auto y = net->forward(x);  // fused kernels
  y.sum().backward();        // the gradient flows to x, through the 4-bit weights

  const double error = ((y - before).norm() / before.norm()).item<double>();
  std::cout << "relative error of the output: " << error << "\n";
  return error < 0.2 && x.grad().defined() ? 0 : 1;
}
