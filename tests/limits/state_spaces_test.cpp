// What state spaces become at the ends of their parameters' ranges.
#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <seqmix/core/tensor.hpp>
#include <seqmix/linear/simple_gated_linear_attention.hpp>
#include <seqmix/ssm/mamba2.hpp>
#include <seqmix/ssm/s4.hpp>
#include <seqmix/ssm/s4d.hpp>
#include <type_traits>

#include "limits/limits.hpp"

namespace seqmix::test::limits {
namespace {

TEMPLATE_TEST_CASE("Mamba-2 is simple gated linear attention to values times dt", "", float, double) {
  using T = TestType;
  for (const Index length : {1, 7, 64, 131, 1100}) {
    Rng rng(4);
    Stream<T> c(length, 1, key_dim, rng), b(length, 1, key_dim, rng), x(length, heads, value_dim, rng);
    Stream<T> ssd(length, heads, value_dim, rng), attention(length, heads, value_dim, rng);
    const Matrix<T> dt = normal_matrix<T>(length, heads, 1.0, rng);
    const Vector<T> a = uniform_vector<T>(heads, -2, 0, rng), d = uniform_vector<T>(heads, -1, 1, rng);
    const Vector<T> bias = uniform_vector<T>(heads, -1, 1, rng);
    Tensor<T> memory({heads, key_dim, value_dim}), same = memory;
    Workspace workspace;
    mamba2<T>(x.view, dt, b.view, c.view, {}, {.a = a, .d = d, .dt_bias = bias}, memory, ssd.view, workspace);

    Matrix<T> log_decay(length, heads), values = x.numbers;
    for (Index t = 0; t < length; ++t) {
      for (Index h = 0; h < heads; ++h) {
        const double step = std::log1p(std::exp(double(dt(t, h)) + double(bias[h])));
        log_decay(t, h) = T(step * double(a[h]));
        values.row(t).segment(h * value_dim, value_dim) *= T(step);
      }
    }
    simple_gated_linear_attention<T>(c.view, b.view, Sequence<const T>(values).heads(heads), log_decay, T(1), same,
                                     attention.view, workspace);
    for (Index t = 0; t < length; ++t) {
      for (Index i = 0; i < heads * value_dim; ++i) attention.numbers(t, i) += d[i / value_dim] * x.numbers(t, i);
    }
    CHECK(difference(ssd.numbers, attention.numbers) <= tolerance<T>(length));
  }
}

/// Rows of the scan of a whole sequence, in pieces, against the convolution with the kernel in double.
template <class Core>
void check_kernel(Index length, Index rank = 1) {
  using T = typename Core::Scalar;
  Rng rng(5);
  const StateSpaceConfig config{.channels = 3, .modes = 4, .outputs = 2, .rank = rank};
  auto weights = random_state_space<T>(config, rng, Direction::causal);
  if (rank > 1) weights.p = normal_matrix<T>(weights.p.rows(), weights.p.cols(), 0.3, rng);
  const Core core(config, weights, Direction::causal);
  const Matrix<T> x = normal_matrix<T>(length, 3, 1.0, rng);
  Matrix<T> y(length, 6);
  Tensor<T> state(core.state_shape());
  Workspace workspace;
  for (Index begin = 0; begin < length; begin += 30000) {
    const Index count = std::min(length - begin, Index(30000));
    core.run(Sequence<const T>(x).rows(begin, count), {state.data(), 2, 3, 4, 12, 4}, Sequence<T>(y).rows(begin, count),
             workspace);
  }
  const Matrix<double> kernel = core.kernel(length);
  double largest = 0, difference = 0;
  for (const Index t :
       {Index(0), std::min(Index(1), length - 1), length / 3, std::max(length - 2, Index(0)), length - 1}) {
    for (Index row = 0; row < 6; ++row) {
      double expected = double(weights.d.data()[row]) * double(x(t, row % 3));
      for (Index s = 0; s <= t; ++s) expected += kernel(row, t - s) * double(x(s, row % 3));
      largest = std::max(largest, std::abs(expected));
      difference = std::max(difference, std::abs(double(y(t, row)) - expected));
    }
  }
  CHECK(difference <= (std::is_same_v<T, float> ? 1e-4 : 1e-9) * largest);
}

TEMPLATE_TEST_CASE("the scan of a structured state space is the convolution with its kernel", "", float, double) {
  for (const Index length : {1, 2, 37, 64, 1001, 100000}) {
    CAPTURE(length);
    check_kernel<S4dCore<TestType>>(length);
    for (const Index rank : {1, 2, 3}) check_kernel<S4Core<TestType>>(length, rank);
  }
}

}  // namespace
}  // namespace seqmix::test::limits
