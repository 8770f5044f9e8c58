// The arena of scratch memory.
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <memory>
#include <numeric>
#include <seqmix/core/workspace.hpp>
#include <stdexcept>
#include <thread>
#include <vector>

#include "support/allocations.hpp"
#include "support/executors.hpp"

#if !defined(NDEBUG) && defined(__unix__) && !defined(SEQMIX_TEST_THREAD_SANITIZER)
#define SEQMIX_TEST_ASSERTIONS
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#endif

namespace seqmix {
namespace {

using test::allocation_count;

static_assert(!std::is_copy_constructible_v<Workspace> && !std::is_copy_assignable_v<Workspace>);
static_assert(!std::is_copy_constructible_v<Workspace::Frame>);

bool aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % memory_alignment == 0; }

TEST_CASE("takes are aligned and apart") {
  Workspace workspace;
  const auto frame = workspace.frame();
  std::vector<std::span<float>> taken;
  for (const Index size : {0, 1, 15, 16, 17, 1000, 100000, 1}) {
    taken.push_back(workspace.take<float>(size));
    CHECK(Index(taken.back().size()) == size);
    CHECK(aligned(taken.back().data()));
    std::fill(taken.back().begin(), taken.back().end(), float(size));
  }
  for (const auto& part : taken) {
    for (const float value : part) {
      if (value != float(part.size())) FAIL("parts overlap");
    }
  }
}

TEST_CASE("a frame's end gives its memory back") {
  Workspace workspace;
  const auto outer = workspace.frame();
  const auto kept = workspace.take<double>(10);
  std::fill(kept.begin(), kept.end(), 1.0);
  double* first = nullptr;
  for (int repeat = 0; repeat < 3; ++repeat) {
    const auto inner = workspace.frame();
    const auto part = workspace.take<double>(100);
    if (first == nullptr) first = part.data();
    CHECK(part.data() == first);
    std::fill(part.begin(), part.end(), 2.0);
  }
  CHECK(std::accumulate(kept.begin(), kept.end(), 0.0) == 10.0);
}

TEST_CASE("what is taken stays where it is while the workspace grows") {
  Workspace workspace;
  const auto frame = workspace.frame();
  const auto early = workspace.take<int>(100);
  std::iota(early.begin(), early.end(), 0);
  for (int i = 0; i < 20; ++i) {
    const auto late = workspace.take<int>(50000);
    std::fill(late.begin(), late.end(), -1);
  }
  for (std::size_t i = 0; i < early.size(); ++i) {
    if (early[i] != int(i)) FAIL("moved or overwritten");
  }
}

TEST_CASE("the second call allocates nothing") {
  Workspace workspace;
  const auto call = [&] {
    const auto frame = workspace.frame();
    workspace.take<float>(1000);
    {
      const auto inner = workspace.frame();
      workspace.take<double>(70000);
      workspace.sequence<float>(300, 1024);
    }
    workspace.heads<float>(100, 3, 64);
    workspace.take<float>(200000);
  };
  call();
  const auto bytes = workspace.capacity_bytes();
  const auto before = allocation_count();
  for (int repeat = 0; repeat < 5; ++repeat) call();
  const auto after = allocation_count();
  CHECK(after == before);
  CHECK(workspace.capacity_bytes() == bytes);
}

TEST_CASE("reserve holds as much as said in one piece") {
  Workspace workspace;
  workspace.reserve(1 << 20);
  const auto before = allocation_count();
  {
    const auto frame = workspace.frame();
    workspace.take<std::byte>(1 << 20);
  }
  const auto after = allocation_count();
  CHECK(after == before);
  CHECK(workspace.capacity_bytes() == std::size_t(1) << 20);
  workspace.reserve(100);
  CHECK(workspace.capacity_bytes() == std::size_t(1) << 20);
}

TEST_CASE("poisoned memory is NaN") {
  Workspace workspace;
  {
    const auto frame = workspace.frame();
    const auto part = workspace.take<float>(100);
    std::fill(part.begin(), part.end(), 0.0F);
  }
  workspace.poison();
  const auto frame = workspace.frame();
  for (const float value : workspace.take<float>(100)) CHECK(std::isnan(value));
  for (const double value : workspace.take<double>(100)) CHECK(std::isnan(value));
}

TEST_CASE("sequences avoid strides of 4096 bytes") {
  Workspace workspace;
  const auto frame = workspace.frame();
  const auto rows = workspace.sequence<float>(5, 1024);
  CHECK(rows.length() == 5);
  CHECK(rows.channels() == 1024);
  CHECK(rows.stride() > 1024);
  CHECK(aligned(rows.row(1)));
  CHECK(workspace.sequence<float>(5, 1000).stride() == 1000);
  const auto heads = workspace.heads<double>(3, 8, 64);
  CHECK(heads.head_stride() == 64);
  CHECK(heads.row_stride() > 512);
  CHECK(workspace.sequence<float>(0, 7).length() == 0);
  CHECK(workspace.sequence<float>(7, 0).channels() == 0);
}

TEST_CASE("parallel_for runs each piece once with scratch of its own") {
  for (const auto& [name, executor] : test::all_executors()) {
    INFO(name);
    Workspace workspace(*executor);
    CHECK(workspace.concurrency() == executor->concurrency());
    for (const Index count : {0, 1, 2, 7, 100}) {
      std::vector<std::atomic<int>> calls(static_cast<std::size_t>(count));
      std::atomic<int> clashes = 0;
      workspace.parallel_for(count, [&](Index index, Workspace& local) {
        const auto scratch = local.take<Index>(500);
        std::fill(scratch.begin(), scratch.end(), index);
        std::this_thread::yield();
        for (const Index value : scratch) clashes += value != index;
        ++calls[std::size_t(index)];
      });
      CHECK(clashes == 0);
      for (const auto& number : calls) CHECK(number == 1);
    }
  }
}

TEST_CASE("threads may use a workspace one after the other") {
  Workspace workspace;
  for (int repeat = 0; repeat < 3; ++repeat) {
    std::thread([&] {
      const auto outer = workspace.frame();
      const auto inner = workspace.frame();
      workspace.take<float>(100);
    }).join();
    const auto frame = workspace.frame();
    workspace.take<float>(200);
  }
}

#if defined(SEQMIX_TEST_ASSERTIONS)
TEST_CASE("a workspace that two threads use at a time stops the program") {
  for (const bool same_time : {false, true}) {
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      std::signal(SIGABRT, SIG_DFL);
      for (const int stream : {1, 2}) close(stream);
      Workspace workspace;
      auto frame = std::make_unique<Workspace::Frame>(workspace);
      if (!same_time) frame.reset();
      std::thread([&] { const auto other = workspace.frame(); }).join();
      _exit(0);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    if (same_time) {
      CHECK((WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT));
    } else {
      CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 0));
    }
  }
}
#endif

