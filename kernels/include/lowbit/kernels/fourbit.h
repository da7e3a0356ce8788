// NF4 and FP4: block-wise 4-bit quantization, dequantization, and the matmul over packed weights.
// Formats and numerics follow bitsandbytes; see docs/numerics.md.
//
// CPU entries are serial over [begin, end) of the unit that each one names; the caller spreads
// ranges over threads. `ref` is the scalar truth, `cpu` picks the best kernel for active_isa() and
// is bit-identical with `ref` for quantize and dequantize.
#pragma once

#include <cstdint>

#include "lowbit/kernels/device.h"
#include "lowbit/kernels/types.h"

namespace lowbit::kernels {

enum class QuantType : int8_t { kNF4, kFP4 };

/// packed: ceil(numel / 2) bytes, element 2i in the high nibble of byte i. An odd tail is completed
/// with the code of 0. absmax: [ceil(numel / blocksize)] float32, the largest magnitude with NaN
/// ignored and subnormals as zero. blocksize: even, >= 2. code = nearest to input * (1 / absmax); a
/// NaN gets code 0 (NF4: -1, FP4: 0). A block that holds an infinity, or a magnitude above 2^126,
/// loses its finite values: callers reject such input.
struct Quantize4bitParams {
  const void* input = nullptr;  ///< [numel], contiguous
  DType input_dtype = DType::kFloat32;
  int64_t numel = 0;
  int64_t blocksize = 64;
  QuantType quant_type = QuantType::kNF4;
  uint8_t* packed = nullptr;
  float* absmax = nullptr;
};

/// output[i] = round(code[c_i] * absmax[i / blocksize]), one float32 multiply and one rounding.
struct Dequantize4bitParams {
  const uint8_t* packed = nullptr;
  BlockScales scales;
  int64_t numel = 0;
  int64_t blocksize = 64;
  QuantType quant_type = QuantType::kNF4;
  const float* code = nullptr;  ///< Any 16 values in code order; null: the table of quant_type (FP4
                                ///< code 8 is -0.0).
  void* output = nullptr;       ///< [numel], contiguous
  DType output_dtype = DType::kFloat32;
};

/// How exactly a CPU matmul multiplies.
enum class MatmulAccuracy : int8_t {
  kAuto,   ///< kExact for float32 input, kFast for float16 and bfloat16.
  kExact,  ///< Nothing is rounded below float32: relative error about 1e-7 * sqrt(K).
  kFast,   ///< Products of integers of 12 to 15 bits with a scale per 64 elements: relative error
           ///< (L2, over an output) about 4e-5 up to 4 rows, 1.2e-4 above; bfloat16's is 2e-3. An
           ///< input row that holds a value that is not finite gives NaN. Sizes that have no fast
           ///< kernel run an exact one.
};

/// output[M,N] = input[M,K] * W[N,K]^T + bias[N]; W is the dequantized weight, blocks run over its
/// flat index. Accumulation in float32, one rounding to dtype at the end.
struct Matmul4bitParams {
  const void* input = nullptr;  ///< [M, K], rows `input_stride` elements apart
  int64_t input_stride = 0;
  DType dtype = DType::kFloat32;  ///< of input and output
  int64_t m = 0, n = 0, k = 0;
  const uint8_t* packed = nullptr;  ///< ceil(n * k / 2) bytes
  BlockScales scales;
  int64_t blocksize = 64;
  QuantType quant_type = QuantType::kNF4;
  const float* code = nullptr;  ///< As in Dequantize4bitParams.
  const void* bias = nullptr;   ///< [N] or null
  DType bias_dtype = DType::kFloat32;
  void* output = nullptr;     ///< [M, N], contiguous
  void* workspace = nullptr;  ///< workspace_bytes of the plan, 64-byte aligned (CUDA: 256), any
                              ///< content; shared by all threads
  MatmulAccuracy accuracy = MatmulAccuracy::kAuto;  ///< CPU
  /// CUDA: the kernel may begin while the kernel before it on the stream still runs (programmatic
  /// dependent launch, sm_90): it reads the weight and its scales at once, and everything else
  /// after that kernel has ended. Allowed only where that kernel does not write the weight.
  bool programmatic_launch = false;
};

/// Experts: a stack of weights [N, K] over tokens in groups, one group for each expert, in order.
/// output[i,:] = input[i,:] * W[e]^T for the tokens ends[e-1] <= i < ends[e] (ends[-1] is 0), zeros
/// for the tokens behind the last group. Ends that descend or lie outside of [0, m] give
/// unspecified values, but nothing outside is read or written.
struct GroupedMatmul4bitParams {
  /// The stack as one weight of n = experts * N rows, over whose flat index blocks run; m counts
  /// the tokens of all groups. output: [m, N]. No bias, no code.
  Matmul4bitParams stack;
  int64_t experts = 0;
  const int32_t* ends = nullptr;  ///< [experts], device memory, read by the kernel
};

/// How a matmul runs on the CPU: a pure function of the problem and the instruction set.
/// Phase 1 (when prepare_units > 0): matmul_4bit_prepare over [0, prepare_units) fills the
/// workspace with the activations in the kernel's order. Phase 2: matmul_4bit over [0, units).
/// Every unit writes its own outputs; results do not depend on how units are spread over threads.
struct Matmul4bitPlan {
  const char* kernel = "";  ///< name, for logs and tests
  int32_t id = 0;
  int64_t prepare_units = 0;
  int64_t prepare_grain = 1;  ///< units that are worth a thread of their own
  int64_t units = 0;
  int64_t grain = 1;   ///< units that are worth a thread of their own
  int64_t slices = 1;  ///< of the input's rows: a unit is a slice of rows times a strip of weights
  int64_t workspace_bytes = 0;
};

namespace ref {
/// Unit: block.
Status quantize_4bit(const Quantize4bitParams& params, int64_t begin, int64_t end) noexcept;
/// Unit: block.
Status dequantize_4bit(const Dequantize4bitParams& params, int64_t begin, int64_t end) noexcept;
/// Unit: output column n (row of W). Accumulates in double: the oracle.
Status matmul_4bit(const Matmul4bitParams& params, int64_t begin, int64_t end) noexcept;
}  // namespace ref

namespace cpu {
/// Unit: block.
Status quantize_4bit(const Quantize4bitParams& params, int64_t begin, int64_t end) noexcept;
/// Unit: block.
Status dequantize_4bit(const Dequantize4bitParams& params, int64_t begin, int64_t end) noexcept;

/// Pointers are ignored: only sizes, dtypes, blocksize, nesting and active_isa() matter.
Matmul4bitPlan plan_matmul_4bit(const Matmul4bitParams& params) noexcept;
Status matmul_4bit_prepare(const Matmul4bitPlan& plan, const Matmul4bitParams& params,
                           int64_t begin, int64_t end) noexcept;
Status matmul_4bit(const Matmul4bitPlan& plan, const Matmul4bitParams& params, int64_t begin,
                   int64_t end) noexcept;

/// Several weights over one input (query, key and value; gate and up): the input is prepared once,
/// by matmul_4bit_prepare(plan, params[0], ...), and threads fork once. All members have the same
/// input, input_stride, dtype, m, k, accuracy and workspace. A plan without units means that the
/// members need different kernels (their blocksizes differ in kind): run them one by one.
Matmul4bitPlan plan_matmul_4bit_group(const Matmul4bitParams* params, int32_t count) noexcept;
/// Units of the members one after the other.
Status matmul_4bit_group(const Matmul4bitPlan& plan, const Matmul4bitParams* params, int32_t count,
                         int64_t begin, int64_t end) noexcept;

/// grad_input[M,K] = grad_output[M,N] * W[N,K]. `input` is grad_output (K and N keep their meaning
/// for W), `output` is grad_input, bias is ignored. Unit: a slice of 64 columns of K (the last one
/// short); deterministic.
Status matmul_4bit_backward_input(const Matmul4bitParams& params, int64_t begin,
                                  int64_t end) noexcept;
}  // namespace cpu

/// Weights of one launch, at most.
inline constexpr int32_t kMatmulGroupMost = 4;

/// How a matmul runs on a CUDA device: a pure function of the problem and the device. Of the
/// pointers only the alignment matters, and a null one counts as aligned.
struct Matmul4bitCudaPlan {
  const char* kernel = "";  ///< name, for logs and tests
  int32_t id = 0;
  /// False: dequantize_4bit and a library's matmul are the better choice. The plan runs all the
  /// same, and is right.
  bool fused = true;
  int32_t grid_x = 0, grid_y = 1;  ///< thread blocks; 0 for an empty problem
  int32_t threads = 0;             ///< of a block
  int32_t splits = 1;              ///< slices of the sum that meet in the workspace
  int32_t together = 1;            ///< blocks that share the activations
  int32_t members = 1;             ///< weights of one launch
  int64_t shared_bytes = 0;        ///< dynamic shared memory of a block
  int64_t workspace_bytes = 0;     ///< Matmul4bitParams::workspace
};

/// Gathers rows of a 4-bit table [rows, dim]: output[i, :] = W[ids[i], :].
struct Embedding4bitParams {
  const int64_t* ids = nullptr;  ///< [count]. CPU: each in [0, rows), checked by the caller. CUDA:
                                 ///< others give a row of NaN.
  int64_t count = 0;
  int64_t rows = 0, dim = 0;
  const uint8_t* packed = nullptr;
  BlockScales scales;
  int64_t blocksize = 64;
  QuantType quant_type = QuantType::kNF4;
  void* output = nullptr;  ///< [count, dim], contiguous
  DType output_dtype = DType::kFloat32;
};
namespace cpu {
/// Unit: id.
Status embedding_4bit(const Embedding4bitParams& params, int64_t begin, int64_t end) noexcept;
}  // namespace cpu

/// The CUDA entries, in builds with CUDA. They enqueue on the stream and return; every pointer is
/// device memory (or managed). quantize and dequantize are bit-identical with the GPU
/// implementations of the format: `rcp.approx` instead of the IEEE reciprocal is the one difference
/// from `ref`.
namespace cuda {
Status quantize_4bit(const Quantize4bitParams& params, Stream stream) noexcept;
Status dequantize_4bit(const Dequantize4bitParams& params, Stream stream) noexcept;
Status embedding_4bit(const Embedding4bitParams& params, Stream stream) noexcept;

/// The plans are plain C++ and part of every build. They check nothing.
Matmul4bitCudaPlan plan_matmul_4bit(const Matmul4bitParams& params,
                                    const DeviceProperties& device) noexcept;
/// How many of the m tokens to multiply in the first launch: all, or as many as fill rounds of the
/// multiprocessors where another kernel is sooner done with the others, in a launch of their own.
int64_t matmul_4bit_first_tokens(const Matmul4bitParams& params,
                                 const DeviceProperties& device) noexcept;
Matmul4bitCudaPlan plan_matmul_4bit_backward_input(const Matmul4bitParams& params,
                                                   const DeviceProperties& device) noexcept;

/// Any m, n, k, even blocksize, dtype, table (`code` is device memory, too) and alignment (input,
/// output and bias at least that of their elements). Weights are used as float32, as
/// code * scale with the code rounded to dtype and the scale applied in float32, or (many tokens,
/// sm_90) as that product rounded to dtype, with a table that rounds well: 15 % more error than one
/// rounding of the exact product for NF4 in bfloat16; float16 scales up to 4000 there. float32
/// accumulation in a fixed order, so that results repeat bit for bit.
Status matmul_4bit(const Matmul4bitCudaPlan& plan, const Matmul4bitParams& params,
                   Stream stream) noexcept;
/// Several weights over one input in one launch: 2 to kMatmulGroupMost members with the same input,
/// input_stride, dtype, m, k, blocksize, quant_type, code, kind of scales and programmatic_launch;
/// `workspace` is not used. A plan without thread blocks (grid_x = 0) means that one launch for
/// each member is the better choice, or the only one. Results repeat bit for bit; a launch of its
/// own may add up a member in another order.
Matmul4bitCudaPlan plan_matmul_4bit_group(const Matmul4bitParams* members, int32_t count,
                                          const DeviceProperties& device) noexcept;
Status matmul_4bit_group(const Matmul4bitCudaPlan& plan, const Matmul4bitParams* members,
                         int32_t count, Stream stream) noexcept;
/// Any n, k, even blocksize, dtype and alignment, as matmul_4bit; any groups. Not fused: a
/// library's grouped product of the dequantized stack is the better choice, where there is one.
Matmul4bitCudaPlan plan_grouped_matmul_4bit(const GroupedMatmul4bitParams& params,
                                            const DeviceProperties& device) noexcept;
Status grouped_matmul_4bit(const Matmul4bitCudaPlan& plan, const GroupedMatmul4bitParams& params,
                           Stream stream) noexcept;
/// grad_input[i,:] = grad_output[i,:] * W[e]. stack.input is grad_output [m, N], stack.output
/// grad_input [m, K]. CUDA cores alone: a library's product is the better choice.
Status grouped_matmul_4bit_backward_input(const GroupedMatmul4bitParams& params,
                                          Stream stream) noexcept;
/// grad_input[M,K] = grad_output[M,N] * W[N,K], as cpu::matmul_4bit_backward_input.
Status matmul_4bit_backward_input(const Matmul4bitCudaPlan& plan, const Matmul4bitParams& params,
                                  Stream stream) noexcept;
}  // namespace cuda

}  // namespace lowbit::kernels
