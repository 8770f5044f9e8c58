// The selective scan and time-invariant diagonal systems against their equations in double.
//
// Bounds are running ones, with u half the machine epsilon: a step makes an error of a few u of what it adds up, that of a
// decay e^x is (2 |x| + 4) u of itself, and both fade as the states do.
#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <complex>
#include <cstring>
#include <limits>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/scan_selective.hpp>
#include <seqmix/engine/scan_time_invariant.hpp>
#include <string>
#include <vector>

#include "scan_cases.hpp"
#include "support/executors.hpp"
#include "support/reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

template <class T>
Matrix<T> random_matrix(Index rows, Index columns, Rng& rng) {
  return Matrix<T>::NullaryExpr(rows, columns, [&] { return T(rng.normal()); });
}

// --- selective --------------------------------------------------------------------------------------------------------

struct Sizes {
  Index length, channels, states, groups;
};
struct Options {
  bool softplus, bias, skip, gate;
};

template <class T>
struct Selective {
  /// `mild` decays leave nothing but normal numbers.
  Selective(const Sizes& of, const Options& with, Rng& rng, bool mild = false)
      : sizes(of),
        options(with),
        u_z(random_matrix<T>(of.length, 3 * of.channels + 1, rng)),
        b_c(random_matrix<T>(of.length, 2 * of.groups * of.states, rng)),
        decay(random_matrix<T>(of.channels, of.states, rng)),
        state(random_matrix<T>(of.channels, of.states, rng)),
        y(of.length, of.channels),
        skip(random_matrix<T>(of.channels, 1, rng).col(0)),
        bias(random_matrix<T>(of.channels, 1, rng).col(0)) {
    constexpr double decays[] = {-1e-7, -0.02, -0.5, -1, -4, -16, -500, -infinity};
    for (Index i = 0; i < decay.size(); ++i) decay.data()[i] = T(decays[rng.integer(0, mild ? 4 : 7)]);
    // Without softplus time constants are positive all the same. Some tokens take no time: softplus(-1000) is 0.
    auto delta = u_z.middleCols(of.channels, of.channels);
    if (!with.softplus) delta = delta.cwiseAbs(), bias = bias.cwiseAbs();
    for (Index t = 2; t < of.length; t += 7) delta(t, t % of.channels) = with.softplus ? T(-1000) : T(0);
    y.setConstant(std::numeric_limits<T>::quiet_NaN());
  }
  Sequence<const T> stream(Index which) const {
    return ConstSequence<T>(u_z).columns(which * sizes.channels, sizes.channels);
  }
  HeadSequence<const T> gates(Index which) const {
    return ConstSequence<T>(b_c)
        .columns(which * sizes.groups * sizes.states, sizes.groups * sizes.states)
        .heads(sizes.groups);
  }

  void run(Index begin, Index count, Workspace& workspace) {
    workspace.poison();
    const ConstToken<T> none;
    selective_scan<T>(
        {stream(0).rows(begin, count), stream(1).rows(begin, count), ConstSequence<T>(decay),
         gates(0).rows(begin, count), gates(1).rows(begin, count), options.skip ? ConstToken<T>(skip) : none,
         options.bias ? ConstToken<T>(bias) : none, options.gate ? stream(2).rows(begin, count) : Sequence<const T>(),
         options.softplus, Sequence<T>(state), Sequence<T>(y).rows(begin, count)},
        workspace);
  }

