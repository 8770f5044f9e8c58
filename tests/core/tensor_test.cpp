// Owned arrays with a shape.
#include <seqmix/core/tensor.hpp>

#include <catch2/catch_test_macros.hpp>
#include <cstdint>

namespace seqmix {
namespace {

TEST_CASE("a tensor begins with zeros, aligned, and knows its shape", "[core]") {
  Tensor<float> tensor({2, 3, 5});
  CHECK(tensor.shape() == Shape{2, 3, 5});
  CHECK(tensor.size() == 30);
  CHECK(reinterpret_cast<std::uintptr_t>(tensor.data()) % memory_alignment == 0);
  for (const float number : tensor) CHECK(number == 0);
  CHECK(Tensor<float>().empty());
  CHECK(Tensor<float>().shape() == Shape{0});
}

TEST_CASE("a copied tensor is another one", "[core]") {
  Tensor<double> tensor({4});
  const Tensor<double> copy = tensor;
  CHECK(copy == tensor);
  tensor[2] = 1;
  CHECK(copy[2] == 0);
  CHECK_FALSE(copy == tensor);
  CHECK_FALSE(Tensor<double>({2, 2}) == Tensor<double>({4}));
}

TEST_CASE("what a tensor was moved from is empty, and says so", "[core]") {
  Tensor<float> tensor({2, 3}), other({5});
  const Tensor<float> moved = std::move(tensor);
  CHECK(moved.shape() == Shape{2, 3});
  CHECK(tensor.shape() == Shape{0});  // NOLINT(bugprone-use-after-move)
  CHECK(tensor.empty());
  other = Tensor<float>({4});
  CHECK(other.shape() == Shape{4});
  tensor = std::move(other);
  CHECK(tensor.shape() == Shape{4});
  CHECK(other.shape() == Shape{0});  // NOLINT(bugprone-use-after-move)
}

}  // namespace
}  // namespace seqmix
