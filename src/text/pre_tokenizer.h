// How a text is cut into the words that the model then encodes one by one.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/normalizer.h"

namespace lowbit::text {

/// The 256 characters that stand for bytes in byte-level vocabularies (Radford et al. 2019,
/// "Language Models are Unsupervised Multitask Learners"): printable Latin-1 bytes stand for
/// themselves, the others for U+0100 and up.
char32_t byte_to_char(unsigned char byte) noexcept;
/// The byte of such a character, or -1.
int char_to_byte(char32_t codepoint) noexcept;

/// Takes the words of a text in order.
class WordSink {
 public:
  virtual ~WordSink() = default;
  virtual void word(std::string_view word) = 0;
};

class PreTokenizer {
 public:
  /// null, ByteLevel, Split, Digits, Metaspace, Sequence; FormatError names any other kind.
  static PreTokenizer from_json(const std::optional<Json>& json);

  /// True: the words that come out are bytes which the vocabulary writes as byte_to_char (a last
  /// ByteLevel step is left to the model, which maps bytes faster than strings).
  bool words_are_bytes() const noexcept { return words_are_bytes_; }
  /// `at_start`: the piece stands at the very start of what the user gave (Metaspace's
  /// prepend_scheme "first").
  void split(std::string_view piece, bool at_start, WordSink& sink) const {
    run(0, piece, at_start, sink);
  }

 private:
  enum class Kind { kSplit, kDigits, kMetaspace, kByteMap, kPrefixSpace };
  enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
  enum class Prepend { kAlways, kFirst, kNever };
  struct Step {
    Kind kind;
    Pattern pattern = {};                     // kSplit
    Behavior behavior = Behavior::kIsolated;  // kSplit, kDigits
    bool invert = false;                      // kSplit
    std::string replacement = {};             // kMetaspace
    Prepend prepend = Prepend::kAlways;       // kMetaspace
    bool split = true;                        // kMetaspace
  };
  void add(const Json& json, int depth);
  void add_byte_level(const Json& json);
  void add_split(const Json& json);
  void add_metaspace(const Json& json);
  void run(size_t index, std::string_view piece, bool at_start, WordSink& sink) const;
  void run_metaspace(size_t index, std::string_view piece, bool at_start, WordSink& sink) const;
  static std::vector<Span> cut(const std::vector<Span>& matches, size_t size, bool invert,
                               Behavior behavior);
  static std::vector<Span> digits(std::string_view piece);

  std::vector<Step> steps_;
  bool words_are_bytes_ = false;
};

}  // namespace lowbit::text
