#include "support/benchmark.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <limits>
#include <memory>
#include <seqmix/simd/arch.hpp>
#include <thread>

#if defined(SEQMIX_HAVE_OPENMP) && defined(_OPENMP)
#include <seqmix/core/executor_openmp.hpp>
#elif defined(SEQMIX_HAVE_TBB)
#include <seqmix/core/executor_tbb.hpp>
#endif

namespace seqmix::bench {
namespace {

using Clock = std::chrono::steady_clock;

struct Entry {
  std::string name;  // complete
  int threads;
  std::function<Case()> make;
};

std::vector<Entry>& entries() {
  static std::vector<Entry> all;
  return all;
}

/// Part `index` of a name like "a/b/c".
std::string_view part(std::string_view name, int index) {
  for (; index > 0; --index) {
    const auto slash = name.find('/');
    name = slash == std::string_view::npos ? std::string_view() : name.substr(slash + 1);
  }
  return name.substr(0, name.find('/'));
}

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

/// Seconds that our process has had processors for, all threads added up.
double processor_seconds() {
#if defined(CLOCK_PROCESS_CPUTIME_ID)
  timespec time{};
  if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time) == 0) return double(time.tv_sec) + 1e-9 * double(time.tv_nsec);
#endif
  return double(std::clock()) / double(CLOCKS_PER_SEC);
}

/// Times of single runs, in seconds.
struct Timing {
  double least = 0, median = 0, least_processor = 0;
  Index runs = 0;
  double processor_share = 1;  // of the time measured, how much our process had a processor (all threads added up)
};

Timing measure(const Case& benchmark) {
  if (!benchmark.run) return {benchmark.known_seconds, benchmark.known_seconds, benchmark.known_seconds, 1, 1};
  // Short runs are timed in groups of this many, so that reading the clock doesn't count.
  constexpr double shortest_sample = 30e-6;
  Index group = 1;
  std::vector<double> samples;
  double total = 0;
  const auto begin = Clock::now();
  double least_processor = std::numeric_limits<double>::infinity(), total_processor = 0;
  for (bool first = true;; first = false) {
    if (benchmark.prepare) benchmark.prepare();
    const double processor_start = processor_seconds();
    const auto start = Clock::now();
    for (Index run = 0; run < group; ++run) benchmark.run();
    const double seconds = seconds_since(start) / double(group);
    const double processor = (processor_seconds() - processor_start) / double(group);
    if (first) {
      if (benchmark.check) benchmark.check();
      // The first run warms up, but for one so long that warming up hardly counts.
      if (seconds < 0.2) {
        continue;
      }
    }
    if (!benchmark.prepare && seconds * double(group) < shortest_sample && group < 10'000) {
      group *= 2;
      continue;
    }
    samples.push_back(seconds);
    least_processor = std::min(least_processor, processor);
    total_processor += processor * double(group);
    total += seconds * double(group);
    const bool enough = total >= effort().seconds && int(samples.size()) >= effort().least_runs;
    const bool long_enough = total >= effort().long_seconds && int(samples.size()) >= effort().least_long_runs;
    const bool too_long = seconds_since(begin) > 10 * effort().seconds + 10;
    if (enough || long_enough || too_long) break;
  }
  std::sort(samples.begin(), samples.end());
  return {samples.front(), samples[samples.size() / 2], least_processor, Index(samples.size()) * group,
          total_processor / total};
}

/// Names of the counters that carry the shortest times from the benchmark to the reporters.
constexpr const char* least_time = "least_seconds";
constexpr const char* least_processor_time = "least_processor_seconds";

using Counters = std::map<std::string, double>;

/// The counters of a benchmark that has run, by the peaks known now, for each repetition.
std::map<std::string, std::vector<std::function<Counters()>>>& counters_now() {
  static std::map<std::string, std::vector<std::function<Counters()>>> all;
  return all;
}

/// Benchmarks that failed. A wrong result must not go unnoticed among a hundred lines: it is the exit code too.
int failures = 0;

Counters counters_of(const Case& benchmark, const Timing& timing, int threads) {
  const Peaks& peak = peaks(threads);
  const Work& work = benchmark.work;
  const double bytes = work.streamed_bytes + work.resident_bytes;
  Counters counters = benchmark.counters;
  counters[least_time] = timing.least;
  counters[least_processor_time] = timing.least_processor;
  counters["median_ns"] = timing.median * 1e9;
  // Below 1 with one thread: other programs took the processor, and even the shortest time may be too long.
  counters["processor_share"] = timing.processor_share;
  counters["runs"] = double(timing.runs);
  if (work.flops > 0) {
    counters["flop_per_second"] = work.flops / timing.least;
    counters["fma_peak_share"] = work.flops / timing.least / peak.fma_float.per_second;
  }
  if (bytes > 0) counters["bytes_per_second"] = bytes / timing.least;
  if (work.flops + bytes > 0) {
    counters["roofline"] = least_seconds(work, peak) / timing.least;
    // What the roofline would be, had no other program taken the processor.
    if (threads == 1) counters["roofline_by_processor_time"] = least_seconds(work, peak) / timing.least_processor;
  }
  if (benchmark.tokens > 0) {
    counters["tokens_per_second"] = double(benchmark.tokens) / timing.least;
    counters["ns_per_token"] = timing.least * 1e9 / double(benchmark.tokens);
    counters["state_bytes"] = double(benchmark.state_bytes);
  }
  if (benchmark.key_value_bytes > 0) {
    const double rate = benchmark.key_value_bytes / timing.least;
    counters["kv_bytes_per_second"] = rate;
    counters["kv_l2_share"] = rate / peak.read_bandwidth(MemoryLevel::l2);
    counters["kv_l3_share"] = rate / peak.read_bandwidth(MemoryLevel::l3);
  }
  if (benchmark.add_counters) benchmark.add_counters(counters);
  return counters;
}

