// Fourier transforms over both axes against their definition, for lengths of all kinds.
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <numbers>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/fourier.hpp>

#include "support/fourier_reference.hpp"

namespace seqmix::test {
namespace {

TEMPLATE_TEST_CASE("the real part of a transform over both axes agrees with its definition", "[fourier]", float,
                   double) {
  using T = TestType;
  Rng rng(1);
  Workspace workspace;
  // Powers of two, products of small primes, primes up to 31 and beyond, and what has such a factor.
  const std::pair<Index, Index> shapes[] = {{1, 1},   {1, 5},   {2, 3},   {3, 2},   {8, 8},    {64, 16},  {5, 64},
                                            {30, 49}, {77, 13}, {31, 37}, {37, 31}, {41, 17},  {127, 7},  {169, 6},
                                            {6, 211}, {1, 94},  {94, 1},  {360, 9}, {257, 33}, {1024, 5}, {500, 12}};
  for (const auto& [L, D] : shapes) {
    INFO(L << " x " << D);
    const Matrix<T> x = normal_matrix<T>(L, D, 1, rng);
    Matrix<T> y = Matrix<T>::Constant(L, D, std::numeric_limits<T>::quiet_NaN());
    workspace.poison();
    fourier_real_part<T>(x, y, workspace);
    const Matrixd exact = x.template cast<double>();
    const Matrixd expected = fourier_real_part_of(exact);
    // The norm of a row of y is that of x; chirps have transforms of several times the length.
    const double unit = double(std::numeric_limits<T>::epsilon()) * exact.norm();
    const double allowed = 8 * unit * (2 + std::log2(double(L * D)));
    CHECK((y.template cast<double>() - expected).cwiseAbs().maxCoeff() <= allowed);
    // In place, too.
    Matrix<T> z = x;
    fourier_real_part<T>(z, z, workspace);
    CHECK(z == y);
  }
}

TEST_CASE("a transform over many tokens finds their waves", "[fourier]") {
  constexpr Index L = 100'003, D = 3;  // a prime
  Matrix<float> x(L, D), y(L, D);
  for (Index t = 0; t < L; ++t) {
    for (Index c = 0; c < D; ++c) {
      x(t, c) = float(std::cos(2 * std::numbers::pi * double(t * 1234 % L) / double(L)));
    }
  }
  Workspace workspace;
  fourier_real_part<float>(x, y, workspace);
  // The sum over channels has two waves of L / 2 each; other frequencies have none.
  for (Index t = 0; t < L; ++t) {
    const double expected = t == 1234 || t == L - 1234 ? 3 * double(L) / 2 : 0;
    if (std::abs(double(y(t, 0)) - expected) > 1e-5 * double(L)) FAIL(t << ": " << y(t, 0));
    if (std::abs(double(y(t, 1))) > 1e-5 * double(L)) FAIL(t << ": " << y(t, 1));
  }
}

}  // namespace
}  // namespace seqmix::test
