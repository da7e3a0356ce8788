#include "io/json.h"

#include <utility>
#include <vector>

#include "io/quote.h"
#include "lowbit/error.h"

namespace lowbit::io {

namespace {

using Json = nlohmann::json;

/// Deeper than any file of the ecosystem, shallow enough for recursive code (a dump, a comparison)
/// on any stack.
constexpr size_t kMaxDepth = 64;

/// nlohmann's own tree builder keeps the last of two equal keys and knows no depth; this one
/// refuses both.
class TreeBuilder : public nlohmann::json_sax<Json> {
 public:
  TreeBuilder(const std::string& name, const std::string& what) : name_(name), what_(what) {}
  Json take() { return std::move(root_); }

  bool null() override { return add(nullptr) != nullptr; }
  bool boolean(bool value) override { return add(value) != nullptr; }
  bool number_integer(number_integer_t value) override { return add(value) != nullptr; }
  bool number_unsigned(number_unsigned_t value) override { return add(value) != nullptr; }
  bool number_float(number_float_t value, const string_t& text) override {
    return add(value) != nullptr;
  }
  bool string(string_t& value) override { return add(std::move(value)) != nullptr; }
  bool binary(binary_t& value) override { return add(std::move(value)) != nullptr; }
  bool start_object(size_t elements) override { return open(Json::object()); }
  bool end_object() override { return close(); }
  bool start_array(size_t elements) override { return open(Json::array()); }
  bool end_array() override { return close(); }

  bool key(string_t& key) override {
    const auto [slot, inserted] = open_.back()->get_ref<Json::object_t&>().try_emplace(key);
    if (!inserted) {
      keys_.back() = nullptr;
      throw FormatError(name_, path(), "unique keys", quote(key) + " twice");
    }
    slot_ = &slot->second;
    keys_.back() = &slot->first;
    return true;
  }

  bool parse_error(size_t position, const std::string& last_token,
                   const nlohmann::detail::exception& error) override {
    throw FormatError(name_, what_ + ", byte " + std::to_string(position), "valid JSON",
                      last_token.empty() ? "the end" : quote(last_token));
  }

 private:
  template <typename T>
  Json* add(T&& value) {
    if (open_.empty()) {
      root_ = std::forward<T>(value);
      return &root_;
    }
    if (open_.back()->is_array()) {
      return &open_.back()->get_ref<Json::array_t&>().emplace_back(std::forward<T>(value));
    }
    *slot_ = std::forward<T>(value);
    return slot_;
  }

  bool open(Json value) {
    if (open_.size() >= kMaxDepth) {
      throw FormatError(name_, path(), "at most " + std::to_string(kMaxDepth) + " levels",
                        "a deeper nesting");
    }
    open_.push_back(add(std::move(value)));
    keys_.push_back(nullptr);
    return true;
  }

  bool close() {
    open_.pop_back();
    keys_.pop_back();
    return true;
  }

  std::string path() const {
    std::string path;
    for (const std::string* key : keys_) {
      if (key != nullptr) path += (path.empty() ? "" : ".") + *key;
    }
    return path.empty() ? what_ : quote(path);
  }

  const std::string& name_;
  const std::string& what_;
  Json root_;
  std::vector<Json*> open_;
  std::vector<const std::string*> keys_;  // of every open level; null in arrays
  Json* slot_ = nullptr;
};

}  // namespace

Json parse_json(std::string_view text, const std::string& name, const std::string& what) {
  TreeBuilder builder(name, what);
  Json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

const char* json_kind(const Json& value) noexcept {
  switch (value.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::object:
      return "an object";
    case Json::value_t::array:
      return "an array";
    case Json::value_t::string:
      return "a string";
    case Json::value_t::boolean:
      return "a boolean";
    default:
      return "a number";
  }
}

}  // namespace lowbit::io
