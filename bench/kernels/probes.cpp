// The peaks of this machine that all other benchmarks of the run are measured against.

#include "support/probes.hpp"

#include "support/benchmark.hpp"

namespace seqmix::bench {
namespace {

/// One thread has no suffix: these are the peaks that one speaks of.
void add_probe(const std::string& name, const char* counter, Peak (*peak)(int threads)) {
  for (const int threads : thread_counts()) {
    const auto make = [=] {
      Case result;
      result.known_seconds = peak(threads).seconds;
      result.add_counters = [=](std::map<std::string, double>& counters) {
        counters[counter] = peak(threads).per_second;
      };
      return result;
    };
    if (threads == 1) {
      add_benchmark_as(name, threads, make);
    } else {
      add_benchmark(name, threads, make);
    }
  }
}

template <MemoryLevel level>
Peak read_peak(int threads) {
  return peaks(threads).read_bytes[static_cast<int>(level)];
}

const bool registered = [] {
  add_probe("probe/fma_peak", "flop_per_second", [](int threads) { return peaks(threads).fma_float; });
  add_probe("probe/fma_peak/double", "flop_per_second", [](int threads) { return peaks(threads).fma_double; });
  add_probe("probe/exp_peak", "exp_per_second", [](int threads) { return peaks(threads).exp_float; });
  add_probe("probe/read_bandwidth/L1", "bytes_per_second", read_peak<MemoryLevel::l1>);
  add_probe("probe/read_bandwidth/L2", "bytes_per_second", read_peak<MemoryLevel::l2>);
  add_probe("probe/read_bandwidth/L3", "bytes_per_second", read_peak<MemoryLevel::l3>);
  add_probe("probe/read_bandwidth/DRAM", "bytes_per_second", read_peak<MemoryLevel::dram>);
  return true;
}();

}  // namespace
}  // namespace seqmix::bench
