// lowbit inspect: what a model file holds, and what loading or quantizing it would take. Reads
// headers only.
#include "lowbit/llm/inspect.h"

#include <iostream>
#include <map>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/console.h"
#include "cli/load.h"

namespace lowbit::cli {
namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

struct Inspect {
  std::string model;
  LoadFlags load;
  bool tensors = false, json = false;

  struct Sum {
    int64_t weights = 0, bytes = 0, planned = 0;
  };

  void operator()() const {
    const auto d = llm::inspect(model, load.options(""));
    std::map<std::pair<std::string, std::string>, Sum> schemes;
    int64_t parameters = 0;
    for (const auto& w : d.weights) {
      auto& sum = schemes[{w.scheme, w.planned_scheme}];
      ++sum.weights;
      sum.bytes += w.bytes;
      sum.planned += w.planned_bytes;
      int64_t n = 1;
      for (int64_t s : w.shape) n *= s;
      parameters += n;
    }
    const auto& c = d.config;
    if (json) {
      nlohmann::ordered_json list = nlohmann::ordered_json::array();
      for (const auto& w : d.weights) {
        list.push_back({{"name", w.name},
                        {"shape", w.shape},
                        {"scheme", w.scheme},
                        {"bytes", w.bytes},
                        {"planned_scheme", w.planned_scheme},
                        {"planned_bytes", w.planned_bytes}});
      }
      std::cout << nlohmann::ordered_json{{"model", model},
                                          {"format", d.format},
                                          {"model_type", c.model_type},
                                          {"layers", c.num_hidden_layers},
                                          {"hidden_size", c.hidden_size},
                                          {"vocab_size", c.vocab_size},
                                          {"context", c.max_position_embeddings},
                                          {"parameters", parameters},
                                          {"bytes", d.bytes},
                                          {"planned_bytes", d.planned_bytes},
                                          {"device_map", {{"", d.device}}},
                                          {"tensors", list}}
                       .dump(2)
                << '\n';
      return;
    }
    std::cout << bold(model) << ": " << c.model_type << ", " << d.format << ", " << parameters
              << " parameters, " << c.num_hidden_layers << " layers, hidden " << c.hidden_size
              << ", vocabulary " << c.vocab_size << ", context " << c.max_position_embeddings
              << "\n";
    if (tensors) {
      Table table({"tensor", "shape", "in the file", "bytes", "loaded as", "bytes loaded"});
      for (const auto& w : d.weights) {
        table.add({w.name, shape_text(w.shape), w.scheme, std::to_string(w.bytes), w.planned_scheme,
                   std::to_string(w.planned_bytes)});
      }
      std::cout << table.text();
    }
    Table table({"in the file", "loaded as", "weights", "bytes in the file", "bytes loaded"});
    for (const auto& [names, sum] : schemes) {
      table.add({names.first, names.second, std::to_string(sum.weights), human_bytes(sum.bytes),
                 human_bytes(sum.planned)});
    }
    table.add({"total", "", std::to_string(d.weights.size()), human_bytes(d.bytes),
               human_bytes(d.planned_bytes)});
    std::cout << table.text() << "device map: the whole model on " << d.device << "\n";
  }
};

}  // namespace

void add_inspect(CLI::App& app) {
  auto* command = app.add_subcommand(
      "inspect", "Tensors, schemes and bytes of a model; with --type: what would be quantized");
  auto inspect = std::make_shared<Inspect>();
  command->add_option("MODEL", inspect->model, "Model directory or GGUF file")->required();
  command->add_flag("--tensors", inspect->tensors, "List every tensor");
  command->add_flag("--json", inspect->json, "Print the facts as JSON");
  inspect->load.add_to(*command);
  command->footer("Example:\n  lowbit inspect SmolLM2-135M.gguf --type nf4 --double-quant");
  command->callback([inspect] { (*inspect)(); });
}

}  // namespace lowbit::cli
