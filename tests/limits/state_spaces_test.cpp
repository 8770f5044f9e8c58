// What state spaces become at the ends of their parameters' ranges.
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <seqmix/core/tensor.hpp>
#include <seqmix/linear/simple_gated_linear_attention.hpp>
#include <seqmix/ssm/mamba2.hpp>

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

}  // namespace
}  // namespace seqmix::test::limits
