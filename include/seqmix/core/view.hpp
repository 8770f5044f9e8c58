// Views: where the numbers of a sequence are, without owning them.
//
//   Sequence      [length, channels]            one row per token, rows `stride` elements apart
//   HeadSequence  [length, heads, head_dim]     the same, with the channels of a token grouped into heads
//   Token         [channels]                    one contiguous row
//
// A view is a pointer and a few integers; copying one never copies numbers. Cutting a view (rows, columns, head, heads) out
// of range throws std::invalid_argument; single rows and elements are asserted only. The Const* names are the read-only views.
// They take no part in template argument deduction, so that f(query, key, value, output) deduces its scalar type from
// the output and converts the inputs.
#pragma once

#include <Eigen/Core>
#include <cassert>
#include <concepts>
#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace seqmix {

/// Signed type of all lengths, counts and strides, in elements.
using Index = std::ptrdiff_t;

/// Row-major matrix of weights, [rows, columns] = [outputs, inputs]. DontAlign makes Eigen allocate with plain malloc
/// whatever the instruction set, so that objects compiled with different -m flags may hand matrices to each other.
template <class T>
using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor | Eigen::DontAlign>;

/// Vector of weights.
template <class T>
using Vector = Eigen::Matrix<T, Eigen::Dynamic, 1, Eigen::ColMajor | Eigen::DontAlign>;

namespace internal {

template <class M>
using Plain = std::remove_cvref_t<M>;

template <class M>
concept EigenDense = std::is_base_of_v<Eigen::DenseBase<Plain<M>>, Plain<M>>;

/// An Eigen object whose elements lie in memory, with those of a row next to each other.
template <class M>
concept EigenRows =
    EigenDense<M> && bool(Eigen::internal::traits<Plain<M>>::Flags & Eigen::DirectAccessBit) &&
    Plain<M>::InnerStrideAtCompileTime == 1 && (bool(Plain<M>::IsRowMajor) || Plain<M>::RowsAtCompileTime == 1);

/// A vector whose elements lie next to each other in memory.
template <class M>
concept EigenVector =
    EigenDense<M> && bool(Plain<M>::IsVectorAtCompileTime) &&
    bool(Eigen::internal::traits<Plain<M>>::Flags & Eigen::DirectAccessBit) && Plain<M>::InnerStrideAtCompileTime == 1;

/// The elements of M may be written through a T*, or read through a const T*.
template <class M, class T>
concept ElementsOf =
    std::same_as<typename Plain<M>::Scalar, std::remove_const_t<T>> && (std::is_const_v<T> || requires(M&& m) {
      { m.data() } -> std::same_as<T*>;
    });

/// Out of line and cold, so that checks of views cost a comparison.
[[noreturn, gnu::cold, gnu::noinline]] inline void throw_view(const char* what, Index begin, Index count, Index size) {
  throw std::invalid_argument("view: " + std::string(what) + " " + std::to_string(begin) + " .. " +
                              std::to_string(begin + count - 1) + " of " + std::to_string(size));
}
[[noreturn, gnu::cold, gnu::noinline]] inline void throw_heads(Index heads, Index channels) {
  throw std::invalid_argument("view: " + std::to_string(heads) + " heads do not divide " + std::to_string(channels) +
                              " channels");
}
[[noreturn, gnu::cold, gnu::noinline]] inline void throw_rows(Index numbers, Index channels) {
  throw std::invalid_argument("view: " + std::to_string(numbers) + " numbers are no whole rows of " +
                              std::to_string(channels) + " channels");
}

/// Throws unless begin .. begin + count - 1 lies in 0 .. size - 1.
constexpr void expect_range(const char* what, Index begin, Index count, Index size) {
  if (begin < 0 || count < 0 || begin > size - count) [[unlikely]]
    throw_view(what, begin, count, size);
}

}  // namespace internal

template <class T>
class HeadSequence;

/// One token: a contiguous row of `channels` numbers. T is const for a read-only view.
template <class T>
class Token {
 public:
  /// No channels.
  constexpr Token() = default;

