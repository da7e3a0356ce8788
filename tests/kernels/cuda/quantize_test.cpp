// The CUDA quantizers: bit-exact with the recorded GPU outputs, and with the scalar reference
// wherever the reciprocal cannot matter.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <random>

#include "codebook.h"
#include "device_buffer.h"
#include "lowbit/io/safetensors.h"
#include "lowbit/kernels/blockwise.h"
#include "lowbit/kernels/fourbit.h"
#include "lowbit/kernels/int8.h"
#include "scalar.h"
#include "support/golden_dir.h"

namespace lowbit::test {
namespace {

using namespace lowbit::kernels;

const char* kDTypeNames[] = {"fp32", "fp16", "bf16"};  // in the order of DType

std::vector<unsigned char> cast(const std::vector<float>& x, DType dtype) {
  std::vector<unsigned char> bytes(x.size() * itemsize(dtype));
  for (size_t i = 0; i < x.size(); ++i) store_element(bytes.data(), dtype, i, x[i]);
  return bytes;
}

std::vector<float> random_values(size_t n, uint64_t seed) {
  SCOPED_TRACE(seed);
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(n);
  for (float& v : x) v = normal(engine) * std::exp2(static_cast<float>(engine() % 9) - 4.0f);
  for (size_t i = 0; i < n / 97; ++i) x[engine() % n] = 0.0f;
  return x;
}

template <typename T>
std::vector<T> values_of(const io::TensorView& view) {
  std::vector<T> values(view.nbytes / sizeof(T));
  std::memcpy(values.data(), view.data, view.nbytes);
  return values;
}

template <typename T>
int64_t mismatches(const std::vector<T>& a, const std::vector<T>& b) {
  EXPECT_EQ(a.size(), b.size());
  int64_t count = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    count += std::memcmp(&a[i], &b[i], sizeof(T)) != 0;
  }
  return count;
}

struct Quantized {
  std::vector<uint8_t> packed;
  std::vector<float> absmax;
};

Quantized quantize_on_gpu(const std::vector<float>& x, DType dtype, QuantType type,
                          int64_t blocksize, size_t offset = 0) {
  const int64_t n = static_cast<int64_t>(x.size());
  DeviceBuffer<unsigned char> input(cast(x, dtype), offset);
  DeviceBuffer<uint8_t> packed(ceil_div(n, 2), offset / 2);
  DeviceBuffer<float> absmax(ceil_div(n, blocksize));
  EXPECT_STATUS_OK(cuda::quantize_4bit(
      {input.data(), dtype, n, blocksize, type, packed.data(), absmax.data()}, Stream{}));
  return {packed.read(), absmax.read()};
}

std::vector<unsigned char> dequantize_on_gpu(const Quantized& q, int64_t n, DType dtype,
                                             QuantType type, int64_t blocksize, size_t offset = 0) {
  DeviceBuffer<uint8_t> packed(q.packed, offset / 2);
  DeviceBuffer<float> absmax(q.absmax);
  DeviceBuffer<unsigned char> output(n * itemsize(dtype), offset);
  Dequantize4bitParams p;
  p.packed = packed.data();
  p.scales.absmax = absmax.data();
  p.numel = n;
  p.blocksize = blocksize;
  p.quant_type = type;
  p.output = output.data();
  p.output_dtype = dtype;
  EXPECT_STATUS_OK(cuda::dequantize_4bit(p, Stream{}));
  return output.read();
}

TEST(CudaFourbit, GoldenOutputsAreBitExact) {
  LOWBIT_NEEDS_GPU();
  const auto file = io::SafetensorsFile::open(golden_dir() + "/quant4.safetensors");
  const auto x = values_of<float>(file.tensor("x"));
  std::map<std::string, int> cases;
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (QuantType type : {QuantType::kNF4, QuantType::kFP4}) {
      const std::string name = type == QuantType::kNF4 ? "nf4" : "fp4";
      for (int64_t blocksize : {32, 64, 128, 256, 512, 1024, 2048, 4096}) {
        const std::string key = std::string("cuda.") + kDTypeNames[static_cast<int>(dtype)] + "." +
                                name + "." + std::to_string(blocksize) + ".";
        if (!file.contains(key + "packed")) continue;
        SCOPED_TRACE(key);
        const Quantized q = quantize_on_gpu(x, dtype, type, blocksize);
        EXPECT_EQ(mismatches(q.packed, values_of<uint8_t>(file.tensor(key + "packed"))), 0);
        if (file.contains(key + "absmax")) {
          EXPECT_EQ(mismatches(q.absmax, values_of<float>(file.tensor(key + "absmax"))), 0);
        }
        if (file.contains(key + "deq")) {
          EXPECT_EQ(mismatches(dequantize_on_gpu(q, x.size(), dtype, type, blocksize),
                               values_of<unsigned char>(file.tensor(key + "deq"))),
                    0);
        }
        ++cases[name];
      }
    }
  }
  EXPECT_GT(cases["nf4"], 0);
  EXPECT_GT(cases["fp4"], 0);
  RecordProperty("nf4_cases", cases["nf4"]);
  RecordProperty("fp4_cases", cases["fp4"]);
}

