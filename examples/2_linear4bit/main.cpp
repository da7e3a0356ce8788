// A 4-bit layer in a model of your own: convert a float layer, run it, save it, load it.
#include <lowbit/lowbit.h>
#include <torch/torch.h>

#include <iostream>
#include <sstream>

int main() {
  torch::manual_seed(0);
  torch::nn::Linear linear(torch::nn::LinearOptions(512, 256));
  auto x = torch::randn({4, 512});

  namespace nn = lowbit::nn;
  auto options = nn::Linear4bitOptions(512, 256).quant_type("nf4").double_quant(true);
  nn::Linear4bit layer = nn::Linear4bit::from(linear, options);
  auto y = layer->forward(x);

  std::stringstream file;
  torch::save(layer, file);  // packed codes and statistics, not floats
  nn::Linear4bit loaded(options);
  torch::load(loaded, file);

  const double error = ((y - linear->forward(x)).norm() / y.norm()).item<double>();
  const bool same = torch::equal(loaded->forward(x), y);
  std::cout << "relative error: " << error << ", loaded layer gives the same: " << same << "\n";
  return error < 0.2 && same ? 0 : 1;
}
