// Byte-level BPE tokenizers, read from tokenizer.json (Hugging Face tokenizers) or from a GGUF file.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lowbit::io {
class GgufFile;
}

namespace lowbit::text {

class Tokenizer {
 public:
  /// Reads <directory>/tokenizer.json (+ tokenizer_config.json, special_tokens_map.json where present).
  /// Throws IoError, FormatError, or FormatError for a model kind that is not supported (names it).
  static Tokenizer from_pretrained(const std::string& directory);
  static Tokenizer from_json(const std::string& tokenizer_json, const std::string& tokenizer_config_json,
                             const std::string& name);
  static Tokenizer from_gguf(const io::GgufFile& file);

  /// Ids of a UTF-8 text. Special tokens in the text are recognized; add_special_tokens adds BOS/EOS as the model's
  /// post-processor does. Invalid UTF-8 is replaced by U+FFFD.
  std::vector<int64_t> encode(std::string_view text, bool add_special_tokens = true) const;
  /// Text of ids. Unknown ids throw std::out_of_range naming the id.
  std::string decode(const std::vector<int64_t>& ids, bool skip_special_tokens = false) const;
  /// The piece of one id as the vocabulary writes it.
  const std::string& token(int64_t id) const;
  std::optional<int64_t> token_to_id(std::string_view token) const;

  int64_t vocab_size() const noexcept;
  std::optional<int64_t> bos_id() const noexcept;
  std::optional<int64_t> eos_id() const noexcept;
  std::optional<int64_t> pad_id() const noexcept;
  bool is_special(int64_t id) const noexcept;
  /// The chat template of the model (Jinja), empty when there is none.
  const std::string& chat_template() const noexcept;
  /// tokenizer.json text and tokenizer_config.json text that read back as this tokenizer (save_pretrained).
  std::string to_json() const;
  std::string config_to_json() const;

  struct Impl;

 private:
  std::shared_ptr<const Impl> impl_;
};

/// Turns ids into text as they come, and never returns half a character: bytes of an unfinished UTF-8 sequence are kept
/// back until the rest arrives or flush() is called.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens = true);
  std::string push(int64_t id);
  std::string flush();

 private:
  Tokenizer tokenizer_;
  bool skip_special_tokens_;
  std::string pending_;
};

}  // namespace lowbit::text