TEST(CudaFourbit, SpecialBlocksAreBitExact) {
  LOWBIT_NEEDS_GPU();
  const auto file = io::SafetensorsFile::open(golden_dir() + "/quant4.safetensors");
  int cases = 0;
  for (const std::string& name : file.names()) {
    if (name.rfind("sp.", 0) != 0 || name.substr(name.size() - 2) != ".x") continue;
    const std::string stem = name.substr(0, name.size() - 2);
    const auto x = values_of<float>(file.tensor(name));
    for (QuantType type : {QuantType::kNF4, QuantType::kFP4}) {
      const std::string key = stem + ".cuda." + (type == QuantType::kNF4 ? "nf4" : "fp4");
      if (!file.contains(key + ".packed")) continue;
      SCOPED_TRACE(key);
      const int64_t blocksize = stem.find("sweep") != std::string::npos ? 128 : 64;
      const Quantized q = quantize_on_gpu(x, DType::kFloat32, type, blocksize);
      const auto absmax = values_of<float>(file.tensor(key + ".absmax"));
      EXPECT_EQ(mismatches(q.absmax, absmax), 0);
      auto expected = values_of<uint8_t>(file.tensor(key + ".packed"));
      // A block of zeros has the code of zero here, where the recorded one has code 0 (-absmax,
      // which is -0).
      for (size_t b = 0; b < absmax.size(); ++b) {
        if (absmax[b] != 0.0f || type == QuantType::kFP4) continue;
        for (size_t i = b * blocksize / 2; i < std::min(expected.size(), (b + 1) * blocksize / 2);
             ++i) {
          expected[i] = 0x77;
        }
      }
      EXPECT_EQ(mismatches(q.packed, expected), 0);
      ++cases;
    }
  }
  EXPECT_GT(cases, 0);
}

TEST(CudaFourbit, AgreesWithTheReferenceOnAnyShape) {
  LOWBIT_NEEDS_GPU();
  uint64_t seed = 1;
  for (int64_t n : {1, 2, 7, 31, 64, 65, 1000, 4097, 70001, 1 << 20}) {
    for (int64_t blocksize : {2, 10, 32, 64, 96, 128, 256, 512, 1000, 1024, 2048, 4096}) {
      for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
        for (QuantType type : {QuantType::kNF4, QuantType::kFP4}) {
          for (size_t offset : {size_t{0}, static_cast<size_t>(2 * itemsize(dtype))}) {
            if (n > 100000 && (offset != 0 || blocksize < 32)) continue;
            SCOPED_TRACE("n " + std::to_string(n) + " blocksize " + std::to_string(blocksize) +
                         " dtype " + std::to_string(static_cast<int>(dtype)) + " offset " +
                         std::to_string(offset));
            const auto x = random_values(n, ++seed);
            const auto bytes = cast(x, dtype);
            Quantized expected{std::vector<uint8_t>(ceil_div(n, 2)),
                               std::vector<float>(ceil_div(n, blocksize))};
            EXPECT_STATUS_OK(ref::quantize_4bit({bytes.data(), dtype, n, blocksize, type,
                                                 expected.packed.data(), expected.absmax.data()},
                                                0, ceil_div(n, blocksize)));
            const Quantized q = quantize_on_gpu(x, dtype, type, blocksize, offset);
            EXPECT_EQ(mismatches(q.absmax, expected.absmax), 0);
            // The approximate reciprocal moves values that lie on a threshold: rare, except for
            // FP4, whose thresholds are simple fractions that 16-bit data hits.
            EXPECT_LE(mismatches(q.packed, expected.packed), 1 + n / 400);

            std::vector<unsigned char> deq(n * itemsize(dtype));
            Dequantize4bitParams p;
            p.packed = q.packed.data();
            p.scales.absmax = q.absmax.data();
            p.numel = n;
            p.blocksize = blocksize;
            p.quant_type = type;
            p.output = deq.data();
            p.output_dtype = dtype;
            EXPECT_STATUS_OK(ref::dequantize_4bit(p, 0, ceil_div(n, blocksize)));
            EXPECT_EQ(mismatches(dequantize_on_gpu(q, n, dtype, type, blocksize, offset), deq), 0);
          }
        }
      }
    }
  }
}

