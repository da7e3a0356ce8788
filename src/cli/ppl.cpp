// lowbit ppl: perplexity of a text, and how far a second model is from the first.
#include <iostream>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/console.h"
#include "cli/load.h"
#include "lowbit/llm/perplexity.h"

namespace lowbit::cli {
namespace {

struct Ppl {
  std::string model, text, compare;
  LoadFlags load;
  llm::PerplexityOptions options;
  bool json = false;

  static nlohmann::ordered_json facts(const std::string& model, const llm::PerplexityResult& r) {
    return {{"model", model},
            {"perplexity", r.perplexity},
            {"nll", r.nll},
            {"tokens", r.tokens},
            {"seconds", r.seconds}};
  }

  void operator()() {
    const auto ids = llm::AutoTokenizer::from_pretrained(model).encode(read_text(text));
    auto base = load.load(model);
    const int64_t context = base.config().max_position_embeddings;
    if (context > 0) options.ctx = std::min(options.ctx, context);
    ProgressBar bar("Perplexity");
    options.progress = [&](int64_t done, int64_t total) { bar.update(done, total); };
    Table table({"model", "perplexity", "nll", "tokens", "tokens/s"});
    const auto add = [&](const std::string& name, const llm::PerplexityResult& r) {
      table.add({name, fixed(r.perplexity, 4), fixed(r.nll, 5), std::to_string(r.tokens),
                 fixed(static_cast<double>(r.tokens) / std::max(r.seconds, 1e-9), 0)});
    };
    if (compare.empty()) {
      const auto result = llm::perplexity(base, ids, options);
      if (json) {
        std::cout << facts(model, result).dump(2) << '\n';
      } else {
        add(model, result);
        std::cout << table.text();
      }
      return;
    }
    LoadFlags plain = load;  // quantization flags are the first model's
    plain.quantize = {};
    auto other = plain.load(compare);
    const auto result = llm::compare(base, other, ids, options);
    if (json) {
      std::cout << nlohmann::ordered_json{{"base", facts(model, result.base)},
                                          {"other", facts(compare, result.other)},
                                          {"ratio", result.ratio},
                                          {"kl_divergence", result.kl_divergence},
                                          {"max_kl_divergence", result.max_kl_divergence},
                                          {"top1_agreement", result.top1_agreement}}
                       .dump(2)
                << '\n';
      return;
    }
    add(model, result.base);
    add(compare, result.other);
    std::cout << table.text() << "ratio " << fixed(result.ratio, 4) << ", KL divergence "
              << fixed(result.kl_divergence, 5) << " (largest "
              << fixed(result.max_kl_divergence, 3) << "), same most likely token "
              << fixed(100 * result.top1_agreement, 2) << " %\n";
  }
};

}  // namespace

void add_ppl(CLI::App& app) {
  auto* command = app.add_subcommand(
      "ppl", "Perplexity of a text; with --compare also ratio, KL divergence, agreement");
  auto ppl = std::make_shared<Ppl>();
  command->add_option("MODEL", ppl->model, "Model directory or GGUF file")->required();
  command->add_option("--text", ppl->text, "Text file; - reads standard input")->required();
  command->add_option("--ctx", ppl->options.ctx, "Tokens of a window")
      ->capture_default_str()
      ->check(CLI::Range(2, 1 << 24));
  command->add_option("--stride", ppl->options.stride, "Tokens between windows (default: --ctx)")
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--max-tokens", ppl->options.max_tokens, "Use only the first tokens of the text")
      ->check(CLI::PositiveNumber);
  command->add_option("--compare", ppl->compare, "A second model, measured against MODEL");
  command->add_flag("--json", ppl->json, "Print the facts as JSON");
  ppl->load.add_to(*command);
  command->footer(
      "Example:\n  lowbit ppl SmolLM2-135M.gguf --text LICENSE --ctx 512 --compare smollm2-nf4");
  command->callback([ppl] { (*ppl)(); });
}

}  // namespace lowbit::cli
