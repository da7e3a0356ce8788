// QuantState as the entries of files: to the byte what the ecosystem writes, and everything checked
// that is read.
#include <ATen/ATen.h>

#include <charconv>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "lowbit/quant_state.h"
#include "ops/check.h"
#include "ops/weight.h"

namespace lowbit {
namespace {

using Dict = std::map<std::string, c10::IValue>;

constexpr const char* kOp = "lowbit::QuantState";
constexpr std::string_view kPackedPrefix = "quant_state.bitsandbytes__";

std::string last_component(const std::string& key) {
  const size_t dot = key.rfind('.');
  return dot == std::string::npos ? key : key.substr(dot + 1);
}

// ---- Writing ----

/// A double as Python prints it: the shortest digits that read back, fixed notation for exponents
/// -4..15.
std::string python_float(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
  char buffer[64];
  const auto end =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific).ptr;
  const std::string scientific(buffer, end);  // [-]d[.ddd]e+dd or e-dd
  const size_t e = scientific.find('e');
  const int exponent = std::stoi(scientific.substr(e + 1));
  if (exponent < -4 || exponent >= 16) return scientific;
  const auto fixed_end =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::fixed).ptr;
  std::string fixed(buffer, fixed_end);
  if (fixed.find('.') == std::string::npos) fixed += ".0";
  return fixed;
}

std::string python_list(const std::vector<int64_t>& values) {
  std::string text = "[";
  for (size_t i = 0; i < values.size(); ++i)
    text += (i > 0 ? ", " : "") + std::to_string(values[i]);
  return text + "]";
}

std::string json_of(const QuantState& state) {
  std::string text = c10::str(
      "{\"quant_type\": \"", to_string(*state.quant_type), "\", \"blocksize\": ", state.blocksize,
      ", \"dtype\": \"", ops::dtype_name(state.dtype),
      "\", \"shape\": ", state.shape.has_value() ? python_list(*state.shape) : "null");
  if (state.nested()) {
    text += c10::str(", \"nested_blocksize\": ", state.state2->blocksize, ", \"nested_dtype\": \"",
                     ops::dtype_name(state.state2->dtype),
                     "\", \"nested_offset\": ", python_float(state.offset.item<double>()));
  }
  return text + "}";
}

at::Tensor bytes_tensor(const std::string& text) {
  at::Tensor bytes = at::empty({static_cast<int64_t>(text.size())}, at::kByte);
  std::memcpy(bytes.mutable_data_ptr(), text.data(), text.size());
  return bytes;
}

// ---- Reading ----

/// Expectation of one entry; the errors name the key.
void expect(bool condition, const std::string& key, const std::string& expectation,
            const std::string& got) {
  LOWBIT_CHECK(condition, kOp, key, expectation, got);
}

c10::IValue value_of(const std::string& key, const nlohmann::json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_integer()) return value.get<int64_t>();
  if (value.is_number_float()) return value.get<double>();
  if (value.is_null()) return {};
  expect(value.is_array(), key, "a string, a number, a list of integers or null", value.dump());
  std::vector<int64_t> items;
  for (const auto& item : value) {
    expect(item.is_number_integer(), key, "a list of integers", value.dump());
    items.push_back(item.get<int64_t>());
  }
  return items;
}

void merge_json(const std::string& key, const at::Tensor& blob, Dict& dict) {
  expect(blob.scalar_type() == at::kByte && blob.dim() == 1, key, "JSON text as uint8 [bytes]",
         c10::str(ops::dtype_name(blob.scalar_type()), " ", blob.sizes()));
  const at::Tensor bytes = blob.to(at::kCPU).contiguous();
  const auto* data = static_cast<const char*>(bytes.const_data_ptr());
  const auto json =
      nlohmann::json::parse(data, data + bytes.numel(), nullptr, /*allow_exceptions=*/false);
  expect(json.is_object(), key, "a JSON object", "something else");
  for (const auto& [name, value] : json.items()) dict[name] = value_of(name, value);
}

