// What each entry refuses, and that nothing is written when it does.
#include "instruction_sets.h"
#include "lowbit/kernels/blockwise.h"
#include "lowbit/kernels/fourbit.h"
#include "lowbit/kernels/int8.h"
#include "lowbit/kernels/maps.h"
#include "lowbit/kernels/optimizer.h"

namespace lowbit::kernels {
namespace {

class Arguments : public testing::EachInstructionSet {
 protected:
  float x_[64] = {1.0f, 2.0f, 3.0f};
  uint8_t bytes_[64] = {};
  int8_t q_[64] = {};
  int32_t c_[64] = {};
  float stats_[64] = {};
  float out_[64] = {};
  int64_t ids_[2] = {0, 1};
};
LOWBIT_EACH_INSTRUCTION_SET(Arguments);

void refused(const Status& status) {
  EXPECT_EQ(status.code, StatusCode::kInvalidArgument);
  EXPECT_STRNE(status.reason, "");
}

/// Each change makes good params bad; ref and cpu refuse them, and ranges outside the units.
template <typename Params, typename Ref, typename Cpu>
void check_entries(const Params& good, int64_t units, Ref ref_entry, Cpu cpu_entry,
                   std::initializer_list<void (*)(Params&)> changes) {
  const auto each = [&](auto&& check) {
    check(ref_entry);
    check(cpu_entry);
  };
  each([&](auto entry) {
    EXPECT_TRUE(entry(good, 0, units).ok());
    EXPECT_TRUE(entry(good, units, units).ok());
    refused(entry(good, -1, units));
    refused(entry(good, 0, units + 1));
    refused(entry(good, units, units - 1));
    for (auto change : changes) {
      Params bad = good;
      change(bad);
      refused(entry(bad, 0, units));
    }
  });
}

TEST_P(Arguments, Quantize4bit) {
  using P = Quantize4bitParams;
  check_entries<P>(
      {x_, DType::kFloat32, 10, 2, QuantType::kNF4, bytes_, stats_}, 5, ref::quantize_4bit,
      cpu::quantize_4bit,
      {[](P& p) { p.numel = -1; }, [](P& p) { p.blocksize = 0; }, [](P& p) { p.blocksize = -2; },
       [](P& p) { p.blocksize = 3; }, [](P& p) { p.input = nullptr; },
       [](P& p) { p.packed = nullptr; }, [](P& p) { p.absmax = nullptr; }});
  EXPECT_TRUE(cpu::quantize_4bit({}, 0, 0).ok());
}

TEST_P(Arguments, Dequantize4bit) {
  using P = Dequantize4bitParams;
  P good;
  good.packed = bytes_;
  good.scales.absmax = stats_;
  good.numel = 10;
  good.blocksize = 2;
  good.output = out_;
  check_entries<P>(good, 5, ref::dequantize_4bit, cpu::dequantize_4bit,
                   {[](P& p) { p.numel = -1; }, [](P& p) { p.blocksize = 0; },
                    [](P& p) { p.blocksize = 3; }, [](P& p) { p.packed = nullptr; },
                    [](P& p) { p.output = nullptr; }, [](P& p) { p.scales.absmax = nullptr; },
                    [](P& p) {  // nested, but without the map
                      static const uint8_t codes[5] = {};
                      p.scales = {};
                      p.scales.absmax_8bit = codes;
                    }});
  EXPECT_TRUE(cpu::dequantize_4bit({}, 0, 0).ok());
}

TEST_P(Arguments, Embedding4bit) {
  using P = Embedding4bitParams;
  P good;
  good.ids = ids_;
  good.count = 2;
  good.rows = 2;
  good.dim = 5;
  good.packed = bytes_;
  good.scales.absmax = stats_;
  good.blocksize = 2;
  good.output = out_;
  check_entries<P>(
      good, 2, cpu::embedding_4bit, cpu::embedding_4bit,
      {[](P& p) { p.count = -1; }, [](P& p) { p.dim = -1; }, [](P& p) { p.blocksize = 5; },
       [](P& p) { p.ids = nullptr; }, [](P& p) { p.packed = nullptr; },
       [](P& p) { p.output = nullptr; }, [](P& p) { p.scales = {}; }});
}

TEST_P(Arguments, Blockwise) {
  using P = QuantizeBlockwiseParams;
  check_entries<P>({x_, DType::kFloat32, 10, 4, dynamic_map(true), bytes_, stats_}, 3,
                   ref::quantize_blockwise, cpu::quantize_blockwise,
                   {[](P& p) { p.numel = -1; }, [](P& p) { p.blocksize = 0; },
                    [](P& p) { p.input = nullptr; }, [](P& p) { p.code = nullptr; },
                    [](P& p) { p.codes = nullptr; }, [](P& p) { p.absmax = nullptr; }});
  using D = DequantizeBlockwiseParams;
  check_entries<D>({bytes_, stats_, dynamic_map(true), 10, 4, out_, DType::kFloat32}, 3,
                   ref::dequantize_blockwise, cpu::dequantize_blockwise,
                   {[](D& p) { p.numel = -1; }, [](D& p) { p.blocksize = 0; },
                    [](D& p) { p.codes = nullptr; }, [](D& p) { p.code = nullptr; },
                    [](D& p) { p.absmax = nullptr; }, [](D& p) { p.output = nullptr; }});
}

TEST_P(Arguments, Int8Quantize) {
  using R = QuantizeRowwiseParams;
  check_entries<R>({x_, 5, DType::kFloat32, 3, 5, 1.0f, q_, stats_, bytes_}, 3,
                   ref::quantize_rowwise, cpu::quantize_rowwise,
                   {[](R& p) { p.rows = -1; }, [](R& p) { p.threshold = -1.0f; },
                    [](R& p) { p.threshold = NAN; }, [](R& p) { p.input = nullptr; },
                    [](R& p) { p.q = nullptr; }, [](R& p) { p.stats = nullptr; },
                    [](R& p) { p.outlier_columns = nullptr; }});
  refused(
      cpu::zero_outlier_columns({x_, 5, DType::kFloat32, 3, 5, 1.0f, q_, stats_, bytes_}, 0, 4));
  using C = QuantizeColwiseParams;
  check_entries<C>({x_, 5, DType::kFloat32, 3, 5, 1.0f, q_, stats_}, 5, ref::quantize_colwise,
                   cpu::quantize_colwise,
                   {[](C& p) { p.cols = -1; }, [](C& p) { p.threshold = -1.0f; },
                    [](C& p) { p.input = nullptr; }, [](C& p) { p.q = nullptr; },
                    [](C& p) { p.stats = nullptr; }});
}

TEST_P(Arguments, Int8Dequantize) {
  using D = DequantizeRowwiseParams;
  check_entries<D>({q_, stats_, 3, 5, out_, DType::kFloat32}, 3, ref::dequantize_rowwise,
                   cpu::dequantize_rowwise,
                   {[](D& p) { p.rows = -1; }, [](D& p) { p.q = nullptr; },
                    [](D& p) { p.stats = nullptr; }, [](D& p) { p.output = nullptr; }});
  using M = DequantizeMatmulParams;
  M good{c_, stats_, stats_, nullptr, DType::kFloat32, 3, 5, out_, DType::kFloat32};
  check_entries<M>(
      good, 3, ref::dequantize_matmul, cpu::dequantize_matmul,
      {[](M& p) { p.cols = -1; }, [](M& p) { p.a = nullptr; }, [](M& p) { p.row_stats = nullptr; },
       [](M& p) { p.col_stats = nullptr; }, [](M& p) { p.output = nullptr; }});
  using E = EmbeddingInt8Params;
  check_entries<E>({ids_, 2, 3, 5, q_, stats_, out_, DType::kFloat32}, 2, cpu::embedding_int8,
                   cpu::embedding_int8,
                   {[](E& p) { p.count = -1; }, [](E& p) { p.dim = -1; },
                    [](E& p) { p.ids = nullptr; }, [](E& p) { p.q = nullptr; },
                    [](E& p) { p.stats = nullptr; }, [](E& p) { p.output = nullptr; }});
}

TEST_P(Arguments, OptimizerStep) {
  float p[5000] = {}, g[5000] = {}, state1[5000] = {}, state2[5000] = {}, absmax[20] = {};
  float workspace[8] = {};
  const OptimizerHyper hyper{.lr = 0.1f, .max_unorm = 1.0f};
  const OptimizerTensor good{p, g, state1, state2, absmax, absmax, nullptr, 5000, 0};
  using P = OptimizerParams;
  const P params{
      OptimizerKind::kAdam, true,     DType::kFloat32, &good, 1, &hyper, 1, dynamic_map(true),
      dynamic_map(false),   workspace};
  ASSERT_LE(optimizer_workspace_bytes(params), int64_t{sizeof workspace});
  static OptimizerTensor tensor;
  static OptimizerHyper bad_hyper;
  tensor = good;
  using Entry = Status (*)(const P&, int64_t, int64_t) noexcept;
  const std::pair<Entry, Entry> entries[] = {{ref::optimizer_step, cpu::optimizer_step},
                                             {ref::optimizer_norms, cpu::optimizer_norms}};
  for (const auto& [ref_entry, cpu_entry] : entries) {
    check_entries<P>(params, 2, ref_entry, cpu_entry,
                     {[](P& p) { p.ntensors = -1; }, [](P& p) { p.tensors = nullptr; },
                      [](P& p) { p.hypers = nullptr; }, [](P& p) { p.nhypers = 0; },
                      [](P& p) { p.map1 = nullptr; }, [](P& p) { p.map2 = nullptr; },
                      [](P& p) { p.workspace = nullptr; },
                      [](P& p) { bad_hyper = {.step = 0}, p.hypers = &bad_hyper; }});
    using T = OptimizerTensor;
    for (void (*spoil)(T&) :
         {+[](T& t) { t.numel = -1; }, +[](T& t) { t.hyper = 1; }, +[](T& t) { t.p = nullptr; },
          +[](T& t) { t.g = nullptr; }, +[](T& t) { t.state1 = nullptr; },
          +[](T& t) { t.state2 = nullptr; }, +[](T& t) { t.absmax1 = nullptr; },
          +[](T& t) { t.absmax2 = nullptr; }}) {
      tensor = good;
      spoil(tensor);
      P bad = params;
      bad.tensors = &tensor;
      refused(ref_entry(bad, 0, 1));
      refused(cpu_entry(bad, 0, 1));
    }
  }
  P unlimited = params;
  unlimited.kind = OptimizerKind::kLion;
  EXPECT_EQ(cpu::optimizer_step(unlimited, 0, 2).code, StatusCode::kUnsupported);
  EXPECT_TRUE(cpu::optimizer_step({}, 0, 0).ok());
}

TEST_P(Arguments, NothingIsWrittenWhenRefused) {
  uint8_t packed[8];
  std::fill(packed, packed + 8, uint8_t{0xa5});
  refused(cpu::quantize_4bit({x_, DType::kFloat32, 10, 2, QuantType::kNF4, packed, stats_}, 0, 6));
  for (uint8_t byte : packed) EXPECT_EQ(byte, 0xa5);
}

}  // namespace
}  // namespace lowbit::kernels
