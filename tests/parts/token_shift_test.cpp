// Token shift: previous tokens of single sequences and batches, and the two ways to mix them.
#include <seqmix/parts/token_shift.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <seqmix/core/random.hpp>
#include <vector>

namespace {

using seqmix::Index;
using seqmix::Matrix;
using seqmix::Rng;
using seqmix::Sequence;
using seqmix::SequenceBatch;
using seqmix::Tensor;
using seqmix::Vector;

template <class T>
struct State {
  Tensor<T> last;
};

}  // namespace

TEMPLATE_TEST_CASE("previous tokens restart from each sequence's own state", "[token_shift]", float, double) {
  using T = TestType;
  Rng rng(1);
  const Index channels = 13;
  const std::vector<Index> offsets = {0, 0, 1, 4, 4, 9};
  std::vector<State<T>> states(5);
  std::vector<State<T>*> pointers;
  for (auto& state : states) {
    state.last = Tensor<T>({channels});
    for (T& number : state.last) number = T(rng.normal());
    pointers.push_back(&state);
  }
  const auto before = states;
  const SequenceBatch<State<T>> batch{pointers, offsets};
  const Matrix<T> x = seqmix::normal_matrix<T>(9, channels, 1, rng);
  Matrix<T> previous = Matrix<T>::Constant(9, channels + 2, std::numeric_limits<T>::quiet_NaN());
  seqmix::previous_tokens(batch, &State<T>::last, x, Sequence<T>(previous).columns(1, channels));
  for (Index b = 0; b < 5; ++b) {
    for (Index t = offsets[std::size_t(b)]; t < offsets[std::size_t(b) + 1]; ++t) {
      for (Index c = 0; c < channels; ++c) {
        const T expected = t == offsets[std::size_t(b)] ? before[std::size_t(b)].last[std::size_t(c)] : x(t - 1, c);
        REQUIRE(previous(t, c + 1) == expected);
      }
      REQUIRE(std::isnan(previous(t, 0)));
      REQUIRE(std::isnan(previous(t, channels + 1)));
    }
  }
  for (std::size_t b = 0; b < 5; ++b) REQUIRE(states[b].last == before[b].last);

  seqmix::keep_last_tokens(batch, &State<T>::last, x);
  for (std::size_t b = 0; b < 5; ++b) {
    if (offsets[b] == offsets[b + 1]) {
      REQUIRE(states[b].last == before[b].last);
    } else {
      for (Index c = 0; c < channels; ++c) REQUIRE(states[b].last[std::size_t(c)] == x(offsets[b + 1] - 1, c));
    }
  }
}

TEMPLATE_TEST_CASE("mixing with the previous token", "[token_shift]", float, double) {
  using T = TestType;
  Rng rng(2);
  const Index length = 3;
  // Each result is a sum of at most two products of numbers below 10 in size, rounded three times.
  const auto close = [](T given, double expected) {
    return std::abs(double(given) - expected) <= 200 * double(std::numeric_limits<T>::epsilon());
  };
  for (Index channels = 0; channels <= 4 * seqmix::lanes<T> + 1; ++channels) {
    const Matrix<T> x = seqmix::normal_matrix<T>(length, channels, 1, rng);
    const Matrix<T> previous = seqmix::normal_matrix<T>(length, channels, 1, rng);
    const Matrix<T> adjustment = seqmix::normal_matrix<T>(length, channels, 1, rng);
    const Vector<T> mix = seqmix::uniform_vector<T>(channels, 0, 1, rng);
    Matrix<T> five(length, channels), delta(length, channels), six(length, channels), adjusted(length, channels);
    seqmix::interpolate_tokens(x, previous, mix, Sequence<T>(five));
    seqmix::subtract_tokens(previous, x, Sequence<T>(delta));
    seqmix::add_difference(x, delta, mix, Sequence<T>(six));
    seqmix::add_difference(x, delta, mix, adjustment, Sequence<T>(adjusted));
    Matrix<T> in_place = delta;
    seqmix::add_difference(x, in_place, mix, adjustment, Sequence<T>(in_place));
    for (Index t = 0; t < length; ++t) {
      for (Index c = 0; c < channels; ++c) {
        const double now = double(x(t, c)), past = double(previous(t, c)), m = double(mix[c]);
        CAPTURE(channels, t, c);
        REQUIRE(close(five(t, c), now * m + past * (1 - m)));
        REQUIRE(close(delta(t, c), past - now));
        REQUIRE(close(six(t, c), now + (past - now) * m));
        REQUIRE(close(adjusted(t, c), now + (past - now) * (m + double(adjustment(t, c)))));
        REQUIRE(in_place(t, c) == adjusted(t, c));
      }
    }
  }
}

TEST_CASE("the weight is that of the current token in one form, of the previous in the other", "[token_shift]") {
  Matrix<float> x = Matrix<float>::Constant(1, 3, 5), previous = Matrix<float>::Constant(1, 3, 7), y(1, 3), delta(1, 3);
  const Vector<float> one = Vector<float>::Ones(3);
  seqmix::interpolate_tokens(x, previous, one, Sequence<float>(y));
  CHECK(y == x);
  seqmix::subtract_tokens(previous, x, Sequence<float>(delta));
  seqmix::add_difference(x, delta, one, Sequence<float>(y));
  CHECK(y == previous);
}
