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

/// The prompt text of a conversation. ChatML-style templates are recognized in the model's Jinja
/// source (including SmolLM2's default system message); a template of another kind is a FormatError
/// that says so.
std::string apply_chat_template(const Tokenizer& tokenizer, const std::vector<Message>& messages,
                                bool add_generation_prompt = true);

}  // namespace lowbit::text
