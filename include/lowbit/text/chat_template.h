// Chat prompts.
#pragma once

#include <string>
#include <vector>

#include "lowbit/text/tokenizer.h"

namespace lowbit::text {

struct Message {
  std::string role;  ///< "system", "user", "assistant"
  std::string content;
};

/// The prompt text of a conversation, by the model's own chat template: ChatML (SmolLM2, Qwen),
/// Llama, Mistral, Zephyr and others that keep to the usual part of Jinja. Encode it with
/// add_special_tokens = false: the template writes them. Throws FormatError when the tokenizer has
/// no template, the template uses what is not supported (the message names it), or it refuses the
/// conversation (raise_exception).
std::string apply_chat_template(const Tokenizer& tokenizer, const std::vector<Message>& messages,
                                bool add_generation_prompt = true);

}  // namespace lowbit::text
