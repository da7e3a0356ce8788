// Chat templates against what Transformers makes of them.
#include "lowbit/text/chat_template.h"

#include "lowbit/error.h"
#include "text/golden.h"
#include "text/jinja.h"

namespace lowbit::text::test {
namespace {

using nlohmann::json;

Tokenizer with_template(const std::string& source) {
  const json config = {{"chat_template", source}, {"bos_token", "<s>"}, {"eos_token", "</s>"}};
  return Tokenizer::from_json(golden_file("sentencepiece_like.tokenizer.json"), config.dump(),
                              "model");
}

std::string complaint(const std::string& source) {
  try {
    return "no error: " + apply_chat_template(with_template(source), {{"user", "hi"}});
  } catch (const FormatError& error) {
    return error.what();
  }
}

TEST(ChatTemplate, WellKnownOnesGiveTheReferencesText) {
  const json golden = golden_json("chat.json");
  size_t refused = 0;
  for (const json& row : golden["rows"]) {
    const auto name = row["name"].get<std::string>();
    const Tokenizer tokenizer = with_template(golden["templates"][name].get<std::string>());
    std::vector<Message> messages;
    for (const json& message : row["messages"]) messages.push_back({message[0], message[1]});
    SCOPED_TRACE(row.dump());
    const bool add = row["add_generation_prompt"].get<bool>();
    if (row.contains("expected")) {
      EXPECT_EQ(apply_chat_template(tokenizer, messages, add), row["expected"].get<std::string>());
      continue;
    }
    ++refused;
    try {
      (void)apply_chat_template(tokenizer, messages, add);
      ADD_FAILURE() << "expected a refusal";
    } catch (const FormatError& error) {
      EXPECT_NE(std::string(error.what()).find(row["refused"].get<std::string>()),
                std::string::npos)
          << error.what();
    }
  }
  EXPECT_GE(golden["rows"].size(), 100u);
  EXPECT_GT(refused, 0u);
}

TEST(ChatTemplate, WithoutOneThereIsNoPrompt) {
  EXPECT_THROW((void)apply_chat_template(golden_tokenizer("byte_level"), {{"user", "hi"}}),
               FormatError);
}

TEST(ChatTemplate, WhatIsNotSupportedIsNamed) {
  const std::pair<const char*, const char*> cases[] = {
      {"{% macro f() %}{% endmacro %}", "`macro`"},
      {"\n{% include 'x' %}", "line 2"},
      {"{{ messages | tojson }}", "`tojson`"},
      {"{{ messages is prime }}", "`prime`"},
      {"{{ 'x'.title() }}", "`title`"},
      {"{{ frobnicate(1) }}", "`frobnicate`"},
      {"{{ 1 < 2 < 3 }}", "chains"},
      {"{{ 1 + 'a' }}", "operands"},
      {"{{ messages[0].nothing.more }}", "undefined"},
      {"{{ 'abc", "end of a string"},
      {"{{ 1", "end of a tag"},
      {"{# x", "end of a comment"},
      {"{% if true %}", "endif"},
      {"{% endif %}", "`endif`"},
      {"{% for x in 5 %}{% endfor %}", "a list"},
      {"{{ @ }}", "character 64"},
      {"{{ 99999999999999999999 }}", "64 bits"},
      {"{{ 1 % 0 }}", "divisor"},
  };
  for (const auto& [source, part] : cases) {
    const std::string message = complaint(source);
    EXPECT_NE(message.find(part), std::string::npos) << source << "\n" << message;
    EXPECT_NE(message.find("model"), std::string::npos) << message;
  }
}

TEST(ChatTemplate, HostileOnesAreStopped) {
  std::string loops, ends;
  for (int i = 0; i < 8; ++i) loops += "{% for a in range(1000) %}", ends += "{% endfor %}";
  EXPECT_NE(complaint(loops + ends).find("no end in sight"), std::string::npos);
  EXPECT_NE(complaint("{{ range(1000000000) }}").find("range"), std::string::npos);
  EXPECT_NE(complaint("{{ " + std::string(100000, '(') + " }}").find("nested"), std::string::npos);
  EXPECT_NE(complaint("{{ x" + std::string(100000, '[') + " }}").find("nested"), std::string::npos);
  EXPECT_NE(complaint("{{ " + std::string(100000, '-') + "1 }}").find("nested"), std::string::npos);
  std::string blocks;
  for (int i = 0; i < 10000; ++i) blocks += "{% if true %}";
  EXPECT_NE(complaint(blocks).find("nested"), std::string::npos);
}

TEST(Jinja, WhiteSpaceControl) {
  const auto render = [](const std::string& source) {
    return render_jinja(source, json::object(), "test");
  };
  EXPECT_EQ(render("a\n  {% if true %}\nb\n  {% endif %}\nc\n"), "a\nb\nc");
  EXPECT_EQ(render("a\n  {%- if true -%}\n b \n{%- endif -%}\n  c"), "abc");
  EXPECT_EQ(render("a {{- 1 -}} b"), "a1b");
  EXPECT_EQ(render("a\n  {{ 1 }}\n"), "a\n  1");
  EXPECT_EQ(render("x {% if true %}y{% endif %} z"), "x y z");
  EXPECT_EQ(render("{# c #}\nx"), "x");
  EXPECT_EQ(render("  {%+ if true +%}\nx{% endif %}"), "  \nx");
  EXPECT_EQ(
      render("{% if true %}\n{% if true %}\n  {% if true %}x{% endif %}{% endif %}{% endif %}"),
      "x");
}

}  // namespace
}  // namespace lowbit::text::test
