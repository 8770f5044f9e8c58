// Saving and restoring states: continuations keep their bits, foreign and damaged blobs are refused.
#include <array>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <limits>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/io/state.hpp>
#include <string_view>

namespace {

using namespace seqmix;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;

constexpr char first_name[] = "running_mean";
constexpr char second_name[] = "other_mixer";

/// The mean of all tokens so far, and, so that a field grows, a history of the first channel.
template <std::floating_point T, const char* Name = first_name>
class RunningMean : public RecurrentMixerBase<RunningMean<T, Name>, T> {
 public:
  static constexpr std::string_view name = Name;
  static constexpr StateGrowth growth = StateGrowth::linear;
  struct Config {
    Index channels = 0;
  };
  struct Weights {};
  struct State {
    Tensor<T> sum;      // [channels]
    Buffer<T> history;  // [position]
    Index position = 0;

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("sum", self.sum);
      visitor("history", self.history);
      visitor("position", self.position);
    }
  };

  explicit RunningMean(Config config) : config_(config) {}

  Index channels() const { return config_.channels; }
  State initial_state() const { return {Tensor<T>({config_.channels}), {}, 0}; }
  void check_state(const State& state) const {
    expect_shape(name, "sum", {config_.channels}, state.sum.shape());
    expect(state.position >= 0, name, "position", "must not be negative");
    expect_shape(name, "history", {state.position}, {Index(state.history.size())});
  }
  void advance(SequenceBatch<State> batch, ConstSequence<T> x, Sequence<T> y, Workspace&) const {
    for (Index b = 0; b < batch.size(); ++b) {
      State& state = batch.state(b);
      for (Index t = batch.begin(b); t < batch.begin(b) + batch.length(b); ++t) {
        state.history.push_back(x(t, 0));
        ++state.position;
        for (Index c = 0; c < channels(); ++c) y(t, c) = (state.sum[std::size_t(c)] += x(t, c)) / T(state.position);
      }
    }
  }

 private:
  Config config_;
};

static_assert(RecurrentMixer<RunningMean<float>>);

template <class M>
typename M::State advanced_state(const M& mixer, Index length) {
  using T = typename M::Scalar;
  Rng rng(7);
  const Matrix<T> x = normal_matrix<T>(length, mixer.channels(), 1.0, rng);
  Matrix<T> y(length, mixer.channels());
  Workspace workspace;
  auto state = mixer.initial_state();
  mixer.prefill(state, x, y, workspace);
  return state;
}

/// The blob with a checksum that fits again, as only a forger would make it.
std::vector<std::byte> resealed(std::vector<std::byte> blob) {
  blob.resize(blob.size() - 8);
  const auto sum = internal::checksum(blob);
  for (int i = 0; i < 8; ++i) blob.push_back(std::byte(sum >> (8 * i)));
  return blob;
}

TEMPLATE_TEST_CASE("a restored state continues with the same bits", "[io]", float, double) {
  const RunningMean<TestType> mixer({3});
  for (const Index length : {Index(0), Index(1), Index(17)}) {
    auto state = advanced_state(mixer, length);
    if (length == 17) {
      state.sum[0] = std::numeric_limits<TestType>::quiet_NaN();
      state.sum[1] = TestType(-0.0);
      state.sum[2] = std::numeric_limits<TestType>::denorm_min();
    }
    const auto blob = save_state(mixer, state);
    auto restored = load_state(mixer, blob);
    CHECK(restored.position == length);
    CHECK(save_state(mixer, restored) == blob);

    const Vector<TestType> x = Vector<TestType>::Random(3);
    Vector<TestType> y(3), y_restored(3);
    Workspace workspace;
    mixer.step(state, x, y, workspace);
    mixer.step(restored, x, y_restored, workspace);
    CHECK(std::memcmp(y.data(), y_restored.data(), 3 * sizeof(TestType)) == 0);
  }
}

