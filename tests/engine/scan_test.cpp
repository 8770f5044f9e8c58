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

#include "support/executors.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

/// Streams of numbers, [length, several times channels], some of them log decays; a state; and a run over some of the tokens.
template <class T>
struct Inputs {
  Inputs(Index of_length, Index of_channels, Index streams, Index state_rows, Index output_rows, Rng& rng)
      : length(of_length),
        channels(of_channels),
        rows(of_length, streams * of_channels + 3),
        state(state_rows, of_channels + 1),
        y(of_length, output_rows * of_channels + 2) {
    for (Index i = 0; i < rows.size(); ++i) rows.data()[i] = T(rng.normal());
    for (Index i = 0; i < state.size(); ++i) state.data()[i] = T(rng.normal());
    y.setConstant(std::numeric_limits<T>::quiet_NaN());
  }
  Sequence<const T> stream(Index which) const { return ConstSequence<T>(rows).columns(which * channels, channels); }
  Sequence<T> state_view() { return Sequence<T>(state).columns(0, channels); }
  Sequence<T> output(Index output_rows, Index begin, Index count) {
    return Sequence<T>(y).columns(0, output_rows * channels).rows(begin, count);
  }
  /// Stream `which` becomes log decays, most of which hold on for long where `slow`.
  void make_decays(Index which, bool slow, Rng& rng) {
    constexpr double all[] = {0, -1e-7, -0.01, -0.3, -0.7, -3, -40, -500, -infinity}, some[] = {0, -1e-7, -1e-4, -1e-3};
    for (Index t = 0; t < length; ++t) {
      for (Index c = 0; c < channels; ++c) {
        rows(t, which * channels + c) = T(slow ? some[rng.integer(0, 3)] : all[rng.integer(0, 8)]);
      }
    }
  }

  Index length, channels;
  Matrix<T> rows, state, y;
};

/// Keeps the worst excess of differences over what is allowed.
struct Worst {
  double excess = 0;
  std::string where;
  void add(double given, double expected, double allowed, Index t, Index c) {
    const double difference = std::abs(given - expected);
    if (difference == 0) return;
    const double now = std::isnan(difference) ? infinity : difference / allowed;
    if (now <= excess) return;
    excess = now;
    where = "token " + std::to_string(t) + ", channel " + std::to_string(c) + ": " + std::to_string(given) +
            ", expected " + std::to_string(expected) + ", allowed " + std::to_string(allowed);
  }
};

template <class T>
constexpr double u = double(std::numeric_limits<T>::epsilon()) / 2;
/// Room for the T steps in which products may have become 0.
template <class T>
constexpr double tiny = 64 * double(std::numeric_limits<T>::min());

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

struct Case {
  Index length, channels;
  bool slow;
};
// Segments where channels are few and tokens thousands.
constexpr Case cases[] = {{0, 5, false},   {1, 1, false},    {2, 3, true},     {31, 8, false},   {32, 33, false},
                          {33, 64, true},  {257, 100, true}, {513, 19, false}, {4096, 8, true},  {5000, 8, false},
                          {9001, 3, true}, {40000, 1, true}, {8200, 45, true}, {4100, 70, false}};

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

// --- averages in log space --------------------------------------------------------------------------------------------

template <class T>
void run_average(Inputs<T>& inputs, const Vector<T>& decay, const Vector<T>& bonus, Index begin, Index count,
                 Workspace& workspace) {
  const auto k = inputs.stream(0).rows(begin, count), v = inputs.stream(1).rows(begin, count);
  const Token<const T> w(decay), b(bonus);
  const auto elements = [&](Index t, const auto& read) SEQMIX_INLINE_LAMBDA {
    return LogAverage::Step<Batch<T>>{read(w), read(b), read(k, t), read(v, t)};
  };
  workspace.poison();
  scan<LogAverage>(elements, inputs.state_view(), inputs.output(1, begin, count), workspace);
}

TEMPLATE_TEST_CASE("running average, any length and number of channels, in pieces", "[scan]", float, double) {
  using T = TestType;
  Rng rng(test_seed);
  Workspace workspace;
  constexpr double decays[] = {-1e-7, -0.001, -0.1, -2, -50, -500, -infinity};
  for (const auto& [length, channels, slow] : cases) {
    for (const double spread : {1.0, 60.0}) {
      Inputs<T> inputs(length, channels, 2, 3, 1, rng);
      inputs.rows.leftCols(channels) *= T(spread);
      if (length > 40) inputs.rows(40, 0) = -std::numeric_limits<T>::infinity();
      const Vector<T> w =
          Vector<T>::NullaryExpr(channels, [&, few = slow] { return T(decays[rng.integer(0, few ? 2 : 6)]); });
      const Vector<T> bonus = Vector<T>::NullaryExpr(channels, [&] { return T(rng.normal()); });
      inputs.state.setZero();
      inputs.state.row(0).setConstant(log_average_empty<T>);
      const Matrix<T> initial = inputs.state;
      for (const bool pieces : {false, true}) {
        INFO(length << " tokens of " << channels << " channels, spread " << spread << (pieces ? " in pieces" : ""));
        inputs.state = initial;
        if (pieces) {
          const Index cut = length / 3;
          run_average(inputs, w, bonus, 0, cut, workspace);
          run_average(inputs, w, bonus, cut, length - cut, workspace);
        } else {
          run_average(inputs, w, bonus, 0, length, workspace);
        }
        Worst worst;
        for (Index c = 0; c < channels; ++c) {
          // Sums over e^p, the sum of the sizes of the numerator's terms, and the errors of both sums.
          double p = -1e30, numerator = 0, denominator = 0, size = 0, error = 0, numerator_error = 0;
          for (Index t = 0; t < length; ++t) {
            const double k = double(inputs.stream(0)(t, c)), v = double(inputs.stream(1)(t, c));
            const double now = std::max(p, double(bonus[c]) + k);
            const double before = std::exp(p - now), current = std::exp(double(bonus[c]) + k - now);
            const double below = before * denominator + current;
            // Differences of exponents are rounded like the exponents.
            const double exponents = std::min(std::abs(p), 1e4) + std::min(std::abs(k), 1e4);
            const double reading = (16 + 2 * exponents) * u<T>, y = (before * numerator + current * v) / below;
            const double above_error = before * numerator_error + reading * (before * size + current * std::abs(v));
            worst.add(double(inputs.y(t, c)), y,
                      (above_error + std::abs(y) * (before * error + reading * below)) / below + tiny<T>, t, c);
            const double faded = std::max(p + double(w[c]), -1e300), next = std::max(faded, k);
            const double fade = std::exp(faded - next), enter = std::exp(k - next);
            numerator = fade * numerator + enter * v;
            // Of the exponents p is the one that is added to again and again.
            const double fading = 12 + 3 * exponents + 2 * std::min(-double(w[c]), 1e3);
            const double entering = (12 + 2 * exponents) * u<T>;
            error = fade * (error + fading * u<T> * denominator) + enter * entering;
            numerator_error = fade * (numerator_error + fading * u<T> * size) + enter * std::abs(v) * entering;
            size = fade * size + enter * std::abs(v);
            denominator = fade * denominator + enter;
            p = next;
          }
        }
        INFO(worst.where);
        CHECK(worst.excess <= 1);
      }
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
      Inputs<float> averaged(length, channels, 2, 3, 1, rng);
      averaged.state.row(2) = averaged.state.row(2).cwiseAbs();
      run_average(averaged, w, w, 0, length, workspace), keep(averaged);
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
