// The cache of keys and values from which attention continues a sequence.
#pragma once

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <seqmix/core/buffer.hpp>
#include <seqmix/core/error.hpp>
#include <seqmix/core/view.hpp>
#include <seqmix/engine/attention_pack.hpp>
#include <span>
#include <string_view>

namespace seqmix::inline SEQMIX_ARCH {

/// Keys and values of the tokens seen. With a window of W tokens it is a ring that keeps the last W + 1: a token and the W
/// before it. A copyable value; copying is forking.
///
///   key    [kv_heads, capacity, head_dim]     rotated, if keys are rotated at all
///   value  [kv_heads, capacity, value_dim]
///
/// Each head's rows are contiguous, so that reading them is one stream. Storage is the type of the numbers held.
template <std::floating_point T, class Storage = T>
class KeyValueCache {
  static_assert(std::same_as<T, Storage>, "other storage types are not implemented");

 public:
  /// No heads.
  KeyValueCache() = default;

  /// Empty; allocates nothing. Keys may have no channels. Throws std::invalid_argument unless other sizes are positive and
  /// `window`, where given, is not negative.
  KeyValueCache(Index kv_heads, Index head_dim, Index value_dim, std::optional<Index> window = std::nullopt)
      : kv_heads_(kv_heads), head_dim_(head_dim), value_dim_(value_dim), window_(window) {
    expect(kv_heads > 0 && value_dim > 0, "KeyValueCache", "kv_heads, value_dim", "must be positive");
    expect(head_dim >= 0, "KeyValueCache", "head_dim", "must not be negative");
    expect(!window || *window >= 0, "KeyValueCache", "window", "must not be negative");
  }

  Index kv_heads() const { return kv_heads_; }
  Index head_dim() const { return head_dim_; }
  Index value_dim() const { return value_dim_; }
  std::optional<Index> window() const { return window_; }

  /// Tokens held.
  Index size() const { return size_; }

  /// Tokens ever appended.
  Index seen() const { return seen_; }

  /// Bytes of the keys and values held.
  Index bytes() const { return size_ * kv_heads_ * (head_dim_ + value_dim_) * Index(sizeof(Storage)); }

  /// Makes room for `tokens` in all: no append allocates before there are more.
  void reserve(Index tokens) {
    const Index needed = std::min(tokens, limit());
    if (needed > capacity_) relocate(needed);
  }

  /// Makes room for `count` more tokens. Doubles the memory where it has to grow, so that the cost of copying is O(1) per
  /// token.
  void reserve_more(Index count) {
    const Index needed = std::min(count > limit() - size_ ? limit() : size_ + count, limit());
    if (needed > capacity_) relocate(std::min(std::max(needed, 2 * capacity_), limit()));
  }

  /// Appends key [tokens, kv_heads, head_dim] and value [tokens, kv_heads, value_dim]. A ring forgets the oldest.
  /// Allocates only where the room is used up.
  void append(ConstHeadSequence<T> key, ConstHeadSequence<T> value) {
    assert(key.length() == value.length() && key.heads() == kv_heads_ && value.heads() == kv_heads_);
    assert(key.head_dim() == head_dim_ && value.head_dim() == value_dim_);
    reserve_more(key.length());
    seen_ += key.length();
    const Index count = std::min(key.length(), limit()), skipped = key.length() - count;
    const Index forgotten = std::max<Index>(0, size_ - (limit() - count));
    size_ -= forgotten;
    begin_ = size_ == 0 ? 0 : (begin_ + forgotten) % capacity_;
    for (Index t = 0; t < count; ++t) {
      const Index place = (begin_ + size_ + t) % capacity_;
      for (Index h = 0; h < kv_heads_; ++h) {
        std::copy_n(key.row(skipped + t, h), head_dim_, key_.data() + (h * capacity_ + place) * head_dim_);
        std::copy_n(value.row(skipped + t, h), value_dim_, value_.data() + (h * capacity_ + place) * value_dim_);
      }
    }
    size_ += count;
  }

