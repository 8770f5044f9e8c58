// Rotary embedding against the equations in long double, at positions up to a million and beyond.
#include <seqmix/parts/rotary.hpp>

#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <seqmix/core/random.hpp>
#include <stdexcept>
#include <vector>

#include "support/allocations.hpp"

namespace {

using seqmix::HeadSequence;
using seqmix::Index;
using seqmix::Matrix;
using seqmix::Rng;
using seqmix::Rotary;
using seqmix::RotaryPairs;
using seqmix::Sequence;
using seqmix::Vector;
using seqmix::Workspace;

// Largest error of heads [length, heads, head_dim] that should be `before` turned to `position` on.
template <class T>
double error(HeadSequence<T> given, HeadSequence<T> before, const Vector<double>& frequencies, RotaryPairs pairs,
             Index position) {
  double worst = 0;
  const Index half = frequencies.size();
  const auto update = [&](T value, long double expected) {
    const double difference = std::abs(double(value - expected));
    if (!(difference <= worst)) worst = difference;
  };
  for (Index t = 0; t < given.length(); ++t) {
    for (Index h = 0; h < given.heads(); ++h) {
      for (Index i = 0; i < half; ++i) {
        // Two angles that long double holds exactly; their functions do the reduction.
        const long double at = static_cast<long double>(position + t);
        const long double high = at * static_cast<float>(frequencies[i]);
        const long double low = at * (frequencies[i] - double(static_cast<float>(frequencies[i])));
        const long double cosine = std::cos(high) * std::cos(low) - std::sin(high) * std::sin(low);
        const long double sine = std::sin(high) * std::cos(low) + std::cos(high) * std::sin(low);
        const Index first = pairs == RotaryPairs::half ? i : 2 * i;
        const Index second = pairs == RotaryPairs::half ? i + half : 2 * i + 1;
        const long double a = before(t, h, first), b = before(t, h, second);
        update(given(t, h, first), a * cosine - b * sine);
        update(given(t, h, second), b * cosine + a * sine);
      }
      for (Index d = 2 * half; d < given.head_dim(); ++d) update(given(t, h, d), before(t, h, d));
    }
  }
  return worst;
}

}  // namespace

TEMPLATE_TEST_CASE("rows turn by their positions", "[rotary]", float, double) {
  using T = TestType;
  Rng rng(1);
  Workspace workspace;
  for (const RotaryPairs pairs : {RotaryPairs::half, RotaryPairs::interleaved}) {
    for (const Index half : {0, 1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 32}) {
      for (const Index rest : {0, 3}) {
        for (const Index position : {0, 1, 1'000'000, 16'000'000}) {
          const Index length = 3, heads = 2, head_dim = 2 * half + rest;
          // Gaps between heads and rows.
          Matrix<T> x =
              Matrix<T>::NullaryExpr(length, heads * (head_dim + 1) + 2, [&] { return T(rng.uniform(-1, 1)); });
          Matrix<T> before = x;
          const auto view = [&](Matrix<T>& matrix) {
            return HeadSequence<T>(matrix.data(), length, heads, head_dim, matrix.cols(), head_dim + 1);
          };
          Vector<double> frequencies = Vector<double>::NullaryExpr(half, [&] { return rng.uniform(1e-4, 1); });
          const Rotary rotary(frequencies, pairs);
          REQUIRE(rotary.rotary_dim() == 2 * half);
          workspace.poison();
          rotary.apply(view(x), position, workspace);
          // The sine and cosine are off by 8e-8 in float, the rest is rounding; in double the reduced angle keeps the
          // digits that the product of position and frequency has.
          const double bound = 4 * double(std::numeric_limits<T>::epsilon());
          CAPTURE(half, rest, position);
          REQUIRE(error<T>(view(x), view(before), frequencies, pairs, position) <= bound);
          for (Index t = 0; t < length; ++t) {
            for (Index h = 0; h < heads; ++h) {
              REQUIRE(x(t, h * (head_dim + 1) + head_dim) == before(t, h * (head_dim + 1) + head_dim));
            }
          }
        }
      }
    }
  }
}

TEST_CASE("standard and retention angles", "[rotary]") {
  Workspace workspace;
  // A unit vector in the first channel of each pair turns to (cos, sin): one position shows the frequencies.
  const auto frequency = [&](const Rotary& rotary, Index i, Index first, Index second) {
    Matrix<double> x = Matrix<double>::Zero(1, rotary.rotary_dim());
    x(0, first) = 1;
    rotary.apply(Sequence<double>(x).heads(1), 1, workspace);
    CAPTURE(i);
    return std::atan2(x(0, second), x(0, first));
  };
  const auto close = [](double a, double b) { return std::abs(a - b) <= 1e-15; };
  for (Index i = 0; i < 4; ++i) {
    CHECK(
        close(frequency(Rotary::standard(8, 500.0, RotaryPairs::half), i, i, i + 4), std::pow(500.0, -double(i) / 4)));
    CHECK(close(frequency(Rotary::standard(8, 500.0, RotaryPairs::interleaved), i, 2 * i, 2 * i + 1),
                std::pow(500.0, -double(i) / 4)));
    CHECK(close(frequency(Rotary::retention(8), i, 2 * i, 2 * i + 1), std::pow(10000.0, -double(i) / 3)));
  }
  CHECK(close(frequency(Rotary::retention(2), 0, 0, 1), 1.0));
  CHECK(Rotary::retention(0).rotary_dim() == 0);
  CHECK_THROWS_AS(Rotary::standard(7, 10000, RotaryPairs::half), std::invalid_argument);
  CHECK_THROWS_AS(Rotary::standard(-2, 10000, RotaryPairs::half), std::invalid_argument);
  CHECK_THROWS_AS(Rotary::retention(3), std::invalid_argument);
}

TEMPLATE_TEST_CASE("pieces and views keep the bits, and nothing is allocated", "[rotary]", float, double) {
  using T = TestType;
  Rng rng(3);
  Workspace workspace;
  for (const RotaryPairs pairs : {RotaryPairs::half, RotaryPairs::interleaved}) {
    const Rotary rotary = Rotary::standard(24, 10000, pairs);
    const Matrix<T> x = seqmix::normal_matrix<T>(20, 48, 1, rng);
    Matrix<T> whole = x;
    rotary.apply(Sequence<T>(whole).heads(2), 77, workspace);
    Matrix<T> wide = Matrix<T>::Zero(20, 51);
    wide.middleCols(1, 48) = x;
    const auto before = seqmix::test::allocation_count();
    for (Index t = 0; t < 20; t += 3) {
      const Index count = std::min<Index>(3, 20 - t);
      rotary.apply(Sequence<T>(wide).columns(1, 48).rows(t, count).heads(2), 77 + t, workspace);
    }
    CHECK(seqmix::test::allocation_count() == before);
    for (Index t = 0; t < 20; ++t) {
      CHECK(std::memcmp(whole.row(t).data(), wide.row(t).data() + 1, 48 * sizeof(T)) == 0);
    }
    Matrix<T> bad = x;
    bad(4, 5) = std::numeric_limits<T>::quiet_NaN();
    rotary.apply(Sequence<T>(bad).heads(2), 0, workspace);
    const Index partner = pairs == RotaryPairs::half ? 17 : 4;
    for (Index t = 0; t < 20; ++t) {
      for (Index c = 0; c < 48; ++c) REQUIRE(std::isnan(bad(t, c)) == (t == 4 && (c == 5 || c == partner)));
    }
  }
}
