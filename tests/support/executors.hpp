// The executors that tests run on.
#pragma once

#include <atomic>
#include <memory>
#include <seqmix/core/executor.hpp>
#include <string>
#include <thread>
#include <vector>

#include "sanitizers.hpp"

// The thread sanitizer doesn't see how the run-time libraries of OpenMP and oneTBB synchronise.
#if defined(SEQMIX_HAVE_OPENMP) && defined(_OPENMP) && !defined(SEQMIX_TEST_THREAD_SANITIZER)
#define SEQMIX_TEST_OPENMP
#include <seqmix/core/executor_openmp.hpp>
#endif
#if defined(SEQMIX_HAVE_TBB) && !defined(SEQMIX_TEST_THREAD_SANITIZER)
#define SEQMIX_TEST_TBB
#include <seqmix/core/executor_tbb.hpp>
#endif

namespace seqmix::test {

/// An executor, and what to call it in messages.
struct NamedExecutor {
  std::string name;
  std::unique_ptr<Executor> executor;
};

/// Runs on `threads` threads made for each call: each takes the next index until none is left.
inline std::unique_ptr<Executor> thread_executor(Index threads) {
  const auto run = [threads](Index count, TaskRef task) {
    std::atomic<Index> next = 0;
    const auto work = [&] {
      for (Index index = next++; index < count; index = next++) task(index);
    };
    std::vector<std::thread> others;
    for (Index other = 1; other < threads; ++other) others.emplace_back(work);
    work();
    for (auto& other : others) other.join();
  };
  return std::make_unique<FunctionExecutor<decltype(run)>>(threads, run);
}

/// Claims to run `concurrency` pieces at a time but runs them on the calling thread, last first.
inline std::unique_ptr<Executor> backward_executor(Index concurrency) {
  const auto run = [](Index count, TaskRef task) {
    for (Index index = count; index-- > 0;) task(index);
  };
  return std::make_unique<FunctionExecutor<decltype(run)>>(concurrency, run);
}

/// Executors of every kind that this build has, with several numbers of threads.
inline std::vector<NamedExecutor> all_executors() {
  std::vector<NamedExecutor> result;
  result.push_back({"serial", std::make_unique<SerialExecutor>()});
  for (const int threads : {2, 3, 8}) {
    result.push_back({std::to_string(threads) + " threads", thread_executor(threads)});
  }
  result.push_back({"5 backward", backward_executor(5)});
#ifdef SEQMIX_TEST_OPENMP
  for (const int threads : {1, 2, 3}) {
    result.push_back({"OpenMP " + std::to_string(threads), std::make_unique<OpenMpExecutor>(threads)});
  }
#endif
#ifdef SEQMIX_TEST_TBB
  for (const int threads : {1, 2}) {
    result.push_back({"oneTBB " + std::to_string(threads), std::make_unique<TbbExecutor>(threads)});
  }
#endif
  return result;
}

}  // namespace seqmix::test
