// Norms against double, over every tail length and with gaps between heads and rows.
#include <seqmix/parts/norm.hpp>

#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <seqmix/core/random.hpp>
#include <vector>

namespace {

using seqmix::ConstSequence;
using seqmix::HeadSequence;
using seqmix::Index;
using seqmix::Matrix;
using seqmix::Rng;
using seqmix::Sequence;
using seqmix::Vector;

template <class T>
constexpr double eps_of = double(std::numeric_limits<T>::epsilon());

// [length, heads, head_dim] with a gap after every head and every row, filled with NaN.
template <class T>
struct Heads {
  Heads(Index length, Index heads, Index head_dim, Rng& rng, double mean = 0)
      : values(std::size_t(length * (heads * (head_dim + 1) + 2)), std::numeric_limits<T>::quiet_NaN()),
        view(values.data(), length, heads, head_dim, heads * (head_dim + 1) + 2, head_dim + 1) {
    for (Index t = 0; t < length; ++t) {
      for (Index h = 0; h < heads; ++h) {
        for (Index d = 0; d < head_dim; ++d) view(t, h, d) = T(mean + rng.normal());
      }
    }
    original = values;
  }
  std::vector<double> before(Index t, Index h) const {
    const T* row = original.data() + t * view.row_stride() + h * view.head_stride();
    return {row, row + view.head_dim()};
  }
  bool gaps_are_nan() const {
    std::size_t numbers = 0;
    for (const T value : values) numbers += !std::isnan(value);
    return numbers == std::size_t(view.length() * view.heads() * view.head_dim());
  }

  std::vector<T> values, original;
  HeadSequence<T> view;
};

double mean_of(const std::vector<double>& x) {
  double sum = 0;
  for (const double value : x) sum += value;
  return sum / double(x.size());
}

double mean_square_of(const std::vector<double>& x, double center) {
  double sum = 0;
  for (const double value : x) sum += (value - center) * (value - center);
  return sum / double(x.size());
}

// Every head_dim up to several vectors, and a few long ones.
template <class T>
std::vector<Index> widths() {
  std::vector<Index> result;
  for (Index width = 1; width <= 6 * seqmix::lanes<T>; ++width) result.push_back(width);
  result.insert(result.end(), {64, 127, 1000});
  return result;
}

// The mean square of `width` positive terms is accurate to width * eps at worst, in lanes to much less; the quotient is
// rounded a few times more.
template <class T>
double relative_bound(Index width) {
  return (4 + std::sqrt(double(width))) * eps_of<T>;
}

}  // namespace

TEMPLATE_TEST_CASE("RMS norm with and without weights", "[norm]", float, double) {
  using T = TestType;
  Rng rng(1);
  for (const Index width : widths<T>()) {
    const double eps = 0.01;
    CAPTURE(width);
    Heads<T> plain(3, 2, width, rng), weighted(3, 2, width, rng), each(3, 2, width, rng);
    const Vector<T> weight = seqmix::uniform_vector<T>(width, -2, 2, rng);
    const Vector<T> weights = seqmix::uniform_vector<T>(2 * width, -2, 2, rng);
    seqmix::rms_normalize(plain.view, T(eps));
    seqmix::rms_normalize(weighted.view, T(eps), weight);
    seqmix::rms_normalize(each.view, T(eps), weights);
    for (Index t = 0; t < 3; ++t) {
      for (Index h = 0; h < 2; ++h) {
        for (auto* const heads : {&plain, &weighted, &each}) {
          const auto x = heads->before(t, h);
          for (Index d = 0; d < width; ++d) {
            const double factor = heads == &weighted ? double(weight[d])
                                  : heads == &each   ? double(weights[h * width + d])
                                                     : 1.0;
            const double expected = x[std::size_t(d)] / std::sqrt(mean_square_of(x, 0) + eps) * factor;
            REQUIRE(std::abs(double(heads->view(t, h, d)) - expected) <= relative_bound<T>(width) * std::abs(expected));
          }
        }
      }
    }
    REQUIRE(plain.gaps_are_nan());
    REQUIRE(weighted.gaps_are_nan());
  }
}

