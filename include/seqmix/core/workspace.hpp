// Scratch memory, and the executor to run on.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <memory>
#include <seqmix/core/buffer.hpp>
#include <seqmix/core/executor.hpp>
#include <seqmix/core/view.hpp>
#include <span>
#include <vector>

namespace seqmix {

/// An arena of scratch memory that grows to what is needed and is then reused, and the executor that work runs on.
///
/// Mixers are shared between threads; a Workspace is not: every calling thread has its own (asserted: while a thread has
/// frames open, no other may open one). Memory is taken inside a frame and given back when the frame ends, last taken
/// first returned. Once a call has run, the same call with the same shapes allocates nothing.
class Workspace {
 public:
  /// Runs on `executor`, which must outlive the workspace.
  explicit Workspace(Executor& executor = serial_executor()) : executor_(&executor) {}

  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  /// Gives back, at the end of its life, all that was taken since its beginning.
  class [[nodiscard]] Frame {
   public:
    explicit Frame(Workspace& workspace)
        : workspace_(workspace), block_(workspace.opened().block_), used_(workspace.used_) {}
    ~Frame() { workspace_.release(block_, used_); }
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;

   private:
    Workspace& workspace_;
    std::size_t block_, used_;
  };

  /// Opens a frame. What is taken until the frame's end is valid until then.
  Frame frame() { return Frame(*this); }

  /// `count` numbers, uninitialised, aligned to a cache line. Needs an open frame.
  template <class T>
  std::span<T> take(Index count) {
    static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);
    assert(count >= 0 && depth_ > 0);
    return {static_cast<T*>(take_bytes(static_cast<std::size_t>(count) * sizeof(T))), static_cast<std::size_t>(count)};
  }

  /// An uninitialised sequence [length, channels]. Where the row size is a multiple of 4096 bytes a cache line is added
  /// to the stride: rows that far apart would compete for the same few lines of the first-level cache.
  template <class T>
  Sequence<T> sequence(Index length, Index channels) {
    constexpr Index line = Index(memory_alignment / sizeof(T));
    const Index stride = channels > 0 && channels * Index(sizeof(T)) % 4096 == 0 ? channels + line : channels;
    return {take<T>(length * stride).data(), length, channels, stride};
  }

  /// An uninitialised sequence with heads [length, heads, head_dim], without gaps between the heads.
  template <class T>
  HeadSequence<T> heads(Index length, Index heads, Index head_dim) {
    const auto rows = sequence<T>(length, heads * head_dim);
    return {rows.data(), length, heads, head_dim, rows.stride(), head_dim};
  }

  /// The executor that parallel_for runs on.
  Executor& executor() const { return *executor_; }

  /// How many pieces can run at the same time.
  Index concurrency() const { return executor_->concurrency(); }

  /// Calls body(index, local) for every index in 0 .. count - 1, at most concurrency() at a time. `local` is a workspace
  /// for this call alone. Pieces are handed out in order, so the longest should come first. If calls throw, one of the
  /// exceptions is rethrown when all have ended.
  template <class Body>
  void parallel_for(Index count, Body&& body) {
    const Index workers = std::min(concurrency(), count);
    if (workers <= 1) {
      for (Index index = 0; index < count; ++index) {
        const auto scope = frame();
        body(index, *this);
      }
      return;
    }
    while (Index(locals_.size()) < workers) locals_.push_back(std::make_unique<Workspace>());
    std::atomic<Index> next = 0;
    std::atomic<bool> failed = false;
    std::exception_ptr failure;
    executor_->parallel_for(workers, [&](Index worker) {
      Workspace& local = *locals_[static_cast<std::size_t>(worker)];
      try {
        for (Index index = next++; index < count; index = next++) {
          const auto scope = local.frame();
          body(index, local);
        }
      } catch (...) {
        if (!failed.exchange(true)) failure = std::current_exception();
      }
    });
    if (failure) std::rethrow_exception(failure);
    level_locals();
  }

