// lowbit bench quantize: quantizing and dequantizing a tensor, against a copy in the same run.
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "cli/bench_report.h"
#include "cli/commands.h"
#include "cli/load.h"
#include "cli/stopwatch.h"
#include "lowbit/functional.h"

namespace lowbit::cli {
namespace {

/// Several times the caches.
constexpr int64_t kCpuElements = int64_t{1} << 25, kGpuElements = int64_t{1} << 28;
constexpr int64_t kColumns = 4096;
/// One column in a thousand holds outliers: those of an LLM's activations.
constexpr int64_t kOutlierStep = 1000;

struct QuantizeBench {
  std::vector<std::string> types = {"nf4", "fp4", "int8", "blockwise"};
  std::vector<int64_t> blocksizes;
  int64_t elements = 0;
  std::string dtype = "bfloat16";
  BenchOptions options;

  void operator()() const {
    const at::Device device = options.begin();
    const c10::InferenceMode guard;
    const auto scalar = llm::dtype_from_name(dtype);
    const int64_t wanted = elements > 0 ? elements : device.is_cpu() ? kCpuElements : kGpuElements;
    const int64_t count = std::max<int64_t>(wanted / kColumns, 1) * kColumns;
    at::manual_seed(1);
    const auto w =
        at::empty({count / kColumns, kColumns}, at::device(device).dtype(scalar)).normal_();
    const auto copy = at::empty_like(w);
    const Stopwatch watch(device, options.seconds);
    BenchReport report("quantize", device,
                       {"op", "elements", "us", "spread %", "rate", "% of copy"},
                       {{"dtype", dtype}, {"elements", count}});
    report.add_ceiling("copy", watch.copy_rate(), "B");
    report.add_note(
        "Bytes are those that must move: input, codes, statistics. Each row's share is of a copy "
        "of the tensor, timed in turns with it.");
    const double wide = static_cast<double>(w.nbytes());
    const auto row = [&](const std::string& name, double bytes, const std::function<void()>& work) {
      const auto t = watch({[&](int64_t) { work(); }, [&](int64_t) { copy.copy_(w, true); }});
      const double rate = bytes / t[0].median, part = rate * t[1].median / (2 * wide);
      report.add({name, std::to_string(count), fixed(t[0].median * 1e6, 1),
                  fixed(100 * t[0].spread, 0), rate_text(rate, "B"), fixed(100 * part, 0)},
                 {{"op", name},
                  {"elements", count},
                  {"seconds", t[0].median},
                  {"spread", t[0].spread},
                  {"bytes_per_s", rate},
                  {"part_of_copy", part}});
    };
    for (const auto& type : types) {
      if (type == "int8") {
        int8(w, row);
      } else if (type == "blockwise") {
        for (const int64_t size : sizes(256)) blockwise(w, size, row);
      } else {
        for (const int64_t size : sizes(64)) fourbit(w, type, size, row);
      }
    }
    report.print(options);
  }

  std::vector<int64_t> sizes(int64_t usual) const {
    return blocksizes.empty() ? std::vector<int64_t>{usual} : blocksizes;
  }

  template <class Row>
  static void fourbit(const at::Tensor& w, const std::string& type, int64_t blocksize, Row row) {
    const std::string name = type + " " + std::to_string(blocksize);
    for (const bool nested : {false, true}) {
      const Quantize4bitOptions how{.blocksize = blocksize,
                                    .compress_statistics = nested,
                                    .quant_type = parse_quant_type(type)};
      const auto [packed, state] = quantize_4bit(w, how);
      const int64_t blocks = (w.numel() + blocksize - 1) / blocksize;
      const double bytes = static_cast<double>(w.nbytes() + packed.nbytes()) +
                           static_cast<double>(blocks) * (nested ? 1 + 4.0 / 256 : 4);
      const std::string full = name + (nested ? ", double quantization" : "");
      row("quantize_4bit " + full, bytes, [&] { quantize_4bit(w, how); });
      row("dequantize_4bit " + full, bytes,
          [&, &packed = packed, &state = state] { dequantize_4bit(packed, state); });
    }
  }

  template <class Row>
  static void blockwise(const at::Tensor& w, int64_t blocksize, Row row) {
    const QuantizeBlockwiseOptions how{.code = create_dynamic_map().to(w.device()),
                                       .blocksize = blocksize};
    const auto [codes, state] = quantize_blockwise(w, how);
    const double bytes = static_cast<double>(w.nbytes() + codes.nbytes() + state.absmax.nbytes());
    const std::string name = std::to_string(blocksize);
    row("quantize_blockwise " + name, bytes, [&] { quantize_blockwise(w, how); });
    row("dequantize_blockwise " + name, bytes,
        [&, &codes = codes, &state = state] { dequantize_blockwise(codes, state); });
  }

  template <class Row>
  static void int8(const at::Tensor& w, Row row) {
    const double bytes = static_cast<double>(w.nbytes()) + static_cast<double>(w.numel()) +
                         4.0 * static_cast<double>(w.size(0));
    row("int8_vectorwise_quant, no threshold", bytes, [&] { int8_vectorwise_quant(w, 0.0); });
    // All other elements stay below the threshold, as they do in activations.
    const at::Tensor x = w.clamp(-5, 5);
    x.slice(1, 0, x.size(1), kOutlierStep).fill_(20);
    row("int8_vectorwise_quant, threshold 6 (lists columns: waits)", bytes,
        [&] { int8_vectorwise_quant(x, 6.0); });
  }
};

}  // namespace

void add_bench_quantize(CLI::App& bench) {
  auto quantize = std::make_shared<QuantizeBench>();
  auto* command =
      bench.add_subcommand("quantize", "Quantize and dequantize, against the speed of a copy");
  command->add_option("--type", quantize->types, "nf4, fp4, int8, blockwise, by commas")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::IsMember({"nf4", "fp4", "int8", "blockwise"}));
  command
      ->add_option("--elements", quantize->elements,
                   "Elements of the tensor (default: 33554432 on the CPU, 268435456 on a GPU)")
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--blocksize", quantize->blocksizes,
                   "Elements that share a scale, by commas (default: 4-bit 64, block-wise 256)")
      ->delimiter(',')
      ->check(CLI::IsMember({32, 64, 128, 256, 512, 1024, 2048, 4096}));
  command->add_option("--dtype", quantize->dtype, "Of the tensor")
      ->capture_default_str()
      ->check(CLI::IsMember({"float32", "bfloat16", "float16"}));
  quantize->options.add_to(*command);
  command->footer("Example:\n  lowbit bench quantize --type nf4 --dtype bfloat16");
  command->callback([quantize] { (*quantize)(); });
}

}  // namespace lowbit::cli
