// RWKV-5 "Eagle" time mixing, versions 5.0, 5.1 and 5.2.
//
//   Source    Peng et al. 2024, arXiv:2404.05892, section 4; BlinkDL/RWKV-LM, RWKV-v5/src/model.py
//   Glossary  L length   D channels   H heads   K = V width of one head   C = H K attention channels
//   Engine    engine/linear_recurrence.hpp with decay::PerChannel and readout::BeforeUpdate
//   Size      a core, and the layer in its three versions
//
// Core:   y_t = r_t^T (S_{t-1} + diag(u) k_t v_t^T),   S_t = diag(exp(w)) S_{t-1} + k_t v_t^T
// Layer:  r, k, v, g = projections of x_t mixed with x_{t-1};   y_t = W_o (group_norm(o_t) * silu(g_t))
// Versions differ in their tensors, which decide: 5.0 has one decay and one bonus for each head, the bonus as a logarithm
// (time_first), and no gate; 5.1 has the bonus itself (time_faaaa) and a gate; 5.2 has decays and bonuses for each channel.
#pragma once

#include <cmath>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/parameters.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/linear_recurrence.hpp>
#include <seqmix/parts/gate.hpp>
#include <seqmix/parts/linear.hpp>
#include <seqmix/parts/norm.hpp>
#include <seqmix/parts/token_shift.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// The WKV operator of RWKV-5, from and into `memory` [H, K, V]. receptance, key [L, H, K], value [L, H, V], log_decay
/// (<= 0) and bonus [H, K], output [L, H, V]. No scale. O(L H K V) time, O(H K V) scratch. Allocates nothing once
/// `workspace` is warm. Throws std::invalid_argument on shapes that do not fit and on outputs that overlap.
template <std::floating_point T>
void rwkv5(ConstHeadSequence<T> receptance, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
           ConstSequence<T> log_decay, ConstSequence<T> bonus, MemoryView<T> memory, HeadSequence<T> output,
           Workspace& workspace) {
  expect_recurrence_shapes<T>("rwkv5", receptance, key, value, memory, output);
  expect_shape("rwkv5", "log_decay", {memory.heads(), memory.key_dim()}, log_decay);
  expect_shape("rwkv5", "bonus", {memory.heads(), memory.key_dim()}, bonus);
  expect_apart_from_results("rwkv5", "log_decay", log_decay, memory, output);
  expect_apart_from_results("rwkv5", "bonus", bonus, memory, output);
  linear_recurrence(
      LinearRecurrenceProblem<T, decay::PerChannel<T>, readout::BeforeUpdate<T>>{
          receptance, key, value, {log_decay}, {bonus}, {}, T(1), memory, output},
      workspace);
}

/// The time-mixing layer of RWKV-5.
template <std::floating_point T>
class Rwkv5 : public RecurrentMixerBase<Rwkv5<T>, T> {
 public:
  static constexpr std::string_view name = "rwkv5";
  static constexpr StateGrowth growth = StateGrowth::constant;

  struct Config {
    Index channels = 0;
    Index attention_channels = 0;  ///< C; 0 means channels
    Index heads = 1;
    T norm_eps = T(64e-5);  ///< of the group norm: 1e-5 times the square of the published head_size_divisor, 8
  };

