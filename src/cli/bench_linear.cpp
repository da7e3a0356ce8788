// lowbit bench linear: a quantized linear layer beside the floating-point one of libtorch (cuBLAS
// on a GPU), over shapes, tokens and types.
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

#include "cli/bench_report.h"
#include "cli/commands.h"
#include "cli/device.h"
#include "cli/load.h"
#include "cli/stopwatch.h"
#include "lowbit/quantize.h"

namespace lowbit::cli {
namespace {

using nlohmann::ordered_json;

/// Features of activations that are outliers: one in a thousand, 20 times as large.
constexpr int64_t kOutlierStep = 1000;
constexpr double kOutlierScale = 20.0;

/// Copies of a weight, taken in turns, that together are more than four times the cache.
int64_t rotation(int64_t bytes, int64_t cache) { return cache == 0 ? 1 : 4 * cache / bytes + 2; }

/// `count` weights, each in memory of its own.
template <class Make>
std::vector<at::Tensor> made(const Make& make, int64_t count) {
  std::vector<at::Tensor> all;
  while (static_cast<int64_t>(all.size()) < count) all.push_back(make());
  return all;
}

Stopwatch::Work forward(const at::Tensor& x, const std::vector<at::Tensor>& weights) {
  return [=](int64_t call) {
    const c10::InferenceMode guard;
    at::linear(x, weights[static_cast<size_t>(call) % weights.size()]);
  };
}

/// The gradient of x alone: the forward passes are done once, and their graphs kept.
Stopwatch::Work backward(const at::Tensor& x, const at::Tensor& g,
                         const std::vector<at::Tensor>& weights) {
  const at::Tensor input = x.detach().requires_grad_();
  std::vector<at::Tensor> outputs;
  outputs.reserve(weights.size());
  for (const at::Tensor& weight : weights) outputs.push_back(at::linear(input, weight));
  return [=](int64_t call) {
    torch::autograd::grad({outputs[static_cast<size_t>(call) % outputs.size()]}, {input}, {g},
                          /*retain_graph=*/true);
  };
}

struct LinearBench {
  std::vector<std::string> shapes = {"4096x4096", "14336x4096", "1536x576"};
  std::vector<int64_t> m = {1, 8, 64, 512};
  std::vector<std::string> types = {"nf4"};
  std::string dtype = "auto";
  int64_t blocksize = 64;
  bool single_quant = false, with_backward = false;
  BenchOptions options;

  struct Ceilings {
    double copy, dense, int8;
  };

  QuantizationConfig config(const std::string& type) const {
    if (type == "int8") return QuantizationConfig::int8(6.0);
    if (type == "int8_weight_only") return QuantizationConfig::int8_weight_only();
    auto config = type == "nf4" ? QuantizationConfig::nf4() : QuantizationConfig::fp4();
    return config.blocksize(blocksize).double_quant(!single_quant);
  }

  void operator()() const {
    std::vector<Shape> parsed;
    for (const std::string& text : shapes) parsed.push_back(parse_shape(text));
    const at::Device device = options.begin();
    const std::string name = dtype != "auto" ? dtype : device.is_cpu() ? "float32" : "bfloat16";
    const auto scalar = llm::dtype_from_name(name);
    const std::string dense = (device.is_cpu() ? "float " : "cuBLAS ") + name;
    const Stopwatch watch(device, options.seconds);
    const bool int8 = std::find(types.begin(), types.end(), "int8") != types.end();
    const bool integers = int8 && !device.is_cpu();
    Ceilings ceilings{watch.copy_rate(), watch.matmul_rate(scalar), 0};
    ceilings.int8 = integers ? watch.matmul_rate(at::kChar) : ceilings.dense;

    BenchReport report(
        "linear", device,
        {"N x K", "M", "type", "pass", "us", "spread %", "rate", "% of ceiling", dense + " us",
         "ratio"},
        {{"dtype", name}, {"blocksize", blocksize}, {"double_quant", !single_quant}});
    report.add_ceiling("copy", ceilings.copy, "B");
    report.add_ceiling(name + " matmul", ceilings.dense, "FLOP");
    if (integers) report.add_ceiling("int8 matmul", ceilings.int8, "FLOP");
    report.add_note(std::string("4 bits: blocksize ") + std::to_string(blocksize) +
                    (single_quant ? ", float32 scales." : ", double quantization.") +
                    (int8 ? " int8: threshold 6, 0.1 % of the features are outliers." : "") +
                    " Medians; spread is (p90 - p10) / median.");
    at::manual_seed(1);
    for (const Shape& shape : parsed) {
      const auto w =
          at::empty({shape.n, shape.k}, at::device(device).dtype(scalar)).normal_(0, 0.02);
      const int64_t cache = cache_bytes(device);
      const auto float_weights =
          made([&] { return w.clone(); }, rotation(static_cast<int64_t>(w.nbytes()), cache));
      for (const auto& type : types) {
        const auto quantized = [&] { return quantize(w, config(type)); };
        const auto weights = made(quantized, rotation(quantized_nbytes(quantized()), cache));
        for (const int64_t tokens : m) {
          for (int pass = 0; pass < (with_backward ? 2 : 1); ++pass) {
            measure(watch, ceilings, shape, tokens, type, pass == 1, weights, float_weights,
                    report);
          }
        }
      }
    }
    report.print(options);
  }