TEST(CudaFourbit, NestedScalesAreBitExact) {
  LOWBIT_NEEDS_GPU();
  const int64_t n = 300001, blocksize = 64, nblocks = ceil_div(n, blocksize);
  std::mt19937_64 engine(5);
  std::vector<uint8_t> packed(ceil_div(n, 2)), absmax_8bit(nblocks);
  for (auto& b : packed) b = static_cast<uint8_t>(engine());
  for (auto& b : absmax_8bit) b = static_cast<uint8_t>(engine());
  std::vector<float> absmax2 = random_values(ceil_div(nblocks, 256), 6), offset = {0.07f};
  std::vector<float> code(codebook::kDynamicSigned.values, codebook::kDynamicSigned.values + 256);
  DeviceBuffer<uint8_t> d_packed(packed), d_absmax_8bit(absmax_8bit);
  DeviceBuffer<float> d_absmax2(absmax2), d_offset(offset), d_code(code);
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    std::vector<unsigned char> expected(n * itemsize(dtype));
    DeviceBuffer<unsigned char> output(expected.size());
    Dequantize4bitParams p;
    p.packed = packed.data();
    p.scales = {nullptr, absmax_8bit.data(), code.data(), absmax2.data(), offset.data()};
    p.numel = n;
    p.blocksize = blocksize;
    p.output = expected.data();
    p.output_dtype = dtype;
    EXPECT_STATUS_OK(ref::dequantize_4bit(p, 0, nblocks));
    p.packed = d_packed.data();
    p.scales = {nullptr, d_absmax_8bit.data(), d_code.data(), d_absmax2.data(), d_offset.data()};
    p.output = output.data();
    EXPECT_STATUS_OK(cuda::dequantize_4bit(p, Stream{}));
    EXPECT_EQ(mismatches(output.read(), expected), 0);
  }
}

TEST(CudaBlockwise, GoldenOutputsAreBitExact) {
  LOWBIT_NEEDS_GPU();
  const auto file = io::SafetensorsFile::open(golden_dir() + "/quant8.safetensors");
  int cases = 0;
  for (const char* map : {"s", "u"}) {
    const auto code = values_of<float>(file.tensor(std::string("code.") + map));
    auto x = values_of<float>(file.tensor("x"));
    if (map[0] == 'u') {
      for (float& v : x) v = std::fabs(v);
    }
    DeviceBuffer<float> d_code(code);
    for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      for (int64_t blocksize : {64, 128, 256, 512, 1024, 2048, 4096}) {
        const std::string key = std::string("cuda.") + kDTypeNames[static_cast<int>(dtype)] + "." +
                                map + "." + std::to_string(blocksize) + ".";
        if (!file.contains(key + "q")) continue;
        SCOPED_TRACE(key);
        const int64_t n = static_cast<int64_t>(x.size());
        DeviceBuffer<unsigned char> input(cast(x, dtype)), output(n * itemsize(dtype));
        DeviceBuffer<uint8_t> codes(n);
        DeviceBuffer<float> absmax(ceil_div(n, blocksize));
        EXPECT_STATUS_OK(cuda::quantize_blockwise(
            {input.data(), dtype, n, blocksize, d_code.data(), codes.data(), absmax.data()},
            Stream{}));
        EXPECT_EQ(mismatches(codes.read(), values_of<uint8_t>(file.tensor(key + "q"))), 0);
        ++cases;
        if (file.contains(key + "absmax")) {
          EXPECT_EQ(mismatches(absmax.read(), values_of<float>(file.tensor(key + "absmax"))), 0);
        }
        if (!file.contains(key + "deq")) continue;
        EXPECT_STATUS_OK(cuda::dequantize_blockwise(
            {codes.data(), absmax.data(), d_code.data(), n, blocksize, output.data(), dtype},
            Stream{}));
        EXPECT_EQ(mismatches(output.read(), values_of<unsigned char>(file.tensor(key + "deq"))), 0);
      }
    }
    const auto ties = values_of<float>(file.tensor(std::string("ties.") + map + ".x"));
    DeviceBuffer<float> input(ties), absmax(ceil_div(static_cast<int64_t>(ties.size()), 4096));
    DeviceBuffer<uint8_t> codes(ties.size());
    EXPECT_STATUS_OK(
        cuda::quantize_blockwise({input.data(), DType::kFloat32, static_cast<int64_t>(ties.size()),
                                  4096, d_code.data(), codes.data(), absmax.data()},
                                 Stream{}));
    EXPECT_EQ(mismatches(codes.read(),
                         values_of<uint8_t>(file.tensor(std::string("ties.") + map + ".cuda.q"))),
              0);
  }
  EXPECT_GT(cases, 0);
}

