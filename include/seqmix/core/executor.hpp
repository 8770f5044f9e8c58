// Executors: who runs the independent pieces of a computation.
//
// A kernel splits its work over independent outputs and hands the pieces to an executor. Results never depend on the
// executor: every piece computes the same numbers wherever and whenever it runs.
#pragma once

#include <concepts>
#include <memory>
#include <seqmix/core/view.hpp>
#include <type_traits>
#include <utility>

namespace seqmix {

/// A reference to a callable void(Index). It owns nothing: the callable must outlive it.
class TaskRef {
 public:
  template <class Body>
    requires(!std::same_as<std::remove_cvref_t<Body>, TaskRef> && std::invocable<Body&, Index>)
  TaskRef(Body&& body)
      : body_(const_cast<void*>(static_cast<const void*>(std::addressof(body)))),
        call_([](void* target, Index index) { (*static_cast<std::remove_reference_t<Body>*>(target))(index); }) {}

  void operator()(Index index) const { call_(body_, index); }

 private:
  void* body_;
  void (*call_)(void*, Index);
};

/// Runs the pieces of a computation, perhaps at the same time. Derive from it, or use FunctionExecutor, to run on a
/// thread pool of your own.
class Executor {
 public:
  virtual ~Executor() = default;

  /// How many pieces can run at the same time, at least 1.
  virtual Index concurrency() const noexcept = 0;

  /// Calls task(i) once for every i in 0 .. count - 1, in any order, on any threads, and returns when all have
  /// finished. Tasks passed by this library do not throw.
  virtual void parallel_for(Index count, TaskRef task) = 0;
};

/// Runs everything on the calling thread.
class SerialExecutor final : public Executor {
 public:
  Index concurrency() const noexcept override { return 1; }
  void parallel_for(Index count, TaskRef task) override {
    for (Index index = 0; index < count; ++index) task(index);
  }
};

/// The executor used where none is given.
inline SerialExecutor& serial_executor() {
  static SerialExecutor executor;
  return executor;
}

/// Runs on any thread pool: `function(count, task)` must call task(i) for every i in 0 .. count - 1 and return when all
/// have finished. Example: FunctionExecutor executor(4, [&](Index count, TaskRef task) { pool.run(count, task); });
template <std::invocable<Index, TaskRef> Function>
class FunctionExecutor final : public Executor {
 public:
  FunctionExecutor(Index concurrency, Function function)
      : concurrency_(concurrency > 0 ? concurrency : 1), function_(std::move(function)) {}

  Index concurrency() const noexcept override { return concurrency_; }
  void parallel_for(Index count, TaskRef task) override { function_(count, task); }

 private:
  Index concurrency_;
  Function function_;
};

}  // namespace seqmix
