// Runs a fuzzer's corpus through its entry point, so that every build covers what fuzzing found.
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

TEST(FuzzCorpus, Replays) {
  size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(LOWBIT_FUZZ_CORPUS)) {
    SCOPED_TRACE(entry.path().string());
    std::ifstream file(entry.path(), std::ios::binary);
    const std::vector<char> bytes(std::istreambuf_iterator<char>(file), {});
    // A fresh buffer of the exact size for each: a sanitizer sees a read past the end.
    const std::vector<uint8_t> input(bytes.begin(), bytes.end());
    EXPECT_NO_THROW(LLVMFuzzerTestOneInput(input.data(), input.size()));
    // Also each input with its second half missing, and with one bit changed in every byte in turn.
    EXPECT_NO_THROW(LLVMFuzzerTestOneInput(input.data(), input.size() / 2));
    for (size_t i = 0; i < input.size(); i += 1 + input.size() / 256) {
      std::vector<uint8_t> changed = input;
      changed[i] ^= static_cast<uint8_t>(1U << (i % 8));
      EXPECT_NO_THROW(LLVMFuzzerTestOneInput(changed.data(), changed.size())) << "byte " << i;
    }
    ++count;
  }
  EXPECT_GE(count, 5u);
}