  struct Weights {
    Vector<T> mix_key, mix_value, mix_receptance;  // [D], weights of the current token
    Vector<T> mix_gate;                            // [D], or absent with the gate
    Matrix<T> decay;                               // [H, 1] or [H, K]; the log decay is -exp of it
    Matrix<T> log_bonus, bonus;                    // [H, 1] or [H, K], one of the two
    Matrix<T> key, value, receptance;              // [C, D]
    Matrix<T> gate;                                // [C, D], or absent
    Matrix<T> output;                              // [D, C]
    Vector<T> norm_weight, norm_bias;              // [C]

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("time_mix_k", self.mix_key, Presence::required);
      visitor("time_mix_v", self.mix_value, Presence::required);
      visitor("time_mix_r", self.mix_receptance, Presence::required);
      visitor("time_mix_g", self.mix_gate, Presence::optional);
      visitor("time_decay", self.decay, Presence::required);
      visitor("time_first", self.log_bonus, Presence::optional);
      visitor("time_faaaa", self.bonus, Presence::optional);
      visitor("key.weight", self.key, Presence::required);
      visitor("value.weight", self.value, Presence::required);
      visitor("receptance.weight", self.receptance, Presence::required);
      visitor("gate.weight", self.gate, Presence::optional);
      visitor("output.weight", self.output, Presence::required);
      visitor("ln_x.weight", self.norm_weight, Presence::required);
      visitor("ln_x.bias", self.norm_bias, Presence::required);
    }
  };

  using State = TokenShiftState<T>;

  /// Packs the weights. Throws std::invalid_argument unless their shapes follow from `config` and they are those of one
  /// of the versions.
  Rwkv5(Config config, const Weights& weights) : config_(completed(config)) {
    const Index D = config_.channels, C = config_.attention_channels;
    expect_tensor(name, "time_mix_k", {D}, weights.mix_key);
    expect_tensor(name, "time_mix_v", {D}, weights.mix_value);
    expect_tensor(name, "time_mix_r", {D}, weights.mix_receptance);
    expect_tensor(name, "key.weight", {C, D}, weights.key);
    expect_tensor(name, "value.weight", {C, D}, weights.value);
    expect_tensor(name, "receptance.weight", {C, D}, weights.receptance);
    expect_tensor(name, "output.weight", {D, C}, weights.output);
    expect_tensor(name, "ln_x.weight", {C}, weights.norm_weight);
    expect_tensor(name, "ln_x.bias", {C}, weights.norm_bias);
    gated_ = weights.gate.size() > 0 || weights.mix_gate.size() > 0;
    if (gated_) {
      expect_tensor(name, "time_mix_g", {D}, weights.mix_gate);
      expect_tensor(name, "gate.weight", {C, D}, weights.gate);
    }
    const bool logarithmic = weights.log_bonus.size() > 0;
    expect(logarithmic != (weights.bonus.size() > 0), name, "time_first, time_faaaa", "exactly one must be given");
    log_decay_ = -per_channel("time_decay", weights.decay).array().exp();
    bonus_ = logarithmic ? Matrix<T>(per_channel("time_first", weights.log_bonus).array().exp())
                         : per_channel("time_faaaa", weights.bonus);
    mix_key_ = weights.mix_key;
    mix_value_ = weights.mix_value;
    mix_receptance_ = weights.mix_receptance;
    mix_gate_ = weights.mix_gate;
    key_ = Linear<T>(weights.key);
    value_ = Linear<T>(weights.value);
    receptance_ = Linear<T>(weights.receptance);
    if (gated_) gate_ = Linear<T>(weights.gate);
    output_ = Linear<T>(weights.output);
    norm_weight_ = weights.norm_weight;
    norm_bias_ = weights.norm_bias;
  }

  /// Version 5.2, as its authors begin a layer in the middle of a model.
  static Weights random_weights(const Config& config, Rng& rng) {
    const Config c = completed(config);
    const Index D = c.channels, C = c.attention_channels, H = c.heads;
    const auto ratio = [&](double power) {
      return Vector<T>(Vector<T>::NullaryExpr(D, [&](Index i) { return T(std::pow(double(i) / double(D), power)); }));
    };
    const auto projection = [&](Index rows, Index columns) {
      return normal_matrix<T>(rows, columns, std::pow(double(columns), -0.5), rng);
    };
    Weights weights;
    weights.mix_key = ratio(0.5);
    weights.mix_value = ratio(0.5);
    weights.mix_receptance = ratio(0.25);
    weights.mix_gate = ratio(0.25);
    weights.decay = Matrix<T>::NullaryExpr(H, C / H, [&](Index h, Index i) {
      return T(-6 + 5 * std::pow(double(h * (C / H) + i) / double(std::max<Index>(C - 1, 1)), 1.35));
    });
    weights.bonus = uniform_matrix<T>(H, C / H, 0.5, rng);
    weights.key = projection(C, D);
    weights.value = projection(C, D);
    weights.receptance = projection(C, D);
    weights.gate = projection(C, D);
    weights.output = projection(D, C);
    weights.norm_weight = Vector<T>::Ones(C);
    weights.norm_bias = Vector<T>::Zero(C);
    return weights;
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// The empty state: D + H K^2 zeros.
  State initial_state() const { return {Tensor<T>({config_.channels}), Tensor<T>(memory_shape())}; }

  /// Throws std::invalid_argument unless the state has this mixer's shapes.
  void check_state(const State& state) const {
    expect_token_shift_state(name, config_.channels, memory_shape(), state);
  }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const Index D = config_.channels, H = config_.heads;
    const auto previous = workspace.sequence<T>(x.length(), D), mixed = workspace.sequence<T>(x.length(), D);
    previous_tokens(batch, &State::previous, x, previous);
    keep_last_tokens(batch, &State::previous, x);
    const auto project = [&](const Linear<T>& linear, const Vector<T>& mix) {
      workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
        interpolate_tokens<T>(x.rows(begin, count), previous.rows(begin, count), mix, mixed.rows(begin, count));
      });
      return linear.apply(mixed, workspace);
    };
    const auto receptance = project(receptance_, mix_receptance_).heads(H);
    const auto key = project(key_, mix_key_).heads(H), value = project(value_, mix_value_).heads(H);
    const auto output = workspace.heads<T>(x.length(), H, head_dim());
    for (Index b = 0; b < batch.size(); ++b) {
      const auto rows = [&](const HeadSequence<T>& view) { return view.rows(batch.begin(b), batch.length(b)); };
      rwkv5<T>(rows(receptance), rows(key), rows(value), log_decay_, bonus_, batch.state(b).memory, rows(output),
               workspace);
    }
    const auto gate = gated_ ? project(gate_, mix_gate_) : Sequence<T>();
    workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
      const auto block = output.rows(begin, count);
      group_normalize(block, config_.norm_eps, norm_weight_, norm_bias_);
      if (gated_) multiply_silu(block.flat(), gate.rows(begin, count));
    });
    output_.apply(output.flat(), y, workspace);
  }

 private:
  Index head_dim() const { return config_.attention_channels / config_.heads; }
  Shape memory_shape() const { return {config_.heads, head_dim(), head_dim()}; }

  static Config completed(Config config) {
    if (config.attention_channels == 0) config.attention_channels = config.channels;
    expect(config.channels > 0, name, "config.channels", "must be positive");
    expect_divides(name, "config.heads", config.heads, "attention_channels", config.attention_channels);
    return config;
  }

  /// [H, K] from [H, K] or from one number for each head.
  Matrix<T> per_channel(std::string_view tensor, const Matrix<T>& given) const {
    if (given.cols() != 1) {
      expect_tensor(name, tensor, {config_.heads, head_dim()}, given);
      return given;
    }
    expect_tensor(name, tensor, {config_.heads, 1}, given);
    return given.replicate(1, head_dim());
  }

  Config config_;
  bool gated_ = false;
  Vector<T> mix_key_, mix_value_, mix_receptance_, mix_gate_;
  Linear<T> key_, value_, receptance_, gate_, output_;
  Matrix<T> log_decay_, bonus_;  // [H, K]
  Vector<T> norm_weight_, norm_bias_;
};

static_assert(RecurrentMixer<Rwkv5<float>>);

}  // namespace seqmix::inline SEQMIX_ARCH
