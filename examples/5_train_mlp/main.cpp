// A network for pictures of digits, trained with 8-bit and with 32-bit optimizer states. The digits
// are drawn here: ten random strokes, moved, dimmed and covered with noise.
#include <lowbit/lowbit.h>
#include <torch/torch.h>

#include <iostream>

struct Digits {
  torch::Tensor prototypes = (torch::randn({10, 28, 28}) > 0.8).to(torch::kFloat);

  std::pair<torch::Tensor, torch::Tensor> batch(int64_t size) const {
    auto labels = torch::randint(10, {size});
    auto images = prototypes.index_select(0, labels) * (torch::rand({size, 1, 1}) * 0.5 + 0.5);
    images = images.roll({torch::randint(-1, 2, {1}).item<int64_t>()}, {2});
    return {(images + torch::randn({size, 28, 28}) * 0.7).flatten(1), labels};
  }
};

template <class Optimizer>
double train(const char* name) {
  torch::manual_seed(0);
  Digits digits;
  torch::nn::Sequential net(torch::nn::Linear(784, 256), torch::nn::ReLU(),
                            torch::nn::Linear(256, 10));
  Optimizer optimizer(net->parameters(), lowbit::optim::AdamWOptions(1e-3).weight_decay(0.01));
  torch::optim::StepLR schedule(optimizer, /*step_size=*/100, /*gamma=*/0.5);
  double loss = 0;
  for (int step = 0; step < 300; ++step) {
    auto [images, labels] = digits.batch(64);
    optimizer.zero_grad();
    auto error = torch::nn::functional::cross_entropy(net->forward(images), labels);
    error.backward();
    optimizer.step();
    schedule.step();
    loss = 0.95 * loss + 0.05 * error.item<double>();
  }
  std::cout << name << ": loss " << loss << ", " << optimizer.state_bytes() << " bytes of states\n";
  return loss;
}

int main() {
  const double eight = train<lowbit::optim::AdamW8bit>("AdamW8bit ");
  const double full = train<lowbit::optim::AdamW32bit>("AdamW32bit");
  return eight < 1.0 && full < 1.0 && eight < 1.2 * full + 0.02 ? 0 : 1;
}