  Worst check(const Matrix<T>& initial) const {
    Worst worst;
    const Index N = sizes.states;
    for (Index c = 0; c < sizes.channels; ++c) {
      std::vector<double> h, size, error(std::size_t(N), 0.0);
      for (Index n = 0; n < N; ++n) h.push_back(double(initial(c, n))), size.push_back(std::abs(h.back()));
      for (Index t = 0; t < sizes.length; ++t) {
        double d = double(stream(1)(t, c)) + (options.bias ? double(bias[c]) : 0), d_error = std::abs(d) * u<T>;
        // The sum is rounded once; softplus is no steeper than 1.
        if (options.bias) d_error += 2 * (std::abs(double(stream(1)(t, c))) + std::abs(double(bias[c]))) * u<T>;
        if (options.softplus) d = softplus(d);
        const double x = double(stream(0)(t, c));
        double sum = options.skip ? double(skip[c]) * x : 0, allowed = 4 * std::abs(sum) * u<T>;
        for (Index n = 0; n < N; ++n) {
          const std::size_t i = std::size_t(n);
          // A token that takes no time leaves the states what they are.
          const double exponent = d == 0 ? 0 : d * double(decay(c, n)), a = std::exp(exponent);
          const double b = double(gates(0)(t, c / (sizes.channels / sizes.groups), n)) * x;
          const double r = double(gates(1)(t, c / (sizes.channels / sizes.groups), n));
          const double slip = std::min(std::abs(double(decay(c, n))), 1e4) * d_error;
          error[i] = a == 0 ? 0 : a * error[i] + a * size[i] * ((16 - 3 * std::max(exponent, -1e3)) * u<T> + slip);
          h[i] = (a == 0 ? 0 : a * h[i]) + d * b;
          size[i] = a * size[i] + std::abs(d * b);
          error[i] += 8 * u<T> * std::abs(d * b) + std::abs(b) * d_error + 2 * u<T> * size[i];
          sum += r * h[i];
          allowed += std::abs(r) * (error[i] + (2 * double(N) + 4) * u<T> * size[i]);
        }
        const double gate = options.gate ? silu(double(stream(2)(t, c))) : 1;
        worst.add(double(y(t, c)), sum * gate, (allowed + 8 * u<T> * std::abs(sum)) * std::abs(gate) + tiny<T>, t, c);
      }
      for (Index n = 0; n < N; ++n) {
        worst.add(double(state(c, n)), h[std::size_t(n)], error[std::size_t(n)] + tiny<T> * (1 + size[std::size_t(n)]),
                  sizes.length, c);
      }
    }
    return worst;
  }

  Sizes sizes;
  Options options;
  Matrix<T> u_z, b_c, decay, state, y;
  Vector<T> skip, bias;
};

TEMPLATE_TEST_CASE("selective scan, all options, any length, in pieces", "[scan]", float, double) {
  using T = TestType;
  Rng rng(test_seed);
  Workspace workspace;
  const Sizes all_sizes[] = {{0, 3, 2, 1},    {1, 1, 1, 1},     {1, 64, 16, 1},   {3, 37, 8, 1},   {4, 6, 5, 2},
                             {5, 130, 16, 1}, {31, 8, 16, 1},   {33, 68, 16, 4},  {65, 144, 3, 3}, {255, 8, 17, 1},
                             {256, 8, 17, 1}, {1100, 8, 16, 1}, {2100, 70, 7, 1}, {300, 5, 4, 1}};
  const Options all_options[] = {
      {true, true, true, true}, {false, false, true, false}, {true, false, false, true}, {false, true, false, false}};
  for (Index which = 0; which < 2 * Index(std::size(all_sizes)); ++which) {
    const auto& sizes = all_sizes[which / 2];
    const auto& options = all_options[which / 2 % 4];
    INFO(sizes.length << " tokens, " << sizes.channels << " channels, " << sizes.states << " states, " << sizes.groups
                      << " groups, options " << which / 2 % 4);
    Selective<T> inputs(sizes, options, rng, which % 2 == 0);
    const Matrix<T> initial = inputs.state;
    inputs.run(0, sizes.length, workspace);
    Worst worst = inputs.check(initial);
    INFO(worst.where);
    CHECK(worst.excess <= 1);
    inputs.state = initial;
    for (Index begin = 0; begin < sizes.length;) {
      const Index count = std::min(rng.integer(0, std::max<Index>(sizes.length / 2, 3)), sizes.length - begin);
      inputs.run(begin, count, workspace);
      begin += count;
    }
    worst = inputs.check(initial);
    INFO(worst.where);
    CHECK(worst.excess <= 1);
  }
}

TEST_CASE("selective scan, states that grow", "[scan]") {
  // Positive decays, or negative time constants: the states pass what a float holds, and that is infinity.
  Rng rng(test_seed);
  Workspace workspace;
  for (const Index length : {1, 40}) {
    Selective<float> inputs({length, 8, 8, 1}, {false, false, false, false}, rng);
    inputs.decay.setConstant(300), inputs.state.setOnes();
    inputs.u_z.setOnes(), inputs.b_c.setOnes();
    inputs.run(0, length, workspace);
    for (Index t = 0; t < length; ++t) {
      for (Index c = 0; c < 8; ++c) CHECK(inputs.y(t, c) == std::numeric_limits<float>::infinity());
    }
  }
}

TEST_CASE("selective scan, a time constant or a decay that is no number", "[scan]") {
  Rng rng(test_seed);
  Workspace workspace;
  for (const Index length : {40, 1100}) {
    for (const bool of_decay : {false, true}) {
      Selective<float> inputs({length, 20, 16, 1}, {false, false, false, true}, rng, true);
      if (of_decay) {
        inputs.decay(3, 5) = std::nanf("");
      } else {
        inputs.u_z(33, 20 + 3) = std::nanf("");
      }
      inputs.run(0, length, workspace);
      for (Index t = 0; t < length; ++t) {
        for (Index c = 0; c < 20; ++c) REQUIRE(std::isnan(inputs.y(t, c)) == (c == 3 && (of_decay || t >= 33)));
      }
    }
  }
}

