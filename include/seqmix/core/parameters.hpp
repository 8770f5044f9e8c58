// Visiting the named tensors of an operator.
//
// Every Weights struct has a member
//     template <class Self, class Visitor> static void visit(Self& self, Visitor&& visitor);
// where Self is the struct, const or not. It calls visitor(name, tensor, presence) for each tensor, where `name` is the
// tensor's name in published checkpoints, `tensor` a Matrix<T>& or Vector<T>&, and `presence` says whether a checkpoint may
// lack it. An absent tensor has size 0. Every State struct has the same for its fields (Tensor<T>&, Buffer<T>&, Index&),
// without presence. Callers write visit_fields(weights, visitor).
//
// Tensors with more or fewer than two dimensions are held like this: a vector read into a matrix becomes one column;
// with three dimensions or more, all but the last are merged into the rows ([5, M, D] is a matrix [5 * M, D]; [C, 1, W] is
// [C, W]). Read into a vector, [1, 1, D] is [D].
#pragma once

#include <seqmix/core/error.hpp>
#include <seqmix/core/view.hpp>
#include <string_view>
#include <type_traits>
#include <utility>

namespace seqmix {

/// Whether a checkpoint must hold a tensor.
enum class Presence { required, optional };

/// Calls `visitor` for every tensor of a Weights struct, or for every field of a State.
template <class Fields, class Visitor>
void visit_fields(Fields& fields, Visitor&& visitor) {
  std::remove_const_t<Fields>::visit(fields, std::forward<Visitor>(visitor));
}

/// Throws std::invalid_argument, naming the tensor, unless its shape is `expected`; an empty one is said to be missing.
template <class Tensor>
void expect_tensor(std::string_view operation, std::string_view name, const Shape& expected, const Tensor& tensor) {
  if (tensor.size() == 0 && !(Shape(tensor) == expected)) {
    internal::throw_invalid(operation, name, "missing; expected shape " + expected.text());
  }
  expect_shape(operation, name, expected, Shape(tensor));
}

/// Number of parameters in all visited tensors of `weights`.
template <class Weights>
Index parameter_count(const Weights& weights) {
  Index total = 0;
  visit_fields(weights, [&](std::string_view, const auto& tensor, Presence) { total += Index(tensor.size()); });
  return total;
}

}  // namespace seqmix
