#include "support/probes.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <map>
#include <seqmix/core/buffer.hpp>
#include <seqmix/simd/batch.hpp>
#include <seqmix/simd/math_exp.hpp>
#include <thread>
#include <vector>

namespace seqmix::bench {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

template <class T>
void consume(const Batch<T>& value) {
  benchmark::DoNotOptimize(reduce_add(value));
}

/// Fused multiply-adds on 12 independent accumulators: more than latency times throughput of current cores, and together
/// with the two factors no more than 16 registers. Returns the operations done.
template <class T>
double fma_round(Index repeats) {
  constexpr Index accumulators = 12;
  Batch<T> sum[accumulators];
  unroll<accumulators>([&](auto i) SEQMIX_INLINE_LAMBDA { sum[i] = broadcast(T(1) + T(i) / 16); });
  Batch<T> factor = broadcast(T(0.999)), term = broadcast(T(0.001));
  keep_in_register<T>(factor);
  keep_in_register<T>(term);
  for (Index repeat = 0; repeat < repeats; ++repeat) {
    unroll<accumulators>([&](auto i) SEQMIX_INLINE_LAMBDA { sum[i] = fma(sum[i], factor, term); });
    unroll<accumulators>([&](auto i) SEQMIX_INLINE_LAMBDA { keep_in_register<T>(sum[i]); });
  }
  unroll<accumulators>([&](auto i) SEQMIX_INLINE_LAMBDA { consume<T>(sum[i]); });
  return 2.0 * double(repeats * accumulators * lanes<T>);
}

/// Exponentials of the numbers in `data`, summed. Returns how many.
double exp_round(const Buffer<float>& data, Index repeats) {
  constexpr Index width = lanes<float>;
  const Index count = Index(data.size());
  Batch<float> sum[4];
  unroll<4>([&](auto i) SEQMIX_INLINE_LAMBDA { sum[i] = broadcast(0.0f); });
  for (Index repeat = 0; repeat < repeats; ++repeat) {
    for (Index at = 0; at < count; at += 4 * width) {
      unroll<4>([&](auto i) SEQMIX_INLINE_LAMBDA { sum[i] = sum[i] + exp2_decay(load(data.data() + at + i * width)); });
    }
    benchmark::ClobberMemory();
  }
  unroll<4>([&](auto i) SEQMIX_INLINE_LAMBDA { consume<float>(sum[i]); });
  return double(repeats * count);
}

/// Sums `data` with 8 accumulators, from `streams` places at a time. Returns the bytes read.
template <Index streams>
double read_round(const Buffer<float>& data, Index repeats) {
  constexpr Index width = lanes<float>, vectors = 8 / streams;
  const Index count = Index(data.size()), part = count / streams / (vectors * width) * (vectors * width);
  Batch<float> sum[8];
  unroll<8>([&](auto i) SEQMIX_INLINE_LAMBDA { sum[i] = broadcast(0.0f); });
  for (Index repeat = 0; repeat < repeats; ++repeat) {
    for (Index at = 0; at < part; at += vectors * width) {
      unroll<8>([&](auto i) SEQMIX_INLINE_LAMBDA {
        sum[i] = sum[i] + load(data.data() + i / vectors * part + at + i % vectors * width);
      });
    }
    benchmark::ClobberMemory();
  }
  unroll<8>([&](auto i) SEQMIX_INLINE_LAMBDA { consume<float>(sum[i]); });
  return double(repeats) * double(part * streams) * sizeof(float);
}

/// A place where all threads of a round wait for each other, spinning: sleeping would blur the start.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  void wait() {
    const int phase = phase_.load();
    if (++arrived_ == threads_) {
      arrived_ = 0;
      ++phase_;
    } else {
      while (phase_.load() == phase) std::this_thread::yield();
    }
  }

 private:
  const int threads_;
  std::atomic<int> arrived_ = 0, phase_ = 0;
};

