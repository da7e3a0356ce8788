#include "tensor/impl.h"

#include <ATen/ATen.h>
#include <c10/core/TensorImpl.h>

#include <utility>

#include "ops/check.h"

namespace lowbit::tensor {
namespace {

constexpr const char* kNotOnePiece =
    "This quantized weight was made from tensors of others (a mapped file, say), so it has no "
    "memory "
    "of its own that torch::save could write. clone() it first, or write lowbit's state_dict().";

struct Meta final : c10::BackendMeta {
  Meta(PayloadPtr payload, bool transposed) : payload(std::move(payload)), transposed(transposed) {}
  PayloadPtr payload;
  bool transposed;
};

}  // namespace

at::Tensor wrap(PayloadPtr payload, at::ScalarType dtype, bool transposed) {
  const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse3);
  const caffe2::TypeMeta type = c10::scalarTypeToTypeMeta(dtype);
  c10::intrusive_ptr<c10::TensorImpl> impl;
  if (payload->archive && !transposed) {
    impl = c10::make_intrusive<c10::TensorImpl>(c10::Storage(payload->archive), keys, type);
  } else {
    impl = c10::make_intrusive<c10::TensorImpl>(keys, type, payload->device());
    impl->release_storage_and_set_meta_custom_data_ptr_error_msg_(
        transposed ? std::nullopt : std::optional<std::string>(kNotOnePiece));
  }
  // The strides of the dense tensor: torch computes views from them, and takes them of the copy
  // that the fallback makes.
  impl->set_sizes_contiguous(payload->shape);
  if (transposed) {
    std::vector<int64_t> sizes = payload->shape, strides = impl->strides().vec();
    const size_t last = sizes.size() - 1;
    std::swap(sizes[last], sizes[last - 1]);
    std::swap(strides[last], strides[last - 1]);
    impl->set_sizes_and_strides(sizes, strides);
  }
  impl->set_backend_meta(c10::make_intrusive<Meta>(std::move(payload), transposed));
  return at::Tensor(std::move(impl));
}

View view_of(const at::Tensor& tensor) noexcept {
  if (!tensor.defined() || !tensor.key_set().has(c10::DispatchKey::PrivateUse3)) return {};
  const auto* meta = dynamic_cast<const Meta*>(tensor.unsafeGetTensorImpl()->get_backend_meta());
  if (meta == nullptr) return {};
  return {&meta->payload, meta->transposed};
}

View required_view(const char* op, const at::Tensor& tensor) {
  const View view = view_of(tensor);
  LOWBIT_CHECK(view, op, "weight", "a quantized tensor",
               tensor.defined() ? c10::str("a dense ", ops::dtype_name(tensor.scalar_type()),
                                           " tensor of shape ", tensor.sizes())
                                : "an undefined tensor",
               "lowbit::quantize makes one.");
  return view;
}

void become(const at::Tensor& target, const at::Tensor& source) {
  if (view_of(source)) target.set_requires_grad(false);
  target.set_data(source);
  // A shallow copy takes over what the source has, and leaves what it has not.
  if (!view_of(source)) target.unsafeGetTensorImpl()->set_backend_meta(nullptr);
}

at::Tensor dense(const View& view, at::ScalarType dtype) {
  at::Tensor tensor = view->dequantize(dtype);
  return view.transposed ? tensor.transpose(-2, -1) : tensor;
}

}  // namespace lowbit::tensor