/// Probes the peaks again where a group of benchmarks begins, and in it every few seconds.
void probe_for(const Entry& entry) {
  struct Probed {
    std::string group;
    Clock::time_point when;
  };
  static std::map<int, Probed> all;
  constexpr double often_enough = 5;
  Probed& last = all[entry.threads];
  const std::string group(part(entry.name, 0));
  peaks(entry.threads);
  if (group == last.group && seconds_since(last.when) < often_enough) return;
  if (group != "probe") probe_again(entry.threads, group != last.group);
  last = {group, Clock::now()};
}

void run_entry(benchmark::State& state, const Entry& entry) {
  probe_for(entry);
  for ([[maybe_unused]] auto _ : state) {
    try {
      Case benchmark = entry.make();
      const Timing timing = measure(benchmark);
      if (benchmark.workspace_bytes) benchmark.counters["workspace_bytes"] = double(benchmark.workspace_bytes());
      benchmark.run = benchmark.prepare = benchmark.check = nullptr;  // and with them the data
      benchmark.workspace_bytes = nullptr;
      counters_now()[entry.name].push_back(
          [=, threads = entry.threads] { return counters_of(benchmark, timing, threads); });
    } catch (const std::exception& error) {
      ++failures;
      state.SkipWithError(error.what());
      break;
    }
  }
}

/// Google Benchmark reports the mean; we put the shortest time in its place, and give the console only what one reads.
std::vector<benchmark::BenchmarkReporter::Run> with_least_time(std::vector<benchmark::BenchmarkReporter::Run> runs,
                                                               bool brief) {
  for (auto& run : runs) {
    const auto found = counters_now().find(run.run_name.function_name);
    if (run.run_type != benchmark::BenchmarkReporter::Run::RT_Iteration || found == counters_now().end()) continue;
    const auto repetition = static_cast<std::size_t>(std::max<std::int64_t>(0, run.repetition_index));
    if (repetition >= found->second.size()) continue;
    Counters counters = found->second[repetition]();
    const auto take = [&](const char* name) {
      const double value = counters[name];
      counters.erase(name);
      return value;
    };
    run.iterations = static_cast<benchmark::IterationCount>(std::max(1.0, take("runs")));
    run.real_accumulated_time = take(least_time) * double(run.iterations);
    run.cpu_accumulated_time = take(least_processor_time) * double(run.iterations);
    const bool all = !brief || counters.count("roofline") == 0;
    for (const auto& [name, value] : counters) {
      const bool read = name == "roofline" || name == "fma_peak_share" || name == "ns_per_token" ||
                        name == "step_longest_to_median" || name == "kv_bytes_per_second" || name == "kv_l3_share" ||
                        name == "processor_share";
      if (all || read) run.counters[name] = value;
    }
  }
  return runs;
}

/// Reports a benchmark when it has run.
class ConsoleReporter final : public benchmark::ConsoleReporter {
 public:
  using benchmark::ConsoleReporter::ConsoleReporter;
  void ReportRuns(const std::vector<Run>& runs) override {
    benchmark::ConsoleReporter::ReportRuns(with_least_time(runs, true));
  }
};

/// Reports all benchmarks at the end, when the best peaks are known.
class FileReporter final : public benchmark::JSONReporter {
 public:
  void ReportRuns(const std::vector<Run>& runs) override { runs_.push_back(runs); }
  void Finalize() override {
    for (const auto& runs : runs_) benchmark::JSONReporter::ReportRuns(with_least_time(runs, false));
    benchmark::JSONReporter::Finalize();
  }

 private:
  std::vector<std::vector<Run>> runs_;
};

std::string processor() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, 10, "model name") == 0) return line.substr(std::min(line.size(), line.find(':') + 2));
  }
  return "unknown";
}

std::string compiler() {
#if defined(__clang__)
  return "Clang " __clang_version__;
#elif defined(__GNUC__)
  return "GCC " __VERSION__;
#else
  return "unknown";
#endif
}

#define SEQMIX_BENCH_TEXT(name) #name
#define SEQMIX_BENCH_EXPANDED(name) SEQMIX_BENCH_TEXT(name)

