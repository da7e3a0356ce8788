// lowbit bench linear, lowbit bench quantize: speed of layers and of quantizing, beside float
// layers and memory copies timed in the same run.
#include "cli/bench.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <functional>

#include "cli/commands.h"
#include "cli/load.h"
#include "lowbit/functional.h"
#include "lowbit/quantize.h"

namespace lowbit::cli {
namespace {

struct Shape {
  int64_t n, k;
};

Shape parse_shape(const std::string& text) {
  Shape shape{};
  char x = 0, rest = 0;
  std::istringstream in(text);
  if (!(in >> shape.n >> x >> shape.k) || x != 'x' || shape.n < 1 || shape.k < 1 || in >> rest) {
    throw CLI::ValidationError("--shapes", "expected NxK such as 4096x4096, got '" + text + "'");
  }
  return shape;
}

QuantizationConfig scheme_config(const std::string& type, bool double_quant) {
  if (type == "nf4") return QuantizationConfig::nf4().double_quant(double_quant);
  if (type == "fp4") return QuantizationConfig::fp4().double_quant(double_quant);
  if (type == "int8") return QuantizationConfig::int8(6.0);
  return QuantizationConfig::int8_weight_only();
}

struct LinearBench {
  std::vector<std::string> shapes = {"4096x4096", "14336x4096", "1536x576"};
  std::vector<int64_t> m = {1, 8, 64, 512};
  std::vector<std::string> types = {"nf4"};
  std::string dtype = "float32";
  bool single_quant = false, backward = false;
  Output output;

  void operator()() const {
    output.begin();
    const auto scalar = llm::dtype_from_name(dtype);
    Table table(
        {"N x K", "M", "type", "us", "spread %", "GB/s", "GFLOP/s", dtype + " us", "ratio"});
    auto rows = nlohmann::ordered_json::array();
    for (const auto& text : shapes) {
      const Shape shape = parse_shape(text);
      const auto w = at::randn({shape.n, shape.k}, at::kFloat).to(scalar);
      for (const auto& type : types) {
        const auto qw = quantize(w, scheme_config(type, !single_quant));
        for (const int64_t tokens : m) measure(shape, tokens, type, w, qw, table, rows);
      }
    }
    output.print(table, rows);
  }

  void measure(Shape shape, int64_t tokens, const std::string& type, const at::Tensor& w,
               const at::Tensor& qw, Table& table, nlohmann::ordered_json& rows) const {
    const auto x =
        at::randn({tokens, shape.k}, at::kFloat).to(w.scalar_type()).requires_grad_(backward);
    const auto g = at::randn({tokens, shape.n}, at::kFloat).to(w.scalar_type());
    const auto run = [&](const at::Tensor& weight) {
      if (!backward) {
        c10::InferenceMode guard;
        at::linear(x.detach(), weight);
        return;
      }
      x.mutable_grad().reset();
      at::linear(x, weight).backward(g);
    };
    const auto t = time_in_turns({[&] { run(qw); }, [&] { run(w); }}, output.seconds);
    const double flops = 2.0 * static_cast<double>(shape.n) * static_cast<double>(shape.k) *
                         static_cast<double>(tokens) * (backward ? 2 : 1);
    const double bytes = static_cast<double>(quantized_nbytes(qw)) * (backward ? 2 : 1);
    const std::string name = std::to_string(shape.n) + "x" + std::to_string(shape.k);
    table.add({name, std::to_string(tokens), type, fixed(t[0].median * 1e6, 1),
               fixed(100 * t[0].spread, 0), fixed(bytes / t[0].median / 1e9, 1),
               fixed(flops / t[0].median / 1e9, 0), fixed(t[1].median * 1e6, 1),
               fixed(t[1].median / t[0].median, 2) + "x"});
    rows.push_back({{"n", shape.n},
                    {"k", shape.k},
                    {"m", tokens},
                    {"type", type},
                    {"backward", backward},
                    {"seconds", t[0].median},
                    {"spread", t[0].spread},
                    {"bytes_per_s", bytes / t[0].median},
                    {"flops", flops / t[0].median},
                    {"float_seconds", t[1].median},
                    {"ratio", t[1].median / t[0].median}});
  }
};

struct QuantizeBench {
  std::vector<std::string> types = {"nf4", "fp4", "int8", "blockwise"};
  int64_t elements = int64_t{1} << 25;
  std::string dtype = "bfloat16";
  Output output;