class Reader {
 public:
  Reader(Dict dict, at::Device device) : dict_(std::move(dict)), device_(device) {}

  bool has(const std::string& key) const {
    return dict_.count(key) != 0 && !dict_.at(key).isNone();
  }

  at::Tensor tensor(const std::string& key, std::initializer_list<at::ScalarType> dtypes) const {
    const c10::IValue& value = at(key);
    expect(value.isTensor(), key, "a tensor", value.tagKind());
    const at::Tensor& t = value.toTensor();
    bool known = false;
    std::string names;
    for (const at::ScalarType dtype : dtypes) {
      known = known || t.scalar_type() == dtype;
      names += (names.empty() ? "" : " or ") + ops::dtype_name(dtype);
    }
    expect(known, key, names, ops::dtype_name(t.scalar_type()));
    return t.to(t.options().device(device_)).contiguous();
  }
  std::string string(const std::string& key) const {
    expect(at(key).isString(), key, "a string", at(key).tagKind());
    return at(key).toStringRef();
  }
  int64_t positive(const std::string& key) const {
    expect(at(key).isInt() && at(key).toInt() > 0, key, "a positive integer", text(at(key)));
    return at(key).toInt();
  }
  at::ScalarType dtype(const std::string& key) const {
    const at::ScalarType type = ops::parse_dtype(string(key), kOp, key);
    ops::check_float(kOp, key.c_str(), type);
    return type;
  }
  std::vector<int64_t> sizes(const std::string& key) const {
    expect(at(key).isIntList(), key, "a list of integers", text(at(key)));
    std::vector<int64_t> shape = at(key).toIntVector();
    ops::check_shape(kOp, key.c_str(), shape);
    return shape;
  }
  double number(const std::string& key) const {
    const c10::IValue& value = at(key);
    const double number = value.isDouble() ? value.toDouble() : value.isInt() ? value.toInt() : NAN;
    expect(std::isfinite(number), key, "a finite number", text(value));
    return number;
  }

 private:
  const c10::IValue& at(const std::string& key) const {
    expect(has(key), key, "present", "nothing");
    return dict_.at(key);
  }
  static std::string text(const c10::IValue& value) {
    return value.isInt() || value.isDouble() ? c10::str(value) : value.tagKind();
  }

  Dict dict_;
  at::Device device_;
};

void expect_length(const std::string& key, const at::Tensor& tensor, int64_t length) {
  expect(tensor.numel() == length, key, c10::str(length, " elements long"),
         c10::str("shape ", tensor.sizes()));
}

/// Every key down to its last component, the JSON merged in.
Dict flattened(const Dict& dict) {
  static const std::set<std::string> kKnown = {
      "absmax", "quant_map", "nested_absmax", "nested_quant_map", "quant_type",   "blocksize",
      "dtype",  "shape",     "nested_dtype",  "nested_blocksize", "nested_offset"};
  Dict flat;
  std::string blob_key;
  for (const auto& [key, value] : dict) {
    const size_t at = key.find(kPackedPrefix);
    const bool is_blob =
        at != std::string::npos && (at == 0 || key[at - 1] == '.') && value.isTensor();
    if (is_blob) {
      expect(blob_key.empty(), key, "the only packed quant_state", c10::str("also ", blob_key));
      const std::string type = key.substr(at + kPackedPrefix.size());
      expect(type == "nf4" || type == "fp4", key, "named bitsandbytes__nf4 or bitsandbytes__fp4",
             type);
      blob_key = key;
      continue;
    }
    const std::string name = last_component(key);
    expect(kKnown.count(name) != 0, key, "an entry of a QuantState", "an unknown name");
    expect(flat.emplace(name, value).second, key, "given once", "twice");
  }
  if (blob_key.empty()) {
    expect(flat.count("quant_type") != 0, "quant_state",
           "a packed quant_state.bitsandbytes__* or a quant_type", "neither");
    return flat;
  }
  merge_json(blob_key, dict.at(blob_key).toTensor(), flat);
  for (const auto& [name, value] : flat) {
    expect(kKnown.count(name) != 0, c10::str(blob_key, ": ", name), "an entry of a QuantState",
           "an unknown name");
  }
  const c10::IValue& type = flat["quant_type"];
  expect(type.isString() && type.toStringRef() == blob_key.substr(blob_key.size() - 3), blob_key,
         "JSON whose quant_type is the key's",
         type.isString() ? type.toStringRef() : type.tagKind());
  return flat;
}

}  // namespace