  /// The tokens held, oldest first, as one segment or two; the second may have length 0. Valid until the cache changes.
  std::array<KeyValueSegment<T>, 2> segments() const {
    const Index first = std::min(size_, capacity_ - begin_);
    return {segment(begin_, first), segment(0, size_ - first)};
  }

  /// Calls visitor(name, field) for everything that changes.
  template <class Self, class Visitor>
  static void visit(Self& self, Visitor&& visitor) {
    visitor("key", self.key_);
    visitor("value", self.value_);
    visitor("capacity", self.capacity_);
    visitor("size", self.size_);
    visitor("begin", self.begin_);
    visitor("seen", self.seen_);
  }

  /// Throws std::invalid_argument unless the fields fit each other and `expected`, an empty cache, in heads, sizes and
  /// window.
  void check(std::string_view operation, const KeyValueCache& expected) const {
    expect_shape(operation, "state", {expected.kv_heads_, expected.head_dim_, expected.value_dim_},
                 {kv_heads_, head_dim_, value_dim_});
    expect(window_ == expected.window_, operation, "state", "has another window");
    expect(capacity_ >= 0 && capacity_ <= std::min(limit(), most_capacity()), operation, "state",
           "impossible capacity");
    expect(size_ >= 0 && size_ <= capacity_ && seen_ >= size_, operation, "state", "impossible size");
    expect(begin_ >= 0 && begin_ <= std::max<Index>(0, capacity_ - 1) && (begin_ == 0 || size_ == limit()), operation,
           "state", "impossible beginning");
    expect_shape(operation, "state.key", {kv_heads_, capacity_, head_dim_},
                 key_.size() == std::size_t(kv_heads_ * capacity_ * head_dim_) ? Shape{kv_heads_, capacity_, head_dim_}
                                                                               : Shape{Index(key_.size())});
    expect_shape(operation, "state.value", {kv_heads_, capacity_, value_dim_},
                 value_.size() == std::size_t(kv_heads_ * capacity_ * value_dim_)
                     ? Shape{kv_heads_, capacity_, value_dim_}
                     : Shape{Index(value_.size())});
  }

 private:
  Index limit() const {
    return window_ && *window_ < std::numeric_limits<Index>::max() ? *window_ + 1 : std::numeric_limits<Index>::max();
  }

  /// Beyond this the number of elements would not fit an Index.
  Index most_capacity() const {
    return std::numeric_limits<Index>::max() / std::max<Index>(1, kv_heads_ * std::max(head_dim_, value_dim_));
  }

  KeyValueSegment<T> segment(Index begin, Index count) const {
    return {{key_.data() + begin * head_dim_, count, kv_heads_, head_dim_, head_dim_, capacity_ * head_dim_},
            {value_.data() + begin * value_dim_, count, kv_heads_, value_dim_, value_dim_, capacity_ * value_dim_}};
  }

  void relocate(Index capacity) {
    // A ring begins to turn only when it has its full capacity, so here the oldest token is the first.
    assert(begin_ == 0);
    Buffer<Storage> key(std::size_t(kv_heads_ * capacity * head_dim_));
    Buffer<Storage> value(std::size_t(kv_heads_ * capacity * value_dim_));
    for (Index h = 0; h < kv_heads_; ++h) {
      std::copy_n(key_.data() + h * capacity_ * head_dim_, size_ * head_dim_, key.data() + h * capacity * head_dim_);
      std::copy_n(value_.data() + h * capacity_ * value_dim_, size_ * value_dim_,
                  value.data() + h * capacity * value_dim_);
    }
    key_.swap(key);
    value_.swap(value);
    capacity_ = capacity;
  }

  Index kv_heads_ = 0, head_dim_ = 0, value_dim_ = 0;
  std::optional<Index> window_;
  Buffer<Storage> key_;    // [kv_heads, capacity, head_dim]
  Buffer<Storage> value_;  // [kv_heads, capacity, value_dim]
  Index capacity_ = 0;     // tokens that there is room for
  Index size_ = 0;         // tokens held
  Index begin_ = 0;        // place of the oldest token
  Index seen_ = 0;         // tokens ever appended
};

}  // namespace seqmix::inline SEQMIX_ARCH
