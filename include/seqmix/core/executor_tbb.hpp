// Executor on oneTBB. Include it only in code that links TBB::tbb.
#pragma once

#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <seqmix/core/executor.hpp>

namespace seqmix {

/// Runs in an arena of oneTBB.
class TbbExecutor final : public Executor {
 public:
  /// `threads` at a time; 0 means as many as oneTBB would use.
  explicit TbbExecutor(int threads = 0) : arena_(threads > 0 ? threads : tbb::task_arena::automatic) {}

  Index concurrency() const noexcept override { return arena_.max_concurrency(); }

  void parallel_for(Index count, TaskRef task) override {
    arena_.execute([&] { tbb::parallel_for(Index(0), count, [&](Index index) { task(index); }); });
  }

 private:
  tbb::task_arena arena_;
};

}  // namespace seqmix
