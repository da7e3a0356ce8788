// One line to a model and its tokenizer.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lowbit/llm/model.h"
#include "lowbit/text/chat_template.h"
#include "lowbit/text/tokenizer.h"

namespace lowbit::llm {

using text::Message;

struct AutoModelForCausalLM {
  /// A directory (float or bitsandbytes-quantized, one file or shards) or a GGUF file.
  /// Architectures: Llama (SmolLM2) and Mistral. With a quantization config each layer is quantized
  /// as it is read: memory stays below the result plus one layer. Throws FormatError or IoError for
  /// files, c10::Error for options.
  static CausalLM from_pretrained(const std::string& directory_or_gguf,
                                  const FromPretrainedOptions& options = {});
  /// A model of this shape with fresh weights: normal(0, 0.02), norms of one, biases of zero. Made,
  /// and quantized, layer by layer on the device. Throws c10::Error.
  static CausalLM from_config(const io::ModelConfig& config,
                              const FromPretrainedOptions& options = {});
};

/// A text::Tokenizer with the calls that generation loops want.
class Tokenizer : public text::Tokenizer {
 public:
  explicit Tokenizer(text::Tokenizer base) : text::Tokenizer(std::move(base)) {}
  using text::Tokenizer::decode;
  /// The bytes of one token. A character may be spread over tokens: the bytes in a row are right, a
  /// single piece need not be whole characters (text::StreamDecoder gives whole ones). Special
  /// tokens give their text.
  std::string decode(int64_t id) const;
  /// Ids of a conversation, with the prompt for the assistant's answer.
  std::vector<int64_t> apply_chat_template(const std::vector<Message>& messages,
                                           bool add_generation_prompt = true) const;
};

struct AutoTokenizer {
  /// The tokenizer of a model directory or GGUF file.
  static Tokenizer from_pretrained(const std::string& directory_or_gguf);
};

}  // namespace lowbit::llm
