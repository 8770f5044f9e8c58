// Every function of simd/math against the standard library in long double: one table of ranges and bounds, which are
// those of the doc comments, swept densely; then the values at the edges, NaN payloads, and rows.
// The hidden case "[measure]" prints the errors found.
#include <seqmix/simd/math.hpp>
#include <seqmix/simd/math_exp_each.hpp>

#include <algorithm>
#include <bit>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

namespace {

using seqmix::Batch;
using seqmix::Index;
using seqmix::lanes;
using Real = long double;

constexpr Real half = 0.5L;
constexpr Real sqrt_half = 0.707106781186547524400844362104849039L;
constexpr Real sqrt_eight_over_pi = 1.595769121605730711759542718L;

Real gelu_tanh_twice_u(Real x) { return sqrt_eight_over_pi * (x + 0.044715L * x * x * x); }

template <class T>
struct Row {
  const char* name;
  Batch<T> (*evaluate)(Batch<T>);
  Real (*reference)(Real);
  double low, high;        // range swept
  double ulp;              // bound on the error in units in the last place of the result
  double flush_below = 0;  // results of smaller magnitude may lose digits or be zero
  double ulp_per_u = 0;    // gelu_tanh only: the bound grows with |u|
};

template <class T>
struct Limits;
template <>
struct Limits<float> {
  // Where e^x or 2^x overflows, and where half of the smallest denormal is reached.
  static constexpr double exp2_low = -151, exp2_high = 128, exp_low = -105, exp_high = 88.72;
  static constexpr double decay_low = -126.4999, decay_high = 127;
  static constexpr double silu_flush = 4e-37, gelu_tanh_flush = 4e-37;
};
template <>
struct Limits<double> {
  static constexpr double exp2_low = -1076, exp2_high = 1024, exp_low = -746, exp_high = 709.78;
  static constexpr double decay_low = -1022.4999, decay_high = 1023;
  static constexpr double silu_flush = 1e-305, gelu_tanh_flush = 1e-306;
};

template <class T>
std::vector<Row<T>> table() {
  using L = Limits<T>;
  constexpr bool single = sizeof(T) == 4;
  const double max = std::numeric_limits<T>::max(), normal = std::numeric_limits<T>::min();
  return {
      {"exp2", [](Batch<T> x) { return seqmix::exp2(x); }, [](Real x) { return std::exp2(x); }, L::exp2_low,
       L::exp2_high, single ? 1.5 : 1.7},
      {"exp", [](Batch<T> x) { return seqmix::exp(x); }, [](Real x) { return std::exp(x); }, L::exp_low, L::exp_high,
       1.5},
      {"exp2_decay", [](Batch<T> x) { return seqmix::exp2_decay(x); }, [](Real x) { return std::exp2(x); },
       L::decay_low, L::decay_high, single ? 1.5 : 1.7},
      {"exp2_softmax", [](Batch<T> x) { return seqmix::exp2_softmax(x); }, [](Real x) { return std::exp2(x); },
       L::decay_low, L::decay_high, single ? 9.0 : 1.7},
      {"exp_decay", [](Batch<T> x) { return seqmix::exp_decay(x); }, [](Real x) { return std::exp(x); },
       single ? -87.68 : -708.74, single ? 88.0 : 709.0, 1.5},
      {"expm1", [](Batch<T> x) { return seqmix::expm1(x); }, [](Real x) { return std::expm1(x); }, -max, L::exp_high,
       2.5},
      {"expm1_fraction", [](Batch<T> x) { return seqmix::detail::expm1_fraction(x); },
       [](Real x) { return std::expm1(x); }, -0.3465, 0.3465, 1.5},
      {"log", [](Batch<T> x) { return seqmix::log(x); }, [](Real x) { return std::log(x); },
       std::numeric_limits<T>::denorm_min(), max, 1.5},
      {"log1p", [](Batch<T> x) { return seqmix::log1p(x); }, [](Real x) { return std::log1p(x); },
       -1 + static_cast<double>(std::numeric_limits<T>::epsilon()) / 2, max, 1.5},
      {"sigmoid", [](Batch<T> x) { return seqmix::sigmoid(x); }, [](Real x) { return 1 / (1 + std::exp(-x)); }, -max,
       max, 2.5, normal},
      {"silu", [](Batch<T> x) { return seqmix::silu(x); }, [](Real x) { return x / (1 + std::exp(-x)); }, -max, max,
       2.5, L::silu_flush},
      {"tanh", [](Batch<T> x) { return seqmix::tanh(x); }, [](Real x) { return std::tanh(x); }, -max, max, 3.5},
      {"softplus", [](Batch<T> x) { return seqmix::softplus(x); },
       [](Real x) { return std::max(x, Real(0)) + std::log1p(std::exp(-std::abs(x))); }, -max, max, 2.5, normal},
      {"logsigmoid", [](Batch<T> x) { return seqmix::logsigmoid(x); },
       [](Real x) { return std::min(x, Real(0)) - std::log1p(std::exp(-std::abs(x))); }, -max, max, 2.5, normal},
      {"erf", [](Batch<T> x) { return seqmix::erf(x); }, [](Real x) { return std::erf(x); }, -max, max, 2},
      {"gelu", [](Batch<T> x) { return seqmix::gelu(x); },
       [](Real x) { return x * (half * std::erfc(-x * sqrt_half)); }, -max, max, single ? 8.0 : 9.0, normal},
      {"gelu_tanh", [](Batch<T> x) { return seqmix::gelu_tanh(x); },
       [](Real x) { return x / (1 + std::exp(-gelu_tanh_twice_u(x))); }, -max, max, 4, L::gelu_tanh_flush, 6},
  };
}

template <class T>
using BitsOf = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;

/// Distance of neighbouring T around |x|; that of the denormals below the normal range.
template <class T>
Real ulp_of(Real x) {
  const int digits = std::numeric_limits<T>::digits;
  const int exponent = x == 0 ? std::numeric_limits<T>::min_exponent : std::ilogb(x) + 1;
  return std::ldexp(Real(1), std::max(exponent, std::numeric_limits<T>::min_exponent) - digits);
}

/// Points of [low, high]: evenly over the values, over the exponents, around 0 and +-1, and the edges.
template <class T>
std::vector<T> sweep(double low, double high, int count) {
  std::vector<T> points;
  std::mt19937_64 random(7);
  const auto add = [&](T x) {
    if (static_cast<double>(x) >= low && static_cast<double>(x) <= high) points.push_back(x);
  };
  const double near_low = std::max(low, sizeof(T) == 4 ? -110.0 : -760.0);
  const double near_high = std::min(high, sizeof(T) == 4 ? 110.0 : 760.0);
  for (int i = 0; i < count; ++i) {
    const double share = std::generate_canonical<double, 53>(random);
    add(static_cast<T>(near_low + (near_high - near_low) * share));
    add(static_cast<T>(-12 + 24 * share));
    add(static_cast<T>(-1.5 + 3 * share));
    add(static_cast<T>((sizeof(T) == 4 ? -13.2 : -37.6) + 0.2 * share));  // the end of gelu's tail
    add(std::bit_cast<T>(static_cast<BitsOf<T>>(random())));
  }
  for (const double x : {low, high, 0.0, -0.0, 1.0, -1.0, 0.5, -0.5}) add(static_cast<T>(x));
  for (T x = 2 * std::numeric_limits<T>::denorm_min(); x < std::numeric_limits<T>::max() / 4; x *= T(1.37)) {
    add(x);
    add(-x);
    add(1 + x);
    add(x - 1);
  }
  while (static_cast<Index>(points.size()) % lanes<T> != 0) points.push_back(points.front());
  return points;
}

struct Worst {
  double ulp = 0, share = 0, at = 0;  // error, its share of the bound there, and where
};

template <class T>
Worst worst_of(const Row<T>& row, int count) {
  Worst worst;
  const auto points = sweep<T>(row.low, row.high, count);
  std::vector<T> results(points.size());
  seqmix::transform(points.data(), results.data(), static_cast<Index>(points.size()), row.evaluate);
  for (std::size_t i = 0; i < points.size(); ++i) {
    const Real x = points[i], expected = row.reference(x), got = results[i];
    const Real flush = row.flush_below;
    if (std::abs(expected) < flush && std::abs(got) < flush) continue;
    const bool overflow = std::abs(expected) >= static_cast<Real>(std::numeric_limits<T>::max());
    const Real error = overflow && std::isinf(results[i]) ? Real(0) : std::abs(got - expected) / ulp_of<T>(expected);
    const Real u = row.ulp_per_u == 0 ? Real(0) : std::abs(gelu_tanh_twice_u(x)) / 2;
    const Real bound = row.ulp + row.ulp_per_u * static_cast<double>(expected == x ? Real(0) : u);
    // Written so that a NaN counts as worse than anything.
    if (!(error / bound <= static_cast<Real>(worst.share))) {
      worst = {static_cast<double>(error), static_cast<double>(error / bound), static_cast<double>(x)};
    }
    if (std::isnan(worst.share)) break;
  }
  return worst;
}

template <class T>
std::vector<T> nan_values() {
  if constexpr (sizeof(T) == 4) {
    return {std::bit_cast<T>(0x7fc00000u), std::bit_cast<T>(0xffc00000u), std::bit_cast<T>(0x7fc00001u),
            std::bit_cast<T>(0x7fffffffu), std::bit_cast<T>(0xffffffffu), std::bit_cast<T>(0x7fd55555u),
            std::bit_cast<T>(0x7fc00081u), std::bit_cast<T>(0xffc000ffu), std::bit_cast<T>(0x7f800001u)};
  } else {
    return {std::bit_cast<T>(0x7ff8000000000000u), std::bit_cast<T>(0xfff8000000000000u),
            std::bit_cast<T>(0x7ff8000000000001u), std::bit_cast<T>(0x7fffffffffffffffu),
            std::bit_cast<T>(0xffffffffffffffffu), std::bit_cast<T>(0x7ff8000055555555u),
            std::bit_cast<T>(0x7ff8000000000401u), std::bit_cast<T>(0x7ff0000000000001u)};
  }
}

TEMPLATE_TEST_CASE("several powers of products at once", "[simd][math]", float, double) {
  using T = TestType;
  constexpr T infinity = std::numeric_limits<T>::infinity(), limit = sizeof(T) == 4 ? T(125) : T(1021);
  constexpr Index width = lanes<T>;
  std::mt19937_64 random(7);
  std::uniform_real_distribution<double> part(-1, 0.2), logarithm(-20, 9), factors(0.001, 3);
  for (int trial = 0; trial < 20000; ++trial) {
    T given[2 * std::size_t(width)], each[2 * std::size_t(width)], normal[2 * std::size_t(width)];
    for (T& x : given) x = static_cast<T>(part(random) * std::exp(logarithm(random)));
    if (trial == 0) given[0] = -infinity, given[1] = infinity;
    if (trial == 1) given[0] = 0, given[1] = std::numeric_limits<T>::quiet_NaN();
    if (trial == 2) given[0] = T(-1e30), given[1] = T(1e30);
    const T factor = static_cast<T>(factors(random));
    Batch<T> x[2] = {seqmix::load(given), seqmix::load(given + width)};
    seqmix::exp2_products_each(Batch<T>(factor), x);
    for (Index i = 0; i < 2; ++i) seqmix::store(each + i * width, x[i]);
    for (Index i = 0; i < 2; ++i) x[i] = seqmix::load(given + i * width);
    seqmix::exp2_normal_products_each(Batch<T>(factor), x);
    for (Index i = 0; i < 2; ++i) seqmix::store(normal + i * width, x[i]);
    for (Index i = 0; i < 2 * width; ++i) {
      INFO("2^(" << factor << " * " << given[i] << ") = " << each[i]);
      const T product = factor * given[i];
      if (std::isnan(product)) {
        REQUIRE(std::isnan(each[i]));
      } else if (!(std::abs(product) <= limit)) {
        const T bound = limit + T(3);
        if (product < -bound) REQUIRE(each[i] == 0);
        if (product > bound) REQUIRE(each[i] == infinity);
      } else {
        // The product is rounded here, and may be there.
        const T expected = seqmix::exp2(product), epsilon = std::numeric_limits<T>::epsilon();
        REQUIRE(std::abs(each[i] - expected) <= (T(4) + std::abs(product)) * epsilon * expected);
        REQUIRE(each[i] == normal[i]);
      }
    }
  }
}

}  // namespace