void add_context() {
  benchmark::AddCustomContext("effort", std::string(effort().name));
  benchmark::AddCustomContext("processor", processor());
  benchmark::AddCustomContext("compiler", compiler());
  benchmark::AddCustomContext("instruction_set", SEQMIX_BENCH_EXPANDED(SEQMIX_ARCH));
  benchmark::AddCustomContext("time", "the shortest of all runs");
  benchmark::AddCustomContext("threads_by",
#if defined(SEQMIX_HAVE_OPENMP) && defined(_OPENMP)
                              "OpenMP"
#elif defined(SEQMIX_HAVE_TBB)
                              "oneTBB"
#else
                              "none"
#endif
  );
}

bool has_argument(int argc, char** argv, std::string_view begin) {
  return std::any_of(argv + 1, argv + argc,
                     [&](const char* argument) { return std::string_view(argument).substr(0, begin.size()) == begin; });
}

}  // namespace

const Effort& effort() {
  static const Effort efforts[] = {
      {"normal", 0.1, 3, 0.4, 1, 65536, 8192, 16384, 512, 8192},
      {"short", 0.002, 1, 0.4, 1, 512, 512, 512, 128, 2048},
      {"full", 2, 9, 3, 2, 65536, 65536, 65536, 0, 32768},
  };
  static const Effort& chosen = [&]() -> const Effort& {
    const char* const name = std::getenv("SEQMIX_BENCH_EFFORT");
    if (name == nullptr || *name == '\0') return efforts[0];
    for (const Effort& candidate : efforts) {
      if (candidate.name == name) return candidate;
    }
    std::fprintf(stderr, "SEQMIX_BENCH_EFFORT: expected short, normal or full, given %s\n", name);
    std::exit(2);
  }();
  return chosen;
}

const std::vector<int>& thread_counts() {
  static const std::vector<int> counts = [] {
    std::vector<int> result = {1};
#if (defined(SEQMIX_HAVE_OPENMP) && defined(_OPENMP)) || defined(SEQMIX_HAVE_TBB)
    if (std::thread::hardware_concurrency() >= 2) result.push_back(2);
#endif
    return result;
  }();
  return counts;
}

Executor& executor(int threads) {
  if (threads == 1) return serial_executor();
#if defined(SEQMIX_HAVE_OPENMP) && defined(_OPENMP)
  using Parallel = OpenMpExecutor;
#elif defined(SEQMIX_HAVE_TBB)
  using Parallel = TbbExecutor;
#endif
#if (defined(SEQMIX_HAVE_OPENMP) && defined(_OPENMP)) || defined(SEQMIX_HAVE_TBB)
  static std::map<int, std::unique_ptr<Parallel>> executors;
  auto& found = executors[threads];
  if (!found) found = std::make_unique<Parallel>(threads);
  return *found;
#else
  throw std::invalid_argument("no executor for several threads");
#endif
}

void add_benchmark_as(std::string name, int threads, std::function<Case()> make) {
  entries().push_back({std::move(name), threads, std::move(make)});
}

void add_benchmark(std::string name, int threads, std::function<Case()> make) {
  add_benchmark_as(name + "/threads:" + std::to_string(threads), threads, std::move(make));
}

void add_benchmark(const std::string& name, const std::function<Case(int threads)>& make) {
  for (const int threads : thread_counts()) {
    add_benchmark(name, threads, [make, threads] { return make(threads); });
  }
}

int run_benchmarks(int argc, char** argv, const std::vector<std::string>& groups) {
  const auto rank = [&](const Entry& entry) {
    return std::find(groups.begin(), groups.end(), part(entry.name, 0)) - groups.begin();
  };
  std::stable_sort(entries().begin(), entries().end(), [&](const Entry& a, const Entry& b) {
    return rank(a) != rank(b) ? rank(a) < rank(b) : part(a.name, 1) < part(b.name, 1);
  });

  // A benchmark times its own runs, so Google Benchmark need call it only once, however short the call was.
  std::string once = "--benchmark_min_time=0.000000001";
  std::vector<char*> arguments(argv, argv + argc);
  arguments.insert(arguments.begin() + 1, once.data());
  const bool writes_file = has_argument(argc, argv, "--benchmark_out=") || std::getenv("BENCHMARK_OUT") != nullptr;
  const bool prints_json = has_argument(argc, argv, "--benchmark_format=json");
  int count = int(arguments.size());
  benchmark::Initialize(&count, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(count, arguments.data())) return 1;

  add_context();
  for (const Entry& entry : entries()) {
    benchmark::RegisterBenchmark(entry.name.c_str(), [&entry](benchmark::State& state) {
      run_entry(state, entry);
    })->Unit(benchmark::kMicrosecond);
  }
  std::unique_ptr<benchmark::BenchmarkReporter> shown;
  if (prints_json) {
    shown = std::make_unique<FileReporter>();
  } else {
    shown = std::make_unique<ConsoleReporter>(benchmark::ConsoleReporter::OO_None);
  }
  FileReporter file;
  benchmark::RunSpecifiedBenchmarks(shown.get(), writes_file ? &file : nullptr);
  benchmark::Shutdown();
  return failures == 0 ? 0 : 1;
}

}  // namespace seqmix::bench