TEST_CASE("selective scan gives the same bits on any executor", "[scan]") {
  // Few channels go through stages of some states, of which there are more for more threads.
  for (const Sizes& sizes : {Sizes{1100, 70, 16, 1}, Sizes{4201, 3, 17, 1}, Sizes{1111, 5, 7, 1}, Sizes{257, 9, 4, 3},
                             Sizes{100, 300, 9, 3}, Sizes{1, 300, 16, 1}}) {
    for (const bool all : {true, false}) {
      std::vector<Matrix<float>> expected;
      for (const auto& [name, executor] : all_executors()) {
        INFO(name << ", " << sizes.length << " tokens of " << sizes.channels << " channels");
        Rng rng(test_seed);
        Workspace workspace(*executor);
        Selective<float> inputs(sizes, {all, all, all, all}, rng);
        const Matrix<float> initial = inputs.state;
        inputs.run(0, sizes.length, workspace);
        if (expected.empty()) {
          const Worst worst = inputs.check(initial);
          INFO(worst.where);
          CHECK(worst.excess <= 1);
          expected = {inputs.y, inputs.state};
        }
        CHECK(inputs.y == expected[0]);
        CHECK(inputs.state == expected[1]);
      }
    }
  }
}

// --- time-invariant ---------------------------------------------------------------------------------------------------

template <class T, bool complex>
struct System {
  using Number = std::complex<double>;

  System(Index of_length, Index of_channels, Index of_states, Index of_outputs, bool with_skip, Rng& rng)
      : length(of_length), channels(of_channels), states(of_states), outputs(of_outputs) {
    const auto numbers = [&](Index rows) {
      return ComplexMatrix<T>{random_matrix<T>(rows, states, rng),
                              complex ? random_matrix<T>(rows, states, rng) : Matrix<T>()};
    };
    change = numbers(channels), input = numbers(channels), output = numbers(outputs * channels);
    for (Index i = 0; i < channels * states; ++i) {
      constexpr double sizes[] = {1, 1 - 1e-6, 1 - 1e-5, 0.99, 0.7, 0.1, 0};
      const double size = sizes[rng.integer(0, 6)], phase = complex ? rng.uniform(-3, 3) : 0;
      change.real.data()[i] = T(size * std::cos(phase) - 1);
      if (complex) change.imag.data()[i] = T(size * std::sin(phase));
    }
    if (with_skip) skip = random_matrix<T>(outputs * channels, 1, rng).col(0);
    x = random_matrix<T>(length, channels + 1, rng);
    initial = Tensor<T>({complex ? 2 : 1, channels, states});
    for (T& number : initial) number = T(rng.normal());
    y = Matrix<T>::Constant(length, outputs * channels, std::numeric_limits<T>::quiet_NaN());
    system = DiagonalSystem<T, complex>("test", change, input, output, skip);
    state = initial;
  }
  void run(Index begin, Index count, Workspace& workspace) {
    workspace.poison();
    system.run(ConstSequence<T>(x).columns(0, channels).rows(begin, count),
               HeadSequence<T>(state.data(), state.shape()[0], channels, states), Sequence<T>(y).rows(begin, count),
               workspace);
  }
  static Number at(const ComplexMatrix<T>& matrix, Index h, Index n) {
    return {double(matrix.real(h, n)), complex ? double(matrix.imag(h, n)) : 0};
  }
  Worst check() const {
    Worst worst;
    for (Index j = 0; j < outputs; ++j) {
      for (Index h = 0; h < channels; ++h) {
        const auto begin = [&](Index part, Index n) {
          return double(initial[std::size_t((part * channels + h) * states + n)]);
        };
        std::vector<Number> s;
        std::vector<double> size, error(std::size_t(states), 0.0);
        for (Index n = 0; n < states; ++n)
          s.emplace_back(begin(0, n), complex ? begin(1, n) : 0), size.push_back(std::abs(s.back()));
        for (Index t = 0; t < length; ++t) {
          const double in = double(x(t, h));
          double sum = skip.size() > 0 ? double(skip[j * channels + h]) * in : 0, allowed = 4 * std::abs(sum) * u<T>;
          for (Index n = 0; n < states; ++n) {
            const std::size_t i = std::size_t(n);
            const Number a = 1.0 + at(change, h, n), b = at(input, h, n), c = at(output, j * channels + h, n);
            s[i] = a * s[i] + b * in;
            // What the state was is added before what it changes by, each rounded by itself.
            error[i] = std::abs(a) * error[i] + 6 * u<T> * (size[i] + std::abs(b * in));
            size[i] = std::abs(a) * size[i] + std::abs(b * in);
            sum += (c * s[i]).real();
            allowed += std::abs(c) * (error[i] + (2 * double(states) + 4) * u<T> * size[i]);
          }
          worst.add(double(y(t, j * channels + h)), sum, allowed + tiny<T>, t, h);
        }
        for (Index n = 0; n < states; ++n) {
          const std::size_t i = std::size_t(n);
          worst.add(double(state[std::size_t(h * states + n)]), s[i].real(), error[i] + tiny<T>, length, h);
          if (complex) {
            worst.add(double(state[std::size_t((channels + h) * states + n)]), s[i].imag(), error[i] + tiny<T>, length,
                      h);
          }
        }
      }
    }
    return worst;
  }

