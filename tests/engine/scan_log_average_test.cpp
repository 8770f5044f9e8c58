// The running average in log space against its equations in double.
//
// Bounds are running ones, as in scan_test.cpp. Exponents are differences of numbers that are rounded like the largest of them.
#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <seqmix/core/buffer.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/scan_log_average.hpp>
#include <seqmix/simd/streaming.hpp>
#include <vector>

#include "scan_cases.hpp"
#include "support/executors.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

template <class T>
struct Average {
  Average(Index length, Index channels, Rng& rng)
      : inputs(length, channels, 2, 3, 1, rng), decay(channels), bonus(channels) {
    for (Index c = 0; c < channels; ++c) decay[c] = T(-0.01), bonus[c] = T(rng.normal());
    clear();
  }
  void clear() {
    inputs.state.setZero();
    inputs.state.row(0).setConstant(log_average_empty<T>);
  }
  T& key(Index t, Index c) { return inputs.rows(t, c); }
  T& value(Index t, Index c) { return inputs.rows(t, inputs.channels + c); }

  void run(Index begin, Index count, Workspace& workspace) {
    workspace.poison();
    log_average<T>({inputs.stream(0).rows(begin, count), inputs.stream(1).rows(begin, count), decay, bonus,
                    inputs.state_view(), inputs.output(1, begin, count)},
                   workspace);
  }
  void run(Workspace& workspace) {
    clear();
    run(0, inputs.length, workspace);
  }
  void run_in_pieces(Rng& rng, Workspace& workspace) {
    clear();
    for (Index begin = 0; begin < inputs.length;) {
      const Index longest = rng.integer(0, 1) == 0 ? 20 : std::max<Index>(inputs.length / 2, 3);
      const Index count = std::min(rng.integer(0, longest), inputs.length - begin);
      run(begin, count, workspace);
      begin += count;
    }
  }