/// With absmax a power of two the reciprocal is exact, and the device must agree with the reference
/// on every bit.
TEST(CudaBlockwise, AgreesWithTheReferenceForAnyMap) {
  LOWBIT_NEEDS_GPU();
  std::vector<std::vector<float>> maps(4, std::vector<float>(256));
  for (int i = 0; i < 256; ++i) {
    maps[0][i] = codebook::kDynamicSigned.values[i];
    maps[1][i] = codebook::kDynamicUnsigned.values[i];
    maps[2][i] = (i - 127.5f) / 127.5f;
    maps[3][i] =
        i < 100 ? -1.0f + i * 0.01f : (i < 180 ? 0.0f : (i - 179) / 76.0f);  // repeated zeros
  }
  uint64_t seed = 100;
  for (const auto& map : maps) {
    DeviceBuffer<float> code(map);
    for (int64_t n : {1, 63, 4096, 100003}) {
      for (int64_t blocksize : {1, 7, 32, 64, 100, 256, 1024, 4096}) {
        SCOPED_TRACE("n " + std::to_string(n) + " blocksize " + std::to_string(blocksize));
        auto x = random_values(n, ++seed);
        for (int64_t i = 0; i < n; ++i) {
          x[i] = std::fmod(x[i], 4.0f);
          if (i % blocksize == 0) x[i] = 4.0f;
        }
        std::vector<uint8_t> expected(n);
        std::vector<float> absmax(ceil_div(n, blocksize));
        EXPECT_STATUS_OK(ref::quantize_blockwise(
            {x.data(), DType::kFloat32, n, blocksize, map.data(), expected.data(), absmax.data()},
            0, ceil_div(n, blocksize)));
        DeviceBuffer<float> input(x), d_absmax(absmax.size());
        DeviceBuffer<uint8_t> codes(n);
        EXPECT_STATUS_OK(cuda::quantize_blockwise({input.data(), DType::kFloat32, n, blocksize,
                                                   code.data(), codes.data(), d_absmax.data()},
                                                  Stream{}));
        EXPECT_EQ(mismatches(codes.read(), expected), 0);
        EXPECT_EQ(mismatches(d_absmax.read(), absmax), 0);
      }
    }
  }
}

TEST(CudaInt8, GoldenRowwiseOutputsAreBitExact) {
  LOWBIT_NEEDS_GPU();
  const auto file = io::SafetensorsFile::open(golden_dir() + "/int8.safetensors");
  const io::TensorView a = file.tensor("A");
  const int64_t rows = a.shape[0], cols = a.shape[1];
  int cases = 0;
  for (const std::string& name : file.names()) {
    if (name.rfind("cuda.q.", 0) != 0) continue;
    const std::string suffix = name.substr(7);
    SCOPED_TRACE(name);
    DeviceBuffer<unsigned char> input(values_of<unsigned char>(a));
    DeviceBuffer<int8_t> q(rows * cols);
    DeviceBuffer<float> stats(rows);
    DeviceBuffer<uint8_t> flags(cols);
    flags.fill(0);
    const QuantizeRowwiseParams p{input.data(),      cols,     DType::kFloat16, rows,        cols,
                                  std::stof(suffix), q.data(), stats.data(),    flags.data()};
    EXPECT_STATUS_OK(cuda::quantize_rowwise(p, Stream{}));
    EXPECT_STATUS_OK(cuda::zero_outlier_columns(p, Stream{}));
    EXPECT_EQ(mismatches(q.read(), values_of<int8_t>(file.tensor(name))), 0);
    const auto expected = values_of<float>(file.tensor("cuda.s." + suffix));
    const auto got = stats.read();
    for (size_t i = 0; i < got.size(); ++i)
      EXPECT_EQ(got[i], expected[i]);  // -0 of an all-outlier row equals 0
    if (file.contains("cuda.oc." + suffix)) {
      std::vector<int64_t> columns;
      const auto set = flags.read();
      for (int64_t c = 0; c < cols; ++c) {
        if (set[c] != 0) columns.push_back(c);
      }
      EXPECT_EQ(columns, values_of<int64_t>(file.tensor("cuda.oc." + suffix)));
    }
    ++cases;
  }
  EXPECT_GT(cases, 0);
}

