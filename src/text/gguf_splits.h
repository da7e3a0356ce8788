// How the byte-level tokenizers of GGUF files split text, by the name under tokenizer.ggml.pre.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace lowbit::text {

struct GgufSplit {
  nlohmann::json normalizer, pre_tokenizer;  ///< as in tokenizer.json; null for none
  bool ignore_merges = false, add_bos = false;
};

/// FormatError (naming it) for a kind that is not known.
GgufSplit gguf_split(const std::string& kind, const std::string& file);

}  // namespace lowbit::text