  /// Calls body(begin, count) for blocks of consecutive rows that together are 0 .. length - 1, at most concurrency() at a
  /// time: for what takes every row by itself. A block fits the second-level cache, so several such steps are best done
  /// in one body.
  template <class Body>
  void for_row_blocks(Index length, Body&& body) {
    constexpr Index block = 32;
    if (length <= block) {
      if (length > 0) body(Index(0), length);
      return;
    }
    parallel_for((length + block - 1) / block,
                 [&](Index index, Workspace&) { body(index * block, std::min(block, length - index * block)); });
  }

  /// Bytes held, those of the workers included.
  std::size_t capacity_bytes() const {
    std::size_t total = 0;
    for (const auto& block : blocks_) total += block.size();
    for (const auto& local : locals_) total += local->capacity_bytes();
    return total;
  }

  /// Fills all free memory with the bytes 0xFF, which are NaN as float and as double: tests do so before every call.
  /// Needs no open frame.
  void poison() {
    assert(depth_ == 0);
    for (auto& block : blocks_) std::memset(block.data(), 0xFF, block.size());
    for (auto& local : locals_) local->poison();
  }

  /// Holds at least `bytes` in one piece from now on. Needs no open frame.
  void reserve(std::size_t bytes) {
    assert(depth_ == 0);
    if (blocks_.size() == 1 && blocks_.front().size() >= bytes) return;
    if (bytes == 0) return;
    Buffer<std::byte> block(bytes);
    blocks_.clear();
    blocks_.push_back(std::move(block));
  }

 private:
  /// An address that no other thread has.
  static const void* this_thread() {
    thread_local char mark = 0;
    return &mark;
  }

  /// Opens a frame for this thread.
  Workspace& opened() {
#ifndef NDEBUG
    const void* none = nullptr;
    const bool mine = owner_.compare_exchange_strong(none, this_thread()) || none == this_thread();
    assert(mine && "a Workspace is used by two threads at a time");
#endif
    ++depth_;
    return *this;
  }

  void* take_bytes(std::size_t bytes) {
    bytes = (bytes + memory_alignment - 1) / memory_alignment * memory_alignment;
    while (block_ < blocks_.size() && blocks_[block_].size() - used_ < bytes) {
      ++block_;
      used_ = 0;
    }
    if (block_ == blocks_.size()) {
      const std::size_t last = blocks_.empty() ? 0 : blocks_.back().size();
      blocks_.emplace_back(std::max({bytes, 2 * last, smallest_block}));
      used_ = 0;
    }
    void* result = blocks_[block_].data() + used_;
    used_ += bytes;
    high_ = std::max(high_, offset());
    return result;
  }

  /// Bytes from the first block's beginning to the current position.
  std::size_t offset() const {
    std::size_t total = used_;
    for (std::size_t block = 0; block < block_; ++block) total += blocks_[block].size();
    return total;
  }

  void release(std::size_t block, std::size_t used) noexcept {
    block_ = block;
    used_ = used;
    --depth_;
    if (depth_ == 0) owner_.store(nullptr, std::memory_order_release);
    if (depth_ == 0 && blocks_.size() > 1) {
      // The blocks were too small for one call: one block of their size holds it the next time.
      try {
        const std::size_t bytes = high_;
        blocks_.clear();
        blocks_.emplace_back(bytes);
      } catch (...) {
        blocks_.clear();
      }
      block_ = used_ = 0;
    }
  }

  /// Gives all workers as much memory as the largest has: the next call may deal the pieces out differently.
  void level_locals() {
    std::size_t most = 0;
    for (const auto& local : locals_) most = std::max(most, local->capacity_bytes());
    for (auto& local : locals_) local->reserve(most);
  }

  static constexpr std::size_t smallest_block = std::size_t(1) << 16;

  Executor* executor_;
  std::vector<Buffer<std::byte>> blocks_;
  std::size_t block_ = 0;                     // the block that memory is taken from
  std::size_t used_ = 0;                      // bytes taken of that block
  std::size_t high_ = 0;                      // most bytes ever in use
  int depth_ = 0;                             // open frames
  std::atomic<const void*> owner_ = nullptr;  // the thread that opened them; known with assertions only
  std::vector<std::unique_ptr<Workspace>> locals_;
};

}  // namespace seqmix
