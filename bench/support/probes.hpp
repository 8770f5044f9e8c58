// What this machine can do: the peaks that benchmarks are measured against.
//
// Each peak is the best of several rounds, probed when it is first asked for and again in the course of the run: a
// neighbour that disturbs one probe is not there for the others. The peaks for n threads are those of n threads at once:
// cores may share memory channels, caches and a power budget.
#pragma once

#include <seqmix/core/view.hpp>

namespace seqmix::bench {

/// One probed rate, and how long the round took that showed it.
struct Peak {
  double per_second = 0;
  double seconds = 0;
};

/// Levels of the memory hierarchy, nearest first.
enum class MemoryLevel { l1, l2, l3, dram };
inline constexpr MemoryLevel memory_levels[] = {MemoryLevel::l1, MemoryLevel::l2, MemoryLevel::l3, MemoryLevel::dram};

/// "L1", "L2", "L3", "DRAM".
const char* name_of(MemoryLevel level);

/// The peaks of `threads` threads together.
struct Peaks {
  int threads = 1;
  Peak fma_float;      // floating-point operations (two per fused multiply-add), operands in registers
  Peak fma_double;     //
  Peak exp_float;      // exponentials by the library's own exp2_decay, operands in L1
  Peak read_bytes[4];  // bytes read, by MemoryLevel, from an array that this level holds

  double read_bandwidth(MemoryLevel level) const { return read_bytes[static_cast<int>(level)].per_second; }
};

/// The best of all that was probed so far. Probes on the first call for each number of threads (about a second); not
/// thread-safe.
const Peaks& peaks(int threads);

/// Probes again with fewer rounds (some tenths of a second, with memory more than one), and keeps what is better.
void probe_again(int threads, bool with_memory);

/// Bytes of this level of cache that one thread can use. Unknown sizes are taken to be 32 KB, 512 KB and 16 MB.
Index cache_bytes(MemoryLevel level);

/// Bytes that fit into this level when they are spread evenly over `threads` threads.
double bytes_within(MemoryLevel level, int threads);

}  // namespace seqmix::bench
