// Tokenizers from and to files.
#include <algorithm>
#include <filesystem>

#include "io/json.h"
#include "lowbit/io/safetensors.h"
#include "text/tokenizer_impl.h"

namespace lowbit::text {
namespace {

/// "<s>" or {"content": "<s>", ...}.
std::optional<std::string> token_text(const Json& config, const std::string& key) {
  const auto value = config.find(key);
  if (!value) return std::nullopt;
  return value->value().is_object() ? value->at("content").string() : value->string();
}

/// A template, or the one named "default" of a list of {"name", "template"}.
std::string template_text(const Json& config) {
  const auto value = config.find("chat_template");
  if (!value) return "";
  if (!value->value().is_array()) return value->string();
  for (size_t i = 0; i < value->size(); ++i) {
    if ((*value)[i].at("name").string() == "default") return (*value)[i].at("template").string();
  }
  return "";
}

std::shared_ptr<Tokenizer::Impl> build(const std::string& tokenizer_json,
                                       const nlohmann::json& config, const std::string& name) {
  const nlohmann::json tokenizer = io::parse_json(tokenizer_json, name);
  auto impl = std::make_shared<Tokenizer::Impl>(tokenizer, config, name);
  impl->json = tokenizer_json;
  return impl;
}

std::optional<std::string> read_if_present(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return std::nullopt;
  return io::read_text_file(path.string());
}

}  // namespace

Tokenizer::Impl::Impl(const nlohmann::json& tokenizer, const nlohmann::json& config_json,
                      const std::string& file)
    : name(file) {
  const Json root(tokenizer, file), config(config_json, file + " (tokenizer_config)");
  model = Bpe::from_json(root.at("model"));
  normalizer = Normalizer::from_json(root.find("normalizer"));
  pre_tokenizer = PreTokenizer::from_json(root.find("pre_tokenizer"));
  added = AddedTokens::from_json(root, &config, model, normalizer);
  post_processor = PostProcessor::from_json(root.find("post_processor"));
  vocab_size = static_cast<int64_t>(model.tokens().size());
  if (!added.by_id().empty()) vocab_size = std::max(vocab_size, added.by_id().rbegin()->first + 1);
  if (vocab_size == 0) root.fail("a vocabulary with tokens");

  std::vector<std::string> pieces;
  for (int64_t id = 0; id < vocab_size; ++id) {
    if (const std::string* text = piece(id)) pieces.push_back(*text);
  }
  decoder = Decoder::from_json(root.find("decoder"), pieces);
  read_config(config);
  for (const auto* ids : {&post_processor.before, &post_processor.after}) {
    for (int64_t id : *ids) {
      if (!piece(id)) {
        throw FormatError(file, "$.post_processor", "ids of the vocabulary", std::to_string(id));
      }
    }
  }
}

void Tokenizer::Impl::read_config(const Json& config) {
  const auto id_of = [&](const std::string& key) {
    const auto text = token_text(config, key);
    return text ? find(*text) : std::nullopt;
  };
  bos = id_of("bos_token");
  eos = id_of("eos_token");
  pad = id_of("pad_token");
  unk = id_of("unk_token");
  chat_template = template_text(config);
  // Where the configuration says what to add, it overrules the post-processor, as in Transformers.
  if (config.find("add_bos_token") || config.find("add_eos_token")) {
    post_processor = {};
    if (config.boolean("add_bos_token", false) && bos) post_processor.before = {*bos};
    if (config.boolean("add_eos_token", false) && eos) post_processor.after = {*eos};
  }
}

Tokenizer Tokenizer::from_json(const std::string& tokenizer_json, const std::string& config_json,
                               const std::string& name) {
  nlohmann::json config = nlohmann::json::object();
  if (!config_json.empty()) config = io::parse_json(config_json, name + " (tokenizer_config)");
  auto impl = build(tokenizer_json, config, name);
  impl->config_json = config_json.empty() ? "{}\n" : config_json;
  return Tokenizer(std::move(impl));
}

Tokenizer Tokenizer::from_pretrained(const std::string& directory) {
  const std::filesystem::path folder(directory);
  const auto config_path = folder / "tokenizer_config.json",
             map_path = folder / "special_tokens_map.json";
  const std::string tokenizer_json = io::read_text_file((folder / "tokenizer.json").string());
  const auto config_text = read_if_present(config_path);
  nlohmann::json config = nlohmann::json::object();
  if (config_text) config = io::parse_json(*config_text, config_path.string());
  if (!config.is_object()) Json(config, config_path.string()).fail("an object");
  const nlohmann::json before = config;

  if (const auto text = read_if_present(map_path)) {
    const nlohmann::json map = io::parse_json(*text, map_path.string());
    for (const char* key : {"bos_token", "eos_token", "pad_token", "unk_token"}) {
      const auto value = Json(map, map_path.string()).find(key);
      if (value && !Json(config, config_path.string()).find(key)) config[key] = value->value();
    }
  }
  if (auto text = read_if_present(folder / "chat_template.jinja")) config["chat_template"] = *text;

  auto impl = build(tokenizer_json, config, (folder / "tokenizer.json").string());
  // Saving writes one configuration file, so what came from the others goes into it.
  impl->config_json = config_text && config == before ? *config_text : config.dump(2) + "\n";
  return Tokenizer(std::move(impl));
}

}  // namespace lowbit::text