TEST_CASE("the layout of a saved state is fixed", "[io]") {
  const RunningMean<float> mixer({1});
  auto state = mixer.initial_state();
  state.sum[0] = 1.0f;
  state.history = {-2.0f};
  state.position = 1;
  const std::string_view expected(
      "seqmix\0S"
      "\x02\0\0\0"
      "\x04\0\0\0"
      "\x0C\0\0\0running_mean"
      "\x03\0\0\0"
      "\x03\0\0\0sum"
      "f\x04\x01\x01\0\0\0\0\0\0\0\0\0\x80\x3F"
      "\x07\0\0\0history"
      "f\x04\x01\x01\0\0\0\0\0\0\0\0\0\0\xC0"
      "\x08\0\0\0position"
      "i\x08\0\x01\0\0\0\0\0\0\0",
      8 + 4 + 4 + 16 + 4 + (7 + 15) + (11 + 15) + (12 + 11));
  const auto blob = save_state(mixer, state);
  REQUIRE(blob.size() == expected.size() + 8);
  CHECK(std::memcmp(blob.data(), expected.data(), expected.size()) == 0);
  // Published test vector of FNV-1a.
  const std::byte letter[] = {std::byte('a')};
  CHECK(internal::checksum(letter) == 0xAF63DC4C8601EC8Cu);
}

TEST_CASE("foreign, truncated and altered states are refused", "[io]") {
  const RunningMean<float> mixer({3});
  const auto state = advanced_state(mixer, 5);
  const auto blob = save_state(mixer, state);

  for (std::size_t size = 0; size < blob.size(); ++size) {
    CHECK_THROWS_AS(load_state(mixer, std::span(blob).first(size)), std::invalid_argument);
  }
  auto longer = blob;
  longer.push_back({});
  CHECK_THROWS_AS(load_state(mixer, longer), std::invalid_argument);
  for (std::size_t bit = 0; bit < 8 * blob.size(); ++bit) {
    auto altered = blob;
    altered[bit / 8] ^= std::byte(1u << (bit % 8));
    CHECK_THROWS_AS(load_state(mixer, altered), std::invalid_argument);
  }

  const auto refusal = [&](const auto& other, const std::string& problem) {
    CHECK_THROWS_MATCHES(load_state(other, blob), std::invalid_argument, MessageMatches(ContainsSubstring(problem)));
  };
  refusal(RunningMean<float, second_name>({3}), "other_mixer: saved state: belongs to operator \"running_mean\"");
  refusal(RunningMean<double>({3}), "running_mean: saved state: its scalar type has 4 bytes");
  refusal(RunningMean<float>({4}), "running_mean: sum: expected shape [4], given [3]");
  CHECK_THROWS_MATCHES(load_state(mixer, std::span(blob).first(blob.size() - 1)), std::invalid_argument,
                       MessageMatches(ContainsSubstring("truncated or altered")));
  CHECK_THROWS_MATCHES(load_state(mixer, std::array<std::byte, 64>{}), std::invalid_argument,
                       MessageMatches(ContainsSubstring("not a saved state")));
  auto newer = blob;
  newer[8] = std::byte(3);
  CHECK_THROWS_MATCHES(load_state(mixer, resealed(newer)), std::invalid_argument,
                       MessageMatches(ContainsSubstring("unknown version 3")));

  auto wrong = state;
  wrong.position = 4;
  CHECK_THROWS_AS(save_state(mixer, wrong), std::invalid_argument);
}

TEST_CASE("forged states are restored or refused, nothing else", "[io]") {
  const RunningMean<float> mixer({3});
  const auto blob = save_state(mixer, advanced_state(mixer, 5));
  Rng rng(3);
  for (int round = 0; round < 20'000; ++round) {
    auto forged = blob;
    for (Index edit = rng.integer(1, 3); edit > 0 && forged.size() > 16; --edit) {
      const Index place = rng.integer(8, Index(forged.size()) - 9);
      if (rng.integer(0, 2) == 0) {
        forged.erase(forged.begin() + place);
      } else {
        forged[std::size_t(place)] = std::byte(rng.integer(0, 1) == 0 ? rng.bits() : 0xFF);
      }
    }
    try {
      mixer.check_state(load_state(mixer, resealed(forged)));
    } catch (const std::invalid_argument&) {
    }
  }
}

TEST_CASE("batches take vectors of states", "[io]") {
  const RunningMean<float> mixer({2});
  auto first = mixer.initial_state(), second = first;
  const std::vector<RunningMean<float>::State*> states = {&first, &second};
  const std::vector<Index> offsets = {0, 1, 3};
  const Matrix<float> x = Matrix<float>::Ones(3, 2);
  Matrix<float> y(3, 2);
  Workspace workspace;
  mixer.prefill(states, offsets, x, y, workspace);
  const Matrix<float> tokens = x.topRows(2);
  Matrix<float> results(2, 2);
  mixer.step(states, tokens, results, workspace);
  CHECK(first.position == 2);
  CHECK(second.position == 3);
}

}  // namespace
