#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "io/temporary_folder.h"
#include "lowbit/error.h"
#include "lowbit/io/safetensors.h"
#include "support/golden_dir.h"

namespace lowbit::io {
namespace {

using lowbit::test::golden_dir;

TensorView view_of(const std::string& bytes, DType dtype = DType::kU8) {
  return {.dtype = dtype,
          .shape = {static_cast<int64_t>(bytes.size()) / itemsize(dtype)},
          .data = reinterpret_cast<const std::byte*>(bytes.data()),
          .nbytes = bytes.size(),
          .owner = nullptr};
}

std::string text_of(const TensorView& view) {
  return {reinterpret_cast<const char*>(view.data), view.nbytes};
}

constexpr const char* kIndex = "model.safetensors.index.json";

TEST(Checkpoint, OpensGoldenDirectories) {
  const auto checkpoint = Checkpoint::open(golden_dir() + "/hf/nf4_dq");
  EXPECT_EQ(checkpoint.names().size(), 99u);
  EXPECT_EQ(checkpoint.total_bytes(), 102510u);
  const auto keys = checkpoint.names_with_prefix("model.layers.0.mlp.down_proj.weight.");
  EXPECT_EQ(keys.size(), 5u);
  EXPECT_EQ(checkpoint.tensor("lm_head.weight").shape, (std::vector<int64_t>{128, 64}));
  EXPECT_EQ(Checkpoint::open(golden_dir() + "/hf/nf4_dq/model.safetensors").names(),
            checkpoint.names());
  expect_error<FormatError>([&] { checkpoint.tensor("lm_head.bias"); },
                            {"`lm_head.bias`", "none of that name"});
}

TEST(Checkpoint, PrefixesEndAtTheDot) {
  TemporaryFolder folder;
  const std::string bytes = "x";
  write_safetensors(folder / "model.safetensors",
                    {{"layers.1.w", view_of(bytes)}, {"layers.10.w", view_of(bytes)}});
  EXPECT_EQ(Checkpoint::open(folder.path()).names_with_prefix("layers.1."),
            (std::vector<std::string>{"layers.1.w"}));
}

TEST(CheckpointWriter, OneShardHasTheBytesOfTheReference) {
  TemporaryFolder folder;
  for (const std::string name : {"base", "nf4_dq", "int8", "nf4_bf16storage", "fp4"}) {
    const std::string source = golden_dir() + "/hf/" + name;
    const auto checkpoint = Checkpoint::open(source);
    CheckpointWriter writer(folder / name);
    const auto names = checkpoint.names();
    // Any order of adding gives the same file.
    for (auto it = names.rbegin(); it != names.rend(); ++it)
      writer.add(*it, checkpoint.tensor(*it));
    EXPECT_FALSE(std::filesystem::exists(folder / name + "/model.safetensors"));
    writer.finish();
    EXPECT_TRUE(read_bytes(folder / name + "/model.safetensors") ==
                read_bytes(source + "/model.safetensors"));
  }
}

TEST(CheckpointWriter, ShardsHaveAnIndexAndReadBack) {
  TemporaryFolder folder;
  std::map<std::string, std::string> contents;
  for (char c = 'a'; c < 'h'; ++c)
    contents[std::string("layer.") + c] = std::string(static_cast<size_t>(40), c);
  contents["big"] = std::string(300, '!');
  folder.write("model.safetensors", "an older save, one file");
  folder.write("model-00001-of-00009.safetensors", "an older save, shards");
  folder.write("model-notes.safetensors", "the user's");
  CheckpointWriter writer(folder.path(), 100);
  for (const auto& [name, bytes] : contents) writer.add(name, view_of(bytes));
  expect_error<FormatError>([&] { writer.add("big", view_of(contents["big"])); },
                            {"`big`", "each name once"});
  writer.finish();
  EXPECT_EQ(folder.entries(),
            (std::set<std::string>{
                kIndex, "model-00001-of-00005.safetensors", "model-00002-of-00005.safetensors",
                "model-00003-of-00005.safetensors", "model-00004-of-00005.safetensors",
                "model-00005-of-00005.safetensors", "model-notes.safetensors"}));
  const auto index = nlohmann::json::parse(read_bytes(folder / kIndex));
  EXPECT_EQ(index["metadata"]["total_size"], 580);
  EXPECT_EQ(index["weight_map"]["big"], "model-00001-of-00005.safetensors");
  EXPECT_EQ(index["weight_map"].size(), 8u);
  const auto checkpoint = Checkpoint::open(folder.path());
  EXPECT_EQ(checkpoint.total_bytes(), 580u);
  for (const auto& [name, bytes] : contents) EXPECT_EQ(text_of(checkpoint.tensor(name)), bytes);
  checkpoint.release("big");
  EXPECT_EQ(text_of(checkpoint.tensor("big")), contents["big"]);

  // A later save of one shard takes the place of all of it, while the reader above keeps what it
  // mapped.
  CheckpointWriter again(folder.path());
  again.add("big", checkpoint.tensor("big"));
  again.finish();
  EXPECT_EQ(folder.entries(),
            (std::set<std::string>{"model.safetensors", "model-notes.safetensors"}));
  EXPECT_EQ(text_of(checkpoint.tensor("layer.a")), contents["layer.a"]);
}

TEST(Checkpoint, FollowsLinksOfDownloadCaches) {
  TemporaryFolder folder;
  const std::string bytes = "x";
  std::filesystem::create_directories(folder / "blobs");
  std::filesystem::create_directories(folder / "snapshot");
  write_safetensors(folder / "blobs/1234", {{"a", view_of(bytes)}});
  std::filesystem::create_symlink("../blobs/1234", folder / "snapshot/shard.safetensors");
  folder.write(std::string("snapshot/") + kIndex, R"({"weight_map":{"a":"shard.safetensors"}})");
  EXPECT_EQ(text_of(Checkpoint::open(folder / "snapshot").tensor("a")), "x");
}

TEST(CheckpointWriter, AnEmptyModelIsAFile) {
  TemporaryFolder folder;
  CheckpointWriter(folder.path()).finish();
  EXPECT_TRUE(Checkpoint::open(folder.path()).names().empty());
  expect_error<IoError>([&] { CheckpointWriter(folder / "model.safetensors" + "/below"); },
                        {"create directory"});
}

class BadCheckpoint : public testing::Test {
 protected:
  void shard(const std::string& file, std::initializer_list<const char*> names) {
    std::map<std::string, TensorView> tensors;
    for (const char* name : names) tensors.emplace(name, view_of(bytes_));
    write_safetensors(folder_ / file, tensors);
  }
  void expect_bad(const std::string& index, std::initializer_list<const char*> parts) {
    folder_.write(kIndex, index);
    expect_error<FormatError>([&] { Checkpoint::open(folder_.path()); }, parts);
  }