TEST(CudaInt8, AgreesWithTheReferenceOnAnyShape) {
  LOWBIT_NEEDS_GPU();
  uint64_t seed = 300;
  for (int64_t rows : {1, 3, 130}) {
    for (int64_t cols : {1, 7, 8, 4096, 4104, 9001}) {
      for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
        for (float threshold : {0.0f, 6.0f}) {
          SCOPED_TRACE("rows " + std::to_string(rows) + " cols " + std::to_string(cols));
          auto x = random_values(rows * cols, ++seed);
          for (float& v : x) v = threshold > 0 ? std::fmod(v, 6.5f) : v;
          const auto bytes = cast(x, dtype);
          std::vector<int8_t> q(rows * cols);
          std::vector<float> stats(rows);
          std::vector<uint8_t> flags(cols);
          EXPECT_STATUS_OK(ref::quantize_rowwise({bytes.data(), cols, dtype, rows, cols, threshold,
                                                  q.data(), stats.data(), flags.data()},
                                                 0, rows));
          DeviceBuffer<unsigned char> input(bytes);
          DeviceBuffer<int8_t> d_q(q.size());
          DeviceBuffer<float> d_stats(rows);
          DeviceBuffer<uint8_t> d_flags(cols);
          d_flags.fill(0);
          EXPECT_STATUS_OK(cuda::quantize_rowwise({input.data(), cols, dtype, rows, cols, threshold,
                                                   d_q.data(), d_stats.data(), d_flags.data()},
                                                  Stream{}));
          EXPECT_EQ(d_stats.read(), stats);
          EXPECT_EQ(d_flags.read(), flags);
          EXPECT_LE(mismatches(d_q.read(), q),
                    2 + rows * cols / 5000);  // rounding ties move with the reciprocal
          std::vector<unsigned char> expected(rows * cols * itemsize(dtype));
          EXPECT_STATUS_OK(ref::dequantize_rowwise(
              {q.data(), stats.data(), rows, cols, expected.data(), dtype}, 0, rows));
          DeviceBuffer<int8_t> same_q(q);
          DeviceBuffer<unsigned char> output(expected.size());
          EXPECT_STATUS_OK(cuda::dequantize_rowwise(
              {same_q.data(), d_stats.data(), rows, cols, output.data(), dtype}, Stream{}));
          EXPECT_EQ(mismatches(output.read(), expected), 0);
        }
      }
    }
  }
}

TEST(CudaLaunch, IsCapturableAndRefusesBadProblems) {
  LOWBIT_NEEDS_GPU();
  const auto x = random_values(1 << 16, 9);
  DeviceBuffer<float> input(x), absmax(x.size() / 64);
  DeviceBuffer<uint8_t> packed(x.size() / 2);
  cudaStream_t stream;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  Quantize4bitParams p{input.data(), DType::kFloat32, static_cast<int64_t>(x.size()),
                       64,           QuantType::kNF4, packed.data(),
                       absmax.data()};
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
  EXPECT_STATUS_OK(cuda::quantize_4bit(p, Stream{stream}));
  cudaGraph_t graph;
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  cudaGraphExec_t exec;
  ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  ASSERT_EQ(cudaGraphLaunch(exec, stream), cudaSuccess);
  const auto replayed = packed.read();
  packed.fill(0);
  EXPECT_STATUS_OK(cuda::quantize_4bit(p, Stream{}));
  EXPECT_EQ(packed.read(), replayed);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);

  p.blocksize = 3;
  EXPECT_EQ(cuda::quantize_4bit(p, Stream{}).code, StatusCode::kInvalidArgument);
  p.blocksize = 64;
  p.packed = nullptr;
  EXPECT_EQ(cuda::quantize_4bit(p, Stream{}).code, StatusCode::kInvalidArgument);
  p.numel = 0;
  EXPECT_STATUS_OK(cuda::quantize_4bit(p, Stream{}));
}

}  // namespace
}  // namespace lowbit::test