TEMPLATE_TEST_CASE("elementary functions keep their error bounds", "[simd][math]", float, double) {
  for (const auto& row : table<TestType>()) {
    const auto worst = worst_of<TestType>(row, 40000);
    INFO(row.name << ": " << worst.ulp << " ulp at " << worst.at);
    CHECK(worst.share <= 1);
    CHECK(worst.ulp > 0);  // a sweep that finds no rounding error at all has not looked
  }
}

TEMPLATE_TEST_CASE("errors found", "[.measure]", float, double) {
  for (const auto& row : table<TestType>()) {
    const auto worst = worst_of<TestType>(row, 300000);
    std::printf("%-6s %-13s %8.3f ulp (share %.3f) at %.9g\n", sizeof(TestType) == 4 ? "float" : "double", row.name,
                worst.ulp, worst.share, worst.at);
  }
}

TEMPLATE_TEST_CASE("NaN of any payload stays NaN in its lane and in no other", "[simd][math]", float, double) {
  using T = TestType;
  for (const auto& row : table<T>()) {
    INFO(row.name);
    for (const T nan : nan_values<T>()) {
      for (Index lane = 0; lane < lanes<T>; ++lane) {
        std::vector<T> values(static_cast<std::size_t>(lanes<T>), T(0.25));
        values[static_cast<std::size_t>(lane)] = nan;
        const auto result = row.evaluate(seqmix::load(values.data()));
        for (Index i = 0; i < lanes<T>; ++i)
          REQUIRE(std::isnan(result.get(static_cast<std::size_t>(i))) == (i == lane));
      }
    }
  }
  for (const T nan : nan_values<T>()) {
    REQUIRE(std::isnan(seqmix::sincos(nan).sin));
    REQUIRE(std::isnan(seqmix::sincos(nan).cos));
  }
}

