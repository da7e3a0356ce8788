// lowbit quantize, lowbit dequantize.
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/console.h"
#include "cli/load.h"
#include "lowbit/llm/inspect.h"

namespace lowbit::cli {
namespace {

struct Conversion {
  std::string in, out;
  LoadFlags load;
  double max_shard_gib = 5.0;
  bool json = false;

  void add_to(CLI::App& command) {
    command.add_option("IN", in, "Model directory or GGUF file")->required();
    command.add_option("OUT", out, "Directory to write")->required();
    command.add_option("--max-shard-size", max_shard_gib, "Largest file, in GiB")
        ->capture_default_str()
        ->check(CLI::PositiveNumber);
    command.add_flag("--json", json, "Print the facts as JSON");
  }

  /// Throws when OUT is IN, which would be read and overwritten at once.
  void check_paths() const {
    std::error_code ignored;
    TORCH_CHECK(!std::filesystem::equivalent(in, out, ignored),
                "OUT must be another directory than IN, got ", out, ".");
  }

  void save(const llm::CausalLM& model, const char* verb) const {
    llm::SavePretrainedOptions options;
    options.max_shard_bytes = static_cast<int64_t>(max_shard_gib * (int64_t{1} << 30));
    model.save_pretrained(out, options);
    const auto report = model.memory_report();
    if (json) {
      nlohmann::ordered_json schemes;
      for (const auto& device : report.devices) {
        for (const auto& [scheme, bytes] : device.weights) schemes[scheme] = bytes;
      }
      std::cout << nlohmann::ordered_json{{"output", out},
                                          {"parameters", report.parameters},
                                          {"weight_bytes", report.weight_bytes()},
                                          {"schemes", schemes},
                                          {"peak_memory_bytes", peak_memory()}}
                       .dump(2)
                << '\n';
      return;
    }
    std::cout << report << verb << ' ' << report.parameters
              << " parameters: " << human_bytes(report.weight_bytes()) << " of weights in " << out
              << " (peak memory of this process " << human_bytes(peak_memory()) << ")\n";
  }
};

}  // namespace

void add_quantize(CLI::App& app) {
  auto* command = app.add_subcommand(
      "quantize", "Quantize a float model, layer by layer, into a new directory");
  auto flags = std::make_shared<Conversion>();
  flags->add_to(*command);
  flags->load.add_to(*command, false);
  flags->load.quantize.add_to(*command, true);
  command->footer(
      "Example:\n  lowbit quantize SmolLM2-135M.gguf smollm2-nf4 --type nf4 --double-quant");
  command->callback([flags] {
    flags->check_paths();
    const auto description = llm::inspect(flags->in);
    TORCH_CHECK(!description.config.quantization, flags->in,
                " is quantized already. lowbit dequantize makes a float model of it.");
    const auto model = flags->load.load(flags->in);
    flags->save(model, "Quantized");
  });
}

void add_dequantize(CLI::App& app) {
  auto* command = app.add_subcommand(
      "dequantize", "Turn a quantized model or a GGUF file into a float checkpoint");
  auto flags = std::make_shared<Conversion>();
  flags->add_to(*command);
  flags->load.add_to(*command, false);
  command->footer("Example:\n  lowbit dequantize smollm2-nf4 smollm2-bf16 --dtype bfloat16");
  command->callback([flags] {
    flags->check_paths();
    auto model = flags->load.load(flags->in);
    model.dequantize_();
    flags->save(model, "Wrote");
  });
}

}  // namespace lowbit::cli
