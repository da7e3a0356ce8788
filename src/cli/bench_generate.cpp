// lowbit bench generate: prefill and decode speed of a model.
#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/console.h"
#include "cli/load.h"
#include "lowbit/functional.h"

namespace lowbit::cli {
namespace {

struct GenerateBench {
  std::string model;
  LoadFlags load;
  int64_t prompt_tokens = 512, new_tokens = 128;
  int repeat = 3;
  bool json = false;

  static double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
  }

  void operator()() const {
    using clock = std::chrono::steady_clock;
    const auto lm = load.load(model);
    const int64_t vocab = lm.config().vocab_size;
    std::vector<int64_t> ids;
    for (int64_t i = 0; i < prompt_tokens; ++i)
      ids.push_back(5 + i * 7919 % std::max<int64_t>(vocab - 5, 1));
    llm::GenerationConfig config;
    config.max_new_tokens = new_tokens;
    config.temperature = 0.0;
    config.eos_token_ids.emplace();  // never stop early
    std::vector<double> prefill, decode;
    const auto seconds = [](clock::time_point start) {
      return std::chrono::duration<double>(clock::now() - start).count();
    };
    for (int round = -1; round < repeat; ++round) {  // the first round warms up
      auto cache = lm.new_cache(1, prompt_tokens + 1);
      auto start = clock::now();
      (void)lm.next_logits(ids, cache);
      const double prefill_rate = static_cast<double>(prompt_tokens) / seconds(start);
      auto stream =
          lm.stream({ids.begin(), ids.begin() + std::min<int64_t>(16, prompt_tokens)}, config);
      while (stream.next()) {
      }
      if (round < 0) continue;
      prefill.push_back(prefill_rate);
      decode.push_back(stream.stats().decode_rate());
    }
    const int64_t bytes = lm.memory_report().weight_bytes();
    const auto [slowest, fastest] = std::minmax_element(decode.begin(), decode.end());
    if (json) {
      std::cout << nlohmann::ordered_json{{"model", model},
                                          {"isa", cpu_isa()},
                                          {"threads", at::get_num_threads()},
                                          {"prompt_tokens", prompt_tokens},
                                          {"new_tokens", new_tokens},
                                          {"prefill_tokens_per_s", median(prefill)},
                                          {"decode_tokens_per_s", median(decode)},
                                          {"decode_min", *slowest},
                                          {"decode_max", *fastest},
                                          {"weight_bytes", bytes},
                                          {"peak_memory_bytes", peak_memory()}}
                       .dump(2)
                << '\n';
      return;
    }
    Table table({"model", "prefill " + std::to_string(prompt_tokens) + ", tokens/s",
                 "decode, tokens/s", "min", "max", "weights", "peak memory"});
    table.add({model, fixed(median(prefill), 0), fixed(median(decode), 1), fixed(*slowest, 1),
               fixed(*fastest, 1), human_bytes(bytes), human_bytes(peak_memory())});
    std::cout << table.text() << "CPU, " << cpu_isa() << ", " << at::get_num_threads()
              << " threads, median of " << repeat << "\n";
  }
};

}  // namespace

void add_bench_generate(CLI::App& bench) {
  auto generate = std::make_shared<GenerateBench>();
  auto* command = bench.add_subcommand("generate", "Tokens a second of a model: prompt and answer");
  command->add_option("MODEL", generate->model, "Model directory or GGUF file")->required();
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
      "Example:\n  lowbit bench generate smollm2-nf4 --prompt-tokens 512 --new-tokens 128");
  command->callback([generate] { (*generate)(); });
}

}  // namespace lowbit::cli