TEMPLATE_TEST_CASE("values at the edges", "[simd][math]", float, double) {
  using T = TestType;
  const T infinity = std::numeric_limits<T>::infinity(), max = std::numeric_limits<T>::max();
  const T tiny = std::numeric_limits<T>::denorm_min();
  const bool single = sizeof(T) == 4;

  for (const T zero : {T(0), T(-0.0), tiny, -tiny}) {
    REQUIRE(seqmix::exp2(zero) == 1);
    REQUIRE(seqmix::exp(zero) == 1);
    REQUIRE(seqmix::exp2_decay(zero) == 1);
    REQUIRE(seqmix::exp2_softmax(zero) == 1);
    REQUIRE(seqmix::exp_decay(zero) == 1);
    REQUIRE(seqmix::sigmoid(zero) == T(0.5));
    REQUIRE(seqmix::sincos(zero).cos == 1);
    REQUIRE(seqmix::sincos(zero).sin == zero);
    REQUIRE(seqmix::tanh(zero) == zero);
    REQUIRE(seqmix::log1p(zero) == zero);
  }
  for (int n = single ? -149 : -1074; n < (single ? 128 : 1024); ++n) {
    REQUIRE(seqmix::exp2(static_cast<T>(n)) == std::ldexp(T(1), n));
    if (n < (single ? -126 : -1022)) continue;
    REQUIRE(seqmix::exp2_decay(static_cast<T>(n)) == std::ldexp(T(1), n));
    REQUIRE(seqmix::exp2_softmax(static_cast<T>(n)) == std::ldexp(T(1), n));
  }
  for (const T x : {-infinity, -max, T(-1e4), single ? T(-126.51) : T(-1022.51)}) {
    REQUIRE(seqmix::exp2_decay(x) == 0);
    REQUIRE(seqmix::exp2_softmax(x) == 0);
    REQUIRE(seqmix::exp_decay(x) == 0);
  }
  for (const T x : {-infinity, -max, T(-1e4), single ? T(-150.01) : T(-1075.01)}) {
    REQUIRE(seqmix::exp2(x) == 0);
    REQUIRE(seqmix::exp(x) == 0);
    REQUIRE(seqmix::sigmoid(x) == 0);
    REQUIRE(seqmix::softplus(x) == 0);
    REQUIRE(seqmix::logsigmoid(x) == x);
    REQUIRE(seqmix::logsigmoid(-x) == 0);
    REQUIRE(seqmix::softplus(-x) == -x);
    REQUIRE(seqmix::sigmoid(-x) == 1);
    REQUIRE(seqmix::silu(-x) == -x);
    REQUIRE(seqmix::gelu(-x) == -x);
    REQUIRE(seqmix::gelu_tanh(-x) == -x);
    REQUIRE(seqmix::tanh(x) == -1);
    REQUIRE(seqmix::tanh(-x) == 1);
    REQUIRE(seqmix::erf(x) == -1);
    REQUIRE(seqmix::erf(-x) == 1);
    REQUIRE(seqmix::expm1(x) == -1);
    if (std::isinf(x)) continue;
    REQUIRE(seqmix::silu(x) == 0);
    REQUIRE(seqmix::gelu(x) == 0);
    REQUIRE(seqmix::gelu_tanh(x) == 0);
  }
  for (const T x : {infinity, max, T(1e4), single ? T(128) : T(1024)}) {
    REQUIRE(seqmix::exp2(x) == infinity);
    REQUIRE(seqmix::exp(x) == infinity);
    REQUIRE(seqmix::expm1(x) == infinity);
  }
  REQUIRE(seqmix::log(T(1)) == 0);
  REQUIRE(seqmix::log(infinity) == infinity);
  REQUIRE(seqmix::log1p(infinity) == infinity);
  REQUIRE(seqmix::log(T(0)) == -infinity);
  REQUIRE(seqmix::log(T(-0.0)) == -infinity);
  REQUIRE(seqmix::log1p(T(-1)) == -infinity);
  for (const T x : {-tiny, T(-1), -max, -infinity}) REQUIRE(std::isnan(seqmix::log(x)));
  for (const T x : {T(-1.5), -max, -infinity}) REQUIRE(std::isnan(seqmix::log1p(x)));
  // Infinity times zero in the equation.
  REQUIRE(std::isnan(seqmix::silu(-infinity)));
  REQUIRE(std::isnan(seqmix::gelu(-infinity)));
  REQUIRE(std::isnan(seqmix::gelu_tanh(-infinity)));
  REQUIRE(std::isnan(seqmix::sincos(infinity).sin));
  REQUIRE(std::isnan(seqmix::sincos(-infinity).cos));
}

