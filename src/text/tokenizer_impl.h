// What a Tokenizer shares between its copies.
#pragma once

#include <nlohmann/json.hpp>

#include "lowbit/text/tokenizer.h"
#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/decoder.h"
#include "text/normalizer.h"
#include "text/post_processor.h"
#include "text/pre_tokenizer.h"

namespace lowbit::text {

struct Tokenizer::Impl {
  /// `config`: tokenizer_config.json, an empty object when there is none.
  Impl(const nlohmann::json& tokenizer, const nlohmann::json& config, const std::string& name);

  std::optional<int64_t> find(std::string_view token) const;
  const std::string* piece(int64_t id) const noexcept;
  const std::string& piece_or_throw(int64_t id) const;

  std::string name;
  Bpe model;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  AddedTokens added;
  PostProcessor post_processor;
  Decoder decoder;
  int64_t vocab_size = 0;
  std::optional<int64_t> bos, eos, pad, unk;
  std::string chat_template, json, config_json;

 private:
  void read_config(const Json& config);
};

}  // namespace lowbit::text
