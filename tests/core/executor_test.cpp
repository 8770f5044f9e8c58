// Executors run each piece exactly once, and return when all have ended.
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <vector>

#include "support/allocations.hpp"
#include "support/executors.hpp"

namespace seqmix {
namespace {

TEST_CASE("every executor runs each piece once") {
  for (const auto& [name, executor] : test::all_executors()) {
    INFO(name);
    CHECK(executor->concurrency() >= 1);
    for (const Index count : {0, 1, 2, 3, 10, 1000}) {
      std::vector<std::atomic<int>> calls(static_cast<std::size_t>(count));
      executor->parallel_for(count, [&](Index index) { ++calls[std::size_t(index)]; });
      int wrong = 0;
      for (const auto& number : calls) wrong += number != 1;
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("concurrency is what was asked for, and at least one") {
  CHECK(serial_executor().concurrency() == 1);
  CHECK(test::thread_executor(4)->concurrency() == 4);
  FunctionExecutor none(0, [](Index, TaskRef) {});
  CHECK(none.concurrency() == 1);
#ifdef SEQMIX_TEST_OPENMP
  CHECK(OpenMpExecutor(3).concurrency() == 3);
  CHECK(OpenMpExecutor().concurrency() >= 1);
#endif
#ifdef SEQMIX_TEST_TBB
  CHECK(TbbExecutor(3).concurrency() == 3);
  CHECK(TbbExecutor().concurrency() >= 1);
#endif
}

TEST_CASE("a task is a reference: no copy, no allocation") {
  int calls = 0;
  auto body = [&calls, numbers = std::vector<int>(100)](Index) {
    (void)numbers;
    ++calls;
  };
  const auto before = test::allocation_count();
  serial_executor().parallel_for(5, body);
  const TaskRef task = body;
  const TaskRef copy = task;
  copy(0);
  const auto after = test::allocation_count();
  CHECK(calls == 6);
  CHECK(after == before);
}

static_assert(!std::is_constructible_v<TaskRef, int>);
static_assert(!std::is_constructible_v<TaskRef, void (*)(void*)>);

}  // namespace
}  // namespace seqmix
