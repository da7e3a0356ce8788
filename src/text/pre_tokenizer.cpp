#include "text/pre_tokenizer.h"

#include <algorithm>
#include <array>
#include <functional>

#include "text/utf8.h"

namespace lowbit::text {
namespace {

constexpr int kMaxNesting = 8;
// The expression of GPT-2's encoder.
constexpr const char* kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

constexpr bool stands_for_itself(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr std::array<char32_t, 256> kByteChars = [] {
  std::array<char32_t, 256> chars{};
  char32_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    chars[byte] = stands_for_itself(byte) ? static_cast<char32_t>(byte) : next++;
  }
  return chars;
}();

constexpr std::array<int, 0x144> kCharBytes = [] {
  std::array<int, 0x144> bytes{};
  bytes.fill(-1);
  for (int byte = 0; byte < 256; ++byte) bytes[kByteChars[byte]] = byte;
  return bytes;
}();

}  // namespace

char32_t byte_to_char(unsigned char byte) noexcept { return kByteChars[byte]; }

int char_to_byte(char32_t codepoint) noexcept {
  return codepoint < kCharBytes.size() ? kCharBytes[codepoint] : -1;
}

PreTokenizer PreTokenizer::from_json(const std::optional<Json>& json) {
  PreTokenizer result;
  if (json) result.add(*json, 0);
  if (!result.steps_.empty() && result.steps_.back().kind == Kind::kByteMap) {
    result.steps_.pop_back();
    result.words_are_bytes_ = true;
  }
  return result;
}

void PreTokenizer::add(const Json& json, int depth) {
  const std::string type = json.at("type").string();
  if (type == "ByteLevel") {
    add_byte_level(json);
  } else if (type == "Split") {
    add_split(json);
  } else if (type == "Digits") {
    Step step{Kind::kDigits};
    step.behavior =
        json.boolean("individual_digits", false) ? Behavior::kIsolated : Behavior::kContiguous;
    steps_.push_back(std::move(step));
  } else if (type == "Metaspace") {
    add_metaspace(json);
  } else if (type == "Sequence") {
    if (depth >= kMaxNesting) json.fail("sequences nested at most 8 deep");
    const Json members = json.at("pretokenizers");
    for (size_t i = 0; i < members.size(); ++i) add(members[i], depth + 1);
  } else {
    json.at("type").fail(
        "a supported pre-tokenizer (ByteLevel, Split, Digits, Metaspace, Sequence)");
  }
}

void PreTokenizer::add_byte_level(const Json& json) {
  if (json.boolean("add_prefix_space", true)) steps_.push_back({Kind::kPrefixSpace});
  if (json.boolean("use_regex", true)) {
    static const nlohmann::json pattern = {{"Regex", kGpt2}};
    Step step{Kind::kSplit};
    step.pattern = Pattern::from_json(Json(pattern, json.file(), json.path()));
    steps_.push_back(std::move(step));
  }
  steps_.push_back({Kind::kByteMap});
}

void PreTokenizer::add_split(const Json& json) {
  Step step{Kind::kSplit};
  step.pattern = Pattern::from_json(json.at("pattern"));
  step.invert = json.boolean("invert", false);
  const std::string behavior = json.at("behavior").string();
  if (behavior == "Removed") {
    step.behavior = Behavior::kRemoved;
  } else if (behavior == "Isolated") {
    step.behavior = Behavior::kIsolated;
  } else if (behavior == "MergedWithPrevious") {
    step.behavior = Behavior::kMergedWithPrevious;
  } else if (behavior == "MergedWithNext") {
    step.behavior = Behavior::kMergedWithNext;
  } else if (behavior == "Contiguous") {
    step.behavior = Behavior::kContiguous;
  } else {
    json.at("behavior").fail("Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
  }
  steps_.push_back(std::move(step));
}

void PreTokenizer::add_metaspace(const Json& json) {
  Step step{Kind::kMetaspace};
  append_utf8(step.replacement, json.at("replacement").character());
  step.split = json.boolean("split", true);
  // Files older than prepend_scheme have add_prefix_space only.
  const std::string scheme =
      json.string("prepend_scheme", json.boolean("add_prefix_space", true) ? "always" : "never");
  if (scheme == "always") {
    step.prepend = Prepend::kAlways;
  } else if (scheme == "first") {
    step.prepend = Prepend::kFirst;
  } else if (scheme == "never") {
    step.prepend = Prepend::kNever;
  } else {
    json.at("prepend_scheme").fail("always, first or never");
  }
  steps_.push_back(std::move(step));
}

void PreTokenizer::run(size_t index, std::string_view piece, bool at_start, WordSink& sink) const {
  if (piece.empty()) return;
  if (index == steps_.size()) return sink.word(piece);
  const Step& step = steps_[index];
  switch (step.kind) {
    case Kind::kSplit:
    case Kind::kDigits: {
      const auto matches = step.kind == Kind::kDigits ? digits(piece) : step.pattern.matches(piece);
      for (const Span& span : cut(matches, piece.size(), step.invert, step.behavior)) {
        run(index + 1, piece.substr(span.begin, span.end - span.begin), at_start && span.begin == 0,
            sink);
      }
      return;
    }
    case Kind::kMetaspace:
      return run_metaspace(index, piece, at_start, sink);
    case Kind::kPrefixSpace:
      if (piece.front() == ' ') return run(index + 1, piece, at_start, sink);
      return run(index + 1, std::string(1, ' ').append(piece), at_start, sink);
    case Kind::kByteMap: {
      std::string mapped;
      mapped.reserve(2 * piece.size());
      for (char byte : piece) append_utf8(mapped, byte_to_char(static_cast<unsigned char>(byte)));
      return run(index + 1, mapped, at_start, sink);
    }
  }
}

void PreTokenizer::run_metaspace(size_t index, std::string_view piece, bool at_start,
                                 WordSink& sink) const {
  const Step& step = steps_[index];
  std::string text;
  text.reserve(piece.size() + 16);
  const bool prepend =
      step.prepend == Prepend::kAlways || (step.prepend == Prepend::kFirst && at_start);
  if (prepend && piece.front() != ' ' && !piece.starts_with(step.replacement))
    text += step.replacement;
  for (char c : piece) {
    if (c == ' ') {
      text += step.replacement;
    } else {
      text += c;
    }
  }
  if (!step.split) return run(index + 1, text, at_start, sink);
  std::vector<Span> matches;
  for (size_t at = 0; (at = text.find(step.replacement, at)) != std::string::npos;) {
    matches.push_back({at, at + step.replacement.size()});
    at += step.replacement.size();
  }
  for (const Span& span : cut(matches, text.size(), false, Behavior::kMergedWithNext)) {
    run(index + 1, std::string_view(text).substr(span.begin, span.end - span.begin),
        at_start && span.begin == 0, sink);
  }
}

std::vector<Span> PreTokenizer::digits(std::string_view piece) {
  std::vector<Span> spans;
  for (size_t at = 0; at < piece.size();) {
    const Utf8Step step = utf8_step(piece.substr(at));
    if (is_numeric(step.codepoint)) spans.push_back({at, at + step.length});
    at += step.length;
  }
  return spans;
}

std::vector<Span> PreTokenizer::cut(const std::vector<Span>& matches, size_t size, bool invert,
                                    Behavior behavior) {
  struct Part {
    Span span;
    bool match;
  };
  std::vector<Part> parts;
  parts.reserve(2 * matches.size() + 1);
  size_t from = 0;
  for (const Span& span : matches) {
    if (from != span.begin) parts.push_back({{from, span.begin}, invert});
    parts.push_back({span, !invert});
    from = span.end;
  }
  if (from != size) parts.push_back({{from, size}, invert});

  std::vector<Span> spans;
  spans.reserve(parts.size());
  // Whether a part joins the one before it depends on the flag of that neighbour; "with next" is
  // "with previous" from the right.
  const auto join = [&](auto joins) {
    bool previous = false;
    for (const Part& part : parts) {
      if (joins(part.match, previous) && !spans.empty()) {
        spans.back().begin = std::min(spans.back().begin, part.span.begin);
        spans.back().end = std::max(spans.back().end, part.span.end);
      } else {
        spans.push_back(part.span);
      }
      previous = part.match;
    }
  };
  switch (behavior) {
    case Behavior::kIsolated:
      for (const Part& part : parts) spans.push_back(part.span);
      break;
    case Behavior::kRemoved:
      for (const Part& part : parts) {
        if (!part.match) spans.push_back(part.span);
      }
      break;
    case Behavior::kContiguous:
      join(std::equal_to<bool>());
      break;
    case Behavior::kMergedWithPrevious:
      join(std::greater<bool>());
      break;
    case Behavior::kMergedWithNext:
      std::reverse(parts.begin(), parts.end());
      join(std::greater<bool>());
      std::reverse(spans.begin(), spans.end());
      break;
  }
  return spans;
}

}  // namespace lowbit::text