  /// `channels` numbers from `data` on.
  constexpr Token(T* data, Index channels) : data_(data), channels_(channels) { assert(channels >= 0); }

  /// The elements of a span.
  constexpr Token(std::span<T> values) : Token(values.data(), static_cast<Index>(values.size())) {}

  /// A writable token can be read.
  template <class U>
    requires std::same_as<const U, T>
  constexpr Token(const Token<U>& other) : Token(other.data(), other.channels()) {}

  /// The elements of a contiguous Eigen vector, in place. Expressions and strided vectors do not compile.
  template <class M>
    requires internal::EigenVector<M> && internal::ElementsOf<M, T>
  Token(M&& vector) : Token(vector.data(), vector.size()) {}

  constexpr T* data() const { return data_; }
  constexpr Index channels() const { return channels_; }
  constexpr T& operator[](Index channel) const {
    assert(channel >= 0 && channel < channels_);
    return data_[channel];
  }

 private:
  T* data_ = nullptr;
  Index channels_ = 0;
};

/// A sequence of tokens [length, channels], row t at data() + t * stride(). T is const for a read-only view.
template <class T>
class Sequence {
 public:
  /// Length 0 and no channels.
  constexpr Sequence() = default;

  /// Rows of `channels` numbers, `stride` elements apart: at least `channels` (any where length <= 1 or nothing is
  /// written), negative where the rows are passed from the last to the first.
  constexpr Sequence(T* data, Index length, Index channels, Index stride)
      : data_(data), length_(length), channels_(channels), stride_(stride) {
    assert(length >= 0 && channels >= 0);
  }

  /// Rows of `channels` numbers without gaps.
  constexpr Sequence(T* data, Index length, Index channels) : Sequence(data, length, channels, channels) {}

  /// The rows of a span without gaps. Throws std::invalid_argument unless its size is a multiple of `channels`.
  constexpr Sequence(std::span<T> values, Index channels)
      : Sequence(values.data(), channels > 0 ? static_cast<Index>(values.size()) / channels : 0, channels) {
    if (length_ * channels_ != static_cast<Index>(values.size())) [[unlikely]]
      internal::throw_rows(static_cast<Index>(values.size()), channels);
  }

  /// A sequence of one token.
  constexpr Sequence(const Token<T>& token) : Sequence(token.data(), 1, token.channels()) {}

  /// A writable sequence can be read.
  template <class U>
    requires std::same_as<const U, T>
  constexpr Sequence(const Sequence<U>& other)
      : Sequence(other.data(), other.length(), other.channels(), other.stride()) {}

  /// The rows of a row-major Eigen matrix, block or map, in place. Column-major matrices and expressions that own no
  /// memory do not compile.
  template <class M>
    requires internal::EigenRows<M> && internal::ElementsOf<M, T>
  Sequence(M&& matrix)
      : Sequence(matrix.data(), matrix.rows(), matrix.cols(),
                 matrix.rows() > 1 ? matrix.outerStride() : matrix.cols()) {}

  constexpr T* data() const { return data_; }
  constexpr Index length() const { return length_; }
  constexpr Index channels() const { return channels_; }
  constexpr Index stride() const { return stride_; }

  /// Pointer to the first number of token t. t == length() is allowed, as an end.
  constexpr T* row(Index t) const {
    assert(t >= 0 && t <= length_);
    return data_ + t * stride_;
  }
  constexpr T& operator()(Index t, Index channel) const {
    assert(t < length_ && channel >= 0 && channel < channels_);
    return row(t)[channel];
  }
  constexpr Token<T> token(Index t) const { return {row(t), channels_}; }

  /// Tokens begin .. begin + count - 1.
  constexpr Sequence rows(Index begin, Index count) const {
    internal::expect_range("rows", begin, count, length_);
    return {data_ + begin * stride_, count, channels_, stride_};
  }
  /// Channels begin .. begin + count - 1 of every token.
  constexpr Sequence columns(Index begin, Index count) const {
    internal::expect_range("columns", begin, count, channels_);
    return {data_ + begin, length_, count, stride_};
  }
  /// The channels of every token cut into `heads` heads of equal size. `heads` must divide channels().
  constexpr HeadSequence<T> heads(Index heads) const {
    if (heads <= 0 || channels_ % heads != 0) [[unlikely]]
      internal::throw_heads(heads, channels_);
    return {data_, length_, heads, channels_ / heads, stride_, channels_ / heads};
  }

