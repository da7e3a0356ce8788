// The command line, run as users run it: a tiny model with a tiny tokenizer goes through every
// command.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "lowbit/io/safetensors.h"
#include "lowbit/version.h"
#include "support/golden_dir.h"

namespace lowbit {
namespace {

using lowbit::test::golden_dir;

namespace fs = std::filesystem;
using nlohmann::json;

struct Outcome {
  int code = -1;
  std::string out, err;
  json parsed() const { return json::parse(out); }
};

std::string slurp(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

/// A byte-level vocabulary of 128 entries: printable ASCII, space, line feed, the ChatML marks.
std::string tiny_tokenizer() {
  json vocab;
  int id = 0;
  for (char c = '!'; c <= '~'; ++c) vocab[std::string(1, c)] = id++;
  vocab["\u0120"] = id++;
  vocab["\u010a"] = id++;
  json added = json::array();
  for (const char* mark : {"<|im_start|>", "<|im_end|>"}) {
    added.push_back({{"id", id},
                     {"content", mark},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
    vocab[mark] = id++;
  }
  while (id < 128) {
    const std::string filler = "filler" + std::to_string(id);
    vocab[filler] = id++;
  }
  const json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", true}};
  return json{{"version", "1.0"},
              {"truncation", nullptr},
              {"padding", nullptr},
              {"added_tokens", added},
              {"normalizer", nullptr},
              {"pre_tokenizer", byte_level},
              {"post_processor", nullptr},
              {"decoder", byte_level},
              {"model",
               {{"type", "BPE"},
                {"dropout", nullptr},
                {"unk_token", nullptr},
                {"continuing_subword_prefix", nullptr},
                {"end_of_word_suffix", nullptr},
                {"fuse_unk", false},
                {"byte_fallback", false},
                {"vocab", vocab},
                {"merges", json::array()}}}}
      .dump();
}

class Cli : public testing::Test {
 protected:
  void SetUp() override {
    dir_ =
        fs::temp_directory_path() / ("lowbit_cli_test." + std::to_string(getpid()) + "." +
                                     testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(dir_);
    fs::create_directories(dir_);
    model_ = (dir_ / "base").string();
    fs::copy(fs::path(golden_dir()) / "hf" / "base", model_);
    std::ofstream(fs::path(model_) / "tokenizer.json") << tiny_tokenizer();
    std::ofstream(fs::path(model_) / "tokenizer_config.json") << json{
        {"eos_token", "<|im_end|>"},
        {"chat_template",
         "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
         "message['content'] + "
         "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ "
         "'<|im_start|>assistant\n' "
         "}}{% endif %}"}}.dump();
    text_ = (dir_ / "text.txt").string();
    std::ofstream text(text_);
    for (int i = 0; i < 40; ++i)
      text << "The quick brown fox number " << i << " jumps over the lazy dog.\n";
  }
  void TearDown() override { fs::remove_all(dir_); }

  Outcome lowbit(const std::string& arguments, const std::string& input = "") const {
    std::ofstream(dir_ / "in") << input;
    const std::string command = std::string(LOWBIT_CLI) + " " + arguments + " <" +
                                (dir_ / "in").string() + " >" + (dir_ / "out").string() + " 2>" +
                                (dir_ / "err").string();
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, slurp(dir_ / "out"), slurp(dir_ / "err")};
  }
  Outcome works(const std::string& arguments, const std::string& input = "") const {
    auto outcome = lowbit(arguments, input);
    EXPECT_EQ(outcome.code, 0) << arguments << "\n" << outcome.err;
    return outcome;
  }
  /// Exit code 1, one clear line on stderr that holds `part`.
  void fails(const std::string& arguments, const std::string& part) const {
    const auto outcome = lowbit(arguments);
    EXPECT_EQ(outcome.code, 1) << arguments;
    EXPECT_EQ(outcome.err.rfind("lowbit: error: ", 0), 0u) << outcome.err;
    EXPECT_NE(outcome.err.find(part), std::string::npos) << outcome.err;
  }
  std::string path(const std::string& name) const { return (dir_ / name).string(); }
  std::string quantized(const std::string& flags = "--type nf4 --double-quant") const {
    works("quantize " + model_ + " " + path("q") + " " + flags);
    return path("q");
  }

  fs::path dir_;
  std::string model_, text_;
};

TEST_F(Cli, EveryCommandHasHelpWithAnExample) {
  EXPECT_NE(works("--help").out.find("Example"), std::string::npos);
  for (const char* command :
       {"quantize", "dequantize", "run", "chat", "ppl", "logits", "tokenize", "inspect", "bench",
        "bench linear", "bench quantize", "bench optimizer", "bench generate", "doctor"}) {
    EXPECT_NE(works(std::string(command) + " --help").out.find("Example"), std::string::npos)
        << command;
  }
  EXPECT_EQ(works("--version").out.rfind("lowbit ", 0), 0u);
}

TEST_F(Cli, UsageErrorsExitWithTwo) {
  for (const std::string& arguments :
       {std::string(), std::string("no-such-command"), "quantize " + model_,
        "quantize " + model_ + " " + path("q"),
        "quantize " + model_ + " " + path("q") + " --type nf5",
        "quantize " + model_ + " " + path("q") + " --type nf4 --blocksize 48", std::string("run"),
        "ppl " + model_, "logits " + model_ + " -o x --ids 1 --text a",
        "run " + model_ + " -p a --top-p 2", "tokenize " + model_ + " --decode \"1 x\"",
        std::string("bench linear --shapes 12"), std::string("bench"),
        std::string("bench optimizer --optimizers adamw4bit")}) {
    const auto outcome = lowbit(arguments);
    EXPECT_EQ(outcome.code, 2) << arguments << "\n" << outcome.out << outcome.err;
    EXPECT_FALSE(outcome.err.empty()) << arguments;
  }
}

TEST_F(Cli, QuantizesInspectsAndGoesBack) {
  const auto made =
      works("quantize " + model_ + " " + path("q") + " --type nf4 --double-quant --json").parsed();
  EXPECT_GT(made["weight_bytes"].get<int64_t>(), 0);
  const auto before = works("inspect " + model_ + " --json").parsed();
  const auto after = works("inspect " + path("q") + " --json").parsed();
  EXPECT_LT(after["bytes"].get<int64_t>(), before["bytes"].get<int64_t>());
  EXPECT_EQ(after["parameters"], before["parameters"]);
  bool nf4 = false;
  for (const auto& tensor : after["tensors"])
    nf4 |= tensor["scheme"].get<std::string>().find("nf4") == 0;
  EXPECT_TRUE(nf4);
  EXPECT_NE(works("inspect " + model_ + " --type nf4 --tensors").out.find("q_proj"),
            std::string::npos);

  works("dequantize " + path("q") + " " + path("f"));
  const auto ratio = works("ppl " + path("q") + " --text " + text_ + " --ctx 64 --compare " +
                           path("f") + " --json")
                         .parsed();
  EXPECT_NEAR(ratio["ratio"].get<double>(), 1.0,
              0.02);  // the same weights; kernels round differently
  EXPECT_FALSE(json::parse(slurp(path("f") + "/config.json")).contains("quantization_config"));
}

TEST_F(Cli, EveryTypeRunsAndAgreesRoughlyWithTheFloatModel) {
  for (const char* flags : {"--type nf4", "--type fp4 --blocksize 128", "--type int8",
                            "--type nf4 --quantize-embeddings"}) {
    const auto out = quantized(flags);
    const auto r =
        works("ppl " + model_ + " --text " + text_ + " --ctx 64 --compare " + out + " --json")
            .parsed();
    EXPECT_NEAR(r["ratio"].get<double>(), 1.0, 0.2) << flags;
    fs::remove_all(out);
  }
}

TEST_F(Cli, RunAnswersOnceOrChats) {
  const auto q = quantized();
  const std::string greedy = " --max-new-tokens 8 --temperature 0 ";
  const auto first = works("run " + q + " -p Hello" + greedy + "--json").parsed();
  EXPECT_EQ(first["text"], works("run " + q + " -p Hello" + greedy + "--json").parsed()["text"]);
  EXPECT_GT(first["prompt_tokens"].get<int>(), 5);
  EXPECT_NE(works("run " + q + " -p Hello --stats" + greedy).err.find("tokens/s"),
            std::string::npos);
  EXPECT_EQ(works("run " + q + " -p -" + greedy + "--json", "Hello").parsed()["text"],
            first["text"]);
  const std::string sampled =
      "run " + q + " -p Hello --max-new-tokens 8 --temperature 1 --json --seed ";
  EXPECT_EQ(works(sampled + "1").parsed()["text"], works(sampled + "1").parsed()["text"]);
  // The model's context of 64 tokens holds one turn; the next one makes it forget that.
  const auto chat = works("chat " + q + greedy, "Hello\nAgain\n/reset\nHello\n/exit\nnot read\n");
  EXPECT_EQ(std::count(chat.out.begin(), chat.out.end(), '\n'), 3) << chat.out;
  EXPECT_NE(chat.err.find("forgets the oldest messages"), std::string::npos) << chat.err;
  const auto long_line = works("chat " + q + greedy, std::string(100, 'x') + "\nHello\n");
  EXPECT_EQ(std::count(long_line.out.begin(), long_line.out.end(), '\n'), 1) << long_line.out;
  EXPECT_NE(long_line.err.find("context of 64 tokens"), std::string::npos) << long_line.err;
}

TEST_F(Cli, LogitsAreWrittenAndMatchTheRecordedOnes) {
  const auto golden = io::SafetensorsFile::open(golden_dir() + "/hf_logits.safetensors");
  const auto ids = golden.tensor("ids");
  std::string list;
  for (int64_t i = 0; i < ids.shape.back(); ++i) {
    int64_t id = 0;
    std::memcpy(&id, ids.data + 8 * i, 8);
    list += (i > 0 ? "," : "") + std::to_string(id);
  }
  const auto facts = works("logits " + golden_dir() + "/hf/nf4_dq --ids " + list + " -o " +
                           path("l.safetensors") + " --json")
                         .parsed();
  EXPECT_EQ(facts["tokens"], ids.shape.back());
  const auto file = io::SafetensorsFile::open(path("l.safetensors"));
  const auto got = file.tensor("logits"), want = golden.tensor("nf4_dq.logits");
  double error = 0, norm = 0;
  for (int64_t i = 0; i < got.numel(); ++i) {
    float g = 0, w = 0;
    std::memcpy(&g, got.data + 4 * i, 4);
    if (want.dtype == io::DType::kBF16) {
      uint16_t bits = 0;
      std::memcpy(&bits, want.data + 2 * i, 2);
      const uint32_t wide = uint32_t{bits} << 16;
      std::memcpy(&w, &wide, 4);
    } else {
      ASSERT_EQ(want.dtype, io::DType::kF32);
      std::memcpy(&w, want.data + 4 * i, 4);
    }
    error += (g - w) * (g - w);
    norm += w * w;
  }
  EXPECT_LT(std::sqrt(error / norm), 2e-2);
}

TEST_F(Cli, TokenizesBothWays) {
  const auto r = works("tokenize " + model_ + " \"Hi there\" --json").parsed();
  ASSERT_EQ(r["ids"].size(), 8u);
  std::string ids;
  for (const auto& id : r["ids"]) ids += std::to_string(id.get<int>()) + " ";
  EXPECT_EQ(works("tokenize " + model_ + " --decode \"" + ids + "\"").out, "Hi there\n");
}

TEST_F(Cli, BenchLinearMeasuresShapesTokensTypesAndPasses) {
  const auto linear = works(
                          "bench linear --shapes 64x64,32x96 --m 1,3 --type nf4,int8 --backward "
                          "--device cpu --seconds 0.01 --json")
                          .parsed();
  EXPECT_EQ(linear["bench"], "linear");
  EXPECT_EQ(linear["dtype"], "float32");
  ASSERT_EQ(linear["rows"].size(), 2u * 2u * 2u * 2u);
  for (const auto& row : linear["rows"]) {
    const double seconds = row["seconds"], flops = 2.0 * row["n"].get<double>() *
                                                   row["k"].get<double>() * row["m"].get<double>();
    EXPECT_GT(seconds, 0.0) << row;
    EXPECT_NEAR(row["ratio"].get<double>(), row["float_seconds"].get<double>() / seconds, 1e-9);
    EXPECT_NEAR(row["flops"].get<double>() * seconds, flops, 1e-6 * flops);
    EXPECT_GT(row["part_of_ceiling"].get<double>(), 0.0) << row;
  }
  for (const char* ceiling : {"copy", "float32 matmul"}) {
    EXPECT_GT(linear["ceilings"][ceiling].get<double>(), 1e6) << ceiling;
  }
}

TEST_F(Cli, BenchesPrintEveryFormAndSaveIt) {
  const std::string few = "bench linear --shapes 64x64 --m 1 --device cpu --seconds 0.01 ";
  const auto csv = works(few + "--format csv --backward").out;
  EXPECT_EQ(csv.rfind("N x K,M,type,pass,us,", 0), 0u) << csv;
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 3);
  const auto saved =
      works(few + "-o " + path("t.md") + " -o " + path("t.csv") + " -o " + path("t.json"));
  EXPECT_EQ(slurp(path("t.md")), saved.out);
  EXPECT_NE(saved.out.find("Ceilings of this run: copy "), std::string::npos);
  EXPECT_EQ(slurp(path("t.csv")).rfind("N x K,", 0), 0u);
  const auto parsed = json::parse(slurp(path("t.json")));
  EXPECT_EQ(parsed["library"], "lowbit");
  EXPECT_EQ(parsed["rows"].size(), 1u);

  const auto quantize =
      works("bench quantize --elements 65536 --device cpu --seconds 0.01 --json").parsed();
  EXPECT_EQ(quantize["rows"].size(), 12u);
  for (const auto& row : quantize["rows"]) EXPECT_GT(row["part_of_copy"].get<double>(), 0.0) << row;

  const auto steps =
      works(
          "bench optimizer --elements 65536 --tensors 4 --optimizers adamw8bit,lion32bit "
          "--device cpu --seconds 0.01 --json")
          .parsed()["rows"];
  ASSERT_EQ(steps.size(), 2u);
  EXPECT_EQ(steps[0]["state_bytes_per_parameter"], 2 + 8.0 / 256);
  EXPECT_EQ(steps[1]["state_bytes_per_parameter"], 4);
  EXPECT_GT(steps[0]["part_of_copy"].get<double>(), 0.0);
  const auto generate =
      works("bench generate " + model_ + " --prompt-tokens 16 --new-tokens 4 --repeat 1 --json")
          .parsed();
  EXPECT_GT(generate["decode_tokens_per_s"].get<double>(), 0.0);
}

TEST_F(Cli, BenchRefusesWhatItCannotMeasure) {
  const std::string few = "bench linear --shapes 64x64 --m 1 --seconds 0.01 ";
  fails(few + "--device cuda:99", "--device cuda:99: ");
  fails("bench quantize --elements 4096 --device gpu", "auto, cpu, cuda or cuda:N, got gpu");
  fails(few + "-o " + path("no/such/folder/t.md"), "no/such/folder/t.md cannot be written");
  fails(few + "--device cuda:99 -o " + path("none.md"), "--device cuda:99: ");
  EXPECT_FALSE(fs::exists(path("none.md")));
  EXPECT_EQ(lowbit(few + "-o table.txt").code, 2);
  EXPECT_EQ(lowbit("bench linear --blocksize 48").code, 2);
}

TEST_F(Cli, DoctorTestsEveryFamilyAndSaysWhatCudaLacks) {
  const auto r = works("doctor --json").parsed();
  std::map<std::string, int> families;
  for (const auto& test : r["self_tests"]) {
    EXPECT_EQ(test["result"], "ok") << test;
    EXPECT_GE(test["seconds"].get<double>(), 0.0);
    families[test["family"]] += test["device"] == "cpu";
  }
  for (const char* family : {"fourbit", "blockwise", "int8", "matmul", "decoder"}) {
    EXPECT_GE(families[family], 1) << family;
  }
  const std::string cuda = r["CUDA"];
#ifdef LOWBIT_HAS_CUDA
  if (!r.contains("GPU 0")) {
    EXPECT_NE(cuda.find("driver"), std::string::npos) << cuda;
  }
#else
  EXPECT_EQ(cuda, "no. This build has no CUDA kernels: build it with LOWBIT_CUDA=ON.");
  EXPECT_FALSE(r.contains("GPU 0"));
#endif
  EXPECT_NE(works("doctor").out.find("| decoder"), std::string::npos);
}

TEST_F(Cli, BadInputIsAnErrorAndLeavesNothing) {
  fails("inspect " + path("nowhere"), path("nowhere"));
  fails("quantize " + path("nowhere") + " " + path("q") + " --type nf4", path("nowhere"));
  EXPECT_FALSE(fs::exists(path("q")));
  fails("quantize " + model_ + " " + model_ + " --type nf4", "another directory");
  fails("ppl " + model_ + " --text " + path("nowhere"), path("nowhere"));
  fails("logits " + model_ + " --ids 1,9999 -o " + path("l"), "9999");
  EXPECT_FALSE(fs::exists(path("l")));
  fails("logits " + model_ + " --ids 1,2 -o " + path("no/such/folder/l"), "no/such/folder");
  fails("run " + model_ + " -p a --device cuda:0", "cuda");
  fails("tokenize " + model_ + " --decode 4711", "4711");

  const auto q = quantized();
  fails("quantize " + q + " " + path("twice") + " --type nf4", "quantized already");

  const auto config = fs::path(model_) / "config.json";
  const std::string good = slurp(config);
  std::ofstream(config) << "{\"model_type\": \"llama\", \"vocab_size\": -1}";
  fails("inspect " + model_, "vocab_size");
  std::ofstream(config) << good;
  const auto weights = fs::path(model_) / "model.safetensors";
  fs::resize_file(weights, fs::file_size(weights) / 2);
  fails("quantize " + model_ + " " + path("cut") + " --type nf4", "model.safetensors");
  EXPECT_FALSE(fs::exists(path("cut")));
}

}  // namespace
}  // namespace lowbit
