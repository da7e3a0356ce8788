// Any text is a valid tokenizer.json or a FormatError; a valid one encodes any bytes to ids that it
// knows, or says why not, and streams what it decodes.
#include <cstdint>
#include <optional>
#include <string>

#include "fuzz/require.h"
#include "lowbit/error.h"
#include "lowbit/text/tokenizer.h"

using lowbit::fuzz::require;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lowbit::text;
  // A NUL byte, which JSON cannot hold, ends the file; what follows it is the text to encode.
  const std::string input(reinterpret_cast<const char*>(data), size);
  const size_t end = input.find('\0');
  const std::string json = input.substr(0, end);
  const std::string text =
      end == std::string::npos ? "Hello  w\u00f6rld 123\n" : input.substr(end + 1);

  std::optional<Tokenizer> tokenizer;
  try {
    tokenizer = Tokenizer::from_json(json, "", "fuzz");
  } catch (const lowbit::FormatError&) {
    return 0;
  }
  std::vector<int64_t> ids;
  try {
    ids = tokenizer->encode(text);
  } catch (const lowbit::FormatError&) {
    return 0;
  }
  for (const int64_t id : ids) require(id >= 0 && id < tokenizer->vocab_size(), "ids in range");
  const std::string decoded = tokenizer->decode(ids);
  StreamDecoder stream(*tokenizer, /*skip_special_tokens=*/false);
  std::string streamed;
  for (const int64_t id : ids) streamed += stream.push(id);
  streamed += stream.flush();
  require(streamed == decoded, "a stream gives what decode gives");
  return 0;
}
