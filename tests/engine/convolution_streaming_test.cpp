// Convolution one token at a time against its definition.
//
// Bounds: an output is the sum of the pairs within a block, at most 32 products, and of one tile of each size, with the
// error of a transform: 4 eps log2(N) of the root mean square in all.
#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/convolution_streaming.hpp>
#include <stdexcept>
#include <type_traits>

#include "support/allocations.hpp"
#include "support/executors.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

template <class T>
using Wide = std::conditional_t<std::is_same_v<T, float>, double, long double>;

template <class T>
Matrix<T> random_matrix(Index rows, Index columns, Rng& rng) {
  return Matrix<T>::NullaryExpr(rows, columns, [&] { return T(rng.normal()); });
}

template <class T>
double error_of(const Matrix<T>& filter, const Matrix<T>& x, const Matrix<T>& y) {
  double differences = 0, squares = 0;
  for (Index t = 0; t<x.rows(); t += x.rows()> 5000 && t + 100 < x.rows() ? 97 : 1) {
    for (Index h = 0; h < filter.rows(); ++h) {
      Wide<T> sum = 0;
      for (Index l = 0; l < std::min(filter.cols(), t + 1); ++l) sum += Wide<T>(filter(h, l)) * Wide<T>(x(t - l, h));
      differences += std::pow(double(Wide<T>(y(t, h)) - sum), 2);
      squares += std::pow(double(sum), 2);
    }
  }
  const double transform = std::log2(double(std::max<Index>(filter.cols(), 32)));
  return std::sqrt(differences / squares) / (4 * double(std::numeric_limits<T>::epsilon()) * transform);
}

TEMPLATE_TEST_CASE("streaming convolutions of any length, in pieces", "[convolution]", float, double) {
  using T = TestType;
  Rng rng(test_seed);
  Workspace workspace;
  struct {
    Index length, channels, taps;
  } const all[] = {{1, 1, 1},      {40, 3, 1},      {31, 8, 31},     {32, 17, 2},     {33, 64, 33},
                   {100, 3, 500},  {300, 5, 32},    {300, 5, 33},    {300, 5, 34},    {700, 17, 129},
                   {1025, 1, 700}, {2100, 3, 2048}, {4097, 2, 4097}, {20000, 1, 9000}};
  for (const auto& [length, channels, taps] : all) {
    INFO(length << " tokens, " << channels << " channels, " << taps << " taps");
    const Matrix<T> filter = random_matrix<T>(channels, taps, rng), x = random_matrix<T>(length, channels + 1, rng);
    const StreamingConvolution<T> convolution("test", filter);
    Matrix<T> y = Matrix<T>::Constant(length, channels, std::numeric_limits<T>::quiet_NaN()), z = y;
    const auto inputs = ConstSequence<T>(x).columns(0, channels);
    auto state = convolution.initial_state();
    for (Index t = 0; t < length; ++t) {
      if (t % 50 == 0) workspace.poison();
      convolution.run(state, inputs.rows(t, 1), Sequence<T>(y).rows(t, 1), workspace);
    }
    CHECK(state.position == length);
    CHECK(error_of<T>(filter, x, y) <= 1);
    // In pieces, and from a copy of the state: the same bits.
    auto first = convolution.initial_state();
    const Index cut = length / 3;
    convolution.run(first, inputs.rows(0, cut), Sequence<T>(z).rows(0, cut), workspace);
    auto copy = first;
    convolution.run(first, inputs.rows(cut, length - cut), Sequence<T>(z).rows(cut, length - cut), workspace);
    CHECK(z == y);
    convolution.run(copy, inputs.rows(cut, length - cut), Sequence<T>(z).rows(cut, length - cut), workspace);
    CHECK(z == y);
  }
}

TEST_CASE("streaming convolutions never change what was put out", "[convolution]") {
  Rng rng(test_seed);
  Workspace workspace;
  const Matrix<float> filter = random_matrix<float>(5, 200, rng);
  const StreamingConvolution<float> convolution("test", filter);
  Matrix<float> x = random_matrix<float>(500, 5, rng), y(500, 5), z(500, 5);
  auto state = convolution.initial_state(), other = state;
  convolution.run(state, x, y, workspace);
  x.bottomRows(177).setRandom();
  convolution.run(other, x, z, workspace);
  CHECK(z.topRows(323) == y.topRows(323));
  CHECK(z.row(323) != y.row(323));
}

TEST_CASE("streaming convolutions give the same bits on any executor", "[convolution]") {
  Rng rng(test_seed);
  const Matrix<float> filter = random_matrix<float>(37, 150, rng), x = random_matrix<float>(300, 37, rng);
  const StreamingConvolution<float> convolution("test", filter);
  Matrix<float> expected;
  for (const auto& [name, executor] : all_executors()) {
    INFO(name);
    Workspace workspace(*executor);
    auto state = convolution.initial_state();
    Matrix<float> y(300, 37);
    convolution.run(state, x, y, workspace);
    if (expected.size() == 0) expected = y;
    CHECK(y == expected);
  }
}

TEST_CASE("streaming convolutions allocate nothing after one step", "[convolution]") {
  Rng rng(test_seed);
  Workspace workspace;
  const Matrix<float> filter = random_matrix<float>(19, 300, rng), x = random_matrix<float>(1100, 19, rng);
  const StreamingConvolution<float> convolution("test", filter);
  Matrix<float> y(1100, 19);
  auto state = convolution.initial_state(), copy = state;
  convolution.run(copy, ConstSequence<float>(x).rows(0, 1), Sequence<float>(y).rows(0, 1), workspace);
  const std::size_t before = allocation_count();
  for (Index t = 0; t < 1100; ++t) {
    convolution.run(state, ConstSequence<float>(x).rows(t, 1), Sequence<float>(y).rows(t, 1), workspace);
  }
  CHECK(allocation_count() == before);
}

TEST_CASE("streaming convolutions refuse filters without taps", "[convolution]") {
  CHECK_THROWS_AS(StreamingConvolution<float>("test", Matrix<float>(3, 0)), std::invalid_argument);
  CHECK_THROWS_AS(StreamingConvolution<float>("test", Matrix<float>(0, 3)), std::invalid_argument);
}

}  // namespace
}  // namespace seqmix::test
