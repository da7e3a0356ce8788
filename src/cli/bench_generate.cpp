// lowbit bench generate: prefill and decode speed of a model, from files or of a shape.
#include <ATen/DeviceAccelerator.h>
#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/argmax.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/console.h"
#include "cli/load.h"
#include "cli/shapes.h"
#include "lowbit/functional.h"

namespace lowbit::cli {
namespace {

using clock = std::chrono::steady_clock;

double seconds_since(clock::time_point start) {
  return std::chrono::duration<double>(clock::now() - start).count();
}

struct Spread {
  double median, min, max;
  explicit Spread(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    median = values[values.size() / 2];
    min = values.front();
    max = values.back();
  }
};

struct GenerateBench {
  std::string model, shape;
  LoadFlags load;
  int64_t prompt_tokens = 512, new_tokens = 128, batch = 1;
  int repeat = 3;
  bool json = false;

  std::vector<int64_t> prompt(int64_t vocab) const {
    std::vector<int64_t> ids;
    for (int64_t i = 0; i < prompt_tokens; ++i)
      ids.push_back(5 + i * 7919 % std::max<int64_t>(vocab - 5, 1));
    return ids;
  }

  double prefill_rate(const llm::CausalLM& lm, const std::vector<int64_t>& ids) const {
    auto cache = lm.new_cache(1, prompt_tokens + 1);
    const auto start = clock::now();
    (void)lm.next_logits(ids, cache);
    return static_cast<double>(prompt_tokens) / seconds_since(start);
  }

  /// Tokens a second after a prompt of 16, of all sequences together.
  double decode_rate(const llm::CausalLM& lm, const std::vector<int64_t>& ids) const {
    const auto count = std::min<int64_t>(16, prompt_tokens);
    const std::vector<int64_t> head(ids.begin(), ids.begin() + count);
    if (batch == 1) {
      llm::GenerationConfig config;
      config.max_new_tokens = new_tokens;
      config.temperature = 0.0;
      config.eos_token_ids.emplace();  // never stop early
      auto stream = lm.stream(head, config);
      while (stream.next()) {
      }
      return stream.stats().decode_rate();
    }
    const at::NoGradGuard no_grad;
    auto cache = lm.new_cache(batch, prompt_tokens + new_tokens);
    // Every sequence is another one.
    at::Tensor next = (at::tensor(head).unsqueeze(0) + at::arange(batch).unsqueeze(1))
                          .remainder(lm.config().vocab_size);
    const auto step = [&] {
      next = lm.forward(next, &cache).select(1, -1).argmax(-1, /*keepdim=*/true).cpu();
    };
    step();
    const auto start = clock::now();
    for (int64_t i = 1; i < new_tokens; ++i) step();
    return static_cast<double>(batch * (new_tokens - 1)) / seconds_since(start);
  }

  void operator()() const {
    const auto begin = clock::now();
    const auto lm = shape.empty() ? load.load(model) : load.load_random(shape_config(shape));
    const double load_seconds = seconds_since(begin);
    const at::Device device = lm.device();
    const int64_t load_peak = device_peak(device);
    const auto ids = prompt(lm.config().vocab_size);
    std::vector<double> prefills, decodes;
    for (int round = -1; round < repeat; ++round) {  // the first round warms up
      const double prefill = prefill_rate(lm, ids), decode = decode_rate(lm, ids);
      if (round < 0) continue;
      prefills.push_back(prefill);
      decodes.push_back(decode);
    }
    print(Spread(prefills), Spread(decodes), lm.memory_report().weight_bytes(), device, load_peak,
          load_seconds);
  }

  /// Most bytes of the device's memory that were in use; on the CPU, of this process.
  static int64_t device_peak(at::Device device) {
    if (device.is_cpu()) return peak_memory();
    return at::accelerator::getDeviceStats(device.index())
        .allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)]
        .peak;
  }

  void print(const Spread& prefill, const Spread& decode, int64_t bytes, at::Device device,
             int64_t load_peak, double load_seconds) const {
    const std::string name = shape.empty() ? model : shape + " (random weights)";
    if (json) {
      std::cout << nlohmann::ordered_json{{"model", name},
                                          {"device", device.str()},
                                          {"isa", cpu_isa()},
                                          {"threads", at::get_num_threads()},
                                          {"batch", batch},
                                          {"prompt_tokens", prompt_tokens},
                                          {"new_tokens", new_tokens},
                                          {"prefill_tokens_per_s", prefill.median},
                                          {"decode_tokens_per_s", decode.median},
                                          {"decode_min", decode.min},
                                          {"decode_max", decode.max},
                                          {"weight_bytes", bytes},
                                          {"load_seconds", load_seconds},
                                          {"load_peak_bytes", load_peak},
                                          {"peak_memory_bytes", device_peak(device)}}
                       .dump(2)
                << '\n';
      return;
    }
    Table table({"model", "batch", "prefill " + std::to_string(prompt_tokens) + ", tokens/s",
                 "decode, tokens/s", "min", "max", "weights", "peak at load", "peak"});
    table.add({name, std::to_string(batch), fixed(prefill.median, 0), fixed(decode.median, 1),
               fixed(decode.min, 1), fixed(decode.max, 1), human_bytes(bytes),
               human_bytes(load_peak), human_bytes(device_peak(device))});
    std::cout << table.text();
    if (device.is_cpu()) {
      std::cout << "CPU, " << cpu_isa() << ", " << at::get_num_threads() << " threads";
    } else {
      std::cout << device.str();
    }
    std::cout << ", loaded in " << fixed(load_seconds, 1) << " s, median of " << repeat << "\n";
  }
};

}  // namespace

void add_bench_generate(CLI::App& bench) {
  auto generate = std::make_shared<GenerateBench>();
  auto* command = bench.add_subcommand("generate", "Tokens a second of a model: prompt and answer");
  auto* source = command->add_option_group("model", "One of");
  source->add_option("MODEL", generate->model, "Model directory or GGUF file");
  source->add_option("--shape", generate->shape, "A model of this shape with random weights")
      ->check(CLI::IsMember(shape_names()));
  source->require_option(1);
  command->add_option("--batch", generate->batch, "Sequences that are decoded at once")
      ->capture_default_str()
      ->check(CLI::Range(1, 4096));
  command->add_option("--prompt-tokens", generate->prompt_tokens, "Tokens of the prompt")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command->add_option("--new-tokens", generate->new_tokens, "Tokens of the answer, at least 2")
      ->capture_default_str()
      ->check(CLI::Range(2, 1 << 24));
  command->add_option("--repeat", generate->repeat, "Rounds; the median is shown")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command->add_flag("--json", generate->json, "Print as JSON");
  generate->load.add_to(*command);
  command->footer(
      "Examples:\n  lowbit bench generate smollm2-nf4 --prompt-tokens 512 --new-tokens 128\n"
      "  lowbit bench generate --shape llama-8b --type nf4 --double-quant --device cuda:0");
  command->callback([generate] { (*generate)(); });
}

}  // namespace lowbit::cli
