#include "lowbit/io/safetensors.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <cstring>
#include <numeric>
#include <random>

#include "io/temporary_folder.h"
#include "lowbit/error.h"
#include "support/golden_dir.h"

namespace lowbit::io {
namespace {

using lowbit::test::golden_dir;

constexpr DType kAllDTypes[] = {DType::kBool, DType::kU8,     DType::kI8,    DType::kI16,
                                DType::kU16,  DType::kI32,    DType::kU32,   DType::kI64,
                                DType::kU64,  DType::kF16,    DType::kBF16,  DType::kF32,
                                DType::kF64,  DType::kF8E4M3, DType::kF8E5M2};

std::string container(const std::string& header, const std::string& data) {
  std::string bytes(8, '\0');
  for (size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(header.size() >> (8 * i));
  return bytes + header + data;
}

SafetensorsFile parse(const std::string& bytes) {
  const auto owner = std::make_shared<std::string>(bytes);
  return SafetensorsFile::parse(owner, reinterpret_cast<const std::byte*>(owner->data()),
                                owner->size(), "test.safetensors");
}

void expect_bad(const std::string& bytes, std::initializer_list<const char*> parts) {
  expect_error<FormatError>([&] { parse(bytes); }, parts);
  expect_error<FormatError>([&] { parse(bytes); }, {"test.safetensors", "expected", "found"});
}

std::vector<std::string> golden_files() {
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(golden_dir())) {
    if (entry.path().extension() == ".safetensors") paths.push_back(entry.path().string());
  }
  return paths;
}

TensorView view_of(const std::string& bytes, DType dtype, std::vector<int64_t> shape) {
  return {.dtype = dtype,
          .shape = std::move(shape),
          .data = reinterpret_cast<const std::byte*>(bytes.data()),
          .nbytes = bytes.size(),
          .owner = nullptr};
}

TEST(Safetensors, RewritesGoldenFilesToTheByte) {
  TemporaryFolder folder;
  const auto paths = golden_files();
  size_t identical = 0;
  for (const std::string& path : paths) {
    const auto file = SafetensorsFile::open(path);
    std::map<std::string, TensorView> tensors;
    for (const std::string& name : file.names()) tensors.emplace(name, file.tensor(name));
    EXPECT_GT(tensors.size(), 0u);
    std::optional<SafetensorsMetadata> metadata;
    if (file.has_metadata()) metadata = file.metadata();
    write_safetensors(folder / "copy.safetensors", tensors, metadata);
    const bool same = read_bytes(folder / "copy.safetensors") == read_bytes(path);
    // optim.safetensors was put together by a script whose order knows alignments but not dtypes:
    // other order, same size.
    if (path.ends_with("/optim.safetensors")) {
      EXPECT_EQ(std::filesystem::file_size(folder / "copy.safetensors"),
                std::filesystem::file_size(path));
    } else {
      EXPECT_TRUE(same) << path;
      ++identical;
    }
  }
  EXPECT_GE(identical, 12u);
  EXPECT_EQ(folder.entries(), std::set<std::string>{"copy.safetensors"});
}

TEST(Safetensors, OrdersAllDTypesAndEscapesNamesAsTheReferenceDoes) {
  TemporaryFolder folder;
  std::map<std::string, TensorView> tensors;
  const std::string zeros(24, '\0');
  for (const DType dtype : kAllDTypes) {
    TensorView view = view_of(zeros, dtype, {3});
    view.nbytes = static_cast<size_t>(3 * itemsize(dtype));
    tensors.emplace(dtype_name(dtype), view);
  }
  write_safetensors(folder / "all", tensors, std::nullopt);
  EXPECT_EQ(SafetensorsFile::open(folder / "all").names(),
            (std::vector<std::string>{"U64", "I64", "F64", "F32", "U32", "I32", "BF16", "F16",
                                      "U16", "I16", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"}));

  const std::string two = "12", one(1, '\0'), none;
  write_safetensors(folder / "names",
                    {{"\u00e9\"\\/\n\t\x01\x7f\u2028\U0001F600", view_of(one, DType::kU8, {})},
                     {"Z", view_of(none, DType::kU8, {0, 3})},
                     {"a", view_of(two, DType::kU8, {2})}},
                    SafetensorsMetadata{{"k", "v\x02\u00e9"}});
  EXPECT_EQ(
      read_bytes(folder / "names"),
      container(
          "{\"__metadata__\":{\"k\":\"v\\u0002\u00e9\"},\"Z\":{\"dtype\":\"U8\",\"shape\":[0,3],"
          "\"data_offsets\":[0,0]},\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":"
          "[0,2]},\"\u00e9\\\"\\\\/\\n\\t\\u0001\x7f\u2028\U0001F600\":{\"dtype\":\"U8\","
          "\"shape\":[],\"data_offsets\":[2,3]}} ",
          std::string("12\0", 3)));
  write_safetensors(folder / "empty", {}, std::nullopt);
  EXPECT_EQ(read_bytes(folder / "empty"), container("{}      ", ""));
}

TEST(Safetensors, RandomFilesComeBack) {
  const auto seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  TemporaryFolder folder;
  for (int round = 0; round < 50; ++round) {
    std::map<std::string, std::string> contents;
    std::map<std::string, TensorView> tensors;
    for (uint64_t i = random() % 12; i > 0; --i) {
      std::string name;
      for (uint64_t n = random() % 9; n > 0; --n) name += static_cast<char>(random() % 128);
      if (tensors.count(name) != 0) continue;
      const DType dtype = kAllDTypes[random() % std::size(kAllDTypes)];
      std::vector<int64_t> shape(random() % 4);
      for (int64_t& extent : shape) extent = static_cast<int64_t>(random() % 6);
      const int64_t numel =
          std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
      std::string& bytes = contents[name];
      bytes.resize(static_cast<size_t>(numel * itemsize(dtype)));
      for (char& byte : bytes) byte = static_cast<char>(random());
      tensors.emplace(name, view_of(bytes, dtype, shape));
    }
    const std::string path = folder / "random.safetensors";
    write_safetensors(path, tensors, SafetensorsMetadata{{"round", std::to_string(round)}});
    const auto file = SafetensorsFile::open(path);
    EXPECT_EQ(file.metadata().at("round"), std::to_string(round));
    ASSERT_EQ(file.names().size(), tensors.size());
    for (const auto& [name, expected] : tensors) {
      const TensorView got = file.tensor(name);
      EXPECT_EQ(got.dtype, expected.dtype);
      EXPECT_EQ(got.shape, expected.shape);
      EXPECT_TRUE(got.is_aligned());
      ASSERT_EQ(got.nbytes, expected.nbytes);
      EXPECT_EQ(std::memcmp(got.data, expected.data, got.nbytes), 0);
    }
  }
}

TEST(Safetensors, ViewsKeepTheMappingAliveAndPagesComeBackAfterRelease) {
  TemporaryFolder folder;
  std::string bytes(100'000, '\0');
  std::iota(bytes.begin(), bytes.end(), '\1');
  write_safetensors(folder / "f", {{"a", view_of(bytes, DType::kU8, {100'000})}});
  TensorView view;
  {
    const auto file = SafetensorsFile::open(folder / "f");
    view = file.tensor("a");
    file.release("a");
    file.release("no such tensor");
  }
  std::filesystem::remove(folder / "f");
  EXPECT_EQ(std::memcmp(view.data, bytes.data(), bytes.size()), 0);
}

TEST(Safetensors, OffsetsBeyondFourGibibytes) {
  TemporaryFolder folder;
  const size_t large = (size_t{5} << 30) + 1;
  const std::string header = "{\"a\":{\"dtype\":\"U8\",\"shape\":[" + std::to_string(large) +
                             "],\"data_offsets\":[0," + std::to_string(large) +
                             "]},\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[" +
                             std::to_string(large) + "," + std::to_string(large + 3) + "]}}";
  folder.write("large", container(header, ""));
  std::filesystem::resize_file(folder / "large",
                               8 + header.size() + large);  // a hole: no disk is used
  std::ofstream(folder / "large", std::ios::binary | std::ios::app) << "xyz";
  const auto file = SafetensorsFile::open(folder / "large");
  EXPECT_EQ(file.tensor("a").nbytes, large);
  EXPECT_EQ(std::memcmp(file.tensor("b").data, "xyz", 3), 0);
  EXPECT_EQ(file.tensor("a").data[large - 1], std::byte{0});
  file.release("a");
  EXPECT_EQ(std::memcmp(file.tensor("b").data, "xyz", 3), 0);
}

TEST(Safetensors, EveryPrefixOfAFileIsRefused) {
  const std::string whole = container(
      R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[],"data_offsets":[8,9]}})",
      "123456789");
  EXPECT_EQ(parse(whole).names().size(), 2u);
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_THROW(parse(whole.substr(0, size)), FormatError) << size;
  }
  expect_bad(whole + "x", {"end of the data", "9 bytes", "10"});
}

TEST(Safetensors, RefusesBadHeaders) {
  expect_bad("", {"8 bytes of header length"});
  expect_bad(std::string("GGUF\3\0\0\0\0\0\0\0\0\0\0\0", 16), {"not a safetensors file"});
  expect_bad("\x80\x02}q.junk that is a pickle perhaps", {"not a safetensors file"});
  expect_bad(container("[]", ""), {"begins with {"});
  expect_bad(container("", ""), {"begins with {"});
  expect_bad(container("{", ""), {"valid JSON", "byte 2"});
  expect_bad(container("{\"\xff\":1}", ""), {"valid JSON"});
  expect_bad(container(R"({"a":1})", ""), {"`a`", "an object", "a number"});
  expect_bad(container(R"({"__metadata__":{"a":1}})", ""), {"`__metadata__`", "a string"});
  expect_bad(container(R"({"__metadata__":[]})", ""), {"`__metadata__`", "an object"});
  const std::string deep(100'000, '[');
  expect_bad(container("{\"a\":" + deep, ""), {"at most 64 levels"});
  // A length that makes 8 + length wrap around.
  expect_bad(std::string("\xff\xff\xff\xff\xff\xff\xff\xff{}", 10), {"18446744073709551615"});
}

TEST(Safetensors, RefusesDuplicateKeys) {
  const std::string tensor = R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  expect_bad(container("{\"a\":" + tensor + ",\"a\":" + tensor + "}", "x"),
             {"unique keys", "`a` twice"});
  expect_bad(
      container(R"({"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}})", "x"),
      {"`dtype` twice", "`a`:"});
  expect_bad(container(R"({"__metadata__":{},"__metadata__":{}})", ""), {"twice"});
}

TEST(Safetensors, RefusesBadNumbers) {
  const auto one = [](const char* dtype, const char* shape, const char* offsets) {
    return container(std::string("{\"w\":{\"dtype\":\"") + dtype + "\",\"shape\":" + shape +
                         ",\"data_offsets\":" + offsets + "}}",
                     "12345678");
  };
  EXPECT_NO_THROW(parse(one("F32", "[2]", "[0,8]")));
  expect_bad(one("F33", "[2]", "[0,8]"), {"tensor `w`", "a known dtype", "`F33`"});
  expect_bad(one("F32", "[2]", "[0,9]"), {"within the file's 8 bytes"});
  expect_bad(one("F32", "[2]", "[8,0]"), {"data_offsets", "[8,0]"});
  expect_bad(one("F32", "[2]", "[-8,0]"), {"data_offsets"});
  expect_bad(one("F32", "[2]", "[0]"), {"data_offsets"});
  expect_bad(one("F32", "[2]", "[0.0,8.0]"), {"data_offsets"});
  expect_bad(one("F32", "[2]", "[0,18446744073709551616]"), {"data_offsets"});
  expect_bad(one("F32", "[3]", "[0,8]"), {"12 bytes for F32 [3]", "8"});
  expect_bad(one("F32", "[-2]", "[0,8]"), {"extents"});
  expect_bad(one("F32", "[2.0]", "[0,8]"), {"extents"});
  expect_bad(one("F32", "[9223372036854775808]", "[0,8]"), {"extents"});
  expect_bad(one("F32", "2", "[0,8]"), {"a shape array"});
  expect_bad(one("F32", "[4294967296,4294967296]", "[0,8]"), {"63 bits"});
  expect_bad(one("F32", "[4611686018427387906]", "[0,8]"), {"63 bits"});
  expect_bad(one("F32", "[0,9223372036854775807,9223372036854775807]", "[0,0]"), {"63 bits"});
  expect_bad(one("F32", "[1]", "[0,4]"), {"end of the data"});
  expect_bad(one("F32", "[1]", "[4,8]"), {"(a gap)"});
  expect_bad(container(R"({"w":{"dtype":"U8","shape":[1]}})", "x"), {"\"data_offsets\""});
  const auto two = [](const char* a, const char* b) {
    return container(std::string(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)") + a +
                         R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + b + "}}",
                     "12345678");
  };
  EXPECT_NO_THROW(parse(two("[4,8]", "[0,4]")));
  expect_bad(two("[0,4]", "[3,7]"), {"tensor `b`", "(an overlap)"});
  expect_bad(two("[0,4]", "[0,4]"), {"(an overlap)"});
}

TEST(Safetensors, RefusesViewsThatDoNotFitAndLeavesNothing) {
  TemporaryFolder folder;
  const std::string bytes = "1234";
  const auto write = [&](const std::string& name, const TensorView& view) {
    return [&folder, name, view] { write_safetensors(folder / "f", {{name, view}}); };
  };
  expect_error<FormatError>(write("a", view_of(bytes, DType::kF32, {2})),
                            {"`a`", "8 bytes", "found 4"});
  expect_error<FormatError>(write("a", view_of(bytes, DType::kF32, {-1})), {"63 bits"});
  expect_error<FormatError>(write("a\xff", view_of(bytes, DType::kF32, {1})), {"UTF-8"});
  expect_error<FormatError>(write("__metadata__", view_of(bytes, DType::kF32, {1})), {"reserved"});
  EXPECT_TRUE(folder.entries().empty());
}

TEST(Safetensors, SystemErrorsNameThePath) {
  TemporaryFolder folder;
  expect_error<IoError>([&] { SafetensorsFile::open(folder / "none"); }, {"/none", "No such file"});
  expect_error<IoError>([&] { SafetensorsFile::open(folder.path()); }, {"Is a directory"});
  expect_error<IoError>([&] { SafetensorsFile::open("/dev/null"); }, {"/dev/null"});
  expect_error<IoError>([&] { write_safetensors(folder / "no/such/folder", {}); },
                        {"create", "No such file"});
}

/// No file may grow beyond `bytes` while this lives: what a full disk looks like to a writer.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    previous_signal_ = ::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &previous_);
    rlimit limit = previous_;
    limit.rlim_cur = bytes;
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &previous_);
    ::signal(SIGXFSZ, previous_signal_);
  }

 private:
  rlimit previous_{};
  void (*previous_signal_)(int) = nullptr;
};

TEST(Safetensors, AFailedWriteLeavesTheOldFile) {
  TemporaryFolder folder;
  const std::string bytes(10'000, 'x');
  folder.write("model.safetensors", "the old one");
  {
    FileSizeLimit limit(4'000);
    expect_error<IoError>(
        [&] {
          write_safetensors(folder / "model.safetensors",
                            {{"a", view_of(bytes, DType::kU8, {10'000})}});
        },
        {"model.safetensors", "write", "File too large"});
    expect_error<IoError>([&] { write_text_file(folder / "config.json", bytes); }, {"config.json"});
  }
  EXPECT_EQ(folder.entries(), std::set<std::string>{"model.safetensors"});
  EXPECT_EQ(read_bytes(folder / "model.safetensors"), "the old one");
}

TEST(Safetensors, AFailedCheckpointLeavesTheOldOne) {
  TemporaryFolder folder;
  const std::string bytes(3'000, 'x');
  const TensorView view = view_of(bytes, DType::kU8, {3'000});
  {
    CheckpointWriter writer(folder.path());
    writer.add("old", view);
    writer.finish();
  }
  const std::string old = read_bytes(folder / "model.safetensors");
  {
    CheckpointWriter writer(folder.path(), 5'000);
    writer.add("a", view);
    FileSizeLimit limit(2'000);
    expect_error<IoError>([&] { writer.add("b", view); }, {"write", "File too large"});
  }
  {
    CheckpointWriter writer(folder.path());
    writer.add("a", view);
    writer.add("b", view);
    FileSizeLimit limit(4'000);
    expect_error<IoError>([&] { writer.finish(); }, {"write", "File too large"});
  }
  EXPECT_EQ(folder.entries(), std::set<std::string>{"model.safetensors"});
  EXPECT_EQ(read_bytes(folder / "model.safetensors"), old);
  {
    CheckpointWriter abandoned(folder / "new");
    abandoned.add("a", view);
  }
  EXPECT_EQ(folder.entries(), std::set<std::string>{"model.safetensors"});
}

}  // namespace
}  // namespace lowbit::io
