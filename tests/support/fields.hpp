// The tensors of a Weights struct and the fields of a State as lists. Each struct is visited in one way only, to make its
// list; what the tests do with weights and states works on lists, and so is compiled once and not once per mixer.
#pragma once

#include <cstddef>
#include <seqmix/core/parameters.hpp>
#include <seqmix/core/random.hpp>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>
#include <vector>

namespace seqmix::test {

/// A tensor of some Weights struct, whose member it refers to.
class AnyTensor {
 public:
  AnyTensor(Matrix<float>& matrix) : array_(&matrix) {}
  AnyTensor(Matrix<double>& matrix) : array_(&matrix) {}
  AnyTensor(Vector<float>& vector) : array_(&vector) {}
  AnyTensor(Vector<double>& vector) : array_(&vector) {}

  bool is_vector() const;
  Matrix<double> values() const;
  void assign(const Matrix<double>& values) const;  ///< the sizes too; the numbers are rounded

  void clear() const;  ///< to size 0, as an absent tensor is

 private:
  std::variant<Matrix<float>*, Matrix<double>*, Vector<float>*, Vector<double>*> array_;
};

/// What visit says of a tensor.
struct NamedTensor {
  std::string name;
  AnyTensor tensor;
  Presence presence;
};

/// All tensors of a Weights struct, in the order of its visit.
class TensorList : public std::vector<NamedTensor> {
 public:
  /// The visitor.
  void operator()(std::string_view name, AnyTensor tensor, Presence presence);
};

/// The list refers to `weights`.
template <class Weights>
TensorList tensors_of(Weights& weights) {
  TensorList list;
  visit_fields(weights, list);
  return list;
}

/// Adds noise to every tensor of initial weights: matrices [m, n] of deviation 0.5 / sqrt(n), vectors of 0.25.
void stir(const TensorList& weights, Rng& rng);
template <class Weights>
void stir(Weights& weights, Rng& rng) {
  stir(tensors_of(weights), rng);
}

/// Gives `to` the numbers of `from`, the tensors of a Weights struct of the same kind for another scalar, rounded. `to`
/// needs no particular content.
void convert_weights(const TensorList& from, const TensorList& to);
template <class From, class To>
void convert_weights(From& from, To& to) {
  convert_weights(tensors_of(from), tensors_of(to));
}

/// A field of some State: a number, or an array of numbers.
struct NamedField {
  std::string name;
  bool is_array;
  const void* data;
  std::size_t count, bytes_each;
};

/// All fields of a State, in the order of its visit.
class FieldList : public std::vector<NamedField> {
 public:
  /// The visitor.
  template <class Field>
  void operator()(std::string_view name, const Field& field) {
    if constexpr (std::is_arithmetic_v<Field>) {
      add(name, false, &field, 1, sizeof(field));
    } else {
      add(name, true, field.data(), field.size(), sizeof(*field.data()));
    }
  }

  /// Everything that the list refers to, to the bit.
  std::vector<std::byte> bytes() const;

  /// Number of arrays among the fields.
  Index arrays() const;

 private:
  void add(std::string_view name, bool is_array, const void* data, std::size_t count, std::size_t bytes_each);
};

/// The list refers to `state`.
template <class State>
FieldList fields_of(const State& state) {
  FieldList list;
  visit_fields(state, list);
  return list;
}

}  // namespace seqmix::test
