// What benchmarks of CUDA kernels share: errors end the program, launches are timed in graphs that
// take turns.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <vector>

#include "lowbit/kernels/fourbit.h"

namespace lowbit::bench {

using namespace lowbit::kernels;

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
  std::exit(1);
}
inline void check(Status status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.reason);
  std::exit(1);
}
inline void check(cublasStatus_t status) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  std::fprintf(stderr, "cuBLAS: %s\n", cublasGetStatusString(status));
  std::exit(1);
}

template <typename T>
T* device(size_t count) {
  void* p = nullptr;
  check(cudaMalloc(&p, count * sizeof(T)));
  return static_cast<T*>(p);
}

inline DeviceProperties properties() {
  const auto attribute = [](cudaDeviceAttr a) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, a, 0));
    return value;
  };
  DeviceProperties d;
  d.compute_capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor) +
                         attribute(cudaDevAttrComputeCapabilityMinor);
  d.multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  d.shared_bytes_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  d.l2_bytes = attribute(cudaDevAttrL2CacheSize);
  return d;
}

inline cudaStream_t stream;

/// A kind of launch to time: `launch(i)` for i = 0, 1, ... `launches` - 1 is captured into a graph.
struct Candidate {
  int launches;
  std::function<void(int)> launch;
};

/// Microseconds of one launch of each. The graphs take turns: a device that is hot from one of them
/// is as hot for the next.
inline std::vector<double> time(const std::vector<Candidate>& candidates) {
  constexpr int kRounds = 21;
  std::vector<cudaGraphExec_t> graphs;
  for (const Candidate& c : candidates) {
    c.launch(0);
    check(cudaStreamSynchronize(stream));
    cudaGraph_t graph;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < c.launches; ++i) c.launch(i);
    check(cudaStreamEndCapture(stream, &graph));
    check(cudaGraphInstantiate(&graphs.emplace_back(), graph, 0));
    check(cudaGraphDestroy(graph));
  }
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  std::vector<std::vector<float>> times(graphs.size());
  for (int round = -2; round < kRounds; ++round) {
    for (size_t j = 0; j < graphs.size(); ++j) {
      const size_t at = (j + static_cast<size_t>(round + 2)) % graphs.size();
      check(cudaEventRecord(begin, stream));
      check(cudaGraphLaunch(graphs[at], stream));
      check(cudaEventRecord(end, stream));
      check(cudaEventSynchronize(end));
      float ms = 0;
      check(cudaEventElapsedTime(&ms, begin, end));
      if (round >= 0) times[at].push_back(ms);
    }
  }
  check(cudaEventDestroy(begin));
  check(cudaEventDestroy(end));
  std::vector<double> medians;
  for (size_t j = 0; j < graphs.size(); ++j) {
    check(cudaGraphExecDestroy(graphs[j]));
    std::nth_element(times[j].begin(), times[j].begin() + kRounds / 2, times[j].end());
    medians.push_back(times[j][kRounds / 2] * 1e3 / candidates[j].launches);
  }
  return medians;
}

/// Random bytes, from one random megabyte at many offsets.
inline void fill_random(void* to, size_t bytes, std::mt19937& rng, bool bf16) {
  constexpr size_t kPiece = 1 << 20;
  std::vector<uint16_t> piece(kPiece);
  std::normal_distribution<float> normal;
  for (auto& v : piece) {
    v = bf16 ? static_cast<uint16_t>(__builtin_bit_cast(uint32_t, normal(rng)) >> 16)
             : static_cast<uint16_t>(rng());
  }
  for (size_t at = 0; at < bytes; at += kPiece) {
    check(cudaMemcpy(static_cast<char*>(to) + at, piece.data() + rng() % (kPiece / 2),
                     std::min(kPiece, bytes - at), cudaMemcpyHostToDevice));
  }
}

}  // namespace lowbit::bench