Dict QuantState::as_dict(bool packed) const {
  const bool as_json = packed && quant_type.has_value();
  Dict dict{{"absmax", absmax}, {"quant_map", code}};
  if (nested()) {
    dict["nested_absmax"] = state2->absmax;
    // Layers share the map in memory; files must not: their writers drop tensors that share
    // storage.
    dict["nested_quant_map"] = state2->code.clone();
  }
  if (as_json) {
    dict[c10::str(kPackedPrefix, to_string(*quant_type))] = bytes_tensor(json_of(*this));
    return dict;
  }
  dict["quant_type"] = quant_type.has_value() ? c10::IValue(to_string(*quant_type)) : c10::IValue();
  dict["blocksize"] = blocksize;
  dict["dtype"] = ops::dtype_name(dtype);
  dict["shape"] = shape.has_value() ? c10::IValue(*shape) : c10::IValue();
  if (nested()) {
    dict["nested_blocksize"] = state2->blocksize;
    dict["nested_dtype"] = ops::dtype_name(state2->dtype);
    dict["nested_offset"] = offset.item<double>();
  }
  return dict;
}

std::map<std::string, at::Tensor> QuantState::as_tensors() const {
  LOWBIT_CHECK(quant_type.has_value(), kOp, "quant_type", "nf4 or fp4", "none",
               "8-bit states have no packed form; use as_dict().");
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [key, value] : as_dict(true)) tensors[key] = value.toTensor();
  tensors["quant_map"] = code.clone();
  return tensors;
}

QuantState QuantState::from_dict(const Dict& dict, at::Device device) {
  const Reader read(flattened(dict), device);
  QuantState state;
  const bool nested = read.has("nested_absmax");
  state.absmax = read.tensor("absmax", {nested ? at::kByte : at::kFloat});
  state.code = read.tensor("quant_map", {at::kFloat});
  state.blocksize = read.positive("blocksize");
  state.dtype = read.dtype("dtype");
  if (read.has("shape")) state.shape = read.sizes("shape");
  if (read.has("quant_type")) {
    state.quant_type = ops::check_quant_type(kOp, read.string("quant_type"));
    ops::check_blocksize(kOp, state.blocksize);
    expect(state.shape.has_value(), "shape", "present", "nothing");
  }
  expect_length("quant_map", state.code, state.quant_type.has_value() ? 16 : 256);
  if (state.shape.has_value()) {
    expect_length("absmax", state.absmax, kernels::ceil_div(state.numel(), state.blocksize));
  }
  if (!nested) return state;

  QuantState second;
  second.absmax = read.tensor("nested_absmax", {at::kFloat});
  second.code = read.tensor("nested_quant_map", {at::kFloat});
  second.blocksize = read.positive("nested_blocksize");
  second.dtype = read.dtype("nested_dtype");
  expect_length("nested_quant_map", second.code, 256);
  expect_length("nested_absmax", second.absmax,
                kernels::ceil_div(state.absmax.numel(), second.blocksize));
  state.offset = at::scalar_tensor(read.number("nested_offset"),
                                   at::TensorOptions().dtype(at::kFloat).device(device));
  state.state2 = std::make_shared<const QuantState>(std::move(second));
  return state;
}

QuantState QuantState::from_tensors(const std::map<std::string, at::Tensor>& dict,
                                    at::Device device) {
  return from_dict(Dict(dict.begin(), dict.end()), device);
}

}  // namespace lowbit
