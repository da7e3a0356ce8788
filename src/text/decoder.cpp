#include "text/decoder.h"

#include <algorithm>

#include "text/pre_tokenizer.h"
#include "text/utf8.h"

namespace lowbit::text {
namespace {

constexpr int kMaxNesting = 8;

/// The byte of "<0x41>", or -1.
int fallback_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  const int high = digit(token[3]), low = digit(token[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/// The bytes of a token written in the byte alphabet; false when it has other characters.
bool to_bytes(std::string_view token, std::string& bytes) {
  for (std::string_view rest = token; !rest.empty();) {
    const Utf8Step step = utf8_step(rest);
    const int byte = char_to_byte(step.codepoint);
    if (byte < 0) return false;
    bytes += static_cast<char>(byte);
    rest.remove_prefix(step.length);
  }
  return true;
}

std::string replace_all(std::string_view text, std::string_view part, std::string_view content) {
  std::string out;
  for (size_t at; (at = text.find(part)) != std::string_view::npos;) {
    out.append(text.substr(0, at)).append(content);
    text.remove_prefix(at + part.size());
  }
  return out.append(text);
}

}  // namespace

Decoder Decoder::from_json(const std::optional<Json>& json,
                           const std::vector<std::string>& tokens) {
  Decoder decoder;
  if (json) {
    decoder.add(*json, 0);
  } else {
    decoder.stages_.push_back({Kind::kJoinSpaces});
  }
  decoder.plan(tokens);
  return decoder;
}

void Decoder::add(const Json& json, int depth) {
  const std::string type = json.at("type").string();
  if (type == "ByteLevel") {
    stages_.push_back({Kind::kByteLevel});
  } else if (type == "ByteFallback") {
    stages_.push_back({Kind::kByteFallback});
  } else if (type == "Fuse") {
    stages_.push_back({Kind::kFuse});
  } else if (type == "Replace") {
    stages_.push_back({Kind::kReplace, Replacement::from_json(json)});
  } else if (type == "Strip") {
    Stage stage{Kind::kStrip};
    append_utf8(stage.content, json.at("content").character());
    stage.start = static_cast<size_t>(json.at("start").integer(0, INT32_MAX));
    stage.stop = static_cast<size_t>(json.at("stop").integer(0, INT32_MAX));
    stages_.push_back(std::move(stage));
  } else if (type == "Metaspace") {
    Stage stage{Kind::kMetaspace};
    append_utf8(stage.content, json.at("replacement").character());
    stage.drop_first =
        json.string("prepend_scheme",
                    json.boolean("add_prefix_space", true) ? "always" : "never") != "never";
    stages_.push_back(std::move(stage));
  } else if (type == "Sequence") {
    if (depth >= kMaxNesting) json.fail("sequences nested at most 8 deep");
    const Json members = json.at("decoders");
    for (size_t i = 0; i < members.size(); ++i) add(members[i], depth + 1);
  } else {
    json.at("type").fail(
        "a supported decoder (ByteLevel, ByteFallback, Fuse, Replace, Strip, Metaspace, Sequence)");
  }
}

void Decoder::plan(const std::vector<std::string>& tokens) {
  bool fused = false;
  for (size_t i = 0; i < stages_.size(); ++i) {
    Stage& stage = stages_[i];
    stage.fused = fused;
    switch (stage.kind) {
      case Kind::kByteLevel:
        // Tokens in the byte alphabet become bytes, a token with any other character is taken as it
        // is. Of a fused token this is known at its end, unless no token has such a character when
        // it gets here.
        stage.hold =
            fused && !std::all_of(tokens.begin(), tokens.end(), [&](const std::string& token) {
              std::string text = token, bytes;
              for (size_t k = 0; k < i; ++k) {
                if (stages_[k].kind == Kind::kByteFallback && fallback_byte(text) >= 0)
                  return false;
                text = transform(stages_[k], text);
              }
              return to_bytes(text, bytes);
            });
        fused = true;
        break;
      case Kind::kFuse:
        fused = true;
        break;
      case Kind::kReplace: {
        // A pattern of one character cannot lie across two chunks.
        const std::string& literal = stage.replacement.pattern.literal();
        stage.hold = fused && (literal.empty() || utf8_length(literal[0]) != literal.size());
        break;
      }
      case Kind::kByteFallback:
        stage.hold = fused;
        break;
      case Kind::kStrip:
        stage.hold = fused && stage.stop > 0;
        break;
      case Kind::kJoinSpaces:
      case Kind::kMetaspace:
        break;
    }
  }
}

/// A stage's work on one whole token, for those that look at nothing else.
std::string Decoder::transform(const Stage& stage, std::string_view token) {
  switch (stage.kind) {
    case Kind::kReplace:
      return stage.replacement.pattern.replace(token, stage.replacement.content);
    case Kind::kStrip: {
      for (size_t n = 0; n < stage.start && token.starts_with(stage.content); ++n) {
        token.remove_prefix(stage.content.size());
      }
      for (size_t n = 0; n < stage.stop && token.ends_with(stage.content); ++n) {
        token.remove_suffix(stage.content.size());
      }
      return std::string(token);
    }
    case Kind::kByteLevel: {
      std::string bytes;
      return to_valid_utf8(to_bytes(token, bytes) ? std::string_view(bytes) : token);
    }
    case Kind::kByteFallback: {
      const int byte = fallback_byte(token);
      return byte < 0 ? std::string(token) : to_valid_utf8(std::string(1, static_cast<char>(byte)));
    }
    default:
      return std::string(token);
  }
}

std::string Decoder::bytes(std::string_view token) const {
  std::string text(token);
  for (const Stage& stage : stages_) {
    if (stage.kind == Kind::kByteLevel) {
      std::string bytes;
      if (to_bytes(text, bytes)) text = std::move(bytes);
    } else if (stage.kind == Kind::kByteFallback) {
      if (const int byte = fallback_byte(text); byte >= 0) text.assign(1, static_cast<char>(byte));
    } else if (stage.kind == Kind::kReplace) {
      text = transform(stage, text);
    } else if (stage.kind == Kind::kMetaspace) {
      text = replace_all(text, stage.content, " ");
    }
  }
  return text;
}

void Decoder::Run::feed(size_t index, std::string_view token, std::string& out) {
  if (index == states_.size()) {
    out.append(token);
    return;
  }
  const Stage& stage = decoder_->stages_[index];
  State& state = states_[index];
  const bool first = state.tokens++ == 0;
  if (stage.hold) {
    state.held.append(token);
    return;
  }
  switch (stage.kind) {
    case Kind::kJoinSpaces:
      if (!first) feed(index + 1, " ", out);
      return feed(index + 1, token, out);
    case Kind::kFuse:
      return feed(index + 1, token, out);
    case Kind::kByteLevel: {
      std::string bytes, text;
      state.held.append(to_bytes(token, bytes) ? std::string_view(bytes) : token);
      drain_utf8(state.held, text, false);
      return feed(index + 1, text, out);
    }
    case Kind::kReplace:
      return feed(index + 1, transform(stage, token), out);
    case Kind::kByteFallback:
      if (const int byte = fallback_byte(token); byte >= 0) {
        state.held += static_cast<char>(byte);
        ++state.bytes;
        return;
      }
      flush_bytes(index, out);
      return feed(index + 1, token, out);
    case Kind::kStrip:
      if (!stage.fused) return feed(index + 1, transform(stage, token), out);
      while (!state.past_start && !token.empty()) {
        state.past_start = state.stripped == stage.start || !token.starts_with(stage.content);
        if (state.past_start) break;
        token.remove_prefix(stage.content.size());
        ++state.stripped;
      }
      return feed(index + 1, token, out);
    case Kind::kMetaspace: {
      const bool drop = stage.drop_first && (first || stage.fused);
      return feed(index + 1, replace_all(token, stage.content, drop ? "" : " "), out);
    }
  }
}

void Decoder::Run::flush_bytes(size_t index, std::string& out) {
  State& state = states_[index];
  if (state.bytes == 0) return;
  const std::string held = std::move(state.held);
  const size_t bytes = state.bytes;
  state.held.clear();
  state.bytes = 0;
  // A run of byte tokens is text as a whole or not at all.
  if (is_valid_utf8(held)) return feed(index + 1, held, out);
  for (size_t i = 0; i < bytes; ++i) feed(index + 1, "\xEF\xBF\xBD", out);
}

void Decoder::Run::finish(std::string& out) {
  for (size_t i = 0; i < states_.size(); ++i) {
    const Stage& stage = decoder_->stages_[i];
    State& state = states_[i];
    if (stage.hold) {
      const std::string held = std::move(state.held);
      if (state.tokens > 0) feed(i + 1, transform(stage, held), out);
    } else if (stage.kind == Kind::kByteLevel) {
      std::string text;
      drain_utf8(state.held, text, true);
      if (!text.empty()) feed(i + 1, text, out);
    } else if (stage.kind == Kind::kByteFallback) {
      flush_bytes(i, out);
    }
    state = State();
  }
}

}  // namespace lowbit::text