  TemporaryFolder folder_;
  std::string bytes_ = "1234";
};

TEST_F(BadCheckpoint, Directories) {
  expect_error<FormatError>([&] { Checkpoint::open(folder_.path()); },
                            {"model.safetensors.index.json", "neither"});
  folder_.write("pytorch_model.bin", "pickle");
  expect_error<FormatError>([&] { Checkpoint::open(folder_.path()); }, {"a pickle"});
  expect_error<IoError>([&] { Checkpoint::open(folder_ / "none"); }, {"/none"});
}

TEST_F(BadCheckpoint, IndexFiles) {
  shard("one.safetensors", {"a"});
  EXPECT_NO_FATAL_FAILURE(folder_.write(kIndex, R"({"weight_map":{"a":"one.safetensors"}})"));
  EXPECT_EQ(Checkpoint::open(folder_.path()).names(), std::vector<std::string>{"a"});
  expect_bad("", {"valid JSON", "the end"});
  expect_bad("[]", {"an object"});
  expect_bad("{}", {"`weight_map`", "none"});
  expect_bad(R"({"weight_map":{}})", {"at least one tensor"});
  expect_bad(R"({"weight_map":{"a":1}})", {"key `a`", "a file name"});
  expect_bad(R"({"weight_map":{"a":"one.safetensors","a":"one.safetensors"}})", {"`a` twice"});
  expect_bad(R"({"weight_map":{"a":"two.safetensors"}})",
             {"shard `two.safetensors`", "no such file"});
}

TEST_F(BadCheckpoint, ShardsOutsideTheDirectory) {
  for (const char* shard :
       {"../x.safetensors", "/etc/passwd", "a/../../x", "", "..", "sub/", "a\\u0000b"}) {
    expect_bad(std::string(R"({"weight_map":{"a":")") + shard + "\"}}",
               {"a file inside the directory"});
  }
  std::filesystem::create_directory(folder_ / "sub");
  shard("sub/x.safetensors", {"a"});
  folder_.write(kIndex, R"({"weight_map":{"a":"sub/x.safetensors"}})");
  EXPECT_TRUE(Checkpoint::open(folder_.path()).contains("a"));
}

TEST_F(BadCheckpoint, KeysAndShardsThatDisagree) {
  shard("one.safetensors", {"a", "b"});
  shard("two.safetensors", {"b", "c"});
  expect_bad(
      R"({"weight_map":{"a":"one.safetensors","b":"one.safetensors","c":"two.safetensors"}})",
      {"two.safetensors", "`b`", "each name in one shard", "one.safetensors"});
  shard("two.safetensors", {"c"});
  expect_bad(R"({"weight_map":{"a":"one.safetensors","d":"two.safetensors"}})",
             {"key `d`", "found none"});
  expect_bad(
      R"({"weight_map":{"a":"one.safetensors","c":"one.safetensors","x":"two.safetensors"}})",
      {"key `c`", "it in `two.safetensors`"});
  folder_.write("two.safetensors", "cut short");
  expect_bad(R"({"weight_map":{"a":"one.safetensors","c":"two.safetensors"}})",
             {"two.safetensors", "header length"});
}

}  // namespace
}  // namespace lowbit::io
