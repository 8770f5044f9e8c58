// RWKV-4 time mixing.
//
//   Source    Peng et al. 2023, arXiv:2305.13048, sections 3.1 and 3.2; BlinkDL/RWKV-LM, RWKV-v4neo/math_demo/run.py
//   Glossary  L length   D channels   C attention channels
//   Engine    engine/scan_log_average.hpp
//   Size      a core, a layer, and the state that both share
//
// Core:   y_t = (sum over s < t of e^((t - 1 - s) w + k_s) v_s + e^(u + k_t) v_t) / (the same sums without v)
// Layer:  r, k, v = projections of x_t mixed with x_{t-1};   y_t = W_o (sigmoid(r_t) * wkv_t),   w = -exp(time_decay)
// A state is the sums (numerator, denominator) over e^p, and p, the largest exponent: aa, bb and pp in the authors' code.
#pragma once

#include <algorithm>
#include <cmath>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/parameters.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/scan_log_average.hpp>
#include <seqmix/parts/gate.hpp>
#include <seqmix/parts/linear.hpp>
#include <seqmix/parts/token_shift.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// The WKV operator of RWKV-4 from and into `state` [3, C]: the rows p, numerator, denominator; p = log_average_empty and
/// zeros before the first token. key, value, output [L, C], log_decay (<= 0, -infinity allowed) and bonus [C]. Any finite key
/// is legal. O(L C) time, O(C) scratch. Allocates nothing once `workspace` is warm. Throws std::invalid_argument on shapes that
/// do not fit and on results that overlap another argument.
template <std::floating_point T>
void rwkv4(ConstSequence<T> key, ConstSequence<T> value, ConstToken<T> log_decay, ConstToken<T> bonus,
           Sequence<T> state, Sequence<T> output, Workspace& workspace) {
  const Index L = output.length(), C = output.channels();
  expect_shape("rwkv4", "key", {L, C}, key);
  expect_shape("rwkv4", "value", {L, C}, value);
  expect_shape("rwkv4", "log_decay", {C}, log_decay);
  expect_shape("rwkv4", "bonus", {C}, bonus);
  expect_shape("rwkv4", "state", {LogAverage::state_rows, C}, state);
  const auto alone = [&](std::string_view name, const auto& argument) {
    expect_disjoint("rwkv4", "output", output, name, argument);
    expect_disjoint("rwkv4", "state", state, name, argument);
  };
  alone("key", key), alone("value", value), alone("log_decay", log_decay), alone("bonus", bonus);
  expect_disjoint("rwkv4", "output", output, "state", state);
  log_average<T>({key, value, log_decay, bonus, state, output}, workspace);
}

/// The time-mixing layer of RWKV-4.
template <std::floating_point T>
class Rwkv4 : public RecurrentMixerBase<Rwkv4<T>, T> {
 public:
  static constexpr std::string_view name = "rwkv4";
  static constexpr StateGrowth growth = StateGrowth::constant;

  struct Config {
    Index channels = 0;
    Index attention_channels = 0;  ///< C; 0 means channels
  };

