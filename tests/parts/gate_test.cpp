// Gates and feature maps: each row function against its equation in double, every tail, in place and with strides.
#include <seqmix/parts/gate.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <numbers>
#include <seqmix/core/random.hpp>
#include <seqmix/parts/feature_map.hpp>

namespace {

using seqmix::ConstSequence;
using seqmix::HeadSequence;
using seqmix::Index;
using seqmix::Matrix;
using seqmix::Rng;
using seqmix::Sequence;

// In long double: in double the rounding of the argument of erfc alone would cost many ulp.
double silu(long double x) { return double(x / (1 + std::exp(-x))); }
double gelu(long double x) { return double(x / 2 * std::erfc(-x / std::numbers::sqrt2_v<long double>)); }
double sigmoid(long double x) { return double(1 / (1 + std::exp(-x))); }

// 4 ulp for the worst activation, 1 for the product, 1 ulp of slack for the reference in double.
template <class T>
bool close(T given, double expected) {
  return std::abs(double(given) - expected) <= 6 * double(std::numeric_limits<T>::epsilon()) * std::abs(expected);
}

// `f(y, gate)` on rows inside wider matrices; `expected(y, gate)` is its equation.
template <class T, class F, class Expected>
void check(F&& f, Expected&& expected) {
  Rng rng(1);
  for (Index channels = 0; channels <= 4 * seqmix::lanes<T> + 1; ++channels) {
    const Index length = 3;
    Matrix<T> y = seqmix::normal_matrix<T>(length, channels + 2, 3, rng);
    const Matrix<T> gate = seqmix::normal_matrix<T>(length, channels + 5, 3, rng), before = y;
    f(Sequence<T>(y).columns(1, channels), ConstSequence<T>(gate).columns(3, channels));
    for (Index t = 0; t < length; ++t) {
      REQUIRE(y(t, 0) == before(t, 0));
      REQUIRE(y(t, channels + 1) == before(t, channels + 1));
      for (Index c = 0; c < channels; ++c) {
        CAPTURE(channels, t, c, before(t, c + 1), gate(t, c + 3));
        REQUIRE(close<T>(y(t, c + 1), expected(double(before(t, c + 1)), double(gate(t, c + 3)))));
      }
    }
  }
}

}  // namespace

TEMPLATE_TEST_CASE("activations in place", "[gate]", float, double) {
  using T = TestType;
  check<T>([](auto y, auto) { seqmix::apply_silu(y); }, [](double y, double) { return silu(y); });
  check<T>([](auto y, auto) { seqmix::apply_gelu(y); }, [](double y, double) { return gelu(y); });
  check<T>([](auto y, auto) { seqmix::apply_sigmoid(y); }, [](double y, double) { return sigmoid(y); });
  check<T>([](auto y, auto) { seqmix::apply_tanh(y); }, [](double y, double) { return std::tanh(y); });
  check<T>([](auto y, auto) { seqmix::scale_elements(y, T(0.3)); },
           [](double y, double) { return double(T(0.3)) * y; });
}

TEMPLATE_TEST_CASE("gates", "[gate]", float, double) {
  using T = TestType;
  check<T>([](auto y, auto g) { seqmix::multiply_silu(y, g); }, [](double y, double g) { return y * silu(g); });
  check<T>([](auto y, auto g) { seqmix::multiply_gelu(y, g); }, [](double y, double g) { return y * gelu(g); });
  check<T>([](auto y, auto g) { seqmix::multiply_sigmoid(y, g); }, [](double y, double g) { return y * sigmoid(g); });
  check<T>([](auto y, auto g) { seqmix::multiply_tanh(y, g); }, [](double y, double g) { return y * std::tanh(g); });
  check<T>([](auto y, auto g) { seqmix::multiply_elements(y, g); }, [](double y, double g) { return y * g; });
}

TEMPLATE_TEST_CASE("NaN in a value or its gate makes NaN there alone", "[gate]", float, double) {
  using T = TestType;
  const T nan = std::numeric_limits<T>::quiet_NaN();
  for (const bool in_gate : {false, true}) {
    for (Index bad = 0; bad < 11; ++bad) {
      Matrix<T> y = Matrix<T>::Ones(1, 11), gate = Matrix<T>::Ones(1, 11);
      (in_gate ? gate : y)(0, bad) = nan;
      seqmix::multiply_silu(Sequence<T>(y), gate);
      for (Index c = 0; c < 11; ++c) REQUIRE(std::isnan(y(0, c)) == (c == bad));
    }
  }
}

TEMPLATE_TEST_CASE("feature maps", "[feature_map]", float, double) {
  using T = TestType;
  Rng rng(2);
  namespace map = seqmix::feature_map;
  const auto check_map = [&](auto policy, auto&& expected) {
    for (Index head_dim = 0; head_dim <= 3 * seqmix::lanes<T> + 1; ++head_dim) {
      Matrix<T> x = seqmix::normal_matrix<T>(3, 2 * head_dim + 1, 2, rng);
      if (head_dim > 2) x(0, 0) = T(0), x(0, 1) = T(-0.0), x(1, 2) = std::numeric_limits<T>::quiet_NaN();
      const Matrix<T> before = x;
      // Two heads with a gap of one between them.
      const Index heads = head_dim > 0 ? 2 : 0;
      seqmix::apply_feature_map(HeadSequence<T>(x.data(), 3, heads, head_dim, 2 * head_dim + 1, head_dim + 1), policy);
      for (Index t = 0; t < 3; ++t) {
        for (Index c = 0; c < 2 * head_dim + 1; ++c) {
          const double value = double(before(t, c));
          CAPTURE(head_dim, t, c, value);
          if (std::isnan(value)) {
            REQUIRE(std::isnan(x(t, c)));
          } else {
            REQUIRE(close<T>(x(t, c), c == head_dim ? value : expected(value)));
          }
        }
      }
    }
  };
  check_map(map::Elu1{}, [](double x) { return x > 0 ? x + 1 : std::exp(x); });
  check_map(map::Relu{}, [](double x) { return x > 0 ? x : 0.0; });
  check_map(map::Exp{}, [](double x) { return std::exp(x); });
  check_map(map::Identity{}, [](double x) { return x; });
  check_map(map::SquaredRelu{}, [](double x) { return x > 0 ? x * x : 0.0; });
}