 private:
  T* data_ = nullptr;
  Index length_ = 0;
  Index channels_ = 0;
  Index stride_ = 0;
};

/// A sequence of tokens with heads [length, heads, head_dim]; element (t, h, d) at
/// data()[t * row_stride() + h * head_stride() + d]. T is const for a read-only view.
template <class T>
class HeadSequence {
 public:
  /// Length 0 and no heads.
  constexpr HeadSequence() = default;

  /// Any two strides, in elements.
  constexpr HeadSequence(T* data, Index length, Index heads, Index head_dim, Index row_stride, Index head_stride)
      : data_(data),
        length_(length),
        heads_(heads),
        head_dim_(head_dim),
        row_stride_(row_stride),
        head_stride_(head_stride) {
    assert(length >= 0 && heads >= 0 && head_dim >= 0);
  }

  /// Heads and tokens without gaps, tokens outermost.
  constexpr HeadSequence(T* data, Index length, Index heads, Index head_dim)
      : HeadSequence(data, length, heads, head_dim, heads * head_dim, head_dim) {}

  /// A writable view can be read.
  template <class U>
    requires std::same_as<const U, T>
  constexpr HeadSequence(const HeadSequence<U>& other)
      : HeadSequence(other.data(), other.length(), other.heads(), other.head_dim(), other.row_stride(),
                     other.head_stride()) {}

  constexpr T* data() const { return data_; }
  constexpr Index length() const { return length_; }
  constexpr Index heads() const { return heads_; }
  constexpr Index head_dim() const { return head_dim_; }
  constexpr Index row_stride() const { return row_stride_; }
  constexpr Index head_stride() const { return head_stride_; }

  /// Pointer to the head_dim() numbers of head h of token t.
  constexpr T* row(Index t, Index h) const {
    assert(t >= 0 && t <= length_ && h >= 0 && h < heads_);
    return data_ + t * row_stride_ + h * head_stride_;
  }
  constexpr T& operator()(Index t, Index h, Index d) const { return row(t, h)[d]; }

  /// One head as a sequence [length, head_dim].
  constexpr Sequence<T> head(Index h) const {
    internal::expect_range("head", h, 1, heads_);
    return {data_ + h * head_stride_, length_, head_dim_, row_stride_};
  }
  /// Tokens begin .. begin + count - 1.
  constexpr HeadSequence rows(Index begin, Index count) const {
    internal::expect_range("rows", begin, count, length_);
    return {data_ + begin * row_stride_, count, heads_, head_dim_, row_stride_, head_stride_};
  }
  /// Channels begin .. begin + count - 1 of every head.
  constexpr HeadSequence columns(Index begin, Index count) const {
    internal::expect_range("columns", begin, count, head_dim_);
    return {data_ + begin, length_, heads_, count, row_stride_, head_stride_};
  }
  /// The heads of every token side by side, [length, heads * head_dim]. Needs head_stride() == head_dim().
  constexpr Sequence<T> flat() const {
    assert(heads_ <= 1 || head_stride_ == head_dim_);
    return {data_, length_, heads_ * head_dim_, row_stride_};
  }

 private:
  T* data_ = nullptr;
  Index length_ = 0;
  Index heads_ = 0;
  Index head_dim_ = 0;
  Index row_stride_ = 0;
  Index head_stride_ = 0;
};

/// Read-only views. Being non-deduced, they accept whatever converts to them.
template <class T>
using ConstToken = Token<const std::type_identity_t<T>>;
template <class T>
using ConstSequence = Sequence<const std::type_identity_t<T>>;
template <class T>
using ConstHeadSequence = HeadSequence<const std::type_identity_t<T>>;

}  // namespace seqmix
