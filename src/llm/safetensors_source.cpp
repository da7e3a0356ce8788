#include <algorithm>
#include <set>

#include "llm/source.h"
#include "llm/tensor_io.h"
#include "lowbit/error.h"
#include "lowbit/quantized_tensor.h"
#include "ops/check.h"

namespace lowbit::llm {
namespace {

constexpr std::string_view kBlob = "quant_state.bitsandbytes__";

bool is_float(io::DType t) {
  return t == io::DType::kF32 || t == io::DType::kF16 || t == io::DType::kBF16 ||
         t == io::DType::kF64;
}

class SafetensorsSource : public WeightSource {
 public:
  explicit SafetensorsSource(const std::string& directory)
      : file_(io::Checkpoint::open(directory)) {
    config_ = io::read_model_config(directory);
  }

  const char* format() const override { return "safetensors"; }
  int64_t total_bytes() const override { return static_cast<int64_t>(file_.total_bytes()); }

  bool is_quantized(const Slot& slot) const override {
    return slot.kind != SlotKind::kBias && slot.kind != SlotKind::kNorm &&
           (is_8bit(slot) || !statistics(slot).empty());
  }

  int64_t bytes(const Slot& slot) const override {
    int64_t sum = 0;
    for (const std::string& key : keys(slot)) sum += static_cast<int64_t>(file_.tensor(key).nbytes);
    return sum;
  }

  std::string scheme(const Slot& slot) const override {
    if (is_quantized(slot)) {
      if (is_8bit(slot)) return weight_only(slot) ? "int8 (weight only)" : "int8";
      const auto keys = statistics(slot);
      const bool nested = file_.contains(slot.name + ".nested_absmax");
      const bool nf4 = file_.contains(slot.name + "." + std::string(kBlob) + "nf4");
      return std::string(nf4 ? "nf4" : "fp4") + (nested ? " (double quant)" : "");
    }
    return ops::dtype_name(scalar_type(file_.tensor(slot.name).dtype));
  }

  void check(const std::vector<Slot>& slots) const override {
    std::set<std::string> expected;
    std::vector<std::string> missing;
    for (const Slot& slot : slots) {
      if (!file_.contains(slot.name)) {
        missing.push_back(slot.name);
        continue;
      }
      for (const std::string& key : keys(slot)) expected.insert(key);
      if (!is_quantized(slot)) check_float(slot);
    }
    if (!missing.empty()) fail("the tensors of the model", "no " + listed(missing));
    std::vector<std::string> unexpected;
    for (const std::string& name : file_.names()) {
      if (expected.count(name) == 0 && !is_ignored(name)) unexpected.push_back(name);
    }
    if (!unexpected.empty()) {
      fail("only the tensors of a " + config_.model_type + " model", listed(unexpected));
    }
  }

  at::Tensor load_float(const Slot& slot, at::ScalarType dtype) const override {
    const at::Tensor stored = to_tensor(file_.tensor(slot.name));
    if (stored.scalar_type() == dtype) return stored;
    at::Tensor converted = stored.to(dtype);
    release(slot);
    return converted;
  }

  at::Tensor load_quantized(const Slot& slot, at::ScalarType dtype,
                            std::optional<at::ScalarType> compute_dtype) const override {
    std::map<std::string, at::Tensor> entries;
    for (const std::string& key : keys(slot)) entries.emplace(key, to_tensor(file_.tensor(key)));
    const double threshold = config_.quantization ? config_.quantization->llm_int8_threshold : 0.0;
    try {
      const auto weight =
          quantized_from_entries(slot.name, entries,
                                 {.dtype = dtype,
                                  .threshold = weight_only(slot) ? 0.0 : threshold,
                                  .weight_only = weight_only(slot),
                                  .compute_dtype = is_8bit(slot) ? std::nullopt : compute_dtype});
      LOWBIT_CHECK(weight.has_value(), "from_pretrained", slot.name, "a quantized weight",
                   "entries of another kind");
      LOWBIT_CHECK(weight->sizes() == at::IntArrayRef(slot.shape), "from_pretrained", slot.name,
                   c10::str("of shape ", at::IntArrayRef(slot.shape)), weight->sizes());
      return *weight;
    } catch (const c10::Error& e) {  // names the entry; add the file
      throw FormatError(file_.path(), "layer " + slot.module(),
                        "a weight quantized by bitsandbytes", e.what_without_backtrace());
    }
  }

  void release(const Slot& slot) const noexcept override {
    for (const std::string& key : keys(slot)) file_.release(key);
  }

 private:
  static std::string scb(const Slot& slot) { return slot.module() + ".SCB"; }
  bool is_8bit(const Slot& slot) const { return file_.contains(scb(slot)); }

  /// "<weight>.absmax" and its like: what a 4-bit weight has beside its codes.
  std::vector<std::string> statistics(const Slot& slot) const {
    return file_.names_with_prefix(slot.name + ".");
  }

  std::vector<std::string> keys(const Slot& slot) const {
    std::vector<std::string> keys;
    if (file_.contains(slot.name)) keys.push_back(slot.name);
    if (slot.kind == SlotKind::kBias || slot.kind == SlotKind::kNorm) return keys;
    for (std::string& key : statistics(slot)) keys.push_back(std::move(key));
    for (const char* suffix : {".SCB", ".weight_format"}) {
      if (file_.contains(slot.module() + suffix)) keys.push_back(slot.module() + suffix);
    }
    return keys;
  }

  /// Tables are 8-bit in files of this library only, and then weights alone are. A head that
  /// LLM.int8() was asked for by an explicit skip list is a layer like others.
  bool weight_only(const Slot& slot) const {
    if (slot.kind == SlotKind::kEmbedding) return true;
    if (slot.kind != SlotKind::kHead) return false;
    const auto& q = config_.quantization;
    return !(q && q->load_in_8bit && q->llm_int8_skip_modules &&
             !is_skipped(slot.module(), *q->llm_int8_skip_modules));
  }

  /// Left behind by old versions, or not used: the rotary table is computed, a tied head is the
  /// embedding.
  bool is_ignored(const std::string& name) const {
    return name.ends_with(".rotary_emb.inv_freq") ||
           (config_.tie_word_embeddings && name.starts_with("lm_head."));
  }

  void check_float(const Slot& slot) const {
    const io::TensorView view = file_.tensor(slot.name);
    if (!is_float(view.dtype)) {
      throw FormatError(file_.path(), "tensor " + slot.name,
                        "a float tensor, or the statistics of a quantized one",
                        io::dtype_name(view.dtype));
    }
    if (view.shape != slot.shape) {
      throw FormatError(file_.path(), "tensor " + slot.name,
                        c10::str("shape ", at::IntArrayRef(slot.shape)),
                        c10::str(at::IntArrayRef(view.shape)));
    }
  }

  [[noreturn]] void fail(const std::string& expected, const std::string& found) const {
    throw FormatError(file_.path(), "tensor names", expected, found);
  }
  static std::string listed(const std::vector<std::string>& names) {
    constexpr size_t kMost = 5;
    std::string text;
    for (size_t i = 0; i < std::min(names.size(), kMost); ++i) {
      text += (i > 0 ? ", " : "") + names[i];
    }
    return names.size() > kMost ? text + " and " + std::to_string(names.size() - kMost) + " more"
                                : text;
  }

  io::Checkpoint file_;
};

}  // namespace

std::unique_ptr<WeightSource> open_safetensors_source(const std::string& directory) {
  return std::make_unique<SafetensorsSource>(directory);
}

}  // namespace lowbit::llm
