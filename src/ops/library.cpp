// Every schema of the operator library on one screen.
#include <torch/library.h>

TORCH_LIBRARY(lowbit, m) {
  m.def("quantize_4bit(Tensor A, int blocksize, str quant_type, ScalarType quant_storage) -> (Tensor, Tensor)");
}
