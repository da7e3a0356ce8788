// lowbit run: one answer, or a chat.
#include <unistd.h>

#include <iostream>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/console.h"
#include "cli/load.h"

namespace lowbit::cli {
namespace {

struct Run {
  std::string model, prompt, system;
  LoadFlags load;
  llm::GenerationConfig generation;
  bool raw = false, stats = false, json = false;

  /// One turn: streams the answer to standard output and returns it.
  std::string answer(llm::CausalLM& lm, const llm::Tokenizer& tokenizer,
                     const std::vector<int64_t>& ids, llm::KVCache* cache) const {
    auto stream = lm.stream(ids, generation, cache);
    text::StreamDecoder decoder(tokenizer);
    std::string text;
    const auto emit = [&](const std::string& piece) {
      text += piece;
      if (!json) std::cout << piece << std::flush;
    };
    while (const auto token = stream.next()) emit(decoder.push(*token));
    emit(decoder.flush());
    const auto& s = stream.stats();
    if (json) {
      std::cout << nlohmann::ordered_json{{"text", text},
                                          {"prompt_tokens", s.prompt_tokens},
                                          {"new_tokens", s.new_tokens},
                                          {"time_to_first_token_s", s.prefill_seconds},
                                          {"prefill_tokens_per_s", s.prefill_rate()},
                                          {"decode_tokens_per_s", s.decode_rate()},
                                          {"weight_bytes", lm.memory_report().weight_bytes()},
                                          {"peak_memory_bytes", peak_memory()}}
                       .dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace)
                << '\n';
    } else {
      std::cout << '\n';
      if (stats) {
        std::cerr << "\n"
                  << s.prompt_tokens << " prompt tokens, first token after "
                  << fixed(s.prefill_seconds, 3) << " s (" << fixed(s.prefill_rate(), 0)
                  << " tokens/s); " << s.new_tokens << " new tokens, " << fixed(s.decode_rate(), 1)
                  << " tokens/s; weights " << human_bytes(lm.memory_report().weight_bytes())
                  << ", peak memory " << human_bytes(peak_memory()) << '\n';
      }
    }
    return text;
  }

  std::vector<int64_t> encode(const llm::Tokenizer& tokenizer,
                              const std::vector<text::Message>& messages) const {
    if (raw || tokenizer.chat_template().empty()) return tokenizer.encode(messages.back().content);
    return tokenizer.apply_chat_template(messages);
  }

  /// Ids of the conversation; its oldest turns behind the first `fixed` messages are dropped until
  /// it fits. Empty, and the last message dropped, when even that alone is too long.
  std::vector<int64_t> encode_fitting(const llm::Tokenizer& tokenizer,
                                      std::vector<text::Message>& messages, size_t fixed,
                                      int64_t context) const {
    bool forgot = false;
    auto ids = encode(tokenizer, messages);
    while (static_cast<int64_t>(ids.size()) > context && messages.size() > fixed + 1) {
      const auto first = messages.begin() + static_cast<std::ptrdiff_t>(fixed);
      messages.erase(first, first + 2);  // a question and its answer
      ids = encode(tokenizer, messages);
      forgot = true;
    }
    if (forgot) {
      std::cerr << "lowbit: the conversation fills the context of " << context
                << " tokens; the model forgets the oldest messages.\n";
    }
    if (static_cast<int64_t>(ids.size()) <= context) return ids;
    std::cerr << "lowbit: this message is longer than the context of " << context
              << " tokens: " << ids.size() << ". Send a shorter one.\n";
    messages.pop_back();
    return {};
  }

  void chat(llm::CausalLM& lm, const llm::Tokenizer& tokenizer,
            std::vector<text::Message> messages) const {
    const std::vector<text::Message> beginning = messages;
    auto cache = lm.new_cache();
    const bool terminal = isatty(STDIN_FILENO) != 0;
    if (terminal) std::cout << "Chat with " << model << ". /reset forgets, /exit or Ctrl-D ends.\n";
    std::string line;
    while (true) {
      if (terminal) std::cout << bold("> ") << std::flush;
      if (!std::getline(std::cin, line) || line == "/exit") break;
      if (line == "/reset") {
        messages = beginning;
        continue;
      }
      if (line.empty()) continue;
      messages.push_back({"user", line});
      const auto ids = encode_fitting(tokenizer, messages, beginning.size(), cache.context());
      if (ids.empty()) continue;
      messages.push_back({"assistant", answer(lm, tokenizer, ids, &cache)});
    }
    if (terminal) std::cout << '\n';
  }

  void operator()() const {
    const auto tokenizer = llm::AutoTokenizer::from_pretrained(model);
    auto lm = load.load(model);
    std::vector<text::Message> messages;
    if (!system.empty()) messages.push_back({"system", system});
    if (prompt.empty()) return chat(lm, tokenizer, messages);
    messages.push_back({"user", prompt == "-" ? read_text("-") : prompt});
    answer(lm, tokenizer, encode(tokenizer, messages), nullptr);
  }
};

}  // namespace

void add_run(CLI::App& app) {
  auto* command = app.add_subcommand("run", "Answer a prompt, or chat when no prompt is given");
  command->alias("chat");
  auto run = std::make_shared<Run>();
  command->add_option("MODEL", run->model, "Model directory or GGUF file")->required();
  command->add_option("-p,--prompt", run->prompt, "The prompt; - reads standard input");
  command->add_option("--system", run->system, "A system message");
  command->add_flag("--raw", run->raw, "Continue the text as it is, without the chat template");
  auto& g = run->generation;
  command->add_option("-n,--max-new-tokens", g.max_new_tokens, "Stop after so many tokens")
      ->check(CLI::PositiveNumber);
  command->add_option("--temperature", g.temperature, "0: the likeliest token always")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--top-k", g.top_k, "Sample among the k likeliest")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--top-p", g.top_p, "Sample among the likeliest that sum up to p")
      ->check(CLI::Range(0.0, 1.0));
  command
      ->add_option("--min-p", g.min_p,
                   "Sample among those at least min_p as likely as the likeliest")
      ->check(CLI::Range(0.0, 1.0));
  command
      ->add_option("--repetition-penalty", g.repetition_penalty,
                   "Above 1: avoid tokens that came before")
      ->check(CLI::PositiveNumber);
  command->add_option("--seed", g.seed, "Of sampling; the same seed gives the same text");
  command->add_flag("--stats", run->stats,
                    "Print time to first token, tokens/s and memory (to standard error)");
  command->add_flag("--json", run->json, "Print the answer and its figures as JSON");
  run->load.add_to(*command);
  command->footer(
      "Example:\n  lowbit run smollm2-nf4 -p \"Why is the sky blue?\" --max-new-tokens 100 "
      "--stats");
  command->callback([run] { (*run)(); });
}

}  // namespace lowbit::cli
