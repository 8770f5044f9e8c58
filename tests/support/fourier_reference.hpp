// The Fourier transform over both axes from its definition.
#pragma once

#include <cmath>
#include <numbers>

#include "support/reference.hpp"

namespace seqmix::test {

/// Re(sum over s and d of x[s, d] e^{-2 pi i (s t / L + d c / D)}) for x [L, D].
inline Matrixd fourier_real_part_of(const Matrixd& x) {
  const auto table = [](Index n, bool sine) {
    Matrixd result(n, n);
    for (Index i = 0; i < n; ++i) {
      for (Index j = 0; j < n; ++j) {
        const double angle = 2 * std::numbers::pi * double(i * j % n) / double(n);
        result(i, j) = sine ? std::sin(angle) : std::cos(angle);
      }
    }
    return result;
  };
  const Index L = x.rows(), D = x.cols();
  return product(product(table(L, false), x), table(D, false)) - product(product(table(L, true), x), table(D, true));
}

}  // namespace seqmix::test
