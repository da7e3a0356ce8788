#include "tensor/archive.h"

#include <ATen/ATen.h>
#include <c10/core/CPUAllocator.h>
#include <torch/csrc/jit/serialization/pickler_helper.h>

#include <charconv>
#include <cstring>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>

#include "io/safetensors_header.h"
#include "lowbit/error.h"
#include "ops/check.h"
#include "tensor/impl.h"

namespace lowbit::tensor {
namespace {

constexpr const char* kOp = "lowbit: saved quantized weight";
constexpr std::string_view kMagic = "lowbit quantized";
constexpr size_t kPrefix = kMagic.size() + sizeof(uint64_t);
constexpr size_t kAlignment = 64;  // of the codes: a cache line
constexpr const char* kPadding = "padding";

constexpr std::pair<at::ScalarType, io::DType> kDtypes[] = {
    {at::kByte, io::DType::kU8},       {at::kChar, io::DType::kI8},
    {at::kFloat, io::DType::kF32},     {at::kHalf, io::DType::kF16},
    {at::kBFloat16, io::DType::kBF16}, {at::kDouble, io::DType::kF64}};

io::DType to_io(at::ScalarType dtype) {
  for (const auto& [torch_dtype, io_dtype] : kDtypes) {
    if (torch_dtype == dtype) return io_dtype;
  }
  LOWBIT_CHECK(false, kOp, "dtype", "one of a quantized weight's", ops::dtype_name(dtype));
}

at::ScalarType to_torch(io::DType dtype) {
  for (const auto& [torch_dtype, io_dtype] : kDtypes) {
    if (io_dtype == dtype) return torch_dtype;
  }
  LOWBIT_CHECK(false, kOp, "dtype", "one of a quantized weight's", io::dtype_name(dtype));
}

io::SafetensorsMetadata metadata_of(const Payload& payload) {
  io::SafetensorsMetadata metadata{{"scheme", to_string(payload.scheme)}};
  if (payload.threshold != 0.0) {
    char text[32];
    metadata["threshold"].assign(text,
                                 std::to_chars(text, text + sizeof(text), payload.threshold).ptr);
  }
  if (payload.compute_dtype) metadata["compute_dtype"] = ops::dtype_name(*payload.compute_dtype);
  return metadata;
}

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

const std::byte* bytes_of(const c10::Storage& storage) {
  return static_cast<const std::byte*>(storage.data());
}

}  // namespace

c10::Storage write_archive(const Payload& payload) {
  std::map<std::string, at::Tensor> tensors =
      payload.is_4bit() ? payload.state.as_tensors()
                        : std::map<std::string, at::Tensor>{{"SCB", payload.rows}};
  // Statistics first, 4-byte ones before bytes; then the codes, at a multiple of a cache line.
  std::vector<io::SafetensorsEntry> entries;
  std::vector<at::Tensor> data;
  size_t size = 0;
  const auto add = [&](const std::string& name, const at::Tensor& tensor) {
    data.push_back(tensor.to(at::kCPU).contiguous());
    entries.push_back({.name = name,
                       .dtype = to_io(tensor.scalar_type()),
                       .shape = tensor.sizes().vec(),
                       .nbytes = tensor.nbytes(),
                       .offset = size});
    size += tensor.nbytes();
  };
  for (const bool wide : {true, false}) {
    for (const auto& [name, tensor] : tensors) {
      if ((tensor.element_size() > 1) == wide) add(name, tensor);
    }
  }
  const auto gap = static_cast<int64_t>(round_up(size, kAlignment) - size);
  if (gap > 0) add(kPadding, at::zeros({gap}, at::kByte));
  add("weight", payload.codes);

  const std::string header =
      io::build_safetensors_header(entries, metadata_of(payload), "quantized weight");
  const uint64_t begin = round_up(kPrefix + header.size(), kAlignment) - header.size();
  at::DataPtr memory = c10::GetCPUAllocator()->allocate(begin + header.size() + size);
  auto* bytes = static_cast<std::byte*>(memory.get());
  std::memset(bytes, 0, begin);
  std::memcpy(bytes, kMagic.data(), kMagic.size());
  std::memcpy(bytes + kMagic.size(), &begin, sizeof(begin));
  std::memcpy(bytes + begin, header.data(), header.size());
  std::byte* out = bytes + begin + header.size();
  for (size_t i = 0; i < data.size(); ++i) {
    if (entries[i].nbytes == 0) continue;
    std::memcpy(out + entries[i].offset, data[i].const_data_ptr(), entries[i].nbytes);
  }
  return c10::Storage(c10::Storage::use_byte_size_t(), begin + header.size() + size,
                      std::move(memory), /*allocator=*/nullptr, /*resizable=*/false);
}

bool is_archive(const c10::Storage& storage) noexcept {
  return storage && storage.device_type() == at::kCPU && storage.nbytes() >= kPrefix &&
         std::memcmp(storage.data(), kMagic.data(), kMagic.size()) == 0;
}

PayloadPtr read_archive(const c10::Storage& storage) {
  LOWBIT_CHECK(is_archive(storage), kOp, "storage", "an archive of a quantized weight",
               "other bytes");
  const std::byte* bytes = bytes_of(storage);
  uint64_t begin = 0;
  std::memcpy(&begin, bytes + kMagic.size(), sizeof(begin));
  LOWBIT_CHECK(begin >= kPrefix && begin <= storage.nbytes(), kOp, "header offset",
               "within the archive", begin);
  try {
    const auto file = io::SafetensorsFile::parse(nullptr, bytes + begin, storage.nbytes() - begin,
                                                 "saved quantized weight");
    std::map<std::string, at::Tensor> tensors;
    for (const std::string& name : file.names()) {
      if (name == kPadding) continue;
      const io::TensorView view = file.tensor(name);
      LOWBIT_CHECK(view.is_aligned(), kOp, name, "at an address its dtype may have", "another");
      // The deleter holds the storage, so views and archive are one piece of memory.
      at::Tensor tensor = at::from_blob(
          const_cast<std::byte*>(view.data), view.shape, [storage](void*) {},
          at::TensorOptions().dtype(to_torch(view.dtype)));
      tensors.emplace(name, std::move(tensor));
    }
    const io::SafetensorsMetadata& metadata = file.metadata();
    const auto text = [&](const char* key) {
      const auto found = metadata.find(key);
      return found == metadata.end() ? std::string() : found->second;
    };
    const auto weight = tensors.find("weight");
    LOWBIT_CHECK(weight != tensors.end(), kOp, "weight", "among the entries", "nothing");
    const at::Tensor codes = weight->second;
    tensors.erase(weight);
    std::optional<at::ScalarType> compute_dtype;
    if (const std::string name = text("compute_dtype"); !name.empty()) {
      compute_dtype = ops::parse_dtype(name, kOp, "compute_dtype");
    }
    PayloadPtr payload;
    if (const auto SCB = tensors.find("SCB"); SCB != tensors.end()) {
      double threshold = 0.0;
      const std::string number = text("threshold");
      const auto end = number.data() + number.size();
      LOWBIT_CHECK(number.empty() || std::from_chars(number.data(), end, threshold).ptr == end, kOp,
                   "threshold", "a number", number);
      payload = make_int8(codes, SCB->second, threshold,
                          text("scheme") == to_string(QuantScheme::kInt8WeightOnly), compute_dtype);
    } else {
      payload = make_4bit(codes, QuantState::from_tensors(tensors), compute_dtype);
    }
    auto with_archive = std::make_shared<Payload>(*payload);
    with_archive->archive = storage;
    return with_archive;
  } catch (const FormatError& error) {
    LOWBIT_CHECK(false, kOp, "archive", "readable", error.what());
  }
}

namespace {

constexpr const char* kMark = "lowbit_quantized";
using Metadata = std::unordered_map<std::string, bool>;

void restore(const at::Tensor& tensor) {
  LOWBIT_CHECK(tensor.has_storage() && tensor.storage_offset() == 0, kOp, "tensor",
               "all of its storage", "a part");
  const PayloadPtr payload = read_archive(tensor.storage());
  LOWBIT_CHECK(tensor.sizes() == payload->shape, kOp, "shape", c10::str(payload->shape),
               tensor.sizes());
  ops::check_float(kOp, "dtype", tensor);
  become(tensor, wrap(payload, tensor.scalar_type()));
}

/// torch calls it for every CPU tensor that it pickles or unpickles; another library's goes on.
bool register_hooks() {
  auto& slot = torch::jit::GetBackendMetaSerialization()[static_cast<int>(at::kCPU)];
  const auto next = slot;
  const auto mark = [next](const at::Tensor& tensor, Metadata& metadata) {
    if (view_of(tensor)) metadata[kMark] = true;
    if (next) next->first(tensor, metadata);
  };
  const auto read = [next](const at::Tensor& tensor, Metadata& metadata) {
    if (metadata.erase(kMark) != 0) restore(tensor);
    if (next) next->second(tensor, metadata);
  };
  torch::jit::GetBackendMetaAllowlist().insert(at::kCPU);
  slot = std::make_pair(torch::jit::BackendMetaPtr(mark), torch::jit::BackendMetaPtr(read));
  return true;
}

[[maybe_unused]] const bool registered = register_hooks();

}  // namespace

}  // namespace lowbit::tensor