  Index length, channels, states, outputs;
  ComplexMatrix<T> change, input, output;
  Vector<T> skip;
  Matrix<T> x, y;
  Tensor<T> initial, state;
  DiagonalSystem<T, complex> system;
};

template <class T, bool complex>
void check_systems() {
  Rng rng(test_seed);
  Workspace workspace;
  struct {
    Index length, channels, states, outputs;
  } const all[] = {{0, 3, 2, 1},  {1, 1, 1, 1},   {1, 20, 32, 1}, {3, 9, 5, 2},     {4, 8, 3, 1},     {63, 33, 16, 1},
                   {65, 7, 4, 3}, {255, 8, 5, 1}, {256, 8, 5, 1}, {1100, 3, 32, 1}, {1030, 17, 7, 2}, {300, 40, 2, 1}};
  for (const auto& [length, channels, states, outputs] : all) {
    INFO(length << " tokens, " << channels << " channels, " << states << " states, " << outputs << " outputs");
    System<T, complex> system(length, channels, states, outputs, channels % 2 == 0, rng);
    system.run(0, length, workspace);
    Worst worst = system.check();
    INFO(worst.where);
    CHECK(worst.excess <= 1);
    system.state = system.initial;
    const Index cut = length / 3, second = std::min<Index>(2, length - cut);
    system.run(0, cut, workspace), system.run(cut, second, workspace);
    system.run(cut + second, length - cut - second, workspace);
    worst = system.check();
    INFO(worst.where);
    CHECK(worst.excess <= 1);
  }
}

TEMPLATE_TEST_CASE("diagonal systems, any length, in pieces", "[scan]", float, double) {
  SECTION("real") { check_systems<TestType, false>(); }
  SECTION("complex") { check_systems<TestType, true>(); }
}

TEST_CASE("diagonal systems give the same bits on any executor", "[scan]") {
  // Few channels go through stages of some states, of which there are more for more threads.
  for (const Index length : {4201, 1100, 257, 1}) {
    for (const Index channels : {3, 20, 300}) {
      if (length == 4201 && channels == 300) continue;
      std::vector<float> expected;
      for (const auto& [name, executor] : all_executors()) {
        INFO(name << ", " << length << " tokens of " << channels << " channels");
        Rng rng(test_seed);
        Workspace workspace(*executor);
        System<float, true> system(length, channels, channels == 20 ? 23 : 10, 2, true, rng);
        system.run(0, length, workspace);
        if (expected.empty()) {
          const Worst worst = system.check();
          INFO(worst.where);
          CHECK(worst.excess <= 1);
        }
        std::vector<float> results(system.y.data(), system.y.data() + system.y.size());
        results.insert(results.end(), system.state.begin(), system.state.end());
        if (expected.empty()) expected = results;
        CHECK(results == expected);
      }
    }
  }
}

TEST_CASE("diagonal systems refuse shapes that do not fit", "[scan]") {
  const Matrix<float> three = Matrix<float>::Zero(3, 2), six = Matrix<float>::Zero(6, 2), none;
  using System = DiagonalSystem<float, true>;
  CHECK_NOTHROW(System("test", {three, three}, {three, three}, {six, six}, Vector<float>::Zero(6)));
  CHECK_THROWS_AS(System("test", {three, none}, {three, three}, {six, six}, {}), std::invalid_argument);
  CHECK_THROWS_AS(System("test", {three, three}, {six, six}, {six, six}, {}), std::invalid_argument);
  CHECK_THROWS_AS(System("test", {three, three}, {three, three}, {six, six}, Vector<float>::Zero(3)),
                  std::invalid_argument);
}

}  // namespace
}  // namespace seqmix::test