  void operator()() const {
    output.begin();
    c10::InferenceMode guard;
    const auto scalar = llm::dtype_from_name(dtype);
    const int64_t cols = 4096, count = std::max<int64_t>(elements / cols, 1) * cols;
    const auto w = at::randn({count / cols, cols}, at::kFloat).to(scalar);
    const auto copy = at::empty_like(w);
    Table table({"op", "elements", "us", "spread %", "GB/s", "% of copy"});
    auto rows = nlohmann::ordered_json::array();
    const double wide = static_cast<double>(w.nbytes());
    const auto row = [&](const std::string& name, double bytes, const std::function<void()>& work) {
      const auto t = time_in_turns({work, [&] { copy.copy_(w); }}, output.seconds);
      const double rate = bytes / t[0].median, ceiling = 2 * wide / t[1].median;
      table.add({name, std::to_string(count), fixed(t[0].median * 1e6, 0),
                 fixed(100 * t[0].spread, 0), fixed(rate / 1e9, 1),
                 fixed(100 * rate / ceiling, 0)});
      rows.push_back({{"op", name},
                      {"elements", count},
                      {"seconds", t[0].median},
                      {"spread", t[0].spread},
                      {"bytes_per_s", rate},
                      {"part_of_copy", rate / ceiling}});
    };
    for (const auto& type : types) {
      if (type == "nf4" || type == "fp4") {
        const Quantize4bitOptions options{.quant_type = parse_quant_type(type)};
        const auto [packed, state] = quantize_4bit(w, options);
        const double bytes = wide + static_cast<double>(packed.nbytes() + state.absmax.nbytes());
        row("quantize_4bit " + type, bytes, [&] { quantize_4bit(w, options); });
        row("dequantize_4bit " + type, bytes,
            [&, &packed = packed, &state = state] { dequantize_4bit(packed, state); });
      } else if (type == "int8") {
        row("int8_vectorwise_quant", wide + static_cast<double>(count),
            [&] { int8_vectorwise_quant(w, 6.0); });
      } else {
        const QuantizeBlockwiseOptions options{.blocksize = 256};
        const auto [codes, state] = quantize_blockwise(w, options);
        const double bytes = wide + static_cast<double>(codes.nbytes() + state.absmax.nbytes());
        row("quantize_blockwise 256", bytes, [&] { quantize_blockwise(w, options); });
        row("dequantize_blockwise 256", bytes,
            [&, &codes = codes, &state = state] { dequantize_blockwise(codes, state); });
      }
    }
    output.print(table, rows);
  }
};

}  // namespace

void add_bench(CLI::App& app) {
  auto* bench = app.add_subcommand(
      "bench", "Measure layers, quantization, optimizers or generation on this machine");
  bench->require_subcommand(1);
  bench->footer("Example:\n  lowbit bench linear --shapes 4096x4096 --m 1,8,64 --type nf4");

  auto linear = std::make_shared<LinearBench>();
  auto* command = bench->add_subcommand(
      "linear", "A linear layer, quantized and in floating point, in one run");
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
  command->add_option("--dtype", linear->dtype, "Of activations and of the float layer")
      ->capture_default_str()
      ->check(CLI::IsMember({"float32", "bfloat16", "float16"}));
  command->add_flag("--no-double-quant", linear->single_quant, "Keep 4-bit scales in float32");
  command->add_flag("--backward", linear->backward, "Forward and the gradient of the input");
  linear->output.add_to(*command);
  command->footer(
      "Example:\n  lowbit bench linear --shapes 4096x4096,14336x4096 --m 1,8,64 --type nf4,int8");
  command->callback([linear] { (*linear)(); });

  auto quantize = std::make_shared<QuantizeBench>();
  command =
      bench->add_subcommand("quantize", "Quantize and dequantize, against the speed of a copy");
  command->add_option("--type", quantize->types, "nf4, fp4, int8, blockwise, by commas")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::IsMember({"nf4", "fp4", "int8", "blockwise"}));
  command->add_option("--elements", quantize->elements, "Elements of the tensor")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command->add_option("--dtype", quantize->dtype, "Of the tensor")
      ->capture_default_str()
      ->check(CLI::IsMember({"float32", "bfloat16", "float16"}));
  quantize->output.add_to(*command);
  command->footer("Example:\n  lowbit bench quantize --type nf4 --dtype bfloat16");
  command->callback([quantize] { (*quantize)(); });

  add_bench_optimizer(*bench);
  add_bench_generate(*bench);
}

}  // namespace lowbit::cli
