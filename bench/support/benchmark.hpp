// What a benchmark of ours is, on top of Google Benchmark: it checks its result before it reports a time, and reports
// the shortest time of many runs, because a shared machine only ever makes a run longer.
#pragma once

#include <functional>
#include <map>
#include <seqmix/core/executor.hpp>
#include <seqmix/core/view.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "support/roofline.hpp"

namespace seqmix::bench {

/// How much to measure: SEQMIX_BENCH_EFFORT in the environment, short, normal (if unset) or full.
struct Effort {
  std::string_view name;
  double seconds;           // time to spend on the runs of one benchmark, at least
  int least_runs;           // of them
  double long_seconds;      // once they have taken this long, fewer do:
  int least_long_runs;      // so many
  Index longest;            // sequences of the comparison: 128, 512, 2048 ... up to
  Index longest_in_detail;  // this one, then only the longest, forward and on one thread
  Index longest_attention;  // the longest for mixers that take quadratic time
  Index prefill;            // the one to measure prefill with, which does what forward does, and steps from a constant
                            // state, which cost the same everywhere; 0: all lengths
  Index longest_core;       // sequences of the core functions
};
const Effort& effort();

/// The numbers of threads to measure with: 1, and 2 where there are as many cores and an executor that can use them.
const std::vector<int>& thread_counts();

/// The executor for that many threads: serial, or OpenMP, or oneTBB.
Executor& executor(int threads);

/// Thrown by the check of a benchmark whose result is wrong.
struct WrongResult : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A benchmark, ready to run. All functions own or share what they use.
struct Case {
  std::function<void()> run;      // what is timed; empty if known_seconds says it all
  std::function<void()> prepare;  // untimed, before every run; may be empty. Without it short runs are timed in groups
  std::function<void()> check;    // throws WrongResult; called after the first run. May be empty
  Work work;                      // minimum work of one run
  Index tokens = 0;               // tokens that one run processes; 0: no counters for tokens
  double key_value_bytes = 0;     // of `work`, the bytes of keys and values that a decoding step reads
  double known_seconds = 0;
  Index state_bytes = 0;
  std::function<std::size_t()> workspace_bytes;  // memory held by the workspace after the runs; may be empty
  std::map<std::string, double> counters;        // further ones
  // Counters that depend on the peaks; what is written at the end of the run goes by the best that were probed until then.
  std::function<void(std::map<std::string, double>&)> add_counters;
};

/// Registers a benchmark under exactly this name. `make` is called when its turn comes.
void add_benchmark_as(std::string name, int threads, std::function<Case()> make);

/// Registers a benchmark under `name`, to which "/threads:<threads>" is added.
void add_benchmark(std::string name, int threads, std::function<Case()> make);

/// The same for every number of threads of thread_counts().
void add_benchmark(const std::string& name, const std::function<Case(int threads)>& make);

/// main() of a program of benchmarks. `groups` are the first parts of their names in the order to run them; within a
/// group, benchmarks run in the order of their second part, then as they were registered.
int run_benchmarks(int argc, char** argv, const std::vector<std::string>& groups);

}  // namespace seqmix::bench
