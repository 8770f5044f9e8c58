// Causal depthwise convolutions against their sums in double.
//
// With u half the machine epsilon: a sum of W products, in any order, is off by at most (W + 1) u times the sum of their sizes,
// and a tap that was rounded by u more.
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/convolution.hpp>

#include "support/executors.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

struct Sizes {
  Index length, history, channels, outputs, taps;
};

template <class T>
struct Convolved {
  Convolved(const Sizes& of, Rng& rng)
      : sizes(of),
        filter(normal_matrix<double>(of.outputs * of.channels, of.taps, 1, rng)),
        rows(normal_matrix<T>(of.history + of.length, of.channels + 3, 1, rng)),
        y(Matrix<T>::Constant(of.length, of.outputs * of.channels + 1, std::numeric_limits<T>::quiet_NaN())),
        convolution("test", of.channels, filter) {}

  Sequence<const T> input(Index begin, Index count) const {
    return ConstSequence<T>(rows).columns(1, sizes.channels).rows(begin, count);
  }
  void run(Workspace& workspace, Index begin, Index count) {
    workspace.poison();
    convolution.run(input(0, sizes.history + begin), input(sizes.history + begin, count),
                    Sequence<T>(y).columns(0, sizes.outputs * sizes.channels).rows(begin, count), workspace);
  }
  /// The largest difference, relative to what is allowed.
  double worst() const {
    const double u = double(std::numeric_limits<T>::epsilon()) / 2;
    double result = 0;
    for (Index t = 0; t < sizes.length; ++t) {
      for (Index o = 0; o < sizes.outputs * sizes.channels; ++o) {
        double sum = 0, size = 0;
        const Index now = sizes.history + t;
        for (Index l = 0; l < sizes.taps && l <= now; ++l) {
          const double product = filter(o, l) * double(rows(now - l, 1 + o % sizes.channels));
          sum += product, size += std::abs(product);
        }
        const double difference = std::abs(double(y(t, o)) - sum);
        const double ratio = difference / ((double(sizes.taps) + 2) * u * size);
        result = ratio <= result ? result : std::isnan(ratio) && difference == 0 ? result : ratio;
        if (std::isnan(difference)) return difference;
      }
    }
    return result;
  }

  Sizes sizes;
  Matrix<double> filter;
  Matrix<T> rows, y;
  CausalConvolution<T> convolution;
};

TEMPLATE_TEST_CASE("causal convolutions, any length, in pieces", "[convolution]", float, double) {
  Rng rng(test_seed);
  Workspace workspace;
  const Sizes all[] = {{0, 0, 3, 1, 5},      {1, 0, 1, 1, 1},       {1, 5, 20, 1, 4},
                       {7, 2, 9, 2, 9},      {8, 0, 33, 1, 3},      {9, 40, 5, 3, 17},
                       {130, 0, 17, 1, 131}, {300, 200, 4, 1, 150}, {1040, 3, 8, 2, 1100}};
  for (const Sizes& sizes : all) {
    INFO(sizes.length << " tokens after " << sizes.history << ", " << sizes.channels << " channels, " << sizes.outputs
                      << " outputs, " << sizes.taps << " taps");
    Convolved<TestType> inputs(sizes, rng);
    inputs.run(workspace, 0, sizes.length);
    CHECK(inputs.worst() <= 1);
    inputs.y.setConstant(std::numeric_limits<TestType>::quiet_NaN());
    const Index cut = sizes.length / 3;
    inputs.run(workspace, 0, cut), inputs.run(workspace, cut, sizes.length - cut);
    CHECK(inputs.worst() <= 1);
  }
}

TEST_CASE("a convolution looks at nothing but its taps", "[convolution]") {
  Rng rng(test_seed);
  Workspace workspace;
  constexpr Index length = 40, taps = 6, bad = 11;
  Convolved<float> inputs({length, 0, 3, 1, taps}, rng);
  inputs.rows.row(bad).setConstant(std::numeric_limits<float>::quiet_NaN());
  inputs.run(workspace, 0, length);
  for (Index t = 0; t < length; ++t) CHECK(std::isnan(inputs.y(t, 1)) == (t >= bad && t < bad + taps));
}

TEST_CASE("convolutions give the same bits on any executor", "[convolution]") {
  for (const Index channels : {3, 200}) {
    Matrix<float> expected;
    for (const auto& [name, executor] : all_executors()) {
      INFO(name << ", " << channels << " channels");
      Rng rng(test_seed);
      Workspace workspace(*executor);
      Convolved<float> inputs({2100, 10, channels, 1, 90}, rng);
      inputs.run(workspace, 0, 2100);
      const Matrix<float> y = inputs.y.leftCols(channels);
      if (expected.size() == 0) expected = y;
      CHECK(y == expected);
    }
  }
}

}  // namespace
}  // namespace seqmix::test