/// Best rate of `rounds` rounds in which every thread does `work()` once, which returns the amount done. The rate of a
/// round is the sum of the threads' own rates. make_work() is called on the thread that will run it, so that its
/// memory is near.
template <class MakeWork>
Peak best_of(int rounds, int threads, MakeWork make_work) {
  const std::vector<Peak> none(static_cast<std::size_t>(rounds));
  std::vector<std::vector<Peak>> found(static_cast<std::size_t>(threads), none);
  Barrier barrier(threads);
  const auto probe = [&](int thread) {
    auto work = make_work();
    work();
    for (Peak& peak : found[std::size_t(thread)]) {
      barrier.wait();
      const auto begin = Clock::now();
      const double amount = work();
      peak.seconds = seconds_since(begin);
      peak.per_second = amount / peak.seconds;
    }
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(probe, thread);
  probe(0);
  for (std::thread& other : others) other.join();
  Peak best;
  for (int round = 0; round < rounds; ++round) {
    Peak sum;
    for (const auto& of_thread : found) {
      sum.per_second += of_thread[std::size_t(round)].per_second;
      sum.seconds = std::max(sum.seconds, of_thread[std::size_t(round)].seconds);
    }
    if (sum.per_second > best.per_second) best = sum;
  }
  return best;
}

Buffer<float> numbers(Index bytes) {
  const Index step = 8 * lanes<float>;
  const Index count = std::max<Index>(1, bytes / Index(sizeof(float)) / step) * step;
  Buffer<float> data(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = -float(i % 61) / 8;
  return data;
}

/// Bytes that the read probe of a level goes over, per thread: well inside the level and well outside the one before.
Index probe_bytes(MemoryLevel level, int threads) {
  switch (level) {
    case MemoryLevel::l1:
    case MemoryLevel::l2:
      return cache_bytes(level) / 2;
    case MemoryLevel::l3:
      return std::max(cache_bytes(MemoryLevel::l3) / 8, 2 * cache_bytes(MemoryLevel::l2));
    case MemoryLevel::dram:
      break;
  }
  return std::max<Index>(8 * cache_bytes(MemoryLevel::l3), Index(1) << 28) / threads;
}

void improve(Peak& peak, const Peak& found) {
  if (found.per_second > peak.per_second) peak = found;
}

/// `rounds` for what is computed and read from caches; DRAM takes longer.
void probe(Peaks& best, int rounds, int memory_rounds) {
  const int threads = best.threads;
  improve(best.fma_float, best_of(rounds, threads, [] { return [] { return fma_round<float>(400'000); }; }));
  improve(best.fma_double, best_of(rounds, threads, [] { return [] { return fma_round<double>(400'000); }; }));
  improve(best.exp_float,
          best_of(rounds, threads, [] { return [data = numbers(8192)] { return exp_round(data, 4'000); }; }));
  for (const MemoryLevel level : memory_levels) {
    const bool memory = level == MemoryLevel::dram;
    if (memory && memory_rounds == 0) continue;
    const Index bytes = probe_bytes(level, threads);
    const Index repeats = std::max<Index>(1, (Index(1) << 29) / (level == MemoryLevel::l1 ? 1 : 2) / bytes);
    const int level_rounds = memory ? memory_rounds : level == MemoryLevel::l3 ? 2 * rounds : rounds;
    improve(best.read_bytes[static_cast<int>(level)], best_of(level_rounds, threads, [&] {
              // Prefetchers do better now with one stream, now with several.
              return [data = numbers(bytes), repeats = memory ? 1 : repeats, turn = 0]() mutable {
                return ++turn % 2 == 0 ? read_round<1>(data, repeats) : read_round<4>(data, repeats);
              };
            }));
  }
}

Peaks& mutable_peaks(int threads) {
  static std::map<int, Peaks> probed;
  const auto [place, isnew] = probed.try_emplace(threads);
  if (isnew) {
    place->second.threads = threads;
    probe(place->second, 15, 7);
  }
  return place->second;
}

}  // namespace

const char* name_of(MemoryLevel level) {
  constexpr const char* names[] = {"L1", "L2", "L3", "DRAM"};
  return names[static_cast<int>(level)];
}

const Peaks& peaks(int threads) { return mutable_peaks(threads); }

void probe_again(int threads, bool with_memory) { probe(mutable_peaks(threads), 4, with_memory ? 2 : 0); }

Index cache_bytes(MemoryLevel level) {
  static const auto sizes = [] {
    std::array<Index, 3> bytes = {Index(32) << 10, Index(512) << 10, Index(16) << 20};
    for (const auto& cache : benchmark::CPUInfo::Get().caches) {
      if (cache.type != "Instruction" && cache.level >= 1 && cache.level <= 3 && cache.size > 0) {
        bytes[std::size_t(cache.level - 1)] = Index(cache.size);
      }
    }
    return bytes;
  }();
  return level == MemoryLevel::dram ? Index(1) << 40 : sizes[static_cast<std::size_t>(level)];
}

double bytes_within(MemoryLevel level, int threads) {
  const bool shared = level == MemoryLevel::l3 || level == MemoryLevel::dram;
  return double(cache_bytes(level)) * (shared ? 1 : threads);
}

}  // namespace seqmix::bench
