#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <map>
#include <set>

#include "llm/source.h"
#include "lowbit/error.h"
#include "ops/check.h"

namespace lowbit::llm {
namespace {

/// Elements dequantized at a time; a multiple of every encoding's block.
constexpr int64_t kSlice = int64_t{1} << 18;

std::string shape_text(const std::vector<int64_t>& shape) {
  return c10::str(at::IntArrayRef(shape));
}

/// "model.layers.3.mlp.up_proj.weight" -> "blk.3.ffn_up.weight"
std::string gguf_name(const std::string& name) {
  static const std::map<std::string, std::string> kWhole = {
      {"model.embed_tokens.weight", "token_embd.weight"},
      {"model.norm.weight", "output_norm.weight"},
      {"lm_head.weight", "output.weight"}};
  static const std::map<std::string, std::string> kParts = {
      {"input_layernorm", "attn_norm"}, {"post_attention_layernorm", "ffn_norm"},
      {"self_attn.q_proj", "attn_q"},   {"self_attn.k_proj", "attn_k"},
      {"self_attn.v_proj", "attn_v"},   {"self_attn.o_proj", "attn_output"},
      {"mlp.gate_proj", "ffn_gate"},    {"mlp.up_proj", "ffn_up"},
      {"mlp.down_proj", "ffn_down"}};
  if (const auto found = kWhole.find(name); found != kWhole.end()) return found->second;
  constexpr size_t kPrefix = std::string_view("model.layers.").size();
  const size_t index_end = name.find('.', kPrefix), last = name.rfind('.');
  return "blk." + name.substr(kPrefix, index_end - kPrefix) + "." +
         kParts.at(name.substr(index_end + 1, last - index_end - 1)) + name.substr(last);
}

class GgufSource : public WeightSource {
 public:
  explicit GgufSource(const std::string& path) : file_(io::GgufFile::open(path)) {
    config_ = io::model_config_from_gguf(file_);
    config_.tie_word_embeddings = file_.find("output.weight") == nullptr;
    config_.attention_bias = file_.find("blk.0.attn_q.bias") != nullptr;
    config_.mlp_bias = file_.find("blk.0.ffn_up.bias") != nullptr;
  }

  const char* format() const override { return "gguf"; }
  int64_t total_bytes() const override {
    int64_t bytes = 0;
    for (const io::GgufTensor& t : file_.tensors()) bytes += static_cast<int64_t>(t.nbytes);
    return bytes;
  }
  bool is_quantized(const Slot&) const override { return false; }
  int64_t bytes(const Slot& slot) const override {
    return static_cast<int64_t>(tensor(slot).nbytes);
  }
  std::string scheme(const Slot& slot) const override {
    return io::gguf_type_name(tensor(slot).type);
  }
  void release(const Slot& slot) const noexcept override {
    if (const io::GgufTensor* t = file_.find(gguf_name(slot.name))) file_.release(*t);
  }

  void check(const std::vector<Slot>& slots) const override {
    std::set<std::string> expected = {"rope_freqs.weight"};  // read with the config
    for (const Slot& slot : slots) {
      const io::GgufTensor& t = tensor(slot);
      expected.insert(t.name);
      if (t.shape != slot.shape) {
        throw FormatError(file_.path(), "tensor " + t.name, "shape " + shape_text(slot.shape),
                          shape_text(t.shape));
      }
    }
    for (const io::GgufTensor& t : file_.tensors()) {
      if (expected.count(t.name) == 0) {
        throw FormatError(file_.path(), "tensor " + t.name,
                          "only tensors of a " + config_.model_type + " model", "one more");
      }
    }
  }

  at::Tensor load_float(const Slot& slot, at::ScalarType dtype) const override {
    const io::GgufTensor& t = tensor(slot);
    at::Tensor out = at::empty(slot.shape, dtype);
    const at::Tensor flat = out.view({-1});
    at::parallel_for(0, (t.numel + kSlice - 1) / kSlice, 1, [&](int64_t begin, int64_t end) {
      at::Tensor slice = dtype == at::kFloat ? at::Tensor() : at::empty({kSlice}, at::kFloat);
      for (int64_t i = begin * kSlice; i < std::min(end * kSlice, t.numel); i += kSlice) {
        const int64_t stop = std::min(i + kSlice, t.numel);
        if (dtype == at::kFloat) {
          file_.dequantize(t, i, stop, flat.mutable_data_ptr<float>() + i);
        } else {
          file_.dequantize(t, i, stop, slice.mutable_data_ptr<float>());
          flat.narrow(0, i, stop - i).copy_(slice.narrow(0, 0, stop - i));
        }
      }
    });
    file_.release(t);
    return is_rotated(slot) ? half_layout(out, slot) : out;
  }
  at::Tensor load_quantized(const Slot&, at::ScalarType,
                            std::optional<at::ScalarType>) const override {
    ops::refuse({__func__, __FILE__, __LINE__}, "from_pretrained", "source",
                "a checkpoint of bitsandbytes", "a GGUF file");
  }

 private:
  const io::GgufTensor& tensor(const Slot& slot) const {
    const std::string name = gguf_name(slot.name);
    const io::GgufTensor* t = file_.find(name);
    if (t == nullptr) throw FormatError(file_.path(), "tensors", name, "no such tensor");
    return *t;
  }

  static bool is_rotated(const Slot& slot) {
    return slot.name.find(".q_proj.") != std::string::npos ||
           slot.name.find(".k_proj.") != std::string::npos;
  }
  /// llama.cpp rotates neighbours (2d, 2d + 1) and reorders the rows of q and k for that;
  /// Transformers rotates halves (d, d + head_dim / 2).
  at::Tensor half_layout(const at::Tensor& t, const Slot& slot) const {
    const int64_t half = config_.head_dim / 2, heads = slot.shape[0] / config_.head_dim;
    return t.view({heads, half, 2, -1}).transpose(1, 2).reshape(slot.shape);
  }

  io::GgufFile file_;
};

}  // namespace

std::unique_ptr<WeightSource> open_gguf_source(const std::string& path) {
  return std::make_unique<GgufSource>(path);
}

}  // namespace lowbit::llm
