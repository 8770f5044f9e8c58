// RWKV-4: the core function and the layer.
#include <algorithm>
#include <cmath>
#include <seqmix/recurrent/rwkv4.hpp>
#include <string>
#include <vector>

#include "support/golden.hpp"
#include "support/reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

// --- golden cases -----------------------------------------------------------------------------------------------------

/// The rows of the state in files, in the order of LogAverage.
constexpr const char* state_rows[] = {"pp", "aa", "bb"};

/// Reads [3, C] from the rows that a file has.
template <class T, class Array>
void read_average(GoldenCase& golden, Index channels, Array& average) {
  for (Index r = 0; r < 3; ++r) {
    const std::string name = std::string("input.state.") + state_rows[r];
    if (golden.has(name)) golden.copy(name, std::span<T>(average.data() + r * channels, std::size_t(channels)));
  }
}

/// Sums over e^p mean the same over any p, which is rounded: they are given over the expected one.
template <class Array>
void collect_average(const Array& average, Index channels, const std::vector<double>& expected,
                     GoldenOutputs& outputs) {
  for (Index r = 0; r < 3; ++r) {
    std::vector<double> row(average.data() + r * channels, average.data() + (r + 1) * channels);
    for (std::size_t c = 0; r > 0 && c < expected.size(); ++c) {
      row[c] *= std::exp(double(average.data()[c]) - expected[c]);
    }
    outputs.add(std::string("state.") + state_rows[r], row);
  }
}

/// What files say of the empty state: p before the first token, and zeros.
void check_empty_state(GoldenConfig& config) {
  auto& empty = config.object("empty_state");
  empty.expect("pp", log_average_empty<double>);
  empty.expect("aa", 0), empty.expect("bb", 0), empty.expect("x_prev", 0);
}

template <class T>
struct Rwkv4CoreGolden final : GoldenRunner<T> {
  explicit Rwkv4CoreGolden(GoldenCase& golden)
      : channels(golden.config().integer("channels")),
        key(golden.array<T>("input.k", {-1, channels})),
        value(golden.array<T>("input.v", {key.size(0), channels})),
        log_decay(golden.array<T>("input.w", {channels})),
        bonus(golden.array<T>("input.u", {channels})),
        output({key.size(0), channels}),
        initial({3, channels}),
        expected(golden.expected("output.state.pp")) {
    golden.config().expect("causal", true);
    golden.config().ignore("w");
    check_empty_state(golden.config());
    std::fill_n(initial.data(), channels, log_average_empty<T>);
    read_average<T>(golden, channels, initial);
  }
  Index length() const override { return key.size(0); }
  void reset() override { state = initial; }
  void run(Index begin, Index count) override {
    rwkv4<T>(key.sequence().rows(begin, count), value.sequence().rows(begin, count), log_decay.token(), bonus.token(),
             state.sequence(), output.sequence().rows(begin, count), this->workspace);
  }
  void collect(GoldenOutputs& outputs) const override {
    outputs.add("y", output);
    collect_average(state, channels, expected, outputs);
  }

  Index channels;
  GoldenArray<T> key, value, log_decay, bonus, output, initial, state;
  std::vector<double> expected;
};

template <class T>
struct Rwkv4LayerGolden final : GoldenLayer<Rwkv4<T>> {
  using Base = GoldenLayer<Rwkv4<T>>;
  using State = typename Rwkv4<T>::State;

  explicit Rwkv4LayerGolden(GoldenCase& golden)
      : Base(golden, config(golden)), expected(golden.expected("output.state.pp")) {}

  static typename Rwkv4<T>::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    typename Rwkv4<T>::Config result;
    result.channels = config.integer("n_embd");
    result.attention_channels = config.integer("dim_att", result.channels);
    config.expect("causal", true);
    check_empty_state(config);
    return result;
  }
  void read_state(GoldenCase& golden, State& state) override {
    if (golden.has("input.state.x_prev")) golden.copy("input.state.x_prev", state.previous);
    read_average<T>(golden, state.average.shape()[1], state.average);
  }
  void collect_state(const State& state, GoldenOutputs& outputs) const override {
    outputs.add("state.x_prev", state.previous);
    collect_average(state.average, state.average.shape()[1], expected, outputs);
  }

  std::vector<double> expected;
};

const GoldenRegistration<Rwkv4CoreGolden> core_golden{"rwkv4", "core"};
const GoldenRegistration<Rwkv4LayerGolden> layer_golden{"rwkv4", "layer"};

// --- the layer --------------------------------------------------------------------------------------------------------

struct Rwkv4Tests {
  static constexpr const char* name = "rwkv4";
  template <class T>
  using Mixer = Rwkv4<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    return {{"one channel", {.channels = 1}},
            {"8 channels", {.channels = 8}},
            {"5 channels, 19 of attention", {.channels = 5, .attention_channels = 19}},
            {"64 channels", {.channels = 64}},
            {"random", {.channels = rng.integer(1, 40), .attention_channels = rng.integer(1, 80)}}};
  }
  static Matrixd reference(const Rwkv4<double>::Config&, const Rwkv4<double>::Weights& weights, const Matrixd& x) {
    const Matrixd previous = shifted(x);
    const auto mixed = [&](const Vectord& mix) {
      Matrixd y(x.rows(), x.cols());
      for (Index t = 0; t < x.rows(); ++t) {
        for (Index c = 0; c < x.cols(); ++c) y(t, c) = x(t, c) * mix[c] + previous(t, c) * (1 - mix[c]);
      }
      return y;
    };
    const Matrixd r = linear(mixed(weights.mix_receptance), weights.receptance);
    const Matrixd k = linear(mixed(weights.mix_key), weights.key);
    const Matrixd v = linear(mixed(weights.mix_value), weights.value);
    Matrixd wkv(k.rows(), k.cols());
    for (Index c = 0; c < k.cols(); ++c) {
      const double w = -std::exp(weights.decay[c]);
      for (Index t = 0; t < k.rows(); ++t) {
        // Weights over the largest, as e^k may be too large for a number.
        const auto exponent = [&](Index s) {
          return s == t ? weights.bonus[c] + k(t, c) : double(t - 1 - s) * w + k(s, c);
        };
        double largest = exponent(t), above = 0, below = 0;
        for (Index s = 0; s < t; ++s) largest = std::max(largest, exponent(s));
        for (Index s = 0; s <= t; ++s) {
          const double weight = std::exp(exponent(s) - largest);
          above += weight * v(s, c), below += weight;
        }
        wkv(t, c) = sigmoid(r(t, c)) * above / below;
      }
    }
    return linear(wkv, weights.output);
  }
};

/// Keys of a hundred and more, decays that forget at once and others that never do.
struct ExtremeRwkv4Tests : Rwkv4Tests {
  static constexpr const char* name = "rwkv4, extreme keys and decays";

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng&) {
    return {{"24 channels", {.channels = 24}}};
  }
  static Rwkv4<double>::Weights weights(const Rwkv4<double>::Config& config, Rng& rng) {
    auto result = Rwkv4<double>::random_weights(config, rng);
    stir(result, rng);
    for (Index c = 0; c < result.key.rows(); ++c) {
      result.key.row(c) *= std::exp(rng.uniform(0, 4));
      result.decay[c] = rng.uniform(-16, 7);
    }
    return result;
  }
};

const MixerRegistration<Rwkv4Tests> mixer;
const MixerRegistration<ExtremeRwkv4Tests> extreme_mixer;

}  // namespace
}  // namespace seqmix::test
