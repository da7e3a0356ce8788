#include "lowbit/text/chat_template.h"

#include "lowbit/error.h"
#include "text/jinja.h"
#include "text/utf8.h"

namespace lowbit::text {

std::string apply_chat_template(const Tokenizer& tokenizer, const std::vector<Message>& messages,
                                bool add_generation_prompt) {
  if (tokenizer.chat_template().empty()) {
    throw FormatError(tokenizer.name(), "chat_template", "a chat template", "nothing");
  }
  nlohmann::json list = nlohmann::json::array();
  for (const Message& message : messages) {
    list.push_back(
        {{"role", to_valid_utf8(message.role)}, {"content", to_valid_utf8(message.content)}});
  }
  nlohmann::json context = {{"messages", std::move(list)},
                            {"tools", nullptr},
                            {"documents", nullptr},
                            {"add_generation_prompt", add_generation_prompt}};
  const std::pair<const char*, std::optional<int64_t>> tokens[] = {
      {"bos_token", tokenizer.bos_id()},
      {"eos_token", tokenizer.eos_id()},
      {"pad_token", tokenizer.pad_id()},
      {"unk_token", tokenizer.unk_id()}};
  for (const auto& [name, id] : tokens) {
    if (id) context[name] = tokenizer.token(*id);
  }
  return render_jinja(tokenizer.chat_template(), context, tokenizer.name());
}

}  // namespace lowbit::text
