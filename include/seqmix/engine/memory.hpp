// Matrix memories: the state [heads, key_dim, value_dim] that linear recurrences keep.
#pragma once

#include <seqmix/core/error.hpp>
#include <seqmix/core/tensor.hpp>
#include <seqmix/core/view.hpp>

namespace seqmix {

/// A view of one key_dim x value_dim matrix per head; element (h, i, j) at data[h * head_stride + i * row_stride + j].
/// S[h](i, j) holds how strongly key channel i is bound to value channel j.
template <class T>
class MemoryView {
 public:
  constexpr MemoryView() = default;
  constexpr MemoryView(T* data, Index heads, Index key_dim, Index value_dim, Index head_stride, Index row_stride)
      : data_(data),
        heads_(heads),
        key_dim_(key_dim),
        value_dim_(value_dim),
        head_stride_(head_stride),
        row_stride_(row_stride) {}

  /// Without gaps.
  constexpr MemoryView(T* data, Index heads, Index key_dim, Index value_dim)
      : MemoryView(data, heads, key_dim, value_dim, key_dim * value_dim, value_dim) {}

  /// All of a tensor [heads, key_dim, value_dim].
  MemoryView(Tensor<T>& tensor) : MemoryView(tensor.data(), tensor.shape()[0], tensor.shape()[1], tensor.shape()[2]) {
    expect(tensor.shape().rank() == 3, "MemoryView", "tensor", "must be [heads, key_dim, value_dim]");
  }

  constexpr T* data() const { return data_; }
  constexpr Index heads() const { return heads_; }
  constexpr Index key_dim() const { return key_dim_; }
  constexpr Index value_dim() const { return value_dim_; }
  constexpr Index head_stride() const { return head_stride_; }
  constexpr Index row_stride() const { return row_stride_; }
  constexpr T* row(Index head, Index key_channel) const {
    return data_ + head * head_stride_ + key_channel * row_stride_;
  }
  /// One head's matrix, a row for every key channel.
  constexpr Sequence<T> head(Index h) const { return {row(h, 0), key_dim_, value_dim_, row_stride_}; }
  constexpr Shape shape() const { return {heads_, key_dim_, value_dim_}; }

  /// For expect_disjoint: the memory as a sequence of heads.
  [[gnu::always_inline]] friend internal::Extent extent_of(const MemoryView& memory) {
    return internal::extent_of(HeadSequence<T>(memory.data(), memory.heads(), memory.key_dim(), memory.value_dim(),
                                               memory.head_stride(), memory.row_stride()));
  }

 private:
  T* data_ = nullptr;
  Index heads_ = 0, key_dim_ = 0, value_dim_ = 0, head_stride_ = 0, row_stride_ = 0;
};

}  // namespace seqmix