  struct Weights {
    Vector<T> mix_key, mix_value, mix_receptance;  // [D], weights of the current token
    Vector<T> decay;                               // [C]; the log decay is -exp of it
    Vector<T> bonus;                               // [C], a logarithm
    Matrix<T> key, value, receptance;              // [C, D]
    Matrix<T> output;                              // [D, C]

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("time_mix_k", self.mix_key, Presence::required);
      visitor("time_mix_v", self.mix_value, Presence::required);
      visitor("time_mix_r", self.mix_receptance, Presence::required);
      visitor("time_decay", self.decay, Presence::required);
      visitor("time_first", self.bonus, Presence::required);
      visitor("key.weight", self.key, Presence::required);
      visitor("value.weight", self.value, Presence::required);
      visitor("receptance.weight", self.receptance, Presence::required);
      visitor("output.weight", self.output, Presence::required);
    }
  };

  struct State {
    Tensor<T> previous;  // [D], the last token of the input
    Tensor<T> average;   // [3, C]: p, numerator, denominator

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("previous", self.previous), visitor("average", self.average);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless their shapes follow from `config`.
  Rwkv4(const Config& config, const Weights& weights) : config_(completed(config)) {
    const Index D = config_.channels, C = config_.attention_channels;
    expect_tensor(name, "time_mix_k", {D}, weights.mix_key);
    expect_tensor(name, "time_mix_v", {D}, weights.mix_value);
    expect_tensor(name, "time_mix_r", {D}, weights.mix_receptance);
    expect_tensor(name, "time_decay", {C}, weights.decay);
    expect_tensor(name, "time_first", {C}, weights.bonus);
    expect_tensor(name, "key.weight", {C, D}, weights.key);
    expect_tensor(name, "value.weight", {C, D}, weights.value);
    expect_tensor(name, "receptance.weight", {C, D}, weights.receptance);
    expect_tensor(name, "output.weight", {D, C}, weights.output);
    mix_key_ = weights.mix_key;
    mix_value_ = weights.mix_value;
    mix_receptance_ = weights.mix_receptance;
    log_decay_ = -weights.decay.array().exp();
    bonus_ = weights.bonus;
    key_ = Linear<T>(weights.key);
    value_ = Linear<T>(weights.value);
    receptance_ = Linear<T>(weights.receptance);
    output_ = Linear<T>(weights.output);
  }

  /// As the authors begin a layer in the middle of a model; the projections normal.
  static Weights random_weights(const Config& config, Rng& rng) {
    const Config c = completed(config);
    const Index D = c.channels, C = c.attention_channels;
    const auto ratio = [&](double power) {
      return Vector<T>(Vector<T>::NullaryExpr(D, [&](Index i) { return T(std::pow(double(i) / double(D), power)); }));
    };
    const auto projection = [&](Index rows, Index columns) {
      return normal_matrix<T>(rows, columns, std::pow(double(columns), -0.5), rng);
    };
    Weights weights;
    weights.mix_key = ratio(0.5);
    weights.mix_value = ratio(0.5).array() + T(0.15);
    weights.mix_receptance = ratio(0.25);
    weights.decay = Vector<T>::NullaryExpr(
        C, [&](Index i) { return T(-5 + 8 * std::pow(double(i) / double(std::max<Index>(C - 1, 1)), 1.35)); });
    weights.bonus = Vector<T>::NullaryExpr(
        C, [](Index i) { return T(std::log(0.3) + 0.5 * double((i + 1) % 3 - 1)); });  // a zigzag
    weights.key = projection(C, D);
    weights.value = projection(C, D);
    weights.receptance = projection(C, D);
    weights.output = projection(D, C);
    return weights;
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// The empty state: D zeros, and an empty average.
  State initial_state() const {
    State state{Tensor<T>({config_.channels}), Tensor<T>({LogAverage::state_rows, config_.attention_channels})};
    std::fill_n(state.average.begin(), config_.attention_channels, log_average_empty<T>);
    return state;
  }

  /// Throws std::invalid_argument unless the state has this mixer's shapes.
  void check_state(const State& state) const {
    expect_shape(name, "state.previous", {config_.channels}, state.previous.shape());
    expect_shape(name, "state.average", {LogAverage::state_rows, config_.attention_channels}, state.average.shape());
  }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const Index D = config_.channels, C = config_.attention_channels;
    const auto previous = workspace.sequence<T>(x.length(), D), mixed = workspace.sequence<T>(x.length(), D);
    previous_tokens(batch, &State::previous, x, previous);
    keep_last_tokens(batch, &State::previous, x);
    const auto project = [&](const Linear<T>& linear, const Vector<T>& mix) {
      workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
        interpolate_tokens<T>(x.rows(begin, count), previous.rows(begin, count), mix, mixed.rows(begin, count));
      });
      return linear.apply(mixed, workspace);
    };
    const auto receptance = project(receptance_, mix_receptance_);
    const auto key = project(key_, mix_key_), value = project(value_, mix_value_);
    const auto averaged = workspace.sequence<T>(x.length(), C);
    for (Index b = 0; b < batch.size(); ++b) {
      const auto rows = [&](const Sequence<T>& view) { return view.rows(batch.begin(b), batch.length(b)); };
      rwkv4<T>(rows(key), rows(value), log_decay_, bonus_, {batch.state(b).average.data(), LogAverage::state_rows, C},
               rows(averaged), workspace);
    }
    workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
      multiply_sigmoid(averaged.rows(begin, count), receptance.rows(begin, count));
    });
    output_.apply(averaged, y, workspace);
  }

 private:
  static Config completed(Config config) {
    if (config.attention_channels == 0) config.attention_channels = config.channels;
    expect(config.channels > 0, name, "config.channels", "must be positive");
    expect(config.attention_channels > 0, name, "config.attention_channels", "must be positive");
    return config;
  }

  Config config_;
  Vector<T> mix_key_, mix_value_, mix_receptance_;  // [D]
  Vector<T> log_decay_, bonus_;                     // [C]
  Linear<T> key_, value_, receptance_, output_;
};

static_assert(RecurrentMixer<Rwkv4<float>>);

}  // namespace seqmix::inline SEQMIX_ARCH
