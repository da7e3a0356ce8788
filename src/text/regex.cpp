#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/regex.h"

#include <pcre2.h>

#include <new>

#include "lowbit/error.h"
#include "text/json_cursor.h"
#include "text/utf8.h"

namespace lowbit::text {
namespace {

template <auto Free>
struct Deleter {
  template <class T>
  void operator()(T* pointer) const noexcept {
    Free(pointer);
  }
};
template <class T, auto Free>
using Owned = std::unique_ptr<T, Deleter<Free>>;

template <class T>
T* check(T* pointer) {
  if (!pointer) throw std::bad_alloc();
  return pointer;
}

/// What one match needs besides the code; not shared between threads.
struct Scratch {
  Owned<pcre2_match_data, pcre2_match_data_free> data{check(pcre2_match_data_create(1, nullptr))};
  Owned<pcre2_match_context, pcre2_match_context_free> context{
      check(pcre2_match_context_create(nullptr))};
  Owned<pcre2_jit_stack, pcre2_jit_stack_free> stack{
      check(pcre2_jit_stack_create(32 << 10, 1 << 20, nullptr))};
  Scratch() { pcre2_jit_stack_assign(context.get(), nullptr, stack.get()); }
};

std::string message(int code) {
  PCRE2_UCHAR buffer[256] = {};
  pcre2_get_error_message(code, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

struct Regex::Code {
  Owned<pcre2_code, pcre2_code_free> code;
  std::string pattern, file, where;
};

Regex Regex::compile(const std::string& pattern, const std::string& file,
                     const std::string& where) {
  constexpr size_t kMaxPattern = 16 << 10;
  if (pattern.empty() || pattern.size() > kMaxPattern) {
    throw FormatError(file, where, "a regular expression of 1 to 16384 bytes",
                      std::to_string(pattern.size()) + " bytes");
  }
  const std::string translated = translate_regex(pattern, file, where);
  Owned<pcre2_compile_context, pcre2_compile_context_free> context(
      check(pcre2_compile_context_create(nullptr)));
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  // Ruby's ^ and $ stand at every line.
  constexpr uint32_t kOptions = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
  int error = 0;
  size_t offset = 0;
  auto code = std::make_shared<Code>();
  code->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                 kOptions, &error, &offset, context.get()));
  if (!code->code) {
    throw FormatError(file, where, "a regular expression", quote(pattern) + ": " + message(error));
  }
  // Without machine code (no permission, too large) the interpreter gives the same matches.
  (void)pcre2_jit_compile(code->code.get(), PCRE2_JIT_COMPLETE);
  code->pattern = pattern;
  code->file = file;
  code->where = where;
  Regex regex;
  regex.code_ = std::move(code);
  return regex;
}

bool RegexMatches::next(Span& match) {
  thread_local Scratch scratch;
  const Regex::Code& code = *regex_->code_;
  while (position_ <= text_.size()) {
    // Honest expressions take a few steps a character; what needs more is stopped.
    const size_t limit = 4096 + 64 * (text_.size() - position_);
    pcre2_set_match_limit(scratch.context.get(),
                          static_cast<uint32_t>(std::min(limit, size_t{UINT32_MAX})));
    const int rc =
        pcre2_match(code.code.get(), reinterpret_cast<PCRE2_SPTR>(text_.data()), text_.size(),
                    position_, PCRE2_NO_UTF_CHECK, scratch.data.get(), scratch.context.get());
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) {
      throw FormatError(code.file, code.where,
                        "a regular expression that matches without much backtracking",
                        quote(code.pattern) + ": " + message(rc));
    }
    const size_t* offsets = pcre2_get_ovector_pointer(scratch.data.get());
    match = {offsets[0], offsets[1]};
    // \K is refused by translate_regex, so the match lies at or behind the start.
    if (match.begin == match.end && match.end == last_end_) {
      position_ += position_ < text_.size() ? utf8_length(text_[position_]) : 1;
      continue;
    }
    position_ = last_end_ = match.end;
    return true;
  }
  position_ = text_.size() + 1;
  return false;
}

}  // namespace lowbit::text
