#include "fields.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace seqmix::test {

bool AnyTensor::is_vector() const {
  return std::visit(
      [](const auto* array) { return bool(std::remove_cvref_t<decltype(*array)>::IsVectorAtCompileTime); }, array_);
}
Matrix<double> AnyTensor::values() const {
  return std::visit([](const auto* array) { return Matrix<double>(array->template cast<double>()); }, array_);
}
void AnyTensor::assign(const Matrix<double>& values) const {
  std::visit(
      [&](auto* array) {
        using T = std::remove_cvref_t<decltype(*array->data())>;
        *array = values.template cast<T>();
      },
      array_);
}

void AnyTensor::clear() const {
  std::visit([](auto* array) { *array = std::remove_cvref_t<decltype(*array)>(); }, array_);
}

void TensorList::operator()(std::string_view name, AnyTensor tensor, Presence presence) {
  push_back({std::string(name), tensor, presence});
}

void stir(const TensorList& weights, Rng& rng) {
  for (const auto& [name, tensor, presence] : weights) {
    Matrix<double> values = tensor.values();
    const double deviation = values.cols() > 1 ? 0.5 / std::sqrt(double(values.cols())) : 0.25;
    for (Index i = 0; i < values.size(); ++i) values.data()[i] += deviation * rng.normal();
    tensor.assign(values);
  }
}

void convert_weights(const TensorList& from, const TensorList& to) {
  if (from.size() != to.size()) throw std::logic_error("convert_weights: not the same tensors");
  for (std::size_t i = 0; i < from.size(); ++i) to[i].tensor.assign(from[i].tensor.values());
}

void FieldList::add(std::string_view name, bool is_array, const void* data, std::size_t count, std::size_t bytes_each) {
  push_back({std::string(name), is_array, data, count, bytes_each});
}

Index FieldList::arrays() const {
  return Index(std::count_if(begin(), end(), [](const NamedField& field) { return field.is_array; }));
}

std::vector<std::byte> FieldList::bytes() const {
  std::vector<std::byte> result;
  const auto append = [&](const void* data, std::size_t size) {
    const auto* const first = static_cast<const std::byte*>(data);
    if (size > 0) result.insert(result.end(), first, first + size);
  };
  for (const auto& field : *this) {
    append(field.name.data(), field.name.size());
    if (field.is_array) append(&field.count, sizeof(field.count));
    append(field.data, field.count * field.bytes_each);
  }
  return result;
}

}  // namespace seqmix::test
