// The elementwise scans against their equations in double: sequential and in segments, any number of channels.
//
// Bounds are running ones. With u half the machine epsilon, a step makes an error of a few u of what it adds up, and that of a
// decay is (2 |log a| + 4) u of itself; both fade as the state does. Products below the smallest normal number may become 0.
#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <complex>
#include <cstring>
#include <limits>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/scan.hpp>
#include <string>
#include <vector>

#include "scan_cases.hpp"
#include "support/executors.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

// --- real -------------------------------------------------------------------------------------------------------------

template <class T>
void run_real(Inputs<T>& inputs, Index begin, Index count, Workspace& workspace) {
  const auto g = inputs.stream(0).rows(begin, count), x = inputs.stream(1).rows(begin, count);
  const auto elements = [&](Index t, const auto& read) SEQMIX_INLINE_LAMBDA {
    return RealDiagonal::Step<Batch<T>>{exp_decay(read(g, t)), read(x, t)};
  };
  workspace.poison();
  scan<RealDiagonal>(elements, inputs.state_view(), inputs.output(1, begin, count), workspace);
}

template <class T>
Worst check_real(Inputs<T>& inputs, const Matrix<T>& initial) {
  Worst worst;
  for (Index c = 0; c < inputs.channels; ++c) {
    double h = double(initial(0, c)), size = std::abs(h), error = 0;
    for (Index t = 0; t < inputs.length; ++t) {
      const double g = double(inputs.stream(0)(t, c)), x = double(inputs.stream(1)(t, c)), a = std::exp(g);
      error = a == 0 ? 0 : a * error + a * size * (12 - 2 * std::max(g, -1000.0)) * u<T>;
      h = (a == 0 ? 0 : a * h) + x, size = a * size + std::abs(x), error += 4 * std::abs(x) * u<T> + size * u<T>;
      worst.add(double(inputs.y(t, c)), h, error + tiny<T> * size + tiny<T>, t, c);
    }
    if (inputs.length > 0) {
      worst.add(double(inputs.state(0, c)), h, error + tiny<T> * size + tiny<T>, inputs.length, c);
    }
  }
  return worst;
}

TEMPLATE_TEST_CASE("real scan, any length and number of channels, in pieces", "[scan]", float, double) {
  using T = TestType;
  Rng rng(test_seed);
  Workspace workspace;
  for (const auto& [length, channels, slow] : cases) {
    INFO(length << " tokens of " << channels << " channels");
    Inputs<T> inputs(length, channels, 2, 1, 1, rng);
    inputs.make_decays(0, slow, rng);
    const Matrix<T> initial = inputs.state;
    run_real(inputs, 0, length, workspace);
    Worst worst = check_real(inputs, initial);
    INFO(worst.where);
    CHECK(worst.excess <= 1);
    // What lies beside the views is left alone.
    CHECK(inputs.state(0, channels) == initial(0, channels));
    for (Index t = 0; t < length; ++t) REQUIRE(std::isnan(inputs.y(t, channels)));
    inputs.state = initial;
    for (Index begin = 0; begin < length;) {
      const Index count = std::min(rng.integer(0, std::max<Index>(length / 2, 3)), length - begin);
      run_real(inputs, begin, count, workspace);
      begin += count;
    }
    worst = check_real(inputs, initial);
    INFO(worst.where);
    CHECK(worst.excess <= 1);
  }
}

TEST_CASE("scan in place", "[scan]") {
  Rng rng(test_seed);
  Workspace workspace;
  for (const Index channels : {8, 70}) {
    Inputs<float> inputs(9001, channels, 2, 1, 1, rng);
    inputs.make_decays(0, true, rng);
    Matrix<float> state = inputs.state;
    Matrix<float> rows = inputs.rows;
    run_real(inputs, 0, inputs.length, workspace);
    const auto g = Sequence<const float>(rows).columns(0, channels);
    const auto x = Sequence<float>(rows).columns(channels, channels);
    scan<RealDiagonal>(
        [&](Index t, const auto& read) {
          return RealDiagonal::Step<Batch<float>>{exp_decay(read(g, t)), read(Sequence<const float>(x), t)};
        },
        Sequence<float>(state).columns(0, channels), x, workspace);
    CHECK(rows.middleCols(channels, channels) == inputs.y.leftCols(channels));
    CHECK(state == inputs.state);
  }
}

TEST_CASE("scan, what is not finite stays in its channel and reaches all later tokens", "[scan]") {
  Rng rng(test_seed);
  Workspace workspace;
  for (const Index channels : {9, 80}) {
    for (const bool slow : {false, true}) {
      Inputs<float> inputs(9001, channels, 2, 1, 1, rng);
      inputs.make_decays(0, slow, rng);
      inputs.rows(17, channels + 3) = std::numeric_limits<float>::infinity();
      inputs.rows(5000, channels + 5) = std::numeric_limits<float>::quiet_NaN();
      inputs.state(0, 7) = -std::numeric_limits<float>::infinity();
      run_real(inputs, 0, inputs.length, workspace);
      for (Index t = 0; t < inputs.length; ++t) {
        for (Index c = 0; c < channels; ++c) {
          const bool finite = !((c == 3 && t >= 17) || (c == 5 && t >= 5000) || c == 7);
          if (std::isfinite(inputs.y(t, c)) != finite) FAIL("token " << t << ", channel " << c);
        }
      }
    }
  }
}

