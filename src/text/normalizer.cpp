#include "text/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "text/utf8.h"

namespace lowbit::text {
namespace {

constexpr int kMaxNesting = 8;

std::string unicode_normalize(const std::string& text, int options) {
  if (std::all_of(text.begin(), text.end(), [](char c) { return (c & 0x80) == 0; })) return text;
  utf8proc_uint8_t* result = nullptr;
  const auto length = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                   static_cast<utf8proc_ssize_t>(text.size()), &result,
                                   static_cast<utf8proc_option_t>(options | UTF8PROC_STABLE));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(result, &std::free);
  if (length < 0)
    throw std::bad_alloc();  // the text is valid, so memory is all that can be missing
  return std::string(reinterpret_cast<const char*>(result), static_cast<size_t>(length));
}

std::string lowercase(const std::string& text) {
  std::string out;
  out.reserve(text.size());
  for (std::string_view rest = text; !rest.empty();) {
    const Utf8Step step = utf8_step(rest);
    rest.remove_prefix(step.length);
    if (step.codepoint == 0x130) {
      out += "i\xCC\x87";  // the one letter whose small form is two characters everywhere
    } else {
      append_utf8(out, static_cast<char32_t>(
                           utf8proc_tolower(static_cast<utf8proc_int32_t>(step.codepoint))));
    }
  }
  return out;
}

}  // namespace

Pattern Pattern::from_json(const Json& json) {
  Pattern pattern;
  if (const auto regex = json.find("Regex")) {
    pattern.regex_ = Regex::compile(regex->string(), regex->file(), regex->path());
  } else if (const auto literal = json.find("String")) {
    pattern.literal_ = literal->string();
    if (pattern.literal_.empty()) literal->fail("a pattern that is not empty");
  } else {
    json.fail("an object with \"Regex\" or \"String\"");
  }
  return pattern;
}

std::vector<Span> Pattern::matches(std::string_view text) const {
  std::vector<Span> spans;
  if (regex_) {
    RegexMatches matches(*regex_, text);
    for (Span span; matches.next(span);) spans.push_back(span);
    return spans;
  }
  for (size_t at = 0; (at = text.find(literal_, at)) != std::string_view::npos;) {
    spans.push_back({at, at + literal_.size()});
    at += literal_.size();
  }
  return spans;
}

std::string Pattern::replace(std::string_view text, std::string_view content) const {
  std::string out;
  size_t from = 0;
  for (const Span& span : matches(text)) {
    out.append(text.substr(from, span.begin - from)).append(content);
    from = span.end;
  }
  return out.append(text.substr(from));
}

Replacement Replacement::from_json(const Json& json) {
  Replacement result{Pattern::from_json(json.at("pattern")), json.at("content").string()};
  if (result.pattern.is_regex() && result.content.find('$') != std::string::npos) {
    json.at("content").fail("a content without $ (groups are not supported)");
  }
  return result;
}

Normalizer Normalizer::from_json(const std::optional<Json>& json) {
  Normalizer normalizer;
  if (json) {
    normalizer.file_ = json->file();
    normalizer.add(*json, 0);
  }
  return normalizer;
}

void Normalizer::add(const Json& json, int depth) {
  const std::string type = json.at("type").string();
  if (type == "NFC") {
    steps_.push_back({Kind::kNfc, {}});
  } else if (type == "NFD") {
    steps_.push_back({Kind::kNfd, {}});
  } else if (type == "NFKC") {
    steps_.push_back({Kind::kNfkc, {}});
  } else if (type == "NFKD") {
    steps_.push_back({Kind::kNfkd, {}});
  } else if (type == "Lowercase") {
    steps_.push_back({Kind::kLowercase, {}});
  } else if (type == "Replace") {
    steps_.push_back({Kind::kReplace, Replacement::from_json(json)});
  } else if (type == "Prepend") {
    steps_.push_back({Kind::kPrepend, {{}, json.at("prepend").string()}});
  } else if (type == "Sequence") {
    if (depth >= kMaxNesting) json.fail("sequences nested at most 8 deep");
    const Json members = json.at("normalizers");
    for (size_t i = 0; i < members.size(); ++i) add(members[i], depth + 1);
  } else {
    json.at("type").fail(
        "a supported normalizer (NFC, NFD, NFKC, NFKD, Lowercase, Replace, Prepend, Sequence)");
  }
}

std::string Normalizer::apply(std::string_view text) const {
  // A chain of doubling replacements would otherwise grow without bound.
  const size_t limit = (size_t{1} << 20) + 64 * text.size();
  std::string out(text);
  for (const Step& step : steps_) {
    if (out.size() > limit) {
      throw FormatError(file_, "$.normalizer", "a text at most 64 times as long as before",
                        std::to_string(out.size()) + " bytes from " + std::to_string(text.size()));
    }
    switch (step.kind) {
      case Kind::kNfc:
        out = unicode_normalize(out, UTF8PROC_COMPOSE);
        break;
      case Kind::kNfd:
        out = unicode_normalize(out, UTF8PROC_DECOMPOSE);
        break;
      case Kind::kNfkc:
        out = unicode_normalize(out, UTF8PROC_COMPOSE | UTF8PROC_COMPAT);
        break;
      case Kind::kNfkd:
        out = unicode_normalize(out, UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT);
        break;
      case Kind::kLowercase:
        out = lowercase(out);
        break;
      case Kind::kReplace:
        out = step.replacement.pattern.replace(out, step.replacement.content);
        break;
      case Kind::kPrepend:
        if (!out.empty()) out.insert(0, step.replacement.content);
        break;
    }
  }
  return out;
}

}  // namespace lowbit::text