TEMPLATE_TEST_CASE("group norm has one group per head and a biased variance", "[norm]", float, double) {
  using T = TestType;
  Rng rng(2);
  for (const Index width : widths<T>()) {
    const double eps = 1e-3;
    CAPTURE(width);
    Heads<T> heads(2, 3, width, rng, 5.0);
    const Vector<T> weight = seqmix::uniform_vector<T>(3 * width, -2, 2, rng);
    const Vector<T> bias = seqmix::uniform_vector<T>(3 * width, -1, 1, rng);
    seqmix::group_normalize(heads.view, T(eps), weight, bias);
    for (Index t = 0; t < 2; ++t) {
      for (Index h = 0; h < 3; ++h) {
        const auto x = heads.before(t, h);
        const double mean = mean_of(x), deviation = std::sqrt(mean_square_of(x, mean) + eps);
        for (Index d = 0; d < width; ++d) {
          const Index channel = h * width + d;
          const double scaled = (x[std::size_t(d)] - mean) / deviation * double(weight[channel]);
          // The mean is off by eps times the numbers, and that by the deviation when it is divided.
          const double bound =
              relative_bound<T>(width) * (std::abs(scaled) + 1.0) + 8 * eps_of<T> * (10.0 / deviation) * 2.0;
          REQUIRE(std::abs(double(heads.view(t, h, d)) - (scaled + double(bias[channel]))) <= bound);
        }
      }
    }
    REQUIRE(heads.gaps_are_nan());
  }
}

TEMPLATE_TEST_CASE("layer norm, into another sequence and in place", "[norm]", float, double) {
  using T = TestType;
  Rng rng(3);
  for (const Index width : widths<T>()) {
    const double eps = 1e-5;
    CAPTURE(width);
    const Matrix<T> x = seqmix::normal_matrix<T>(3, width, 2, rng);
    const Vector<T> weight = seqmix::uniform_vector<T>(width, -2, 2, rng);
    const Vector<T> bias = seqmix::uniform_vector<T>(width, -1, 1, rng);
    Matrix<T> wide = Matrix<T>::Constant(3, width + 3, std::numeric_limits<T>::quiet_NaN());
    const Sequence<T> y = Sequence<T>(wide).columns(1, width);
    seqmix::layer_normalize(x, y, T(eps), weight, bias);
    for (Index t = 0; t < 3; ++t) {
      const std::vector<double> row(x.row(t).data(), x.row(t).data() + width);
      const double mean = mean_of(row), deviation = std::sqrt(mean_square_of(row, mean) + eps);
      for (Index d = 0; d < width; ++d) {
        const double scaled = (row[std::size_t(d)] - mean) / deviation * double(weight[d]);
        const double bound =
            relative_bound<T>(width) * (std::abs(scaled) + 1.0) + 8 * eps_of<T> * (4.0 / deviation) * 2.0;
        REQUIRE(std::abs(double(y(t, d)) - (scaled + double(bias[d]))) <= bound);
      }
      REQUIRE(std::isnan(wide(t, 0)));
      REQUIRE(std::isnan(wide(t, width + 1)));
    }
    Matrix<T> same = x;
    seqmix::layer_normalize(same, Sequence<T>(same), T(eps), weight, bias);
    for (Index t = 0; t < 3; ++t) {
      for (Index d = 0; d < width; ++d) REQUIRE(same(t, d) == y(t, d));
    }
  }
}

TEMPLATE_TEST_CASE("the variance survives a mean far from zero", "[norm]", float, double) {
  using T = TestType;
  // Alternating mean +- 1 in numbers that T holds exactly: the result is +-1. A one-pass variance has no digit left.
  const Index width = 64;
  const T mean = T(1) / std::numeric_limits<T>::epsilon() / T(8);
  Matrix<T> x(1, width), y(1, width);
  for (Index d = 0; d < width; ++d) x(0, d) = mean + (d % 2 == 0 ? T(1) : T(-1));
  const Vector<T> one = Vector<T>::Ones(width), zero = Vector<T>::Zero(width);
  seqmix::layer_normalize(x, Sequence<T>(y), T(0), one, zero);
  for (Index d = 0; d < width; ++d) CHECK(std::abs(double(y(0, d)) - (d % 2 == 0 ? 1.0 : -1.0)) <= 4 * eps_of<T>);
}

