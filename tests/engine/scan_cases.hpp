// Streams, errors and sizes for the tests of elementwise scans.
#pragma once

#include <cmath>
#include <limits>
#include <seqmix/core/random.hpp>
#include <seqmix/core/tensor.hpp>
#include <seqmix/core/view.hpp>
#include <string>

namespace seqmix::test {

inline constexpr double infinity = std::numeric_limits<double>::infinity();

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
inline constexpr double u = double(std::numeric_limits<T>::epsilon()) / 2;
/// Room for the T steps in which products may have become 0.
template <class T>
inline constexpr double tiny = 64 * double(std::numeric_limits<T>::min());

struct Case {
  Index length, channels;
  bool slow;
};
// Segments where channels are few and tokens thousands.
inline constexpr Case cases[] = {{0, 5, false},    {1, 1, false},    {2, 3, true},     {31, 8, false},
                                 {32, 33, false},  {33, 64, true},   {257, 100, true}, {513, 19, false},
                                 {4096, 8, true},  {5000, 8, false}, {9001, 3, true},  {40000, 1, true},
                                 {8200, 45, true}, {4100, 70, false}};

}  // namespace seqmix::test
