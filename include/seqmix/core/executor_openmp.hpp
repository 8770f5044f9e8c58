// Executor on the OpenMP run-time. Include it only in code compiled with OpenMP (-fopenmp).
#pragma once

#ifndef _OPENMP
#error "seqmix/core/executor_openmp.hpp needs OpenMP: compile with -fopenmp, or link OpenMP::OpenMP_CXX"
#endif

#include <omp.h>

#include <seqmix/core/executor.hpp>

namespace seqmix {

/// Runs on the threads of OpenMP.
class OpenMpExecutor final : public Executor {
 public:
  /// `threads` at a time; 0 means as many as OpenMP would use.
  explicit OpenMpExecutor(int threads = 0) : threads_(threads > 0 ? threads : omp_get_max_threads()) {}

  Index concurrency() const noexcept override { return threads_; }

  void parallel_for(Index count, TaskRef task) override {
#pragma omp parallel for schedule(static, 1) num_threads(threads_)
    for (Index index = 0; index < count; ++index) task(index);
  }

 private:
  int threads_;
};

}  // namespace seqmix