  void check() {
    Worst worst;
    for (Index c = 0; c < inputs.channels; ++c) {
      // Sums over e^p, the sum of the sizes of the numerator's terms, and the errors of both sums.
      double p = -1e30, numerator = 0, denominator = 0, size = 0, error = 0, numerator_error = 0;
      const double w = double(decay[c]), u_c = double(bonus[c]);
      for (Index t = 0; t < inputs.length; ++t) {
        const double k = double(key(t, c)), v = double(value(t, c));
        const double now = std::max(p, u_c + k);
        const double before = std::exp(p - now), current = std::exp(u_c + k - now);
        const double below = before * denominator + current;
        // Differences of exponents are rounded like the exponents.
        const double exponents = std::min(std::abs(p), 1e4) + std::min(std::abs(k), 1e4);
        const double reading = (16 + 2 * exponents + 2 * std::min(std::abs(u_c), 1e4)) * u<T>;
        const double y = (before * numerator + current * v) / below;
        const double above_error = before * numerator_error + reading * (before * size + current * std::abs(v));
        worst.add(double(inputs.y(t, c)), y,
                  (above_error + std::abs(y) * (before * error + reading * below)) / below + tiny<T>, t, c);
        const double faded = std::max(p + w, -1e300), next = std::max(faded, k);
        const double fade = std::exp(faded - next), enter = std::exp(k - next);
        numerator = fade * numerator + enter * v;
        // Of the exponents p is the one that is added to again and again.
        const double fading = 12 + 3 * exponents + 2 * std::min(-w, 1e3), entering = (12 + 2 * exponents) * u<T>;
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

  Inputs<T> inputs;
  Vector<T> decay, bonus;
};

template <class T>
void expect_same_bits(const Matrix<T>& a, const Matrix<T>& b) {
  REQUIRE(a.size() == b.size());
  CHECK(std::memcmp(a.data(), b.data(), std::size_t(a.size()) * sizeof(T)) == 0);
}

TEMPLATE_TEST_CASE("running average, any length and number of channels, in pieces", "[scan]", float, double) {
  using T = TestType;
  Rng rng(test_seed);
  Workspace workspace;
  constexpr double decays[] = {-1e-7, -0.001, -0.1, -2, -50, -500, -infinity};
  for (const auto& [length, channels, slow] : cases) {
    for (const double spread : {1.0, 10.0, 60.0}) {
      INFO(length << " tokens of " << channels << " channels, spread " << spread);
      Average<T> average(length, channels, rng);
      average.inputs.rows.leftCols(channels) *= T(spread);
      if (length > 40) average.key(40, 0) = -std::numeric_limits<T>::infinity();
      for (Index c = 0; c < channels; ++c) average.decay[c] = T(decays[rng.integer(0, slow ? 2 : 6)]);
      average.run(workspace);
      average.check();
      average.run_in_pieces(rng, workspace);
      average.check();
    }
  }
}

TEMPLATE_TEST_CASE("running average of keys and constants of any size", "[scan]", float, double) {
  using T = TestType;
  Rng rng(test_seed + 1);
  Workspace workspace;
  constexpr Index length = 300, channels = 75;
  constexpr double decays[] = {0, -1e-7, -0.02, -0.34, -0.35, -0.6, -3, -20, -90, -500, -infinity};
  constexpr double bonuses[] = {0, 0.5, -3, 11, -12, 30, -80, 500, -500, -5000};
  struct Keys {
    const char* name;
    double (*of)(Index t, Rng& rng);
  };
  const Keys all[] = {
      {"a hundred apart now and then", [](Index t, Rng& r) { return r.normal() + (t % 5 == 0 ? 100 : 0); }},
      {"a hundred apart at random", [](Index, Rng& r) { return r.normal() + 100.0 * double(r.integer(0, 1)); }},
      {"growing slowly", [](Index t, Rng& r) { return -40 + 0.3 * double(t) + 0.1 * r.normal(); }},
      {"growing fast", [](Index t, Rng& r) { return -400 + 12.0 * double(t) + r.normal(); }},
      {"falling slowly", [](Index t, Rng& r) { return 500 - 0.9 * double(t) + 0.1 * r.normal(); }},
      {"falling fast", [](Index t, Rng& r) { return 500 - 25.0 * double(t) + r.normal(); }},
      {"of size 500", [](Index, Rng& r) { return 500 * (double(r.integer(0, 1)) * 2 - 1); }},
      {"of size 9000", [](Index, Rng& r) { return 9000 * r.normal(); }},
      {"equal", [](Index, Rng&) { return 77.25; }},
      {"one and then small ones", [](Index t, Rng& r) { return t == 0 ? 60 : r.normal(); }},
      {"with some that are nothing",
       [](Index t, Rng& r) { return t > 0 && r.integer(0, 3) == 0 ? -infinity : 5 * r.normal(); }},
  };
  for (const Keys& keys : all) {
    INFO("keys " << keys.name);
    Average<T> average(length, channels, rng);
    for (Index c = 0; c < channels; ++c) {
      for (Index t = 0; t < length; ++t) average.key(t, c) = T(keys.of(t, rng));
      average.decay[c] = T(decays[rng.integer(0, 10)]), average.bonus[c] = T(bonuses[rng.integer(0, 9)]);
      // Where all weights are nothing there is no average.
      if (average.decay[c] == -std::numeric_limits<T>::infinity()) {
        for (Index t = 0; t < length; ++t) average.key(t, c) = std::max(average.key(t, c), T(-2000));
      }
    }
    average.run(workspace);
    average.check();
    average.run_in_pieces(rng, workspace);
    average.check();
  }
}

TEMPLATE_TEST_CASE("running average keeps its bits whatever comes later, and on any executor", "[scan]", float,
                   double) {
  using T = TestType;
  Rng rng(test_seed + 2);
  Workspace workspace;
  constexpr Index length = 43, channels = 150;
  Average<T> average(length, channels, rng);
  for (Index c = 0; c < channels; ++c) average.decay[c] = T(-std::exp(rng.uniform(-12, 2)));
  average.inputs.rows.leftCols(channels) *= T(3);
  average.run(workspace);
  const Matrix<T> rows = average.inputs.rows, y = average.inputs.y, state = average.inputs.state;
  for (const auto& [name, executor] : all_executors()) {
    INFO(name);
    Workspace other(*executor);
    average.run(other);
    expect_same_bits<T>(average.inputs.y.leftCols(channels), y.leftCols(channels));
    expect_same_bits<T>(average.inputs.state, state);
  }
  for (Index place = 1; place < length; ++place) {
    for (const double changed : {-90.0, 90.0, 400.0, 1e30, -infinity, infinity, std::nan("")}) {
      INFO("keys from " << place << " on " << changed);
      average.inputs.rows = rows;
      for (Index c = 0; c < channels; ++c)
        average.key(place + rng.integer(0, std::min<Index>(length - 1 - place, 2)), c) = T(changed);
      average.run(workspace);
      expect_same_bits<T>(average.inputs.y.topLeftCorner(place, channels), y.topLeftCorner(place, channels));
    }
  }
}

TEMPLATE_TEST_CASE("running average gives the same bits past the caches, and nothing else", "[scan]", float, double) {
  using T = TestType;
  Rng rng(test_seed + 6);
  Workspace workspace;
  constexpr Index channels = 149, row = 192, length = (Index(1) << 21) / Index(channels * sizeof(T)) + 3;
  Average<T> average(length, channels, rng);
  for (Index t = 0; t < length; ++t) average.key(t, 40) *= T(60);  // unusual weights among usual ones
  average.run(workspace);
  const Matrix<T> state = average.inputs.state;
  Buffer<T> memory(static_cast<std::size_t>(length * row), T(5));
  const Sequence<T> streamed(memory.data(), length, channels, row);
  REQUIRE(pays_to_stream(streamed));
  REQUIRE_FALSE(pays_to_stream(average.inputs.output(1, 0, length)));
  for (const auto& [name, executor] : all_executors()) {
    INFO(name);
    Workspace other(*executor);
    average.clear();
    log_average<T>({average.inputs.stream(0), average.inputs.stream(1), average.decay, average.bonus,
                    average.inputs.state_view(), streamed},
                   other);
    expect_same_bits<T>(average.inputs.state, state);
    Index different = 0, touched = 0;
    for (Index t = 0; t < length; ++t) {
      for (Index c = 0; c < row; ++c) {
        T& y = memory[static_cast<std::size_t>(t * row + c)];
        if (c < channels) different += std::memcmp(&y, &average.inputs.y(t, c), sizeof(T)) != 0;
        if (c >= channels) touched += y != T(5);
        y = T(5);
      }
    }
    CHECK(different == 0);
    CHECK(touched == 0);
  }
}

TEMPLATE_TEST_CASE("running average lies between the values, from keys of the largest size on", "[scan]", float,
                   double) {
  using T = TestType;
  Rng rng(test_seed + 3);
  Workspace workspace;
  const double largest = double(std::numeric_limits<T>::max());
  for (const double size : {1e6, 1e9, 1e30, largest / 4, largest}) {
    Average<T> average(60, 40, rng);
    for (Index c = 0; c < 40; ++c) {
      for (Index t = 0; t < 60; ++t) average.key(t, c) = T(size * rng.uniform(size > 1e29 ? 0 : -1, 1));
    }
    average.run(workspace);
    Worst worst;
    for (Index c = 0; c < 40; ++c) {
      double least = infinity, most = -infinity, largest_key = -infinity, of_largest = 0;
      for (Index t = 0; t < 60; ++t) {
        const double k = double(average.key(t, c)), v = double(average.value(t, c)), y = double(average.inputs.y(t, c));
        least = std::min(least, v), most = std::max(most, v);
        INFO("keys of size " << size << ", token " << t);
        CHECK((y >= least - 1e-5 * std::abs(least) && y <= most + 1e-5 * std::abs(most)));
        if (k > largest_key) largest_key = k, of_largest = v;
        // No other weight counts, but that the largest keys are taken to be equal. Every token rounds both sums.
        if (size < largest) worst.add(y, of_largest, 4 * double(t + 1) * u<T> * std::abs(of_largest), t, c);
      }
    }
    INFO(worst.where);
    CHECK(worst.excess <= 1);
  }
}

TEMPLATE_TEST_CASE("running average of a large key long ago", "[scan]", float, double) {
  using T = TestType;
  Rng rng(test_seed + 4);
  Workspace workspace;
  struct Case {
    double key, decay;
    Index length;
  };
  // Decays below the resolution of p, and such that are rounded to larger ones. Enough channels not to be cut in time.
  for (const auto& [key, decay, length] : {Case{1e8, -500, 400}, Case{1.7e7, -500, 400}, Case{1e10, -0.1, 2000},
                                           Case{1e6, -0.04, 5000}, Case{3e5, -0.02, 9000}, Case{1e5, -0.005, 35000}}) {
    for (const double rest : {0.0, -1.0}) {
      INFO("key " << key << ", decay " << decay << ", the others " << rest * key);
      Average<T> average(length, 70, rng);
      for (Index c = 0; c < 70; ++c) {
        average.decay[c] = T(decay), average.bonus[c] = T(c % 3 == 0 ? 0 : c % 3 == 1 ? 50 : -50);
        for (Index t = 0; t < length; ++t) {
          average.key(t, c) = t == 0 ? T(key * (1 + 0.01 * double(c))) : T(rest * key);
          average.value(t, c) = 1;
        }
      }
      const auto expect_ones = [&] { CHECK(((average.inputs.y.leftCols(70).array() - 1).abs() <= 4 * T(u<T>)).all()); };
      average.run(workspace);
      expect_ones();
      average.run_in_pieces(rng, workspace);
      expect_ones();
    }
  }
}

TEMPLATE_TEST_CASE("running average fades by its decay however it is run", "[scan]", float, double) {
  using T = TestType;
  Rng rng(test_seed + 5);
  Workspace workspace;
  constexpr Index length = 20000;
  // Few channels are cut in time, more are not.
  for (const Index channels : {7, 75}) {
    for (const double decay : {-1e-3, -1e-5, -1e-7}) {
      for (const double offset : {0.0, 1000.0}) {
        INFO(channels << " channels, decay " << decay << ", keys about " << offset);
        Average<T> average(length, channels, rng);
        average.decay.setConstant(T(decay));
        for (Index c = 0; c < channels; ++c) {
          // In whole numbers, which no p rounds: it is the decay that is looked at.
          for (Index t = 0; t < length; ++t) average.key(t, c) = T(offset + std::round(5 * double(average.key(t, c))));
        }
        const auto check = [&] {
          Worst worst;
          for (Index c = 0; c < channels; ++c) {
            // Sums over e^offset, that of the sizes of the terms above, and the errors of both: each token rounds a sum twice
            // at most; exponents of weights are rounded like the largest of them.
            long double above = 0, below = 0, size = 0, error = 0, below_error = 0;
            constexpr double rounding = 3 * u<T>;
            const double reading = (60 + 2 * offset) * u<T>;
            for (Index t = 0; t < length; ++t) {
              const double v = double(average.value(t, c));
              const long double weight = std::exp((long double)(double(average.key(t, c)) - offset));
              const long double current = weight * std::exp((long double)(average.bonus[c]));
              const long double y = (above + current * v) / (below + current);
              const long double allowed = error + current * std::abs(v) * reading +
                                          std::abs(y) * (below_error + current * reading + below * rounding);
              worst.add(double(average.inputs.y(t, c)), double(y), double(allowed / (below + current)), t, c);
              const long double fade = std::exp((long double)(average.decay[c]));
              above = fade * above + weight * v, below = fade * below + weight;
              size = fade * size + weight * std::abs(v);
              error = fade * error + rounding * size + reading * weight * std::abs(v);
              below_error = fade * below_error + rounding * below + reading * weight;
            }
          }
          INFO(worst.where);
          CHECK(worst.excess <= 1);
        };
        average.run(workspace);
        check();
        average.clear();
        for (Index t = 0; t < length; ++t) average.run(t, 1, workspace);
        check();
      }
    }
  }
}

}  // namespace
}  // namespace seqmix::test