TEST_CASE("parallel_for may be nested") {
  const auto executor = test::thread_executor(3);
  Workspace workspace(*executor);
  std::atomic<Index> sum = 0;
  workspace.parallel_for(5, [&](Index i, Workspace& local) {
    local.parallel_for(4, [&](Index j, Workspace& inner) {
      inner.take<float>(10);
      sum += 10 * i + j;
    });
  });
  CHECK(sum == 430);
}

TEST_CASE("parallel_for hands an exception on when all have ended") {
  for (const auto& [name, executor] : test::all_executors()) {
    INFO(name);
    Workspace workspace(*executor);
    CHECK_THROWS_AS(workspace.parallel_for(20,
                                           [&](Index index, Workspace& local) {
                                             local.take<float>(1000);
                                             if (index >= 10) throw std::runtime_error("piece");
                                           }),
                    std::runtime_error);
    // The workspace is as good as before.
    std::atomic<int> calls = 0;
    workspace.parallel_for(20, [&](Index, Workspace& local) {
      local.take<float>(1000);
      ++calls;
    });
    CHECK(calls == 20);
    workspace.poison();
  }
}

TEST_CASE("the second parallel_for allocates nothing, whoever gets the largest piece") {
  const auto executor = test::backward_executor(4);
  Workspace workspace(*executor);
  const auto call = [&](Index largest) {
    workspace.parallel_for(8,
                           [&](Index index, Workspace& local) { local.take<float>(index == largest ? 100000 : 10); });
  };
  call(0);
  const auto before = allocation_count();
  for (Index largest = 0; largest < 8; ++largest) call(largest);
  const auto after = allocation_count();
  CHECK(after == before);
}

}  // namespace
}  // namespace seqmix
