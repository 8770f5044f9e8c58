// Owned arrays with a shape: what the states of mixers are made of.
#pragma once

#include <seqmix/core/buffer.hpp>
#include <seqmix/core/error.hpp>
#include <utility>

namespace seqmix {

/// A copyable row-major array of numbers that knows its shape, aligned to a cache line. It begins with zeros. What another
/// was moved from has shape [0], so that checks of shapes see it.
template <class T>
class Tensor {
 public:
  using value_type = T;

  /// Shape [0].
  Tensor() = default;

  /// Zeros. O(size), allocates.
  explicit Tensor(const Shape& shape) : shape_(shape), values_(std::size_t(shape.size())) {}

  Tensor(const Tensor&) = default;
  Tensor(Tensor&& other) noexcept : shape_(std::exchange(other.shape_, Shape{0})), values_(std::move(other.values_)) {
    other.values_.clear();
  }
  Tensor& operator=(const Tensor&) = default;
  Tensor& operator=(Tensor&& other) noexcept {
    Tensor moved(std::move(other));
    std::swap(shape_, moved.shape_);
    values_.swap(moved.values_);
    return *this;
  }
  ~Tensor() = default;

  const Shape& shape() const { return shape_; }
  std::size_t size() const { return values_.size(); }
  bool empty() const { return values_.empty(); }
  T* data() { return values_.data(); }
  const T* data() const { return values_.data(); }
  T& operator[](std::size_t i) { return values_[i]; }
  const T& operator[](std::size_t i) const { return values_[i]; }
  T* begin() { return data(); }
  T* end() { return data() + size(); }
  const T* begin() const { return data(); }
  const T* end() const { return data() + size(); }

  bool operator==(const Tensor&) const = default;

 private:
  Shape shape_{0};
  Buffer<T> values_;
};

}  // namespace seqmix
