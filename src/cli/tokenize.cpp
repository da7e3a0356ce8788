// lowbit tokenize: ids and pieces of a text, or the text of ids.
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/commands.h"
#include "cli/console.h"
#include "cli/load.h"

namespace lowbit::cli {
namespace {

constexpr auto kReplace = nlohmann::ordered_json::error_handler_t::replace;

struct Tokenize {
  std::string model, text;
  bool decode = false, no_special = false, json = false;

  /// "1, 2 3" and "[1,2,3]" are all read.
  std::vector<int64_t> parse_ids() const {
    std::string spaced = text;
    for (char& c : spaced) {
      if (c == ',' || c == '[' || c == ']') c = ' ';
    }
    std::istringstream in(spaced);
    std::vector<int64_t> ids;
    std::string word;
    while (in >> word) {
      size_t used = 0;
      int64_t id = -1;
      try {
        id = std::stoll(word, &used);
      } catch (const std::exception&) {
        used = 0;
      }
      if (used != word.size() || id < 0)
        throw CLI::ValidationError("TEXT", "'" + word + "' is not a token id");
      ids.push_back(id);
    }
    return ids;
  }

  void operator()() const {
    const auto tokenizer = llm::AutoTokenizer::from_pretrained(model);
    if (decode) {
      const std::string decoded =
          static_cast<const text::Tokenizer&>(tokenizer).decode(parse_ids(), no_special);
      std::cout << (json ? nlohmann::ordered_json{{"text", decoded}}.dump(2, ' ', false, kReplace)
                         : decoded)
                << '\n';
      return;
    }
    const auto ids = tokenizer.encode(text == "-" ? read_text("-") : text, !no_special);
    if (json) {
      std::vector<std::string> pieces;
      for (int64_t id : ids) pieces.push_back(tokenizer.token(id));
      std::cout << nlohmann::ordered_json{{"ids", ids}, {"pieces", pieces}}.dump(2, ' ', false,
                                                                                 kReplace)
                << '\n';
      return;
    }
    Table table({"id", "piece"});
    for (int64_t id : ids) table.add({std::to_string(id), tokenizer.token(id)});
    std::cout << table.text() << ids.size() << " tokens\n";
  }
};

}  // namespace

void add_tokenize(CLI::App& app) {
  auto* command =
      app.add_subcommand("tokenize", "Token ids and pieces of a text; --decode goes back");
  auto tokenize = std::make_shared<Tokenize>();
  command->add_option("MODEL", tokenize->model, "Model directory or GGUF file")->required();
  command
      ->add_option("TEXT", tokenize->text,
                   "A text (- reads standard input); with --decode: ids, e.g. \"1 2 3\"")
      ->required();
  command->add_flag("--decode", tokenize->decode, "TEXT holds ids: print their text");
  command->add_flag("--no-special", tokenize->no_special,
                    "Add no special tokens; with --decode: leave them out");
  command->add_flag("--json", tokenize->json, "Print as JSON");
  command->footer(
      "Example:\n  lowbit tokenize smollm2-nf4 \"Hello, world\"\n  lowbit tokenize smollm2-nf4 "
      "--decode \"504 28807\"");
  command->callback([tokenize] { (*tokenize)(); });
}

}  // namespace lowbit::cli