// --- complex ----------------------------------------------------------------------------------------------------------

template <class T>
void run_complex(Inputs<T>& inputs, const Vector<T>& phase, Index begin, Index count, Workspace& workspace) {
  const auto g = inputs.stream(0).rows(begin, count);
  const auto real = inputs.stream(1).rows(begin, count), imag = inputs.stream(2).rows(begin, count);
  const Vector<T> cosine = phase.array().cos(), sine = phase.array().sin();
  const Token<const T> cosines(cosine), sines(sine);
  const auto elements = [&](Index t, const auto& read) SEQMIX_INLINE_LAMBDA {
    const Batch<T> a = exp_decay(read(g, t));
    return ComplexDiagonal::Step<Batch<T>>{a * read(cosines), a * read(sines), read(real, t), read(imag, t)};
  };
  workspace.poison();
  scan<ComplexDiagonal>(elements, inputs.state_view(), inputs.output(2, begin, count), workspace);
}

TEMPLATE_TEST_CASE("complex scan, any length and number of channels, in pieces", "[scan]", float, double) {
  using T = TestType;
  using Complex = std::complex<double>;
  Rng rng(test_seed);
  Workspace workspace;
  for (const auto& [length, channels, slow] : cases) {
    Inputs<T> inputs(length, channels, 3, 2, 2, rng);
    inputs.make_decays(0, slow, rng);
    const Vector<T> phase = Vector<T>::NullaryExpr(channels, [&] { return T(rng.uniform(-3, 3)); });
    const Matrix<T> initial = inputs.state;
    for (const bool pieces : {false, true}) {
      INFO(length << " tokens of " << channels << " channels" << (pieces ? " in pieces" : ""));
      inputs.state = initial;
      if (pieces) {
        const Index cut = length / 3;
        run_complex(inputs, phase, 0, cut, workspace);
        run_complex(inputs, phase, cut, length - cut, workspace);
      } else {
        run_complex(inputs, phase, 0, length, workspace);
      }
      Worst worst;
      for (Index c = 0; c < channels; ++c) {
        Complex h(double(initial(0, c)), double(initial(1, c)));
        const Complex turn(std::cos(double(phase[c])), std::sin(double(phase[c])));
        double size = std::abs(h), error = 0;
        for (Index t = 0; t < length; ++t) {
          const double g = double(inputs.stream(0)(t, c)), a = std::exp(g);
          const Complex x(double(inputs.stream(1)(t, c)), double(inputs.stream(2)(t, c)));
          // The phase is that of rounded sines and cosines.
          error = a == 0 ? 0 : a * error + a * size * (24 - 2 * std::max(g, -1000.0)) * u<T>;
          h = (a == 0 ? 0 : a * turn * h) + x, size = a * size + std::abs(x), error += 6 * size * u<T>;
          const double allowed = error + tiny<T> * size + tiny<T>;
          worst.add(double(inputs.y(t, c)), h.real(), allowed, t, c);
          worst.add(double(inputs.y(t, channels + c)), h.imag(), allowed, t, c);
        }
        if (length == 0) continue;
        worst.add(double(inputs.state(0, c)), h.real(), error + tiny<T> * (1 + size), length, c);
        worst.add(double(inputs.state(1, c)), h.imag(), error + tiny<T> * (1 + size), length, c);
      }
      INFO(worst.where);
      CHECK(worst.excess <= 1);
    }
  }
}

// --- threads ----------------------------------------------------------------------------------------------------------

TEST_CASE("scans give the same bits on any executor", "[scan]") {
  for (const auto& [length, channels, slow] : {Case{9001, 3, true}, Case{5000, 40, true}, Case{100, 200, false}}) {
    std::vector<Matrix<float>> expected;
    for (const auto& [name, executor] : all_executors()) {
      INFO(name << ", " << length << " tokens of " << channels << " channels");
      Rng rng(test_seed);
      Workspace workspace(*executor);
      std::vector<Matrix<float>> results;
      const auto keep = [&](Inputs<float>& inputs) { results.push_back(inputs.y), results.push_back(inputs.state); };
      const Vector<float> w = Vector<float>::Constant(channels, -0.01f);
      Inputs<float> complex(length, channels, 3, 2, 2, rng), real(length, channels, 2, 1, 1, rng);
      complex.make_decays(0, slow, rng), real.make_decays(0, slow, rng);
      run_complex(complex, w, 0, length, workspace), keep(complex);
      run_real(real, 0, length, workspace), keep(real);
      if (expected.empty()) expected = results;
      for (std::size_t i = 0; i < results.size(); ++i) {
        CHECK(std::memcmp(results[i].data(), expected[i].data(), std::size_t(results[i].size()) * sizeof(float)) == 0);
      }
    }
  }
}

}  // namespace
}  // namespace seqmix::test
