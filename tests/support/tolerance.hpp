// How far two evaluations of one mixer may lie apart.
//
// Every path is a numerically stable evaluation of the same function: its result is the exact one for inputs changed by a
// few units in their last place. So two paths may differ by
//
//   c * eps * (max |y| + kappa[t]),     c = 4 * (4 + sqrt(length)),
//
// where kappa[t] is how much row t of y moves when x moves: the largest |y(x (1 + delta r)) - y(x)| / delta over a few
// random r in [-1, 1), measured in double with the same weights. max |y| stands for the rounding of the result itself.
// The constant: each of the few sums that a row passes through (projection, state, norm, projection) adds about as much
// as perturbing x does, hence 4 * 4; the state is a sum over up to `length` tokens made one after the other, whose
// roundings add up like a random walk, hence the root. An error in the algorithm changes rows by a part of their size,
// about 1 / eps of this.
#pragma once

#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <seqmix/core/random.hpp>
#include <string>
#include <vector>

#include "any_mixer.hpp"

namespace seqmix::test {

/// Bounds for each row of y = exact(x), for evaluations with scalar T, and the exact y.
struct RowBounds {
  Matrix<double> exact;
  std::vector<double> allowed;
};

template <class T>
RowBounds row_bounds(const std::function<Matrix<double>(const Matrix<double>&)>& exact, const Matrix<double>& x) {
  constexpr double delta = 1e-7;
  RowBounds result;
  result.exact = exact(x);
  std::vector<double> kappa(std::size_t(x.rows()), 0.0);
  Rng rng(11);
  for (int trial = 0; trial < 3; ++trial) {
    const Matrix<double> moved = x.unaryExpr([&](double value) { return value * (1 + delta * rng.uniform(-1, 1)); });
    const Matrix<double> y = exact(moved);
    for (Index t = 0; t < x.rows(); ++t) {
      const double change = (y.row(t) - result.exact.row(t)).cwiseAbs().maxCoeff() / delta;
      if (!(change <= kappa[std::size_t(t)])) kappa[std::size_t(t)] = change;
    }
  }
  const double largest = x.rows() > 0 ? result.exact.cwiseAbs().maxCoeff() : 0;
  const double unit = 4 * (4 + std::sqrt(double(x.rows()))) * double(std::numeric_limits<T>::epsilon());
  for (const double change : kappa) result.allowed.push_back(unit * (largest + change));
  return result;
}

/// Compares rows of `given` with those of `expected`; allowed[t] is for row t. Returns what is wrong with the worst
/// element, or nothing. NaN agrees with NaN only.
template <class A, class B>
std::string compare_rows(const A& given, const B& expected, const double* allowed, Index first_row = 0) {
  double worst = 1;
  std::string message;
  for (Index t = 0; t < given.rows(); ++t) {
    for (Index c = 0; c < given.cols(); ++c) {
      const double a = double(given(t, c)), b = double(expected(t, c));
      if (a == b || (std::isnan(a) && std::isnan(b))) continue;
      const double excess =
          std::isfinite(a - b) ? std::abs(a - b) / allowed[t] : std::numeric_limits<double>::infinity();
      if (excess > worst || std::isnan(excess)) {
        worst = excess;
        char text[200];
        std::snprintf(text, sizeof(text),
                      "row %td, channel %td: given %.9g, expected %.9g, difference %.3g, allowed %.3g", first_row + t,
                      c, a, b, std::abs(a - b), allowed[t]);
        message = text;
      }
    }
  }
  return message;
}

}  // namespace seqmix::test
