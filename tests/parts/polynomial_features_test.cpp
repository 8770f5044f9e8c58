// Products of pairs, and features made of them, for every width.
#include <seqmix/parts/polynomial_features.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <cmath>
#include <limits>
#include <seqmix/core/random.hpp>
#include <vector>

namespace {

using namespace seqmix;

constexpr Index widths[] = {1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12,  13,  14,  15,  16,
                            17, 23, 24, 31, 32, 33, 47, 48, 63, 64, 65, 127, 128, 129, 255, 256};

template <class T>
std::vector<T> numbers(Index count, Rng& rng) {
  std::vector<T> result;
  for (Index i = 0; i < count; ++i) result.push_back(T(rng.normal()));
  return result;
}

template <class T>
constexpr Index padded(Index count) {
  return (count + lanes<T> - 1) / lanes<T> * lanes<T>;
}

/// The map's row of features, after which nothing may be written.
template <class T>
std::vector<T> mapped(const RowMap<T>& map, const std::vector<T>& x, T scale, Index features) {
  std::vector<T> row(static_cast<std::size_t>(padded<T>(features) + 1), std::numeric_limits<T>::quiet_NaN());
  map.function(map.parameters, x.data(), Index(x.size()), scale, row.data());
  REQUIRE(std::isnan(row.back()));
  row.pop_back();
  for (Index i = features; i < Index(row.size()); ++i) REQUIRE(row[std::size_t(i)] == 0);
  return row;
}

}  // namespace

TEMPLATE_TEST_CASE("symmetric products are those of each pair once, in order", "[polynomial]", float, double) {
  using T = TestType;
  Rng rng(1);
  for (const Index count : widths) {
    const auto x = numbers<T>(count, rng);
    const Index products = symmetric_products_of(count);
    for (const Index spare : {Index(0), Index(1), lanes<T>}) {
      std::vector<T> to(static_cast<std::size_t>(products + spare + 1), T(-7));
      symmetric_products<T>(x.data(), count, T(0.5), T(3), to.data(), products + spare);
      REQUIRE(to.back() == T(-7));
      Index at = 0;
      for (Index lag = 0; lag <= count / 2; ++lag) {
        for (Index i = 0; i < (2 * lag == count ? count / 2 : count); ++i, ++at) {
          const double expected =
              (lag == 0 ? 0.5 : 3.0) * double(x[std::size_t(i)]) * double(x[std::size_t((i + lag) % count)]);
          CAPTURE(count, spare, lag, i);
          REQUIRE(std::abs(double(to[std::size_t(at)]) - expected) <=
                  2 * double(std::numeric_limits<T>::epsilon()) * std::abs(expected));
        }
      }
      REQUIRE(at == products);
    }
  }
}

TEMPLATE_TEST_CASE("products of features are polynomials of products", "[polynomial]", float, double) {
  using T = TestType;
  Rng rng(2);
  const auto check = [&]<class Polynomial>(Polynomial, auto polynomial) {
    for (const Index count : widths) {
      const auto q = numbers<T>(count, rng), k = numbers<T>(count, rng);
      const T scale = T(count % 2 == 0 ? 0.3 : -0.7);
      const Index features = Polynomial::features(count);
      const auto a = mapped<T>(polynomial_query_map<Polynomial, T>(scale), q, T(2), features);
      const auto b = mapped<T>(polynomial_key_map<T, Polynomial>, k, T(-1), features);
      double s = 0, given = 0, sizes = 0;
      for (std::size_t i = 0; i < q.size(); ++i) s += double(scale) * double(q[i]) * double(k[i]);
      for (std::size_t i = 0; i < a.size(); ++i) {
        given += double(a[i]) * double(b[i]);
        sizes += std::abs(double(a[i]) * double(b[i]));
      }
      CAPTURE(count);
      // Each product of features is rounded a few times.
      REQUIRE(std::abs(given + 2 * polynomial(s)) <= 6 * double(std::numeric_limits<T>::epsilon()) * sizes);
    }
  };
  check(polynomial::Taylor{}, [](double s) { return 1 + s + s * s / 2; });
  check(polynomial::Square{}, [](double s) { return s * s; });
}
