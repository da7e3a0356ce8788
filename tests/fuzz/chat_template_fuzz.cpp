// Any text is a chat template that renders, or a FormatError: no crash, no endless loop.
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "lowbit/error.h"
#include "text/jinja.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using nlohmann::json;
  static const json context = {
      {"messages",
       {{{"role", "system"}, {"content", "Be brief."}}, {{"role", "user"}, {"content", " Hi \n"}}}},
      {"bos_token", "<s>"},
      {"eos_token", "</s>"},
      {"add_generation_prompt", true}};
  const std::string source(reinterpret_cast<const char*>(data), size);
  try {
    lowbit::text::render_jinja(source, context, "fuzz");
  } catch (const lowbit::FormatError&) {
  }
  return 0;
}
