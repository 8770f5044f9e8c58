// Random numbers are the same everywhere, and what they claim to be.
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <seqmix/core/random.hpp>

namespace seqmix {
namespace {

TEST_CASE("the generator is SplitMix64") {
  // First outputs for seed 1234567, from the reference implementation (Vigna, prng.di.unimi.it/splitmix64.c).
  Rng rng(1234567);
  CHECK(rng.bits() == 6457827717110365317U);
  CHECK(rng.bits() == 3203168211198807973U);
  CHECK(rng.bits() == 9817491932198370423U);
  CHECK(rng.bits() == 4593380528125082431U);
}

TEST_CASE("the same seed gives the same numbers") {
  Rng a(5), b(5), c(6);
  CHECK(a.normal() == b.normal());
  CHECK(a.uniform() == b.uniform());
  CHECK(normal_matrix<float>(3, 4, 1.0, a) == normal_matrix<float>(3, 4, 1.0, b));
  CHECK(a.bits() != c.bits());
}

TEST_CASE("moments and ranges") {
  Rng rng(1);
  const int count = 200000;
  double sum = 0, squares = 0, uniform_sum = 0;
  for (int i = 0; i < count; ++i) {
    const double z = rng.normal(), u = rng.uniform();
    sum += z;
    squares += z * z;
    uniform_sum += u;
    if (!(u >= 0 && u < 1) || !std::isfinite(z)) FAIL("out of range");
  }
  // Five standard errors each.
  CHECK(std::abs(sum / count) < 5 / std::sqrt(count));
  CHECK(std::abs(squares / count - 1) < 5 * std::sqrt(2.0 / count));
  CHECK(std::abs(uniform_sum / count - 0.5) < 5 * std::sqrt(1.0 / 12 / count));
  int hits[3] = {};
  for (int i = 0; i < 3000; ++i) ++hits[rng.integer(-1, 1) + 1];
  for (const int number : hits) CHECK(std::abs(number - 1000) < 150);
  const auto bounded = uniform_matrix<double>(50, 50, 0.25, rng);
  CHECK(bounded.cwiseAbs().maxCoeff() <= 0.25);
  const auto vector = uniform_vector<double>(500, 2.0, 3.0, rng);
  CHECK(vector.minCoeff() >= 2.0);
  CHECK(vector.maxCoeff() < 3.0);
}

}  // namespace
}  // namespace seqmix
