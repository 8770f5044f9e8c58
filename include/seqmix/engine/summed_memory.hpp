// Memories that never fade, and their sums of keys, with digits enough for sequences of any length.
//
// A sum over many tokens outgrows what each of them adds, and its numbers become too short for that: after a million equal
// keys in float, 1% is missing. So such sums are kept in two parts, S_t = memory + compensation: tokens are added to the
// compensation, and what of it is large enough is moved into the memory from time to time. See decay::None, which does it.
#pragma once

#include <seqmix/core/tensor.hpp>
#include <seqmix/engine/decay.hpp>
#include <seqmix/engine/memory.hpp>
#include <string_view>

namespace seqmix {

/// The second part of an undecayed memory and of its sum of keys, between the pieces of a sequence. Empty views stand for
/// none.
template <class T>
struct SumCompensation {
  MemoryView<T> memory = {};  ///< [H, K, V]
  Sequence<T> key_sum = {};   ///< [H, K]
  Index position = 0;         ///< tokens before this piece
};

/// An undecayed memory and its sum of keys as the state of a mixer.
template <class T>
struct SummedMemory {
  Tensor<T> memory, compensation;           // [H, K, V], S_t = memory + compensation
  Tensor<T> key_sum, key_sum_compensation;  // [H, K], z_t = key_sum + key_sum_compensation
  Index position = 0;                       // tokens seen

  SummedMemory() = default;

  /// Zeros.
  explicit SummedMemory(const Shape& shape)
      : memory(shape), compensation(shape), key_sum({shape[0], shape[1]}), key_sum_compensation(key_sum.shape()) {}

  template <class Self, class Visitor>
  static void visit(Self& self, Visitor&& visitor) {
    visitor("memory", self.memory), visitor("compensation", self.compensation);
    visitor("key_sum", self.key_sum), visitor("key_sum_compensation", self.key_sum_compensation);
    visitor("position", self.position);
  }

  /// Throws std::invalid_argument unless the memory is `shape` [H, K, V] and all else follows.
  void check(std::string_view operation, const Shape& shape) const {
    const Shape sums{shape[0], shape[1]};
    expect_shape(operation, "state.memory", shape, memory.shape());
    expect_shape(operation, "state.compensation", shape, compensation.shape());
    expect_shape(operation, "state.key_sum", sums, key_sum.shape());
    expect_shape(operation, "state.key_sum_compensation", sums, key_sum_compensation.shape());
    expect(position >= 0, operation, "state.position", "is negative");
  }

  Sequence<T> key_sum_view() { return {key_sum.data(), key_sum.shape()[0], key_sum.shape()[1]}; }
  SumCompensation<T> compensation_view() {
    return {compensation, {key_sum_compensation.data(), key_sum.shape()[0], key_sum.shape()[1]}, position};
  }
};

}  // namespace seqmix
