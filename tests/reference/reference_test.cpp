// Every registered mixer against its naive reference.
#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstdio>

#include "support/laws.hpp"
#include "support/tolerance.hpp"

namespace seqmix::test {
namespace {

template <class T>
std::string check_values(const MixerCase<T>& mixer, Index length) {
  Rng rng(test_seed + 100 + std::uint64_t(length));
  const Matrix<T> x = normal_matrix<T>(length, mixer.mixer->channels(), 1.0, rng);
  const Matrix<double> exact_x = x.template cast<double>(), expected = mixer.reference(exact_x);
  if (expected.rows() != x.rows() || expected.cols() != x.cols()) return "the reference gives another shape";
  const RowBounds bounds = row_bounds<T>(mixer.exact, exact_x);
  Workspace workspace;
  Matrix<T> y = Matrix<T>::Constant(x.rows(), x.cols(), std::numeric_limits<T>::quiet_NaN());
  mixer.mixer->forward(x, y, workspace);
  return compare_rows(y, expected, bounds.allowed.data());
}

/// Where the equations give NaN or infinity the mixer must not give a number.
template <class T>
std::string check_not_finite(const MixerCase<T>& mixer, double value) {
  const Index length = 37, place = 20;
  Rng rng(test_seed + 200);
  Matrix<T> x = normal_matrix<T>(length, mixer.mixer->channels(), 1.0, rng);
  x(place, mixer.mixer->channels() / 2) = T(value);
  const Matrix<double> expected = mixer.reference(x.template cast<double>());
  Workspace workspace;
  Matrix<T> y(x.rows(), x.cols());
  mixer.mixer->forward(x, y, workspace);
  for (Index t = 0; t < length; ++t) {
    for (Index c = 0; c < x.cols(); ++c) {
      if (!std::isfinite(expected(t, c)) && std::isfinite(y(t, c))) {
        char text[120];
        std::snprintf(text, sizeof(text), "x is %g in row %td: y at row %td, channel %td is %g, expected %g", value,
                      place, t, c, double(y(t, c)), expected(t, c));
        return text;
      }
    }
  }
  return {};
}

template <class T>
void check_all(const char* scalar) {
  const auto lengths = test_effort() == Effort::full ? std::vector<Index>{0, 1, 2, 7, 16, 33, 64, 65, 129, 257}
                                                     : std::vector<Index>{0, 1, 33, 65};
  int cases = 0, failed = 0;
  const auto report = [&](const MixerEntry& entry, const MixerCase<T>& mixer, const std::string& failure) {
    if (failure.empty()) return;
    ++failed;
    std::printf("%s, %s, %s: %s\n", entry.name.c_str(), mixer.configuration.c_str(), scalar, failure.c_str());
  };
  for (const auto& entry : mixer_registry()) {
    for (Index which = 0; which < entry.configurations(); ++which) {
      const auto mixer = entry.make<T>(which);
      if (!mixer.reference) continue;
      ++cases;
      for (const Index length : lengths) {
        const std::string failure = check_values(mixer, length);
        if (failure.empty()) continue;
        report(entry, mixer, "length " + std::to_string(length) + ": " + failure);
        break;
      }
      for (const double value : {std::nan(""), double(INFINITY), -double(INFINITY)}) {
        report(entry, mixer, check_not_finite(mixer, value));
      }
    }
  }
  std::printf("references: %d configurations in %s, %d failures\n", cases, scalar, failed);
  CHECK(cases > 0);
  CHECK(failed == 0);
}

TEST_CASE("naive references, float") { check_all<float>("float"); }
TEST_CASE("naive references, double") { check_all<double>("double"); }

TEST_CASE("no mixer draws weights for a configuration without channels") {
  for (const MixerEntry& entry : mixer_registry()) {
    INFO(entry.name);
    CHECK(entry.setup(0)->refuses_no_channels());
  }
}

TEST_CASE("every mixer has a naive reference") {
  for (const auto& entry : mixer_registry()) {
    INFO(entry.name);
    CHECK(entry.configurations() > 0);
    CHECK(bool(entry.make<double>(0).reference));
  }
}

}  // namespace
}  // namespace seqmix::test