TEMPLATE_TEST_CASE("sincos keeps its error bounds", "[simd][math]", float, double) {
  using T = TestType;
  const bool single = sizeof(T) == 4;
  const double range = single ? 1e4 : 1e6;
  const Real absolute = static_cast<Real>(std::numeric_limits<T>::epsilon());
  Real worst_absolute = 0, worst_ulp = 0;
  auto points = sweep<T>(-range, range, 40000);
  std::mt19937_64 random(11);
  for (int i = 0; i < 100000; ++i) {
    points.push_back(static_cast<T>(range * (2 * std::generate_canonical<double, 53>(random) - 1)));
    // Next to multiples of pi/2, where cancellation is worst.
    points.push_back(static_cast<T>(static_cast<double>(i % (single ? 6300 : 600000)) * 1.5707963267948966));
  }
  for (const T x : points) {
    const auto [sin, cos] = seqmix::sincos(x);
    const Real true_sin = std::sin(static_cast<Real>(x)), true_cos = std::cos(static_cast<Real>(x));
    const Real sin_error = std::abs(static_cast<Real>(sin) - true_sin);
    const Real cos_error = std::abs(static_cast<Real>(cos) - true_cos);
    worst_absolute = std::max({worst_absolute, sin_error, cos_error});
    if (std::abs(x) <= T(0.785398)) {
      worst_ulp = std::max({worst_ulp, sin_error / ulp_of<T>(true_sin), cos_error / ulp_of<T>(true_cos)});
    }
    REQUIRE(sin_error <= absolute);
    REQUIRE(cos_error <= absolute);
  }
  INFO(static_cast<double>(worst_absolute) << " absolute, " << static_cast<double>(worst_ulp) << " ulp");
  CHECK(worst_ulp <= 2);
  CHECK(worst_ulp > 0.4L);
}

