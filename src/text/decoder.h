// From tokens back to text, one token at a time.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/normalizer.h"

namespace lowbit::text {

/// The "decoder" of tokenizer.json: a chain of stages from tokens to tokens, whose last tokens are
/// joined.
class Decoder {
 public:
  /// null, ByteLevel, ByteFallback, Fuse, Replace, Strip, Metaspace, Sequence; FormatError names
  /// any other kind. `tokens`: every token of the vocabulary (it decides what can be streamed).
  static Decoder from_json(const std::optional<Json>& json, const std::vector<std::string>& tokens);

  /// The bytes of one token by itself: characters may be spread over tokens.
  std::string bytes(std::string_view token) const;

  /// One decoding. The pieces that push() and finish() append make up what decoding all tokens at
  /// once gives; each is valid UTF-8. A stage holds back what later tokens may still change.
  class Run {
   public:
    explicit Run(const Decoder& decoder) : decoder_(&decoder), states_(decoder.stages_.size()) {}
    void push(std::string_view token, std::string& out) { feed(0, token, out); }
    void finish(std::string& out);

   private:
    struct State {
      std::string held;         // bytes, or text of one fused token
      size_t bytes = 0;         // kByteFallback: byte tokens in `held`
      size_t tokens = 0;        // tokens seen
      size_t stripped = 0;      // kStrip
      bool past_start = false;  // kStrip
    };
    void feed(size_t index, std::string_view token, std::string& out);
    void flush_bytes(size_t index, std::string& out);

    const Decoder* decoder_;
    std::vector<State> states_;
  };

 private:
  enum class Kind { kJoinSpaces, kByteLevel, kReplace, kByteFallback, kFuse, kStrip, kMetaspace };
  struct Stage {
    Kind kind;
    Replacement replacement = {};  // kReplace
    std::string content = {};      // kStrip, kMetaspace: one character
    size_t start = 0, stop = 0;    // kStrip
    bool drop_first = false;       // kMetaspace
    bool fused = false;            // what comes in are chunks of one token
    bool hold = false;             // all of it is needed before anything can go on
  };
  void add(const Json& json, int depth);
  void plan(const std::vector<std::string>& tokens);
  static std::string transform(const Stage& stage, std::string_view token);

  std::vector<Stage> stages_;
};

}  // namespace lowbit::text
