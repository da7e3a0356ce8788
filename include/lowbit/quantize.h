// Quantizing tensors and whole models in place.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/arg.h>

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lowbit/quantized_tensor.h"

namespace torch::nn {
class Module;
}
namespace torch::jit {
struct Module;
}

namespace lowbit {

/// How to quantize, and which weights. Setters chain.
///
/// A pattern names whole components of a dotted path, at any depth: "lm_head", "layers.0.mlp". A
/// component may hold `*`, which stands for any text within it.
class QuantizationConfig {
 public:
  /// NF4, QLoRA's 4-bit NormalFloat: https://arxiv.org/abs/2305.14314.
  static QuantizationConfig nf4() { return QuantizationConfig(QuantScheme::kNF4); }
  static QuantizationConfig fp4() { return QuantizationConfig(QuantScheme::kFP4); }
  /// LLM.int8(), https://arxiv.org/abs/2208.07339: features of at least `threshold` stay in
  /// floating point; 0 turns that off.
  static QuantizationConfig int8(double threshold = 6.0) {
    return QuantizationConfig(QuantScheme::kInt8).threshold(threshold);
  }
  static QuantizationConfig int8_weight_only() {
    return QuantizationConfig(QuantScheme::kInt8WeightOnly);
  }
  explicit QuantizationConfig(QuantScheme scheme) : scheme_(scheme) {}

  QuantScheme scheme() const noexcept { return scheme_; }

  using Filter = std::function<bool(const std::string& layer, const at::Tensor& weight)>;
  using Override = std::pair<std::string, QuantizationConfig>;

  /// int8: outliers from here on.
  TORCH_ARG(double, threshold) = 0.0;
  /// 4-bit: elements that share a scale; a power of two from 32 to 4096.
  TORCH_ARG(int64_t, blocksize) = 64;
  /// 4-bit: quantize the scales too (blocksize 256).
  TORCH_ARG(bool, double_quant) = false;
  /// Products are computed in this dtype, and returned in the input's. Unset: the input's.
  TORCH_ARG(std::optional<at::ScalarType>, compute_dtype) = std::nullopt;
  /// 4-bit: the dtype that packed bytes are viewed as.
  TORCH_ARG(at::ScalarType, quant_storage) = at::kByte;
  /// Patterns of module paths that are left alone.
  TORCH_ARG(std::vector<std::string>, skip) = {};
  /// When not empty: patterns of the only module paths that are quantized.
  TORCH_ARG(std::vector<std::string>, only) = {};
  /// When set: asked last, with the path of the layer (of an expert stack: of the parameter); false
  /// leaves the weight alone.
  TORCH_ARG(Filter, filter) = nullptr;
  /// Also quantize the tables of embeddings.
  TORCH_ARG(bool, quantize_embeddings) = false;
  /// Report what would be done, and do nothing.
  TORCH_ARG(bool, dry_run) = false;
  /// Quantize weights with NaN or infinite elements, too; their blocks are lost.
  TORCH_ARG(bool, allow_nonfinite) = false;

 public:
  /// Layers that match `pattern` follow `config` (of which only how, not which, is read). The last
  /// override that matches wins.
  QuantizationConfig& override(std::string pattern, QuantizationConfig config) {
    overrides_.emplace_back(std::move(pattern), std::move(config));
    return *this;
  }
  const std::vector<Override>& overrides() const noexcept { return overrides_; }

 private:
  QuantScheme scheme_;
  std::vector<Override> overrides_;
};

/// Whether `path` holds `pattern`, as QuantizationConfig says.
bool matches_path(const std::string& path, const std::string& pattern);

/// A quantized weight with w's shape, dtype and device; w is unchanged. w: float32, float16 or
/// bfloat16, at least 1-D, not empty (int8: at least 2-D). Reads of `config` how, not which. Throws
/// c10::Error for another dtype or rank, a blocksize that is none, and non-finite elements (with
/// their count) unless allow_nonfinite.
at::Tensor quantize(const at::Tensor& w, const QuantizationConfig& config);

/// What quantize_ did, or would do (dry_run).
struct QuantizationReport {
  struct Layer {
    std::string name;  ///< path of the parameter; "weight" of the root is just that
    std::vector<int64_t> shape;
    at::ScalarType dtype;                ///< of the weight
    std::string scheme;                  ///< "nf4, blocksize 64, double quant"
    int64_t bytes_before = 0;            ///< a tied weight counts once
    int64_t bytes_after = 0;             ///< codes and statistics
    double relative_error = 0.0;         ///< |dequantized - weight| / |weight|; NaN in a dry run
    std::vector<std::string> tied = {};  ///< other paths of the same weight
  };
  /// A parameter that stays as it was.
  struct LeftAlone {
    std::string name;
    std::vector<int64_t> shape;
    int64_t bytes = 0;
    std::string reason;
  };
  std::vector<Layer> layers;
  std::vector<LeftAlone> left_alone;
  bool dry_run = false;

  int64_t bytes_before() const noexcept;  ///< of all parameters
  int64_t bytes_after() const noexcept;
};
/// A table.
std::ostream& operator<<(std::ostream& stream, const QuantizationReport& report);

/// Quantizes, in place, the weights of linear layers, stacks of experts (3-D parameters [E, N, K]
/// of modules that are not torch's own) and, when asked, embeddings, anywhere below `module`.
/// Tensors keep their identity: members, tied weights and optimizers see the quantized weight,
/// which no longer requires grad. What is quantized already is left alone. Throws c10::Error,
/// naming the parameter, for what `quantize` refuses; then nothing has changed.
QuantizationReport quantize_(torch::nn::Module& module, const QuantizationConfig& config);
/// The same for a scripted, traced or loaded module that is not frozen.
QuantizationReport quantize_(torch::jit::Module& module, const QuantizationConfig& config);

/// Turns every quantized parameter below `module` back into a dense one, of `dtype` or its own.
/// Returns how many (tied ones count once).
int64_t dequantize_(torch::nn::Module& module, std::optional<at::ScalarType> dtype = std::nullopt);
int64_t dequantize_(torch::jit::Module& module, std::optional<at::ScalarType> dtype = std::nullopt);

}  // namespace lowbit
