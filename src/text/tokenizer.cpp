#include "lowbit/text/tokenizer.h"

#include <stdexcept>

#include "text/tokenizer_impl.h"
#include "text/utf8.h"

namespace lowbit::text {
namespace {

class Encoder : public WordSink {
 public:
  Encoder(const Tokenizer::Impl& impl, std::vector<int64_t>& ids) : impl_(impl), ids_(ids) {}
  void word(std::string_view word) override {
    impl_.model.encode(word, impl_.pre_tokenizer.words_are_bytes(), ids_);
  }

  /// Added tokens as written are cut out first, then the rest is normalized, and the others are
  /// looked for in that.
  void encode(std::string_view text) {
    for (const Piece& piece : impl_.added.split(text, false)) {
      if (piece.id >= 0) {
        ids_.push_back(piece.id);
        continue;
      }
      const auto part = text.substr(piece.span.begin, piece.span.end - piece.span.begin);
      const bool at_start = piece.span.begin == 0;
      if (impl_.normalizer.is_identity()) {
        encode_normalized(part, at_start);
      } else {
        encode_normalized(impl_.normalizer.apply(part), at_start);
      }
    }
  }

 private:
  void encode_normalized(std::string_view text, bool at_start) {
    for (const Piece& piece : impl_.added.split(text, true)) {
      if (piece.id >= 0) {
        ids_.push_back(piece.id);
      } else {
        impl_.pre_tokenizer.split(text.substr(piece.span.begin, piece.span.end - piece.span.begin),
                                  at_start && piece.span.begin == 0, *this);
      }
    }
  }

  const Tokenizer::Impl& impl_;
  std::vector<int64_t>& ids_;
};

}  // namespace

std::vector<int64_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  std::vector<int64_t> ids;
  if (add_special_tokens) ids = impl_->post_processor.before;
  if (is_valid_utf8(text)) {
    Encoder(*impl_, ids).encode(text);
  } else {
    Encoder(*impl_, ids).encode(to_valid_utf8(text));
  }
  if (add_special_tokens) {
    const auto& after = impl_->post_processor.after;
    ids.insert(ids.end(), after.begin(), after.end());
  }
  return ids;
}

std::string Tokenizer::decode(const std::vector<int64_t>& ids, bool skip_special_tokens) const {
  Decoder::Run run(impl_->decoder);
  std::string text;
  for (int64_t id : ids) {
    const std::string& piece = impl_->piece_or_throw(id);
    if (!skip_special_tokens || !is_special(id)) run.push(piece, text);
  }
  run.finish(text);
  return text;
}

const std::string& Tokenizer::token(int64_t id) const { return impl_->piece_or_throw(id); }
std::string Tokenizer::token_bytes(int64_t id) const { return impl_->decoder.bytes(token(id)); }
std::optional<int64_t> Tokenizer::token_to_id(std::string_view token) const {
  return impl_->find(token);
}
int64_t Tokenizer::vocab_size() const noexcept { return impl_->vocab_size; }
std::optional<int64_t> Tokenizer::bos_id() const noexcept { return impl_->bos; }
std::optional<int64_t> Tokenizer::eos_id() const noexcept { return impl_->eos; }
std::optional<int64_t> Tokenizer::pad_id() const noexcept { return impl_->pad; }
std::optional<int64_t> Tokenizer::unk_id() const noexcept { return impl_->unk; }
const std::string& Tokenizer::chat_template() const noexcept { return impl_->chat_template; }
const std::string& Tokenizer::name() const noexcept { return impl_->name; }
const std::string& Tokenizer::to_json() const noexcept { return impl_->json; }
const std::string& Tokenizer::config_to_json() const noexcept { return impl_->config_json; }

bool Tokenizer::is_special(int64_t id) const noexcept {
  const auto it = impl_->added.by_id().find(id);
  return it != impl_->added.by_id().end() && it->second.special;
}

std::optional<int64_t> Tokenizer::Impl::find(std::string_view token) const {
  if (const AddedToken* found = added.find(token)) return found->id;
  const int32_t id = model.find(token);
  return id < 0 ? std::nullopt : std::optional<int64_t>(id);
}

const std::string* Tokenizer::Impl::piece(int64_t id) const noexcept {
  if (const auto it = added.by_id().find(id); it != added.by_id().end()) return &it->second.content;
  const auto& tokens = model.tokens();
  if (id < 0 || id >= static_cast<int64_t>(tokens.size()) || !tokens[id]) return nullptr;
  return &*tokens[id];
}

const std::string& Tokenizer::Impl::piece_or_throw(int64_t id) const {
  if (const std::string* text = piece(id)) return *text;
  throw std::out_of_range(name + ": token id " + std::to_string(id) +
                          " is not in the vocabulary of " + std::to_string(vocab_size));
}

struct StreamDecoder::State {
  explicit State(const Decoder& decoder) : run(decoder) {}
  Decoder::Run run;
};

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens)
    : tokenizer_(tokenizer),
      skip_special_tokens_(skip_special_tokens),
      state_(std::make_unique<State>(tokenizer.impl_->decoder)) {}
StreamDecoder::StreamDecoder(StreamDecoder&&) noexcept = default;
StreamDecoder& StreamDecoder::operator=(StreamDecoder&&) noexcept = default;
StreamDecoder::~StreamDecoder() = default;

std::string StreamDecoder::push(int64_t id) {
  const std::string& piece = tokenizer_.token(id);
  std::string text;
  if (!skip_special_tokens_ || !tokenizer_.is_special(id)) state_->run.push(piece, text);
  return text;
}

std::string StreamDecoder::flush() {
  std::string text;
  state_->run.finish(text);
  return text;
}

}  // namespace lowbit::text
