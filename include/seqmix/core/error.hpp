// Errors of the public interface: what was wrong with which tensor of which operator.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <seqmix/core/view.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

namespace seqmix {

/// The sizes of a tensor, for messages and comparisons. At most 4 dimensions.
class Shape {
 public:
  static constexpr std::size_t max_rank = 4;

  constexpr Shape() = default;
  constexpr Shape(std::initializer_list<Index> sizes) {
    assert(sizes.size() <= max_rank);
    for (const Index size : sizes) sizes_[rank_++] = size;
  }
  constexpr explicit Shape(std::span<const Index> sizes) {
    assert(sizes.size() <= max_rank);
    for (const Index size : sizes) sizes_[rank_++] = size;
  }
  template <class T>
  constexpr Shape(const Token<T>& view) : Shape{view.channels()} {}
  template <class T>
  constexpr Shape(const Sequence<T>& view) : Shape{view.length(), view.channels()} {}
  template <class T>
  constexpr Shape(const HeadSequence<T>& view) : Shape{view.length(), view.heads(), view.head_dim()} {}
  template <class T>
  Shape(const Matrix<T>& matrix) : Shape{matrix.rows(), matrix.cols()} {}
  template <class T>
  Shape(const Vector<T>& vector) : Shape{vector.size()} {}

  constexpr Index rank() const { return rank_; }
  constexpr Index operator[](Index axis) const { return sizes_[axis]; }
  /// Number of elements.
  constexpr Index size() const {
    Index product = 1;
    for (Index axis = 0; axis < rank_; ++axis) product *= sizes_[axis];
    return product;
  }
  constexpr bool operator==(const Shape&) const = default;

  /// "[3, 64]".
  std::string text() const {
    std::string result = "[";
    for (Index axis = 0; axis < rank_; ++axis) {
      if (axis > 0) result += ", ";
      result += std::to_string(sizes_[axis]);
    }
    return result + "]";
  }

 private:
  Index sizes_[max_rank] = {};
  Index rank_ = 0;
};

namespace internal {

[[noreturn]] inline void throw_invalid(std::string_view operation, std::string_view subject, std::string_view problem) {
  std::string message;
  message.append(operation).append(": ").append(subject).append(": ").append(problem);
  throw std::invalid_argument(message);
}

/// First and one-past-last address that a view with these extents can touch, and the period of its rows.
struct Extent {
  std::uintptr_t begin = 0, end = 0;
  Index period = 0;  // bytes from row to row
  Index width = 0;   // bytes of one row

  /// Whether all of this lies before or behind all of the other.
  [[gnu::always_inline]] bool apart(const Extent& other) const {
    return begin == end || other.begin == other.end || end <= other.begin || other.end <= begin;
  }
};

// In line: steps wait for the checks of their many streams, and most often need no more of them than `apart`.
template <class T>
[[gnu::always_inline]] inline Extent extent_of(const HeadSequence<T>& view) {
  if (view.length() == 0 || view.heads() == 0 || view.head_dim() == 0) return {};
  // Strides may be negative: the lowest element is then not the first.
  const auto size = Index(sizeof(T));
  const Index rows = (view.length() - 1) * view.row_stride(), heads = (view.heads() - 1) * view.head_stride();
  const Index lowest = std::min(rows, Index(0)) + std::min(heads, Index(0)), width = std::abs(heads) + view.head_dim();
  const auto begin = reinterpret_cast<std::uintptr_t>(view.data()) + std::uintptr_t(lowest * size);
  return {begin, begin + std::uintptr_t((std::abs(rows) + width) * size), std::abs(view.row_stride()) * size,
          width * size};
}

template <class T>
Extent extent_of(const Sequence<T>& view) {
  return extent_of(HeadSequence<T>(view.data(), view.length(), 1, view.channels(), view.stride(), view.channels()));
}

template <class T>
Extent extent_of(const Token<T>& view) {
  return extent_of(Sequence<T>(view));
}

/// Whether two views may share an element. Rows with the same period are compared exactly, so column blocks of one
/// matrix are disjoint; others count as overlapping as soon as their address ranges do.
inline bool may_overlap(const Extent& a, const Extent& b) {
  if (a.apart(b)) return false;
  if (a.period != b.period || a.period <= 0 || a.width > a.period || b.width > b.period) return true;
  const Index offset = Index((b.begin - a.begin) % std::uintptr_t(a.period));
  const Index shift =
      b.begin >= a.begin ? offset : (a.period - Index((a.begin - b.begin) % std::uintptr_t(a.period))) % a.period;
  return shift < a.width || shift + b.width > a.period;
}

}  // namespace internal

/// Throws std::invalid_argument, "operation: subject: problem", unless `condition` holds.
inline void expect(bool condition, std::string_view operation, std::string_view subject, std::string_view problem) {
  if (!condition) [[unlikely]] {
    internal::throw_invalid(operation, subject, problem);
  }
}

/// Throws std::invalid_argument, naming both numbers, unless `divisor` is positive and divides `number` > 0.
inline void expect_divides(std::string_view operation, std::string_view divisor_name, Index divisor,
                           std::string_view number_name, Index number) {
  if (divisor <= 0 || number <= 0 || number % divisor != 0) [[unlikely]] {
    internal::throw_invalid(operation, divisor_name,
                            "must be positive and divide " + std::string(number_name) + ": given " +
                                std::to_string(divisor) + " and " + std::to_string(number));
  }
}

/// Throws std::invalid_argument, "operation: tensor: expected shape [..], given [..]", unless the shapes are equal.
inline void expect_shape(std::string_view operation, std::string_view tensor, const Shape& expected,
                         const Shape& given) {
  if (!(expected == given)) [[unlikely]] {
    internal::throw_invalid(operation, tensor, "expected shape " + expected.text() + ", given " + given.text());
  }
}

/// Throws std::invalid_argument unless `output` shares no element with `input`. Views with the same row stride are
/// compared exactly (column blocks of one matrix are disjoint); with different strides, interleaved views whose address
/// ranges overlap are refused even where no element is shared.
template <class Output, class Input>
void expect_disjoint(std::string_view operation, std::string_view output_name, const Output& output,
                     std::string_view input_name, const Input& input) {
  using internal::extent_of;  // other views bring their own
  if (internal::may_overlap(extent_of(output), extent_of(input))) [[unlikely]] {
    internal::throw_invalid(operation, output_name, "overlaps " + std::string(input_name) + " in memory");
  }
}

}  // namespace seqmix
