// RWKV-6 "Finch" time mixing.
//
//   Source    Peng et al. 2024, arXiv:2404.05892, section 4; BlinkDL/RWKV-LM, RWKV-v5/src/model.py, RWKV_Tmix_x060
//   Glossary  L length   D channels   H heads   K = V width of one head   C = H K   M, R ranks of the adjustments
//   Engine    engine/linear_recurrence.hpp with decay::PerTokenChannel and readout::BeforeUpdate
//   Size      a core, and a layer with five interpolations that depend on the input
//
// Core:   y_t = r_t^T (S_{t-1} + diag(u) k_t v_t^T),   S_t = diag(exp(w_t)) S_{t-1} + k_t v_t^T
// Layer:  d_t = x_{t-1} - x_t,   z = tanh((x + d maa_x) W1),   x_i = x + d (maa_i + z_i W2_i)  for i in w, k, v, r, g
//         r, k, v = projections of x_r, x_k, x_v;   w = -exp(time_decay + tanh(x_w Wd1) Wd2)
//         y = W_o (group_norm(o) * silu(W_g x_g))
// The decay w_t acts on what the tokens before t have left, after token t has read it.
#pragma once

#include <array>
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

/// The WKV operator of RWKV-6, from and into `memory` [H, K, V]. receptance, key, log_decay (<= 0, -infinity allowed)
/// [L, H, K], value [L, H, V], bonus [H, K], output [L, H, V]. No scale. O(L H K V) time, O(H K V) scratch. Allocates
/// nothing once `workspace` is warm. Throws std::invalid_argument on shapes that do not fit and on outputs that overlap.
template <std::floating_point T>
void rwkv6(ConstHeadSequence<T> receptance, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
           ConstHeadSequence<T> log_decay, ConstSequence<T> bonus, MemoryView<T> memory, HeadSequence<T> output,
           Workspace& workspace) {
  expect_recurrence_shapes<T>("rwkv6", receptance, key, value, memory, output);
  expect_shape("rwkv6", "log_decay", {output.length(), memory.heads(), memory.key_dim()}, log_decay);
  expect_shape("rwkv6", "bonus", {memory.heads(), memory.key_dim()}, bonus);
  expect_apart_from_results("rwkv6", "log_decay", log_decay, memory, output);
  expect_apart_from_results("rwkv6", "bonus", bonus, memory, output);
  linear_recurrence(
      LinearRecurrenceProblem<T, decay::PerTokenChannel<T>, readout::BeforeUpdate<T>>{
          receptance, key, value, {log_decay}, {bonus}, {}, T(1), memory, output},
      workspace);
}

/// The time-mixing layer of RWKV-6.
template <std::floating_point T>
class Rwkv6 : public RecurrentMixerBase<Rwkv6<T>, T> {
 public:
  static constexpr std::string_view name = "rwkv6";
  static constexpr StateGrowth growth = StateGrowth::constant;

  struct Config {
    Index channels = 0;
    Index attention_channels = 0;  ///< C; 0 means channels
    Index heads = 1;
    Index mix_rank = 32;    ///< M
    Index decay_rank = 64;  ///< R
    T norm_eps = T(64e-5);  ///< of the group norm
  };

  /// The inputs that get a mix of their own, in the order of the checkpoint's adjustment matrices.
  static constexpr std::array<const char*, 5> inputs = {"w", "k", "v", "r", "g"};

