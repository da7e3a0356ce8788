// Byte-pair tokenizers, read from tokenizer.json (the format of Hugging Face tokenizers) or from a
// GGUF file.
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

/// Immutable; copies share their tables, and threads may share a tokenizer.
class Tokenizer {
 public:
  /// Reads <directory>/tokenizer.json, and tokenizer_config.json, special_tokens_map.json and
  /// chat_template.jinja where present. Throws IoError, or FormatError when a file is damaged or of
  /// a kind that is not supported (it names the kind). Supported: model BPE (byte fallback,
  /// ignore_merges, unknown token); normalizers NFC, NFD, NFKC, NFKD, Lowercase, Replace, Prepend;
  /// pre-tokenizers ByteLevel, Split, Digits, Metaspace; decoders ByteLevel, ByteFallback, Fuse,
  /// Replace, Strip, Metaspace; post-processors TemplateProcessing, ByteLevel; and Sequences of
  /// them.
  static Tokenizer from_pretrained(const std::string& directory);
  /// The same from the texts of tokenizer.json and tokenizer_config.json ("" for none); `name`
  /// stands for the file in errors.
  static Tokenizer from_json(const std::string& tokenizer_json,
                             const std::string& tokenizer_config_json, const std::string& name);
  /// From the metadata of a GGUF file: tokenizer.ggml.model "gpt2" (byte-level BPE;
  /// tokenizer.ggml.pre tells how text is split) or "llama" (SentencePiece BPE with scores). Throws
  /// FormatError for other kinds, which it names.
  static Tokenizer from_gguf(const io::GgufFile& file);

  /// Ids of a UTF-8 text. Added tokens in the text are recognized; add_special_tokens puts BOS/EOS
  /// around it as the model's post-processor does. Invalid UTF-8 is replaced by U+FFFD. Throws
  /// FormatError when a regular expression of the tokenizer backtracks without end on the text, or
  /// the text needs an unknown token that the vocabulary lacks.
  std::vector<int64_t> encode(std::string_view text, bool add_special_tokens = true) const;
  /// Text of ids. Unknown ids throw std::out_of_range naming the id.
  std::string decode(const std::vector<int64_t>& ids, bool skip_special_tokens = false) const;
  /// The piece of one id as the vocabulary writes it. Unknown ids throw std::out_of_range.
  const std::string& token(int64_t id) const;
  /// The bytes that one id stands for. A character may be spread over ids: only bytes in a row are
  /// UTF-8.
  std::string token_bytes(int64_t id) const;
  std::optional<int64_t> token_to_id(std::string_view token) const;

  /// One more than the largest id.
  int64_t vocab_size() const noexcept;
  /// None when the files name no such token, or one that the vocabulary lacks.
  std::optional<int64_t> bos_id() const noexcept;
  std::optional<int64_t> eos_id() const noexcept;
  std::optional<int64_t> pad_id() const noexcept;
  std::optional<int64_t> unk_id() const noexcept;
  /// False for unknown ids.
  bool is_special(int64_t id) const noexcept;
  /// The chat template of the model (Jinja), empty when there is none.
  const std::string& chat_template() const noexcept;
  /// Where it was read from: a directory, a file, or from_json's name.
  const std::string& name() const noexcept;
  /// tokenizer.json text and tokenizer_config.json text that read back as this tokenizer
  /// (save_pretrained); Python's tokenizers and transformers give the same ids with them.
  const std::string& to_json() const noexcept;
  const std::string& config_to_json() const noexcept;

  struct Impl;

 private:
  friend class StreamDecoder;
  explicit Tokenizer(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

/// Turns ids into text as they come. The pieces are valid UTF-8 and together equal
/// Tokenizer::decode of all ids: bytes of an unfinished character, and whatever later ids may still
/// change, are kept back until that is settled or flush() is called. (A tokenizer with byte
/// fallback settles a run of byte tokens at the first other token.)
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens = true);
  StreamDecoder(StreamDecoder&&) noexcept;
  StreamDecoder& operator=(StreamDecoder&&) noexcept;
  ~StreamDecoder();
  /// Throws std::out_of_range for an unknown id; nothing has changed then.
  std::string push(int64_t id);
  /// What was kept back; the decoder starts afresh.
  std::string flush();

 private:
  struct State;
  Tokenizer tokenizer_;
  bool skip_special_tokens_;
  std::unique_ptr<State> state_;
};

}  // namespace lowbit::text
