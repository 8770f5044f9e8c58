// Multi-scale retention as flash-linear-attention builds it: rotary positions, an affine norm, grouped keys.
//
//   Source    Sun et al. 2023, arXiv:2307.08621; fla-org/flash-linear-attention, fla/layers/multiscale_retention.py
//   Glossary  L length   D channels   H heads   K, V key and value width of one head
//   Engine    engine/linear_recurrence.hpp with decay::PerHead, through the core function of recurrent/retention.hpp
//   Size      a layer with its own projections, rotation and checkpoint names; the core is that of retention
//
// y_t = W_o (silu(W_g x_t) * concat_h(rms(o_t) * w)),  S_t = gamma_h S_{t-1} + k_t v_t^T,  o_t = K^-0.5 q_t^T S_t
// Differs   from the layer of recurrent/retention.hpp in the rotation (RoPE, pairs i and i + K/2), in the weight of the
//           norm, and in having no row factor; checkpoints are not interchangeable.
#pragma once

#include <seqmix/recurrent/retention.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// The retention layer of flash-linear-attention.
template <std::floating_point T>
class MultiScaleRetention : public RecurrentMixerBase<MultiScaleRetention<T>, T> {
 public:
  static constexpr std::string_view name = "multi_scale_retention";
  static constexpr StateGrowth growth = StateGrowth::constant;

  struct Config {
    Index channels = 0;
    Index heads = 1;
    Index key_value_heads = 0;  ///< 0 means heads; head h reads key and value head h / (heads / key_value_heads)
    Index key_channels = 0;     ///< K H; 0 means channels
    Index value_channels = 0;   ///< V H; 0 means 2 * channels
    T norm_eps = T(1e-5);
    Index start_position = 0;  ///< position of the first token
  };

  struct Weights {
    Matrix<T> query;   // [H K, D]
    Matrix<T> key;     // [key_value_heads K, D]
    Matrix<T> value;   // [key_value_heads V, D]
    Matrix<T> gate;    // [H V, D]
    Vector<T> norm;    // [V]
    Matrix<T> output;  // [D, H V]

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("q_proj.weight", self.query, Presence::required);
      visitor("k_proj.weight", self.key, Presence::required);
      visitor("v_proj.weight", self.value, Presence::required);
      visitor("g_proj.weight", self.gate, Presence::required);
      visitor("g_norm_swish_gate.weight", self.norm, Presence::required);
      visitor("o_proj.weight", self.output, Presence::required);
    }
  };

  struct State {
    Tensor<T> memory;    // [H, K, V]
    Index position = 0;  // of the next token

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("memory", self.memory), visitor("position", self.position);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless the head counts divide what they must and the shapes of
  /// `weights` follow from `config`.
  MultiScaleRetention(Config config, const Weights& weights) : config_(completed(config)) {
    const Index D = config_.channels, H = config_.heads, shared = config_.key_value_heads;
    expect_tensor(name, "q_proj.weight", {H * key_dim(), D}, weights.query);
    expect_tensor(name, "k_proj.weight", {shared * key_dim(), D}, weights.key);
    expect_tensor(name, "v_proj.weight", {shared * value_dim(), D}, weights.value);
    expect_tensor(name, "g_proj.weight", {H * value_dim(), D}, weights.gate);
    expect_tensor(name, "g_norm_swish_gate.weight", {value_dim()}, weights.norm);
    expect_tensor(name, "o_proj.weight", {D, H * value_dim()}, weights.output);
    input_ = Linear<T>({&weights.query, &weights.key, &weights.value, &weights.gate});
    output_ = Linear<T>(weights.output);
    norm_ = weights.norm;
    rotary_ = Rotary::standard(key_dim(), 10000.0, RotaryPairs::half);
    log_decay_ = retention_log_decay<T>(H);
  }

  /// Xavier-uniform with gain 2^-2.5; the norm's weight is 1.
  static Weights random_weights(const Config& config, Rng& rng) {
    const Config c = completed(config);
    const Index K = c.key_channels / c.heads, V = c.value_channels / c.heads;
    const auto xavier = [&](Index rows, Index columns) {
      return uniform_matrix<T>(rows, columns, std::exp2(-2.5) * std::sqrt(6.0 / double(rows + columns)), rng);
    };
    return {xavier(c.key_channels, c.channels),
            xavier(c.key_value_heads * K, c.channels),
            xavier(c.key_value_heads * V, c.channels),
            xavier(c.value_channels, c.channels),
            Vector<T>::Ones(V),
            xavier(c.channels, c.value_channels)};
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// The empty state: H K V zeros.
  State initial_state() const { return {Tensor<T>({config_.heads, key_dim(), value_dim()}), config_.start_position}; }

  /// Throws std::invalid_argument unless the state has this mixer's shapes.
  void check_state(const State& state) const {
    expect_shape(name, "state.memory", {config_.heads, key_dim(), value_dim()}, state.memory.shape());
    expect(state.position >= 0, name, "state.position", "is negative");
  }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const Index H = config_.heads, shared = config_.key_value_heads;
    const auto projected = input_.apply(x, workspace);
    Index column = 0;
    const auto next = [&](Index heads, Index head_dim) {
      column += heads * head_dim;
      return projected.columns(column - heads * head_dim, heads * head_dim).heads(heads);
    };
    const auto query = next(H, key_dim()), key = next(shared, key_dim()), value = next(shared, value_dim());
    const auto gate = next(H, value_dim());
    const auto mixed = workspace.heads<T>(x.length(), H, value_dim());
    for (Index b = 0; b < batch.size(); ++b) {
      State& state = batch.state(b);
      const auto rows = [&](const HeadSequence<T>& view) { return view.rows(batch.begin(b), batch.length(b)); };
      rotary_.apply(rows(query), state.position, workspace);
      rotary_.apply(rows(key), state.position, workspace);
      retention<T>(rows(query), rows(key), rows(value), log_decay_, std::pow(T(key_dim()), T(-0.5)), state.memory,
                   rows(mixed), workspace);
      state.position += batch.length(b);
    }
    workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
      const auto block = mixed.rows(begin, count);
      rms_normalize(block, config_.norm_eps, norm_);
      multiply_silu(block.flat(), gate.flat().rows(begin, count));
    });
    output_.apply(mixed.flat(), y, workspace);
  }

 private:
  Index key_dim() const { return config_.key_channels / config_.heads; }
  Index value_dim() const { return config_.value_channels / config_.heads; }

  static Config completed(Config config) {
    if (config.key_value_heads == 0) config.key_value_heads = config.heads;
    if (config.key_channels == 0) config.key_channels = config.channels;
    if (config.value_channels == 0) config.value_channels = 2 * config.channels;
    expect(config.channels > 0, name, "config.channels", "must be positive");
    expect_divides(name, "config.heads", config.heads, "key_channels", config.key_channels);
    expect(config.key_channels / config.heads % 2 == 0, name, "config.heads",
           "must leave heads of even size: given " + std::to_string(config.heads) + " for " +
               std::to_string(config.key_channels) + " key_channels");
    expect_divides(name, "config.heads", config.heads, "value_channels", config.value_channels);
    expect_divides(name, "config.key_value_heads", config.key_value_heads, "heads", config.heads);
    expect(config.start_position >= 0, name, "config.start_position", "must not be negative");
    return config;
  }

  Config config_;
  Linear<T> input_, output_;
  Vector<T> norm_;
  Rotary rotary_;
  Vector<T> log_decay_;
};

static_assert(RecurrentMixer<MultiScaleRetention<float>>);

}  // namespace seqmix::inline SEQMIX_ARCH
