#include <filesystem>

#include "lowbit/io/gguf.h"
#include "lowbit/llm/auto.h"

namespace lowbit::llm {

std::string Tokenizer::decode(int64_t id) const { return token_bytes(id); }

std::vector<int64_t> Tokenizer::apply_chat_template(const std::vector<Message>& messages,
                                                    bool add_generation_prompt) const {
  // The template writes the special tokens itself.
  return encode(text::apply_chat_template(*this, messages, add_generation_prompt),
                /*add_special_tokens=*/false);
}

Tokenizer AutoTokenizer::from_pretrained(const std::string& path) {
  return Tokenizer(std::filesystem::is_directory(path)
                       ? text::Tokenizer::from_pretrained(path)
                       : text::Tokenizer::from_gguf(io::GgufFile::open(path)));
}

}  // namespace lowbit::llm