  void measure(const Stopwatch& watch, const Ceilings& ceilings, Shape shape, int64_t tokens,
               const std::string& type, bool is_backward, const std::vector<at::Tensor>& weights,
               const std::vector<at::Tensor>& float_weights, BenchReport& report) const {
    const auto like = float_weights.front().options();
    const at::Tensor x = at::empty({tokens, shape.k}, like).normal_();
    x.slice(1, 0, shape.k, kOutlierStep).mul_(kOutlierScale);
    const at::Tensor g = at::empty({tokens, shape.n}, like).normal_();
    const auto t = is_backward ? watch({backward(x, g, weights), backward(x, g, float_weights)})
                               : watch({forward(x, weights), forward(x, float_weights)});
    const double seconds = t[0].median, float_seconds = t[1].median;
    const double flops = 2.0 * static_cast<double>(shape.n) * static_cast<double>(shape.k) *
                         static_cast<double>(tokens);
    const double bytes = static_cast<double>(quantized_nbytes(weights.front())) +
                         static_cast<double>(x.nbytes() + g.nbytes());
    // The gradient of LLM.int8() is a product in floating point.
    const double peak = type == "int8" && !is_backward ? ceilings.int8 : ceilings.dense;
    const double of_memory = bytes / ceilings.copy, of_arithmetic = flops / peak;
    const double part = std::max(of_memory, of_arithmetic) / seconds;
    const char* pass = is_backward ? "backward" : "forward";
    report.add({shape.text(), std::to_string(tokens), type, pass,
                fixed(seconds * 1e6, seconds < 1e-4 ? 2 : 1), fixed(100 * t[0].spread, 0),
                of_memory > of_arithmetic ? rate_text(bytes / seconds, "B")
                                          : rate_text(flops / seconds, "FLOP"),
                fixed(100 * part, 0), fixed(float_seconds * 1e6, seconds < 1e-4 ? 2 : 1),
                fixed(float_seconds / seconds, 2) + "x"},
               {{"n", shape.n},
                {"k", shape.k},
                {"m", tokens},
                {"type", type},
                {"backward", is_backward},
                {"seconds", seconds},
                {"spread", t[0].spread},
                {"bytes_per_s", bytes / seconds},
                {"flops", flops / seconds},
                {"part_of_ceiling", part},
                {"float_seconds", float_seconds},
                {"ratio", float_seconds / seconds}});
  }
};

}  // namespace

void add_bench_linear(CLI::App& bench) {
  auto linear = std::make_shared<LinearBench>();
  auto* command =
      bench.add_subcommand("linear", "A linear layer, quantized and in floating point, in one run");
  command->add_option("--shapes", linear->shapes, "Weights as NxK, by commas")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--m", linear->m, "Tokens, by commas")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command->add_option("--type", linear->types, "nf4, fp4, int8, int8_weight_only, by commas")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::IsMember({"nf4", "fp4", "int8", "int8_weight_only"}));
  command
      ->add_option("--dtype", linear->dtype,
                   "Of activations and of the float layer; auto: float32 on the CPU, bfloat16 on a "
                   "GPU")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "float32", "bfloat16", "float16"}));
  command->add_option("--blocksize", linear->blocksize, "4-bit: weights that share a scale")
      ->capture_default_str()
      ->check(CLI::IsMember({32, 64, 128, 256, 512, 1024, 2048, 4096}));
  command->add_flag("--no-double-quant", linear->single_quant, "Keep 4-bit scales in float32");
  command->add_flag("--backward", linear->with_backward,
                    "Also the gradient of the input, in rows of its own");
  linear->options.add_to(*command);
  command->footer(
      "Examples:\n"
      "  lowbit bench linear --shapes 4096x4096,14336x4096 --m 1,8,64 --type nf4,int8\n"
      "  lowbit bench linear --device cuda:0 --backward -o linear.md -o linear.json");
  command->callback([linear] { (*linear)(); });
}

}  // namespace lowbit::cli
