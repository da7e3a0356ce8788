#include "lowbit/optim/state_dict.h"

#include <ATen/ATen.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "lowbit/error.h"
#include "lowbit/io/safetensors.h"
#include "optim/flat_state.h"

namespace lowbit::optim {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kWrapped = "__bnb_optimizer_quant_state__.";

io::DType io_dtype(at::ScalarType dtype, const std::string& name) {
  switch (dtype) {
    case at::kFloat:
      return io::DType::kF32;
    case at::kByte:
      return io::DType::kU8;
    case at::kLong:
      return io::DType::kI64;
    default:
      throw FormatError("optimizer state", name, "float32, uint8 or int64", c10::toString(dtype));
  }
}

at::ScalarType scalar_type(io::DType dtype, const std::string& path, const std::string& name) {
  switch (dtype) {
    case io::DType::kF32:
      return at::kFloat;
    case io::DType::kU8:
      return at::kByte;
    case io::DType::kI64:
      return at::kLong;
    default:
      throw FormatError(path, name, "F32, U8 or I64", io::dtype_name(dtype));
  }
}

std::string groups_as_json(const std::vector<ParameterGroup>& groups) {
  Json list = Json::array();
  for (const ParameterGroup& group : groups) {
    Json entry = Json::object();
    entry["params"] = group.params;
    for (const auto& [name, values] : group.options) {
      // One value stands alone, none is null, as in the ecosystem.
      if (values.empty()) {
        entry[name] = nullptr;
      } else if (values.size() == 1) {
        entry[name] = values[0];
      } else {
        entry[name] = values;
      }
    }
    list.push_back(std::move(entry));
  }
  return list.dump();
}

std::vector<ParameterGroup> groups_of_json(const std::string& text, const std::string& source) {
  const Json list = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto expect = [&](bool holds, const char* what) {
    if (!holds) throw FormatError(source, "param_groups", what, "something else");
  };
  expect(list.is_array(), "a JSON list");
  std::vector<ParameterGroup> groups;
  for (const Json& entry : list) {
    expect(entry.is_object() && entry.contains("params") && entry["params"].is_array(),
           "objects with a list \"params\"");
    ParameterGroup& group = groups.emplace_back();
    for (const Json& number : entry["params"]) {
      expect(number.is_number_integer(), "whole numbers in \"params\"");
      group.params.push_back(number.get<int64_t>());
    }
    for (const auto& [name, value] : entry.items()) {
      if (name == "params") continue;
      std::vector<double>& values = group.options[name];
      const auto add = [&](const Json& item) {
        expect(item.is_number() || item.is_boolean(), "numbers as options");
        values.push_back(item.is_boolean() ? item.get<bool>() : item.get<double>());
      };
      if (value.is_array()) {
        for (const Json& item : value) add(item);
      } else if (!value.is_null()) {
        add(value);
      }
    }
  }
  return groups;
}

/// "state.12.name": 12 and "name".
std::pair<int64_t, std::string> parse_name(const std::string& name, const std::string& source) {
  constexpr std::string_view kPrefix = "state.";
  const size_t dot = name.find('.', kPrefix.size());
  const std::string digits = name.starts_with(kPrefix) && dot != std::string::npos
                                 ? name.substr(kPrefix.size(), dot - kPrefix.size())
                                 : "";
  if (digits.empty() || digits.size() > 9 ||
      digits.find_first_not_of("0123456789") != std::string::npos) {
    throw FormatError(source, "tensors", "names state.<number>.<name>", name);
  }
  std::string rest = name.substr(dot + 1);
  if (rest.starts_with(kWrapped)) rest = rest.substr(kWrapped.size());
  return {std::stoll(digits), rest};
}

}  // namespace

FlatState flatten(const OptimizerStateDict& dict) {
  FlatState flat;
  for (const auto& [number, state] : dict.state) {
    std::string stem = "state.";
    stem.append(std::to_string(number)).append(".");
    flat.tensors[stem + "step"] = at::scalar_tensor(state.step, at::kLong);
    for (const auto& [name, tensor] : state.tensors) {
      flat.tensors[std::string(stem).append(kWrapped).append(name)] =
          tensor.detach().cpu().contiguous();
    }
  }
  flat.texts["algorithm"] = dict.algorithm;
  flat.texts["param_groups"] = groups_as_json(dict.param_groups);
  return flat;
}

OptimizerStateDict unflatten(const FlatState& flat, const std::string& source) {
  OptimizerStateDict dict;
  for (const auto& [name, tensor] : flat.tensors) {
    const auto [number, part] = parse_name(name, source);
    ParameterState& state = dict.state[number];
    if (part != "step") {
      state.tensors[part] = tensor;
      continue;
    }
    if (tensor.numel() != 1 || !at::isIntegralType(tensor.scalar_type(), false)) {
      throw FormatError(source, name, "one whole number", "another tensor");
    }
    state.step = tensor.item<int64_t>();
  }
  const auto groups = flat.texts.find("param_groups");
  if (groups == flat.texts.end()) {
    throw FormatError(source, "metadata", "param_groups", "none");
  }
  dict.param_groups = groups_of_json(groups->second, source);
  if (const auto found = flat.texts.find("algorithm"); found != flat.texts.end()) {
    dict.algorithm = found->second;
  }
  return dict;
}

void save_state_dict(const OptimizerStateDict& dict, const std::string& path) {
  const FlatState flat = flatten(dict);
  std::map<std::string, io::TensorView> views;
  for (const auto& [name, tensor] : flat.tensors) {
    views[name] = {.dtype = io_dtype(tensor.scalar_type(), name),
                   .shape = tensor.sizes().vec(),
                   .data = static_cast<const std::byte*>(tensor.const_data_ptr()),
                   .nbytes = tensor.nbytes(),
                   .owner = nullptr};
  }
  io::SafetensorsMetadata metadata = flat.texts;
  metadata["format"] = "pt";
  io::write_safetensors(path, views, metadata);
}

OptimizerStateDict read_state_dict(const std::string& path) {
  const io::SafetensorsFile file = io::SafetensorsFile::open(path);
  FlatState flat;
  for (const std::string& name : file.names()) {
    const io::TensorView view = file.tensor(name);
    at::Tensor tensor = at::empty(view.shape, scalar_type(view.dtype, path, name));
    if (view.nbytes > 0) std::memcpy(tensor.mutable_data_ptr(), view.data, view.nbytes);
    flat.tensors[name] = std::move(tensor);
  }
  flat.texts = file.metadata();
  return unflatten(flat, path);
}

}  // namespace lowbit::optim
