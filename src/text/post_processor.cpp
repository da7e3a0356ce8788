#include "text/post_processor.h"

#include "text/bpe.h"

namespace lowbit::text {
namespace {

constexpr int kMaxNesting = 8;

std::vector<int64_t> special_ids(const Json& processor, const Json& piece) {
  const std::string name = piece.at("id").string();
  const auto tokens = processor.at("special_tokens");
  const auto token = tokens.find(name);
  if (!token) piece.at("id").fail("one of the template's special_tokens");
  const Json list = token->at("ids");
  std::vector<int64_t> ids;
  for (size_t i = 0; i < list.size(); ++i) ids.push_back(list[i].integer(0, kMaxTokenId));
  return ids;
}

void add_template(const Json& json, PostProcessor& result) {
  const Json single = json.at("single");
  std::vector<int64_t> before, after;
  bool text_seen = false;
  for (size_t i = 0; i < single.size(); ++i) {
    const Json piece = single[i];
    if (const auto sequence = piece.find("Sequence")) {
      if (sequence->at("id").string() != "A" || text_seen) sequence->fail("the text once");
      text_seen = true;
    } else if (const auto special = piece.find("SpecialToken")) {
      const auto ids = special_ids(json, *special);
      auto& side = text_seen ? after : before;
      side.insert(side.end(), ids.begin(), ids.end());
    } else {
      piece.fail("a Sequence or a SpecialToken");
    }
  }
  if (!text_seen) single.fail("a template with the text in it");
  result.before.insert(result.before.begin(), before.begin(), before.end());
  result.after.insert(result.after.end(), after.begin(), after.end());
}

void add(const Json& json, PostProcessor& result, int depth) {
  const std::string type = json.at("type").string();
  if (type == "TemplateProcessing") {
    add_template(json, result);
  } else if (type == "Sequence") {
    if (depth >= kMaxNesting) json.fail("sequences nested at most 8 deep");
    const Json members = json.at("processors");
    for (size_t i = 0; i < members.size(); ++i) add(members[i], result, depth + 1);
  } else if (type != "ByteLevel") {
    json.at("type").fail("a supported post-processor (TemplateProcessing, ByteLevel, Sequence)");
  }
}

}  // namespace

PostProcessor PostProcessor::from_json(const std::optional<Json>& json) {
  PostProcessor result;
  if (json) add(*json, result, 0);
  return result;
}

}  // namespace lowbit::text