TEMPLATE_TEST_CASE("division by the sum", "[norm]", float, double) {
  using T = TestType;
  Rng rng(4);
  for (const Index width : widths<T>()) {
    CAPTURE(width);
    Heads<T> heads(2, 2, width, rng, 8.0);
    seqmix::sum_normalize(heads.view, T(0.5));
    for (Index t = 0; t < 2; ++t) {
      for (Index h = 0; h < 2; ++h) {
        const auto x = heads.before(t, h);
        for (Index d = 0; d < width; ++d) {
          const double expected = x[std::size_t(d)] / (mean_of(x) * double(width) + 0.5);
          REQUIRE(std::abs(double(heads.view(t, h, d)) - expected) <= relative_bound<T>(width) * std::abs(expected));
        }
      }
    }
    REQUIRE(heads.gaps_are_nan());
  }
}

TEMPLATE_TEST_CASE("scale and shift", "[norm]", float, double) {
  using T = TestType;
  Rng rng(6);
  for (const Index width : widths<T>()) {
    CAPTURE(width);
    Heads<T> heads(3, 2, width, rng);
    const Vector<T> weight = seqmix::uniform_vector<T>(width, -2, 2, rng);
    const Vector<T> bias = seqmix::uniform_vector<T>(width, -2, 2, rng);
    for (Index h = 0; h < 2; ++h) seqmix::scale_and_shift(heads.view.head(h), weight, bias);
    for (Index t = 0; t < 3; ++t) {
      for (Index h = 0; h < 2; ++h) {
        const auto x = heads.before(t, h);
        for (Index d = 0; d < width; ++d) {
          const double product = x[std::size_t(d)] * double(weight[d]);
          REQUIRE(std::abs(double(heads.view(t, h, d)) - (product + double(bias[d]))) <=
                  2 * eps_of<T> * (std::abs(product) + std::abs(double(bias[d]))));
        }
      }
    }
    REQUIRE(heads.gaps_are_nan());
  }
}

TEMPLATE_TEST_CASE("zeros and constants stay finite, NaN stays in its head", "[norm]", float, double) {
  using T = TestType;
  Rng rng(5);
  const Index width = 19;
  const Vector<T> weight = Vector<T>::Ones(2 * width), bias = Vector<T>::Constant(2 * width, T(3));
  Matrix<T> zeros = Matrix<T>::Zero(1, 2 * width);
  seqmix::rms_normalize(Sequence<T>(zeros).heads(2), T(1e-6));
  for (Index c = 0; c < 2 * width; ++c) CHECK(zeros(0, c) == T(0));
  seqmix::group_normalize(Sequence<T>(zeros).heads(2), T(1e-6), weight, bias);
  for (Index c = 0; c < 2 * width; ++c) CHECK(zeros(0, c) == T(3));

  for (Index bad = 0; bad < width; ++bad) {
    const auto check = [&](auto&& normalize) {
      Matrix<T> x = seqmix::normal_matrix<T>(2, 2 * width, 1, rng);
      x(1, bad) = std::numeric_limits<T>::quiet_NaN();
      normalize(Sequence<T>(x).heads(2));
      for (Index t = 0; t < 2; ++t) {
        for (Index c = 0; c < 2 * width; ++c) REQUIRE(std::isnan(x(t, c)) == (t == 1 && c < width));
      }
    };
    check([](HeadSequence<T> x) { seqmix::rms_normalize(x, T(1e-6)); });
    check([](HeadSequence<T> x) { seqmix::sum_normalize(x, T(1e-6)); });
    check([&](HeadSequence<T> x) { seqmix::group_normalize(x, T(1e-6), weight, bias); });
  }
}