  struct Weights {
    Vector<T> mix_all;                       // [D], maa_x
    std::array<Vector<T>, 5> mix;            // [D] each, maa_w, k, v, r, g
    Matrix<T> mix_down;                      // [D, 5 M]
    Matrix<T> mix_up;                        // [5 M, D]
    Vector<T> decay;                         // [C]
    Matrix<T> decay_down, decay_up;          // [D, R], [R, C]
    Matrix<T> bonus;                         // [H, K]
    Matrix<T> receptance, key, value, gate;  // [C, D]
    Matrix<T> output;                        // [D, C]
    Vector<T> norm_weight, norm_bias;        // [C]

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("time_maa_x", self.mix_all, Presence::required);
      for (std::size_t i = 0; i < inputs.size(); ++i) {
        visitor(std::string("time_maa_") + inputs[i], self.mix[i], Presence::required);
      }
      visitor("time_maa_w1", self.mix_down, Presence::required);
      visitor("time_maa_w2", self.mix_up, Presence::required);
      visitor("time_decay", self.decay, Presence::required);
      visitor("time_decay_w1", self.decay_down, Presence::required);
      visitor("time_decay_w2", self.decay_up, Presence::required);
      visitor("time_faaaa", self.bonus, Presence::required);
      visitor("receptance.weight", self.receptance, Presence::required);
      visitor("key.weight", self.key, Presence::required);
      visitor("value.weight", self.value, Presence::required);
      visitor("gate.weight", self.gate, Presence::required);
      visitor("output.weight", self.output, Presence::required);
      visitor("ln_x.weight", self.norm_weight, Presence::required);
      visitor("ln_x.bias", self.norm_bias, Presence::required);
    }
  };

  using State = TokenShiftState<T>;

  /// Packs the weights. Throws std::invalid_argument unless their shapes follow from `config`.
  Rwkv6(Config config, const Weights& weights)
      : config_(completed(config)), mix_all_(weights.mix_all), mix_(weights.mix) {
    const Index D = config_.channels, C = config_.attention_channels, M = config_.mix_rank, R = config_.decay_rank;
    const Index count = Index(inputs.size());
    expect_tensor(name, "time_maa_x", {D}, weights.mix_all);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      expect_tensor(name, std::string("time_maa_") + inputs[i], {D}, weights.mix[i]);
    }
    expect_tensor(name, "time_maa_w1", {D, count * M}, weights.mix_down);
    expect_tensor(name, "time_maa_w2", {count * M, D}, weights.mix_up);
    expect_tensor(name, "time_decay", {C}, weights.decay);
    expect_tensor(name, "time_decay_w1", {D, R}, weights.decay_down);
    expect_tensor(name, "time_decay_w2", {R, C}, weights.decay_up);
    expect_tensor(name, "time_faaaa", {config_.heads, head_dim()}, weights.bonus);
    expect_tensor(name, "receptance.weight", {C, D}, weights.receptance);
    expect_tensor(name, "key.weight", {C, D}, weights.key);
    expect_tensor(name, "value.weight", {C, D}, weights.value);
    expect_tensor(name, "gate.weight", {C, D}, weights.gate);
    expect_tensor(name, "output.weight", {D, C}, weights.output);
    expect_tensor(name, "ln_x.weight", {C}, weights.norm_weight);
    expect_tensor(name, "ln_x.bias", {C}, weights.norm_bias);
    // The adjustment matrices are stored [inputs, outputs], unlike all others.
    mix_down_ = Linear<T>(Matrix<T>(weights.mix_down.transpose()));
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      mix_up_[i] = Linear<T>(Matrix<T>(weights.mix_up.middleRows(Index(i) * M, M).transpose()));
    }
    decay_down_ = Linear<T>(Matrix<T>(weights.decay_down.transpose()));
    decay_up_ = Linear<T>(Matrix<T>(weights.decay_up.transpose()), weights.decay);
    bonus_ = weights.bonus;
    receptance_ = Linear<T>(weights.receptance);
    key_ = Linear<T>(weights.key);
    value_ = Linear<T>(weights.value);
    gate_ = Linear<T>(weights.gate);
    output_ = Linear<T>(weights.output);
    norm_weight_ = weights.norm_weight;
    norm_bias_ = weights.norm_bias;
  }

  /// As the authors begin a layer in the middle of a model, but for the adjustment matrices that they begin with zeros.
  static Weights random_weights(const Config& config, Rng& rng) {
    const Config c = completed(config);
    const Index D = c.channels, C = c.attention_channels, H = c.heads, count = Index(inputs.size());
    const auto ratio = [&](double power) {
      return Vector<T>(
          Vector<T>::NullaryExpr(D, [&](Index i) { return T(1 - std::pow(double(i) / double(D), power)); }));
    };
    const auto projection = [&](Index rows, Index columns) {
      return normal_matrix<T>(rows, columns, std::pow(double(columns), -0.5), rng);
    };
    Weights weights;
    weights.mix_all = ratio(0.5);
    weights.mix = {ratio(0.5), ratio(0.5), ratio(0.5), ratio(0.25), ratio(0.25)};
    weights.mix_down = uniform_matrix<T>(D, count * c.mix_rank, 0.01, rng);
    weights.mix_up = uniform_matrix<T>(count * c.mix_rank, D, 0.01, rng);
    weights.decay = Vector<T>::NullaryExpr(
        C, [&](Index i) { return T(-6 + 5 * std::pow(double(i) / double(std::max<Index>(C - 1, 1)), 1.35)); });
    weights.decay_down = uniform_matrix<T>(D, c.decay_rank, 0.01, rng);
    weights.decay_up = uniform_matrix<T>(c.decay_rank, C, 0.01, rng);
    weights.bonus = uniform_matrix<T>(H, C / H, 0.5, rng);
    weights.receptance = projection(C, D);
    weights.key = projection(C, D);
    weights.value = projection(C, D);
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
    const Index D = config_.channels, H = config_.heads, M = config_.mix_rank, length = x.length();
    const auto difference = workspace.sequence<T>(length, D), mixed = workspace.sequence<T>(length, D);
    const auto adjustment = workspace.sequence<T>(length, D);
    previous_tokens(batch, &State::previous, x, difference);
    keep_last_tokens(batch, &State::previous, x);
    workspace.for_row_blocks(length, [&](Index begin, Index count) {
      const auto rows = [&](const auto& view) { return view.rows(begin, count); };
      subtract_tokens<T>(rows(difference), rows(x), rows(difference));
      add_difference<T>(rows(x), rows(difference), mix_all_, rows(mixed));
    });
    const auto low_rank = mix_down_.apply(mixed, workspace);
    workspace.for_row_blocks(length, [&](Index begin, Index count) { apply_tanh(low_rank.rows(begin, count)); });

    const auto project = [&](std::size_t input, const Linear<T>& linear) {
      mix_up_[input].apply(low_rank.columns(Index(input) * M, M), adjustment, workspace);
      workspace.for_row_blocks(length, [&](Index begin, Index count) {
        const auto rows = [&](const auto& view) { return view.rows(begin, count); };
        add_difference<T>(rows(x), rows(difference), mix_[input], rows(adjustment), rows(mixed));
      });
      return linear.apply(mixed, workspace);
    };
    const auto decay_low_rank = project(0, decay_down_);
    workspace.for_row_blocks(length, [&](Index begin, Index count) { apply_tanh(decay_low_rank.rows(begin, count)); });
    const auto log_decay = decay_up_.apply(decay_low_rank, workspace);
    workspace.for_row_blocks(length, [&](Index begin, Index count) {
      apply_activation(log_decay.rows(begin, count), [](const Batch<T>& w) SEQMIX_INLINE_LAMBDA { return -exp(w); });
    });
    const auto key = project(1, key_).heads(H), value = project(2, value_).heads(H);
    const auto receptance = project(3, receptance_).heads(H);
    const auto gate = project(4, gate_);

    const auto output = workspace.heads<T>(length, H, head_dim());
    for (Index b = 0; b < batch.size(); ++b) {
      const auto rows = [&](const HeadSequence<T>& view) { return view.rows(batch.begin(b), batch.length(b)); };
      rwkv6<T>(rows(receptance), rows(key), rows(value), rows(log_decay.heads(H)), bonus_, batch.state(b).memory,
               rows(output), workspace);
    }
    workspace.for_row_blocks(length, [&](Index begin, Index count) {
      const auto block = output.rows(begin, count);
      group_normalize(block, config_.norm_eps, norm_weight_, norm_bias_);
      multiply_silu(block.flat(), gate.rows(begin, count));
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
    expect(config.mix_rank > 0 && config.decay_rank > 0, name, "config.mix_rank, config.decay_rank",
           "must be positive");
    return config;
  }

  Config config_;
  Vector<T> mix_all_;
  std::array<Vector<T>, 5> mix_;
  Linear<T> mix_down_, decay_down_, decay_up_;
  std::array<Linear<T>, 5> mix_up_;
  Matrix<T> bonus_;  // [H, K]
  Linear<T> receptance_, key_, value_, gate_, output_;
  Vector<T> norm_weight_, norm_bias_;
};

static_assert(RecurrentMixer<Rwkv6<float>>);

}  // namespace seqmix::inline SEQMIX_ARCH