TEMPLATE_TEST_CASE("weak decays are exact to the last rounding", "[simd][math]", float, double) {
  using T = TestType;
  // Decays near 1 are multiplied thousands of times: a polynomial that misses 1 at 0 by as little as an ulp would drift.
  // Here everything but the last addition, 1 + x (...), is smaller than an ulp of 1 by a factor of |x|.
  for (int i = 1; i <= 4096; ++i) {
    const T x = -static_cast<T>(i) / T(262144);
    const Real expected = std::exp2(static_cast<Real>(x));
    REQUIRE(std::abs(static_cast<Real>(seqmix::exp2_decay(x)) - expected) <= Real(0.6) * ulp_of<T>(expected));
  }
}

TEMPLATE_TEST_CASE("rows of any length and position give the bits of a lane", "[simd][math]", float, double) {
  using T = TestType;
  for (Index count = 0; count <= 3 * lanes<T> + 1; ++count) {
    std::vector<T> row(static_cast<std::size_t>(count)), result(static_cast<std::size_t>(count), T(-7));
    for (Index i = 0; i < count; ++i) row[static_cast<std::size_t>(i)] = T(0.37) * static_cast<T>(i) - 2;
    seqmix::transform(row.data(), result.data(), count, seqmix::tanh);
    for (std::size_t i = 0; i < row.size(); ++i) REQUIRE(result[i] == seqmix::tanh(row[i]));
    auto in_place = row;
    seqmix::apply_in_place(in_place.data(), count, seqmix::tanh);
    REQUIRE(in_place == result);
    seqmix::apply_in_place(seqmix::Token<T>(row.data(), count), seqmix::tanh);
    REQUIRE(row == result);
  }
}
